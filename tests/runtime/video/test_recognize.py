"""Videos made from the shipped portraits: two faces move, every frame is accounted for."""

from __future__ import annotations

import csv
import gc
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tests.commands import run_python_text
from tests.processes import started
from tests.runtime.video.films import with_times, write_film

from fer_runtime import Recognizer
from fer_runtime.batch.sources import sample_images
from fer_runtime.cli import main, progress
from fer_runtime.cli import videos as video_command
from fer_runtime.cli.options import VideosRun
from fer_runtime.cli.videos import run_on_videos
from fer_runtime.command import take_options
from fer_runtime.errors import ImageError
from fer_runtime.images import read_image
from fer_runtime.output.annotate import draw_faces
from fer_runtime.results import Face
from fer_runtime.video import recognize
from fer_runtime.video.annotated import annotated_paths
from fer_runtime.video.jobs import VideoOptions, write_video_rows
from fer_runtime.video.recognize import recognize_video
from fer_runtime.video.sources import FrameCounts, Gap, SourceFrame

RATE = 20


def write_video(path: Path, *, frames: int, size: tuple[int, int] = (640, 360)) -> Path:
    """Two portraits that move towards each other and back, without touching."""
    faces = []
    for name, (x, y, width, height) in (("eileen", (120, 30, 210, 210)), ("grace", (110, 60, 300, 300))):
        sample = next(path for path in sample_images() if name in path)
        faces.append(cv2.resize(read_image(sample)[y : y + height, x : x + width], (150, 150)))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), RATE, size)
    for frame in range(frames):
        image = np.full((size[1], size[0], 3), (200, 205, 210), np.uint8)
        away = round(80 + 60 * np.sin(frame / RATE))
        image[60:210, away : away + 150] = faces[0]
        image[150:300, size[0] - away - 150 : size[0] - away] = faces[1]
        writer.write(image)
    writer.release()
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "two.mp4", frames=60)


def test_two_moving_faces_give_two_tracks_and_every_frame_is_accounted_for(video: Path) -> None:
    counts = FrameCounts()
    with Recognizer("v0") as recognizer:
        results = list(recognize_video(recognizer, video, counts=counts))
    assert (counts.processed, counts.skipped, counts.dropped) == (60, 0, 0)
    assert [result.frame for result in results] == list(range(60))
    assert [result.time for result in results] == pytest.approx([frame / RATE for frame in range(60)], abs=1e-3)
    assert {face.track for result in results for face in result.faces} == {1, 2}
    # The cascade may miss a face now and then; most frames show both.
    assert np.mean([len(result.faces) == 2 for result in results]) > 0.8
    left = next(face for face in results[-1].faces if face.face.box[0] < 300)
    assert left.face.expression == "happy"


def test_every_start_and_duration_leave_frames_out_and_count_them(video: Path) -> None:
    counts = FrameCounts()
    with Recognizer("v0") as recognizer:
        results = list(recognize_video(recognizer, video, every=4, start=1.0, duration=1.0, counts=counts))
        with pytest.raises(ValueError, match="every"):
            next(recognize_video(recognizer, video, every=0))
        with pytest.raises(ImageError, match="no video"):
            next(recognize_video(recognizer, "missing.mp4"))
    # Of the frames 20 to 39, every fourth.
    assert [result.frame for result in results] == [20, 24, 28, 32, 36]
    assert (counts.processed, counts.skipped) == (5, 35)


class _FakeCamera:
    """Stands for cv2.VideoCapture: gray frames, one when `read_frame` lets it; then the camera is unplugged."""

    def __init__(self, read_frame: Callable[[int], bool]) -> None:
        self._read_frame = read_frame
        self._read = 0
        self.released = threading.Event()

    def isOpened(self) -> bool:  # noqa: N802, OpenCV's name
        return True

    def read(self) -> tuple[bool, np.ndarray | None]:
        there = self._read_frame(self._read)
        self._read += 1
        return there, np.full((64, 64, 3), 128, np.uint8) if there else None

    def release(self) -> None:
        self.released.set()


