"""Streams against a real server: ffmpeg on loopback, killed, paused and started again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest
from tests.runtime.video.served import (
    RATE,
    RtspServer,
    free_port,
    mjpeg_arguments,
    mpegts_arguments,
    needs_ffmpeg,
    number_of,
    numbered_frame,
    served,
    web_server,
)

from fer_runtime.errors import ImageError
from fer_runtime.video.addresses import hide_addresses, is_stream, stream_name
from fer_runtime.video.sources import FrameCounts, Gap, SourceFrame

pytest.importorskip("av", reason="PyAV is missing: pip install 'fer-edge[stream]'")

from fer_runtime.video.streams import PipedVideo, Stream

_SECRET = "hunter2"


def _read(source: Stream | PipedVideo, counts: FrameCounts | None = None) -> Iterator[SourceFrame | Gap]:
    # An end, for the day on which a test does not come to its own.
    return source.read(every=1, start=0.0, duration=100.0, counts=FrameCounts() if counts is None else counts)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"rtsp://admin:{_SECRET}@10.0.0.7:554/Streaming/Channels/101", "rtsp://10.0.0.7:554"),
        (f"http://cam/video.cgi?user=admin&pwd={_SECRET}", "http://cam"),
        (f"rtsp://10.0.0.7/user=admin&password={_SECRET}&channel=1", "rtsp://10.0.0.7"),
        (f"rtsp://admin:12/{_SECRET}@10.0.0.7/x", "rtsp://"),
        (f"rtsp://admin:12#{_SECRET}@10.0.0.7/x", "rtsp://"),
        (f"https://[::1]:8443/{_SECRET}", "https://[::1]:8443"),
        ("udp://@239.0.0.1:5000", "udp://239.0.0.1:5000"),
    ],
)
def test_only_scheme_host_and_port_are_shown(address: str, shown: str) -> None:
    assert is_stream(address)
    assert stream_name(address) == shown
    assert hide_addresses(f"{address}: no") == f"{shown}: no"


def test_files_and_object_stores_are_no_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "http:" / "host").mkdir(parents=True)
    (tmp_path / "http:" / "host" / "film.mp4").touch()
    assert not any(map(is_stream, ("film.mp4", "s3://bucket/key", "http://host/film.mp4", 0, "rtsp:/host")))


@needs_ffmpeg
def test_a_server_that_is_killed_twice_and_paused_once_leaves_three_gaps_and_no_frame_twice() -> None:
    port = free_port()
    counts, frames, gaps, messages = FrameCounts(), list[SourceFrame](), list[Gap](), list[str]()
    with served(*mpegts_arguments(port)) as camera:
        address = f"http://admin:{_SECRET}@127.0.0.1:{port}/?token={_SECRET}"
        with Stream(address, name="door", reconnect=20, on_message=messages.append) as stream:
            # A kill, a pause and a kill, each after some frames.
            disruptions = iter([(camera.kill, 0.4, camera.start), (camera.pause, 2.4, camera.go_on)] * 2)
            since = 0
            for item in stream.read(every=1, start=0.0, duration=60.0, counts=counts):
                if isinstance(item, Gap):
                    gaps.append(item)
                    since = 0
                    if sum("closed" in gap.reason for gap in gaps) == 2:
                        break
                    continue
                frames.append(item)
                since += 1
                sleep(0.1)  # slower than the camera: frames are dropped
                if since == 6:
                    threading.Thread(target=_disrupt, args=next(disruptions)).start()
    numbers = [number_of(frame.image) for frame in frames]
    assert numbers == sorted(set(numbers)), "a frame was reported twice"
    assert all(later.number > earlier.number for earlier, later in pairwise(frames))
    assert all(later.time > earlier.time for earlier, later in pairwise(frames))
    assert counts.dropped > 0  # 10 frames a second of 25
    # A machine that is busy enough makes silences of its own.
    assert "closed" in gaps[0].reason
    assert "closed" in gaps[-1].reason
    assert any(gap.reason.startswith("no frame for ") for gap in gaps[1:-1])
    assert all(gap.end - gap.start > 0.5 for gap in gaps)
    # A gap lies between two frames, and in wall-clock time, too.
    assert all(any(gap.end <= frame.time for frame in frames) for gap in gaps[:-1])
    assert all(frame.clock is not None and frame.clock.utcoffset() is not None for frame in frames)
    assert _SECRET not in "".join(messages)
    assert any(message.startswith("door: frames again after ") for message in messages)


@needs_ffmpeg
def test_a_silence_that_outlasts_the_time_limit_is_one_gap(tmp_path: Path) -> None:
    port = free_port()
    messages: list[str] = []
    address = f"http://127.0.0.1:{port}/"
    stream = Stream(address, timeout=1.0, reconnect=30, on_message=messages.append)
    with served(*mpegts_arguments(port)) as camera, stream:
        frames = _read(stream)
        before = [item for item in islice(frames, 5) if isinstance(item, SourceFrame)]
        camera.pause()
        _wait_for(lambda: any("no data arrived in time" in message for message in messages))
        camera.kill()
        camera.start()
        items = [*before]
        gaps = []
        for item in frames:
            if isinstance(item, Gap):
                gaps.append(item)
            elif gaps:
                break
            else:
                items.append(item)
    assert [gap.reason for gap in gaps] == ["no data arrived in time"]
    assert gaps[0].start == items[-1].time
    assert gaps[0].end - gaps[0].start >= 1.0
    # The half frame that FFmpeg had when the time was over is none.
    assert all(later.time - earlier.time < 1.0 for earlier, later in pairwise(items))


def _disrupt(off: Callable[[], None], seconds: float, on: Callable[[], None]) -> None:
    off()
    sleep(seconds)
    on()


@needs_ffmpeg
@pytest.mark.parametrize("arguments", [mjpeg_arguments, mpegts_arguments])
def test_the_newest_frame_is_given_not_one_that_has_waited(arguments: Callable[[int], tuple[str, ...]]) -> None:
    port = free_port()
    with served(*arguments(port)) as camera, Stream(f"http://127.0.0.1:{port}/") as stream:
        frames = _read(stream)
        first = next(frames)
        assert isinstance(first, SourceFrame)
        _wait_for(lambda: stream._shared.frames > first.number + RATE)
        waited = next(frames)
        assert isinstance(waited, SourceFrame)
        # Of the frames that came meanwhile, the last one is given.
        assert waited.number >= first.number + RATE
        assert number_of(waited.image) - number_of(first.image) == waited.number - first.number
        assert camera.process is not None


@needs_ffmpeg
def test_udp_is_read() -> None:
    port = free_port()
    target = f"udp://127.0.0.1:{port}"
    with served("-c:v", "mpeg2video", "-f", "mpegts", f"{target}?pkt_size=1316"), Stream(target) as stream:
        numbers = [number_of(frame.image) for frame in islice(_frames(stream), 5)]
    assert numbers == sorted(set(numbers))


@needs_ffmpeg
@pytest.mark.parametrize("has_tcp", [True, False])
def test_rtsp_is_read_over_its_own_connection_or_in_datagrams(tmp_path: Path, has_tcp: bool) -> None:
    server = RtspServer(tmp_path, has_tcp=has_tcp)
    try:
        with served(*server.arguments()), Stream(server.address, reconnect=20) as stream:
            numbers = [number_of(frame.image) for frame in islice(_frames(stream), 5)]
    finally:
        server.close()
    assert numbers == sorted(set(numbers))
    # The connection comes first: no packet is lost there, and no firewall is in the way.
    assert ["/TCP" in transport for transport in server.transports] == ([True] if has_tcp else [True, False])


@needs_ffmpeg
def test_live_hls_is_read_as_it_grows(tmp_path: Path) -> None:
    """A playlist of the latest segments without an end; older files are removed."""
    hls = ("-f", "hls", "-hls_time", "0.4", "-hls_list_size", "4", "-hls_flags", "delete_segments")
    with served("-c:v", "mpeg2video", "-q:v", "3", *hls, str(tmp_path / "live.m3u8")), web_server(tmp_path) as address:
        _wait_for((tmp_path / "live.m3u8").exists)
        with Stream(f"{address}/live.m3u8", reconnect=20) as stream:
            frames = list(islice(_frames(stream), 30))
    numbers = [number_of(frame.image) for frame in frames]
    assert numbers == sorted(set(numbers))
    assert all(frame.clock is not None for frame in frames)  # live: times are those of arrival
    assert numbers[-1] >= 29


@needs_ffmpeg
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is missing: apt-get install openssl")
def test_https_is_read_with_a_certificate_that_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a user has signed is trusted where SSL_CERT_FILE names it, and otherwise refused with that hint."""
    _ffmpeg(tmp_path / "film.mkv", frames=10)
    own, other = (tmp_path / f"{name}.pem" for name in ("own", "other"))
    for path in (own, other):
        names = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
        keys = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(path))
        made = subprocess.run(["openssl", "req", "-x509", "-days", "2", *keys, *names], capture_output=True, check=True)
        path.write_bytes(path.read_bytes() + made.stdout)
    with web_server(tmp_path, own) as address:
        monkeypatch.setenv("SSL_CERT_FILE", str(own))
        with Stream(f"{address}/film.mkv", reconnect=0) as stream:
            assert [number_of(frame.image) for frame in _frames(stream)] == [*range(10)]
        monkeypatch.setenv("SSL_CERT_FILE", str(other))
        refused = pytest.raises(ImageError, match="a certificate that is not trusted; SSL_CERT_FILE names others")
        with Stream(f"{address}/film.mkv", reconnect=0) as stream, refused:
            list(_frames(stream))


