"""Video files: every container, what is missing in them, and reasons that are true."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.processes import without_roots_rights
from tests.runtime.video.films import RATE, with_times, write_film

from fer_runtime.errors import ImageError
from fer_runtime.video import sources
from fer_runtime.video.sources import FrameCounts, VideoFile, native_path

CONTAINERS = (
    *((".mp4", "mp4v"), (".mov", "mp4v"), (".m4v", "mp4v"), (".3gp", "mp4v"), (".avi", "MJPG"), (".mkv", "mp4v")),
    *((".webm", "VP80"), (".wmv", "WMV2"), (".flv", "FLV1"), (".ts", "mpg2"), (".m2ts", "mpg2"), (".mpg", "mpg2")),
    *((".ogv", "VP80"), (".ivf", "VP80"), (".nut", "mp4v"), (".m2v", "mpg2")),
)


def _read(path: Path, *, every: int = 1, start: float = 0.0, duration: float | None = None) -> FrameCounts:
    counts, video = FrameCounts(), VideoFile(path)
    for _ in video.read(every=every, start=start, duration=duration, counts=counts):
        counts.processed += 1
    video.close()
    return counts


@pytest.mark.parametrize(("suffix", "codec"), CONTAINERS)
def test_a_whole_film_misses_nothing_in_any_container(suffix: str, codec: str, tmp_path: Path) -> None:
    counts = _read(write_film(tmp_path / f"film{suffix}", codec))
    assert (counts.processed, counts.missing_seconds) == (60, 0)
    # Before OpenCV 4.13, raw streams have no time stamps.
    assert counts.missing == 0 or (suffix == ".m2v" and counts.missing is None)
    # Transport streams and the like state no duration of their own.
    assert counts.end == pytest.approx(3.0, abs=0.06)


@pytest.mark.parametrize(("suffix", "codec"), [(".mkv", "MJPG"), (".webm", "VP80"), (".wmv", "WMV2"), (".ts", "mpg2")])
def test_frames_that_are_gone_from_the_middle_are_counted(suffix: str, codec: str, tmp_path: Path) -> None:
    path = write_film(tmp_path / f"film{suffix}", codec, frames=300)
    content = bytearray(path.read_bytes())
    middle, hole = len(content) // 2, len(content) // 6
    content[middle : middle + hole] = bytes(hole)
    path.write_bytes(content)
    counts = _read(path)
    assert counts.missing is not None
    assert counts.missing > 20
    # All of the 300 frames are accounted for, but for one whose time stamp is damaged.
    assert counts.total + counts.missing == pytest.approx(300, abs=1)


@pytest.mark.parametrize("gap", [2, 7, 40])
def test_gaps_between_the_times_are_counted_in_frames(gap: int, tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mp4")
    times = [number if number < 25 else number + gap for number in range(60)]
    assert _read(with_times(film, tmp_path / "gap.mkv", times)).missing == gap


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_containers_that_list_their_frames_tell_what_is_missing(suffix: str, tmp_path: Path) -> None:
    path = write_film(tmp_path / f"film{suffix}", "MJPG", frames=60)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + len(content) // 8] = bytes(len(content) // 8)
    path.write_bytes(content)
    counts = _read(path)
    assert counts.missing is not None
    assert counts.total + counts.missing == 60
    assert counts.missing > 3


@pytest.mark.parametrize(("suffix", "codec"), [(".mkv", "mp4v"), (".wmv", "WMV2")])
def test_a_film_that_ends_early_says_by_how_much(suffix: str, codec: str, tmp_path: Path) -> None:
    path = write_film(tmp_path / f"film{suffix}", codec)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    counts = _read(path)
    assert counts.missing_seconds == pytest.approx(3.0 - counts.end, abs=1e-3)
    assert counts.missing_seconds > 0.5
    assert counts.is_end_known


@pytest.mark.parametrize("suffix", [".ts", ".m2ts"])
def test_a_transport_stream_does_not_say_its_length_but_ends_with_a_whole_packet(suffix: str, tmp_path: Path) -> None:
    path = write_film(tmp_path / f"film{suffix}", "mpg2")
    counts = _read(path)
    assert (counts.is_cut, counts.is_end_known) == (False, False)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3 // 192 * 192 + 100])
    counts = _read(path)
    assert (counts.is_cut, counts.is_end_known) == (True, False)
    assert counts.processed < 60


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_variable_frame_rate_is_no_damage(suffix: str, tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mp4")
    times = [number if number < 30 else 30 + 5 * (number - 30) for number in range(60)]
    counts = _read(with_times(film, tmp_path / f"slow{suffix}", times))
    # MP4 lists all frames; in the other two, slow frames and missing ones look the same.
    assert counts.missing == (0 if suffix == ".mp4" else None)
    assert counts.missing_seconds == 0
    assert counts.end == pytest.approx(times[-1] / RATE, abs=0.3)


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".mp4", ".mov", ".ts"])
@pytest.mark.parametrize("start", [3, 2000])
def test_a_film_that_starts_later_is_not_cut_short(suffix: str, start: int, tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mkv", "VP80" if suffix == ".webm" else "mp4v")
    counts = _read(with_times(film, tmp_path / f"late{suffix}", [start + number for number in range(60)]))
    assert (counts.processed, counts.missing, counts.missing_seconds) == (60, 0, 0)
    assert counts.end == pytest.approx(3.0, abs=0.01)


@pytest.mark.parametrize("ticks", [0, 0xFFFFFFFF])
def test_frames_that_a_damaged_clock_takes_away_are_counted(ticks: int, tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", frames=40)
    content = bytearray(path.read_bytes())
    at = content.index(b"mdhd") + 16
    content[at : at + 4] = ticks.to_bytes(4, "big")  # of a second; FFmpeg takes them for seconds then
    path.write_bytes(content)
    counts = _read(path)
    assert counts.total < 40
    assert counts.missing == 40 - counts.total


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/x.ts\n", "is a playlist, which is not followed"),
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "is a playlist, which is not followed"),
        (b"\0\0\0\x18ftypisom" + bytes(2 << 20) + b"hdlr\0\0\0\0\0\0\0\0soun", "has sound and no frames"),
        (b"\0\0\0\x18ftypisom" + bytes(20) + b"hdlr\0\0\0\0\0\0\0\0sounvide", "cannot be opened as a video: damaged"),
        (b"\x1a\x45\xdf\xa3" + bytes(20) + b"\x86\x88A_VORBIS", "has sound and no frames"),
        (b"\x1a\x45\xdf\xa3" + bytes(20) + b"\x86\x88A_VORBIS\x86\x85V_VP8", "cannot be opened as a video: damaged"),
        (b"some text", "cannot be opened as a video: damaged"),
    ],
)
def test_what_is_no_video_is_called_what_it_is(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=re.escape(f"{path} {reason}")):
        VideoFile(path)


def test_a_film_that_was_trimmed_on_a_phone_is_not_cut_short(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4")
    content = bytearray(path.read_bytes())
    # The edit list (ISO/IEC 14496-12, 8.6.6) shows frames 27 to 59; all 60 stay in the file.
    entry = content.index(b"elst") + 12
    struct.pack_into(">II", content, entry, 1650, 27 * 10240 // RATE)  # movie's milliseconds, media's units
    struct.pack_into(">I", content, content.index(b"mvhd") + 20, 1650)
    path.write_bytes(content)
    counts = _read(path)
    assert 30 <= counts.processed <= 34
    assert (counts.missing, counts.missing_seconds) == (0, 0)


def test_a_film_turned_by_its_metadata_is_upright(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", frames=3)
    content = bytearray(path.read_bytes())
    # The matrix of the track header: a quarter turn (ISO/IEC 14496-12, 8.3.2), 16.16 fixed point.
    matrix = content.index(b"tkhd") + 4 + 40
    struct.pack_into(">9i", content, matrix, 0, 1 << 16, 0, -1 << 16, 0, 0, 120 << 16, 0, 1 << 30)
    path.write_bytes(content)
    image = next(VideoFile(path).read(every=1, start=0, duration=None, counts=FrameCounts())).image
    assert image.shape == (160, 120, 3)


def test_a_film_without_a_frame_that_decodes_says_so(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4")
    content = bytearray(path.read_bytes())
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    content[start:end] = bytes(end - start)
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"film\.mp4 has no frame that can be decoded of the 60"):
        _read(path)


def test_a_start_beyond_the_end_says_where_the_end_is(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"has no frame from 100 s on: it ends at 3\.0 s"):
        _read(write_film(tmp_path / "film.mp4"), start=100)
    with pytest.raises(ImageError, match=r"has no frame from 1 s on that --every 70 takes: it ends at 3\.0 s"):
        _read(tmp_path / "film.mp4", start=1, every=70)


def test_a_part_of_a_film_is_not_compared_with_the_whole(tmp_path: Path) -> None:
    counts = _read(write_film(tmp_path / "film.mp4"), every=2, start=0.5, duration=1.0)
    assert (counts.processed, counts.skipped, counts.missing, counts.missing_seconds) == (10, 20, 0, 0)
    assert counts.end == pytest.approx(1.5)


def test_reasons_are_the_true_ones(tmp_path: Path) -> None:
    reasons = {
        "missing.mp4": "no video at",
        "x" * 300 + ".mp4": "cannot be opened: File name too long",
        "nul\0.mp4": "cannot be opened: embedded null byte",
        "empty.mp4": r"is empty \(0 bytes\)",
        "folder.mp4": "is not a regular file",
        "text.mp4": "cannot be opened as a video: damaged",
    }
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "text.mp4").write_text("no film")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.mp4")
        reasons["pipe.mp4"] = "is not a regular file"
    for name, reason in reasons.items():
        with pytest.raises(ImageError, match=reason):
            VideoFile(tmp_path / name)


def test_a_film_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", frames=1)
    path.chmod(0)
    program = "import sys; from pathlib import Path; from fer_runtime.video.sources import VideoFile\n"
    command = [*without_roots_rights(), sys.executable, "-c", program + "VideoFile(Path(sys.argv[1]))", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.stderr.splitlines()[-1].endswith(f"ImageError: {path} cannot be opened: Permission denied")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
@pytest.mark.parametrize("name", ["concat:a.mp4", "rtsp:b.mp4", "film%02d.mp4", "-i.mp4", "100 % ä.mp4"])
def test_a_name_is_no_protocol_and_no_pattern(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_film(Path("film.mp4"), frames=2).rename(name)
    assert _read(Path(name)).processed == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are no UTF-8")
def test_names_that_are_no_utf8_go_to_opencv_as_bytes_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(b"/film\xff.mp4")
    assert native_path(Path("/film.mp4")) == "/film.mp4"
    monkeypatch.setattr(cv2, "__version__", "4.12.0")
    assert native_path(Path(name)) == b"/film\xff.mp4"
    monkeypatch.setattr(cv2, "__version__", "4.11.0")
    with pytest.raises(ImageError, match=r"not UTF-8, which OpenCV 4\.11\.0 cannot open"):
        native_path(Path(name))


def test_a_rate_that_no_film_has_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cover:
        """A sound file with a cover picture, as OpenCV reads it: one frame, 90,000 a second, for four seconds."""

        def __init__(self) -> None:
            self._grabbed = 0

        def grab(self) -> bool:
            self._grabbed += 1
            return self._grabbed == 1

        def get(self, name: int) -> float:
            return {cv2.CAP_PROP_FPS: 90000.0, cv2.CAP_PROP_FRAME_COUNT: 360000.0}.get(name, 0.0)

        def retrieve(self) -> tuple[bool, np.ndarray]:
            return True, np.zeros((9, 9, 3), np.uint8)

        def release(self) -> None:
            pass

    monkeypatch.setattr(sources, "open_capture", lambda path: Cover())
    counts = _read(tmp_path / "song.m4a")
    assert (counts.processed, counts.missing, counts.missing_seconds) == (1, 0, 0)