def test_a_camera_that_is_forgotten_may_be_collected_in_its_own_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forgotten = threading.Event()
    ignored: list[object] = []  # exceptions that the garbage collector can raise to nobody
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)

    def read_frame(number: int) -> bool:
        if number > 0:
            forgotten.wait(timeout=60)
            gc.collect()
        return number < 100

    camera = _FakeCamera(read_frame)
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: camera)
    gc.disable()  # nothing else may find the generator first
    try:
        results = recognize_video(Recognizer("v0"), 0)
        assert next(results).frame == 0
        circle: list[object] = [results]
        circle.append(circle)
        del results, circle
        forgotten.set()
        assert camera.released.wait(timeout=60)
    finally:
        gc.enable()
    assert ignored == []


def test_watching_a_camera_ends_with_ctrl_c_and_keeps_rows_and_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processed = threading.Semaphore(0)
    camera = _FakeCamera(lambda number: processed.acquire(timeout=60) if number else True)
    open_video = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: camera if source == 0 else open_video(source))
    rows: list[str] = []

    def write(row: str) -> None:
        rows.append(row)
        if len(rows) == 3:
            raise KeyboardInterrupt
        processed.release()

    (path,) = annotated_paths(tmp_path, [0])
    with Recognizer("v0", detector="whole") as recognizer:
        summary = write_video_rows(recognizer, 0, write, annotate=path)
    processed.release()
    assert (summary.counts.processed, summary.tracks, len(rows)) == (3, 1, 3)
    # As long as it was watched, whatever the rate at which frames were processed.
    first, last = (json.loads(row)["time"] for row in (rows[0], rows[-1]))
    expected = round((last - first) * 25) + 1
    assert open_video(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) == expected
    assert list(tmp_path.iterdir()) == [path]


def _options(*arguments: str) -> VideosRun:
    """What the command line makes of `arguments`."""
    with main.make_context("fer-infer", list(arguments)):
        return take_options(VideosRun)


@pytest.mark.skipif(sys.platform == "win32", reason="select takes no pipes there")
def test_a_cameras_rows_are_read_while_it_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    arrived: list[bool] = []

    def read_frame(number: int) -> bool:
        if number == 1:  # the camera waits until somebody could read the first frame's row
            arrived.append(bool(select.select([reading], [], [], 20)[0]))
        return number < 1

    monkeypatch.setattr(cv2, "VideoCapture", lambda number: _FakeCamera(read_frame))
    with os.fdopen(reading) as reader:
        with os.fdopen(writing, "w") as pipe:
            monkeypatch.setattr(sys, "stdout", pipe)
            failed = run_on_videos(_options("--camera", "0", "--model", "v0", "--detector", "whole"), [0], "jsonl")
        first, last = map(json.loads, reader)
    assert first["frame"] == 0
    assert last == {"path": "camera 0", "error": "camera 0 gives no more frames; is it still plugged in?"}
    assert (failed, arrived) == (True, [True])


@pytest.mark.parametrize("segments", [False, True])
def test_a_camera_that_is_unplugged_leaves_its_rows_and_its_copy(
    segments: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processed = threading.Semaphore(1)
    camera = _FakeCamera(lambda number: number < 3 and processed.acquire(timeout=60))
    open_video = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: camera if source == 0 else open_video(source))
    rows: list[str] = []
    (path,) = annotated_paths(tmp_path, [0])
    options = VideoOptions(segments=segments)
    with Recognizer("v0", detector="whole") as recognizer, pytest.raises(ImageError, match="camera 0 gives no more"):
        write_video_rows(recognizer, 0, rows.append, options, annotate=path, on_result=processed.release)
    assert [json.loads(row)["path"] for row in rows] == ["camera 0"] * (1 if segments else 3)
    assert open_video(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) >= 1