def _frames(source: Stream | PipedVideo) -> Iterator[SourceFrame]:
    return (item for item in _read(source) if isinstance(item, SourceFrame))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_for(is_so: Callable[[], bool]) -> None:
    end = monotonic() + 20
    while not is_so():
        assert monotonic() < end
        sleep(0.1)


def test_nobody_listening_is_an_error_after_the_time_for_new_tries() -> None:
    messages: list[str] = []
    address = f"rtsp://admin:{_SECRET}@127.0.0.1:{free_port()}/x?key={_SECRET}"
    expected = pytest.raises(ImageError, match=r"rtsp://127\.0\.0\.1:\d+ cannot be read: Connection refused")
    with Stream(address, reconnect=0.7, on_message=messages.append) as stream, expected as caught:
        list(_read(stream))
    assert len(messages) == 2  # after 0 and after 0.5 seconds
    assert _SECRET not in str(caught.value) + "".join(messages)


def test_what_no_further_try_would_change_is_an_error_at_once(tmp_path: Path) -> None:
    with (
        web_server(tmp_path) as address,
        Stream(f"{address}/nothing.ts", reconnect=600) as stream,
        pytest.raises(ImageError, match="no such stream"),
    ):
        list(_read(stream))


def test_a_page_is_no_stream(tmp_path: Path) -> None:
    with (
        web_server(tmp_path) as address,
        Stream(f"{address}/", reconnect=0) as stream,
        pytest.raises(ImageError, match="no video"),
    ):
        list(_read(stream))