def test_a_films_frames_are_processed_on_all_cpus_and_the_results_are_the_same(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()
    detect = Recognizer.detect

    def note_thread(self: Recognizer, *arguments: Any, **options: Any) -> Any:
        threads.add(threading.get_ident())
        return detect(self, *arguments, **options)

    monkeypatch.setattr(Recognizer, "detect", note_thread)
    with Recognizer("v0") as recognizer:
        monkeypatch.setattr(recognize, "available_cpus", lambda: 1)
        alone = list(recognize_video(recognizer, video))
        assert threads == {threading.get_ident()}
        threads.clear()
        monkeypatch.setattr(recognize, "available_cpus", lambda: 3)
        shown: list[int] = []
        together = list(recognize_video(recognizer, video, on_frame=lambda image, result: shown.append(result.frame)))
    assert together == alone
    assert shown == list(range(60))
    assert len(threads) > 1
    assert threading.get_ident() not in threads


def test_a_film_that_is_stopped_counts_the_frames_that_were_given(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognize, "available_cpus", lambda: 3)
    counts = FrameCounts()
    with Recognizer("v0", detector="whole") as recognizer:
        with closing(recognize_video(recognizer, video, counts=counts)) as results:
            assert [next(results).frame, next(results).frame] == [0, 1]
        assert counts.processed == 2
        # Whole: when the file's end is reached, its last frames still wait for their faces, and are not missing.
        counts = FrameCounts()
        list(recognize_video(recognizer, video, counts=counts))
    assert (counts.processed, counts.missing) == (60, 0)


def test_frames_before_a_failure_of_the_source_have_their_results() -> None:
    def read() -> Iterator[SourceFrame]:
        for number in range(3):
            yield SourceFrame(number=number, time=float(number), image=np.zeros((48, 48, 3), np.uint8))
        raise ImageError("is gone")

    given: list[int] = []

    def take_all() -> None:
        with Recognizer("v0", detector="whole") as recognizer:
            for searched in recognize._search_frames(recognizer, read(), 8):
                assert not isinstance(searched, Gap)
                given.append(searched.frame.number)
                assert len(searched.seen().faces) == 1

    with pytest.raises(ImageError, match="is gone"):
        take_all()
    assert given == [0, 1, 2]


def test_a_source_whose_seconds_do_not_rise_is_an_error() -> None:
    class Stuck:
        name = "stuck"

        def read(self, **_: object) -> Iterator[SourceFrame]:
            for number in range(2):
                yield SourceFrame(number=number, time=1.0, image=np.zeros((48, 48, 3), np.uint8))

        def close(self) -> None:
            pass

    with (
        Recognizer("v0", detector="whole") as recognizer,
        pytest.raises(ValueError, match=r"seconds must rise from frame to frame: 1\.0 after 1\.0"),
    ):
        list(recognize_video(recognizer, Stuck()))


def test_the_progress_of_a_film_shows_above_the_rows_on_a_terminal(
    video: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(video_command, "is_terminal", lambda stream: True)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN", 0.0)
    options = _options(str(video), "--model", "v0", "--detector", "whole", "--start", "1", "--duration", "1")
    run_on_videos(options, [video], "table")
    rows, messages = capfd.readouterr()
    assert "face   1" in rows
    # Escape sequences are left out where nobody sees them; the carriage return stays.
    *_, before, last = messages.split("\r")
    assert re.search(r"two\.mp4: 11 frames, at 1\.5 of 2\.0 s, \d+ s left, \d+ frames/s\r", messages)
    assert before == ""
    assert ": 20 processed, " in last


def _infer(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_python_text("-m", "fer_runtime", *arguments, timeout=120)


def test_the_command_writes_frames_segments_subtitles_and_the_annotated_video(video: Path, tmp_path: Path) -> None:
    run = _infer(video, "--every", 3, "--annotate", tmp_path)
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert [row["frame"] for row in rows] == list(range(0, 60, 3))
    assert "60 frames: 20 processed, 40 skipped, 0 dropped; 2 faces tracked" in run.stderr
    annotated = cv2.VideoCapture(str(tmp_path / "two.annotated.mp4"))
    assert annotated.get(cv2.CAP_PROP_FRAME_COUNT) == 20
    _, first = annotated.read()
    assert first.shape == (360, 640, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["two.annotated.mp4"]
    # The copy shows the numbers of the rows: drawn with them swapped, its first frame looks otherwise.
    _, frame = cv2.VideoCapture(str(video)).read()
    numbers = [face.pop("track") for face in rows[0]["faces"]]
    faces = [Face.from_dict(face) for face in rows[0]["faces"]]
    image: Any = frame
    right, swapped = (draw_faces(image, faces, numbers=drawn).astype(int) for drawn in (numbers, numbers[::-1]))
    where = (right != swapped).any(-1)
    assert sorted(numbers) == [1, 2]
    # The codec blurs the letters.
    assert np.abs(right - first)[where].mean() < 0.5 * np.abs(swapped - first)[where].mean()

    segments = [json.loads(line) for line in _infer(video, "--every", 3, "--segments").stdout.splitlines()]
    assert {segment["track"] for segment in segments} == {1, 2}
    table = list(csv.DictReader(io.StringIO(_infer(video, "--every", 3, "--segments", "--format", "csv").stdout)))
    assert [float(line["start"]) for line in table] == [segment["start"] for segment in segments]
    subtitles = _infer(video, "--every", 3, "--format", "srt").stdout
    assert len(re.findall(r"^\d\d:\d\d:\d\d,\d{3} --> ", subtitles, re.MULTILINE)) == len(segments)
    labels = re.findall(r"^face (\d+): (\w+)", subtitles, re.MULTILINE)
    assert [(int(track), label) for track, label in labels] == [
        (segment["track"], segment["expression"]) for segment in segments
    ]


def test_the_table_of_frames_says_which_faces_are_uncertain(video: Path) -> None:
    # Between the astronaut's smile and the admiral's calm.
    run = _infer(video, "--every", 20, "--format", "csv", "--min-confidence", 0.8)
    rows = list(csv.DictReader(io.StringIO(run.stdout)))
    assert [row["uncertain"] for row in rows] == [str(float(row["confidence"]) < 0.8).lower() for row in rows]
    assert {row["uncertain"] for row in rows} == {"true", "false"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are no UTF-8")
def test_names_of_videos_that_are_no_utf8_survive(video: Path, tmp_path: Path) -> None:
    film, folder = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.mp4")), Path(os.fsdecode(bytes(tmp_path) + b"/\xfe"))
    film.write_bytes(video.read_bytes())
    for options in (["--annotate", folder], ["--segments"]):
        run = _infer(film, "--every", 30, "--format", "csv", *options)
        assert run.returncode == 0, run.stderr
        paths = {row["path"] for row in csv.DictReader(io.StringIO(run.stdout))}
        assert paths == {f"{tmp_path}/\\udcff.mp4"}
    assert os.listdir(bytes(folder)) == [b"\xff.annotated.mp4"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of file size differ")
def test_a_full_disk_under_the_annotated_video_is_said_and_leaves_nothing(video: Path, tmp_path: Path) -> None:
    def limit() -> None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    command = [sys.executable, "-m", "fer_runtime", str(video), "--segments", "--annotate", str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=limit)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith(f"Error: cannot write {tmp_path / 'out' / 'two.annotated.mp4'}")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_broken_video_loses_no_row_of_the_others(video: Path, tmp_path: Path) -> None:
    broken, output = tmp_path / "broken.mp4", tmp_path / "rows.csv"
    broken.write_bytes(video.read_bytes()[:300])
    run = _infer(broken, video, "--every", 20, "--format", "csv", "--output", output)
    assert run.returncode == 1
    assert run.stderr.splitlines()[1].startswith(f"Error: {broken} cannot be opened as a video")
    first, *others = csv.DictReader(output.open())
    assert first["path"] == str(broken)
    assert first["error"].startswith(f"{broken} cannot be opened as a video")
    assert {(row["path"], row["error"]) for row in others} == {(str(video), "")}


@pytest.mark.parametrize("segments", [[], ["--segments"]])
def test_a_broken_video_has_a_row_with_the_reason(segments: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no film")
    (row,) = map(json.loads, _infer(broken, "--format", "jsonl", *segments).stdout.splitlines())
    assert list(row) == ["path", "error"]
    assert row["path"] == str(broken)
    assert row["error"].startswith(f"{broken} cannot be opened as a video")
    (row,) = csv.DictReader(_infer(broken, "--format", "csv", *segments).stdout.splitlines())
    assert row.pop("path") == str(broken)
    assert row.pop("error").startswith(f"{broken} cannot be opened as a video")
    assert set(row.values()) == {""}


def test_patterns_of_videos_are_expanded_where_the_shell_has_not(video: Path, tmp_path: Path) -> None:
    for name in ("film2.mp4", "film1.mp4"):
        (tmp_path / name).symlink_to(video)
    run = _infer(tmp_path / "film*.mp4", "--every", 30, "--detector", "whole", "--format", "jsonl")
    assert run.returncode == 0
    assert [Path(json.loads(row)["path"]).name for row in run.stdout.splitlines()] == ["film1.mp4"] * 2 + [
        "film2.mp4"
    ] * 2
    assert "no video at" in _infer(tmp_path / "other*.mp4").stderr
    refused = _infer(tmp_path / "film?.mp4", "--output", tmp_path / "film1.mp4")
    assert (refused.returncode, "would overwrite" in " ".join(refused.stderr.split())) == (2, True)


def test_a_table_of_several_videos_says_whose_the_stretches_are(video: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no film")
    run = _infer(video, broken, "--every", 20, "--format", "table", "--detector", "whole")
    lines = run.stdout.splitlines()
    assert run.returncode == 1
    assert lines[0] == str(video)
    assert all(" s  face   1  " in line for line in lines[1:-2])
    assert lines[-2] == str(broken)
    assert lines[-1].startswith(f"  {broken} cannot be opened as a video")


def test_a_broken_video_and_mixed_inputs_are_refused(video: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(video.read_bytes()[:300])
    run = _infer(broken)
    assert run.returncode == 1
    # The libraries below say nothing of their own.
    _model, error = run.stderr.splitlines()
    assert error.startswith(f"Error: {broken} cannot be opened as a video")
    for mixed in (tmp_path, "--samples"):
        refused = _infer(video, mixed)
        assert refused.returncode == 2
    refused = _infer(video.parent / "*", tmp_path / "picture.png")
    assert refused.returncode == 2
    assert f"{video}: give videos and cameras in a run of their own" in " ".join(refused.stderr.split())
    assert _infer(tmp_path, "--segments").returncode == 2
    assert _infer(tmp_path, "--every", 2).returncode == 2
    assert _infer(video, video, "--format", "srt").returncode == 2
    assert "no camera 63" in _infer("--camera", 63).stderr


def test_one_video_that_cannot_be_read_costs_no_other_its_result(video: Path, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300 + ".mp4")
    run = _infer(video, long, video, "--every", 30, "--detector", "whole", "--annotate", tmp_path / "seen")
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.returncode == 1
    assert [Path(row["path"]).name[:7] for row in rows] == ["two.mp4"] * 2 + ["xxxxxxx"] + ["two.mp4"] * 2
    assert rows[2]["error"] == f"{long} cannot be opened: File name too long"
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == ["two-2.annotated.mp4", "two.annotated.mp4"]


def test_a_copy_that_cannot_be_written_costs_no_rows(video: Path, tmp_path: Path) -> None:
    film = tmp_path / ("y" * 245 + ".mp4")
    film.symlink_to(video)
    run = _infer(film, "--every", 30, "--detector", "whole", "--annotate", tmp_path / "seen")
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.returncode == 1
    assert [row.get("frame") for row in rows] == [0, 30, None]
    assert "File name too long" in rows[-1]["error"]
    assert "60 frames: 2 processed" in run.stderr


@pytest.mark.parametrize("format_name", ["jsonl", "csv", "table", "srt"])
def test_a_video_without_a_frame_has_a_row_in_every_format(format_name: str, video: Path, tmp_path: Path) -> None:
    content = bytearray(video.read_bytes())
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    content[start:end] = bytes(end - start)
    (tmp_path / "empty.mp4").write_bytes(content)
    run = _infer(tmp_path / "empty.mp4", "--format", format_name)
    assert run.returncode == 1
    reason = "has no frame that can be decoded of the 60 that it states"
    assert reason in run.stderr
    assert format_name == "srt" or reason in run.stdout


def test_frames_far_apart_give_segments_with_a_length(video: Path) -> None:
    # A frame every 1.5 seconds.
    run = _infer(video, "--every", 30, "--segments", "--format", "jsonl")
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert {row["track"] for row in rows} == {1, 2}
    assert {(row["start"], row["end"]) for row in rows} == {(0.0, 3.0)}
    subtitles = _infer(video, "--every", 30, "--format", "srt").stdout
    assert (
        re.findall(r"^\d\d:\d\d:\d\d,\d{3} --> .*$", subtitles, re.MULTILINE) == ["00:00:00,000 --> 00:00:03,000"] * 2
    )


def test_missing_frames_and_what_is_not_known_are_said(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mp4")
    gap = with_times(film, tmp_path / "gap.mkv", [n if n < 30 else n + 12 for n in range(60)])
    slow = with_times(film, tmp_path / "slow.mkv", [n if n < 30 else 30 + 5 * (n - 30) for n in range(60)])
    cut = write_film(tmp_path / "cut.ts", "mpg2")
    cut.write_bytes(cut.read_bytes()[:-100])
    run = _infer(film, gap, slow, cut, "--detector", "whole", "--segments")
    assert run.returncode == 0
    assert re.findall("warning: .*", run.stderr) == [
        f"warning: {gap}: 12 frames are missing: damaged, or left out by the recorder",
        f"warning: {cut} ends within a packet: cut short, by an unknown length",
    ]
    (unknown,) = re.findall(".*is not known.*", run.stderr)
    assert unknown.startswith(f"{slow}: 60 frames: 60 processed")


def test_videos_are_videos_under_any_name_and_in_folders_are_named(video: Path, tmp_path: Path) -> None:
    for name in ("film", "clip.ts", "tape.bin"):
        (tmp_path / name).write_bytes(video.read_bytes())
    (tmp_path / "code.ts").write_text("export const n = 1;")
    run = _infer(tmp_path / "film", tmp_path / "clip.ts", tmp_path / "tape.bin", "--every", 60, "--detector", "whole")
    assert run.returncode == 0, run.stderr
    assert [json.loads(row)["frame"] for row in run.stdout.splitlines()] == [0] * 3
    folder = tmp_path / "folder"
    folder.mkdir()
    cv2.imwrite(str(folder / "face.png"), np.zeros((48, 48, 3), np.uint8))
    for name, advice in (("code.ts", False), ("clip.ts", True), ("film", True)):
        (tmp_path / name).rename(folder / name)
        assert ("give videos by name" in _infer(folder).stderr) == advice
        (folder / name).unlink()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to handle")
def test_sigterm_ends_a_film_with_its_rows_and_a_summary(video: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    film = tmp_path / "long.mkv"  # so long that the signal comes before its end
    with_times(write_film(tmp_path / "gray.mp4", frames=4000), film, range(4000))
    command = [sys.executable, "-m", "fer_runtime", str(film), "--output", str(output), "--detector", "haar"]
    partial = Path(f"{output}.partial")
    with started(command, stderr=subprocess.PIPE, text=True) as run:
        while not (partial.exists() and partial.stat().st_size):  # a row is in the file as soon as it is known
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(signal.SIGTERM)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 143
    rows = [json.loads(line) for line in partial.read_text().splitlines()]
    assert [row["frame"] for row in rows] == list(range(len(rows)))
    # The signal may arrive between a frame and its row.
    counted = int(re.findall(r"(\d+) processed", errors)[0])
    assert counted - len(rows) in (0, 1)
    assert "whether frames are missing" not in errors  # of a film that was not read to its end
    assert not output.exists()