@needs_ffmpeg
def test_a_still_image_is_not_asked_for_again_and_again(tmp_path: Path) -> None:
    _ffmpeg(tmp_path / "still.jpg", frames=1)
    with (
        web_server(tmp_path) as address,
        Stream(f"{address}/still.jpg", reconnect=600) as stream,
        pytest.raises(ImageError, match="an image, not a stream; download it"),
    ):
        list(_read(stream))


@needs_ffmpeg
def test_no_frame_of_a_film_on_a_server_is_dropped(tmp_path: Path) -> None:
    _ffmpeg(tmp_path / "film.mkv", frames=50)
    counts = FrameCounts()
    with web_server(tmp_path) as address, Stream(f"{address}/film.mkv", reconnect=600) as stream:
        frames = [item for item in _read(stream, counts) if isinstance(item, SourceFrame)]
    assert [number_of(frame.image) for frame in frames] == [*range(50)]
    assert frames[25].time == pytest.approx(1.0, abs=0.002)  # Matroska's times are in milliseconds
    assert frames[0].clock is None
    assert counts.dropped == 0


@needs_ffmpeg
def test_a_film_whose_connection_breaks_goes_on_where_it_stopped(tmp_path: Path) -> None:
    _ffmpeg(tmp_path / "film.mkv", frames=50)
    with web_server(tmp_path, breaks_once=True) as address, Stream(f"{address}/film.mkv", reconnect=600) as stream:
        frames = [item for item in _read(stream) if isinstance(item, SourceFrame)]
    assert [number_of(frame.image) for frame in frames] == [*range(50)]
    assert all(before.time < after.time for before, after in pairwise(frames))


@needs_ffmpeg
def test_hls_is_read_and_names_no_file_of_this_machine(tmp_path: Path) -> None:
    _ffmpeg(tmp_path / "film.m3u8", "-f", "hls", "-hls_time", "1", frames=50)
    playlist = (tmp_path / "film.m3u8").read_text()
    (tmp_path / "evil.m3u8").write_text(playlist.replace("film0.ts", (tmp_path / "film0.ts").as_uri()))
    assert "file://" in (tmp_path / "evil.m3u8").read_text()
    with web_server(tmp_path) as address:
        with Stream(f"{address}/film.m3u8") as stream:
            assert [number_of(frame.image) for frame in _frames(stream)][:5] == [*range(5)]
        with Stream(f"{address}/evil.m3u8", reconnect=0) as stream:
            assert 0 not in [number_of(frame.image) for frame in _frames(stream)]  # the first segment is left out


def _ffmpeg(path: Path, *arguments: str, frames: int) -> None:
    raw = b"".join(numbered_frame(number).tobytes() for number in range(frames))
    source = ("-f", "rawvideo", "-pix_fmt", "gray", "-s", "256x64", "-r", str(RATE), "-i", "-")
    codec = () if path.suffix == ".jpg" else ("-c:v", "mpeg2video", "-q:v", "3")
    command = ["ffmpeg", "-loglevel", "error", *source, *codec, *arguments, str(path)]
    subprocess.run(command, input=raw, check=True, timeout=60)


@pytest.mark.parametrize("is_live", [False, True])
def test_raw_frames_from_a_pipe_arrive_as_they_are(is_live: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 6, 10, 3), np.uint8)
    reading, writing = os.pipe()
    os.write(writing, images.tobytes())
    os.close(writing)
    counts = FrameCounts()
    video = PipedVideo(reading, input_format="raw:bgr24:10x6@4", is_live=is_live)
    frames = [item for item in _read(video, counts) if isinstance(item, SourceFrame)]
    video.close()
    os.close(reading)
    assert all(np.array_equal(frame.image, images[frame.number]) for frame in frames)
    assert frames[-1].number == 7
    assert len(frames) + counts.dropped == 8
    if not is_live:
        assert [frame.time for frame in frames] == pytest.approx([number / 4 for number in range(8)], abs=0.001)


def test_a_piped_video_without_a_frame_that_was_asked_for_is_an_error() -> None:
    reading, writing = os.pipe()
    os.write(writing, bytes(8 * 6 * 10 * 3))
    os.close(writing)
    with closing(PipedVideo(reading, input_format="raw:bgr24:10x6@4")) as video:
        items = video.read(every=1, start=9.0, duration=None, counts=FrameCounts())
        with pytest.raises(ImageError, match=r"no frame from 9 s on: it ends at 1\.\d s"):
            list(items)
    os.close(reading)


@needs_ffmpeg
def test_a_piped_video_that_was_cut_within_its_first_frame_is_an_error(tmp_path: Path) -> None:
    _ffmpeg(tmp_path / "film.mp4", "-movflags", "faststart", frames=10)
    content = (tmp_path / "film.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: content.index(b"mdat") + 300])
    with (tmp_path / "cut.mp4").open("rb") as file, closing(PipedVideo(file.fileno())) as video:
        items = _read(video, FrameCounts())
        with pytest.raises(ImageError, match="no frame that can be decoded: damaged, or cut short"):
            list(items)


@pytest.mark.parametrize("pixels", ["bgr24", "gray16le", "yuv420p"])
def test_a_raw_frame_that_was_cut_off_is_damaged(pixels: str) -> None:
    size = {"bgr24": 144, "gray16le": 96, "yuv420p": 72}[pixels]  # 8 x 6 pixels of 3, 2 and 1.5 bytes
    reading, writing = os.pipe()
    os.write(writing, bytes(2 * size + size // 2))  # the writer was stopped within the third frame
    os.close(writing)
    counts = FrameCounts()
    video = PipedVideo(reading, input_format=f"raw:{pixels}:8x6@4")
    frames = [item.number for item in _read(video, counts) if isinstance(item, SourceFrame)]
    video.close()
    os.close(reading)
    assert (frames, counts.damaged) == ([0, 1], 1)


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("raw:foo:64x64", "no pixels 'foo'"),
        ("raw:cuda:64x64", "no pixels 'cuda'"),
        ("raw:gray:99999x99999", "at most 100,000,000 pixels"),
        ("raw:gray:64x64@0", "frames per second"),
        ("raw:gray:64x64@1000000000000", "frames per second"),
    ],
)
def test_raw_frames_that_ffmpeg_cannot_have_are_refused_by_the_fact(text: str, fact: str) -> None:
    with pytest.raises(ValueError, match=f"{text}.*{fact}"):
        PipedVideo(0, input_format=text)


@pytest.mark.parametrize("text", ["nothing", "raw", "raw:bgr24", "raw:bgr24:0x4", "raw:bgr24:4x4@x@y", "raw:bgr24:4"])
def test_an_input_format_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"raw:PIXELS|FFmpeg has no format"):
        PipedVideo(0, input_format=text)
