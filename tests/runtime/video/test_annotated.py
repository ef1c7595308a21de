"""Annotated copies run at the pace of the scene."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.runtime.video.films import RATE, gray_frame, with_times, write_film

from fer_runtime.errors import OutputError
from fer_runtime.results import Face
from fer_runtime.video.annotated import AnnotatedVideo, annotated_paths
from fer_runtime.video.results import FrameResult, TrackedFace
from fer_runtime.video.sources import FrameCounts, VideoFile


def _result(time: float, *tracks: int) -> FrameResult:
    face = Face(box=(40, 30, 60, 60), expression="happy", confidence=0.9, probabilities={"happy": 0.9, "sad": 0.1})
    return FrameResult(
        path="", frame=0, time=time, faces=tuple(TrackedFace(track=track, face=face) for track in tracks)
    )


def _copied(film: Path, *, every: int = 1, start: float = 0.0) -> cv2.VideoCapture:
    path = film.with_name("copy.mp4")
    counts, copy = FrameCounts(), AnnotatedVideo(path, film, every=every)
    for frame in VideoFile(film).read(every=every, start=start, duration=None, counts=counts):
        counts.processed += 1
        copy.add(frame.image, _result(frame.time))
    copy.finish(counts.end)
    copy.close()
    assert sorted(path.name for path in film.parent.iterdir() if "partial" in path.name) == []
    return cv2.VideoCapture(str(path))


def _seconds(video: cv2.VideoCapture) -> float:
    return video.get(cv2.CAP_PROP_FRAME_COUNT) / video.get(cv2.CAP_PROP_FPS)


def _brightness(video: cv2.VideoCapture) -> list[float]:
    levels = []
    while (frame := video.read())[0]:
        levels.append(float(np.mean(frame[1])))
    return levels


def test_a_copy_has_every_frame_once(tmp_path: Path) -> None:
    copy = _copied(write_film(tmp_path / "film.mkv", frames=40))
    assert (copy.get(cv2.CAP_PROP_FRAME_COUNT), copy.get(cv2.CAP_PROP_FPS)) == (40, RATE)
    # The frames grow brighter by one level each.
    assert np.diff(_brightness(copy)) == pytest.approx(1, abs=0.6)


@pytest.mark.parametrize(("every", "times"), [(3, 1), (40, 2)])
def test_a_copy_of_every_nth_frame_lasts_as_long(every: int, times: int, tmp_path: Path) -> None:
    copy = _copied(write_film(tmp_path / "film.mp4", frames=120), every=every)
    assert _seconds(copy) == pytest.approx(6.0, abs=0.5 / RATE)
    # With less than one frame a second, each is written more than once.
    assert copy.get(cv2.CAP_PROP_FRAME_COUNT) == times * 120 / every


@pytest.mark.parametrize("seconds", [5, 60])
def test_a_copy_of_a_timelapse_lasts_as_long(seconds: int, tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mp4", frames=8, rate=1)
    lapse = with_times(film, tmp_path / "lapse.mkv", [seconds * number for number in range(8)], rate=1)
    assert _seconds(_copied(lapse)) == pytest.approx(8 * seconds, rel=1e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("slow_first", [False, True])
def test_a_copy_of_a_variable_frame_rate_lasts_as_long(suffix: str, slow_first: bool, tmp_path: Path) -> None:
    intervals = [1] * 29 + [5] * 30
    times = np.concatenate([[0], np.cumsum(intervals[::-1] if slow_first else intervals)]).tolist()
    film = with_times(write_film(tmp_path / "film.mp4"), tmp_path / f"slow{suffix}", times)
    copy = _copied(film)
    assert _seconds(copy) == pytest.approx((times[-1] + 1) / RATE, abs=5 / RATE)
    # Each frame is shown from its time on: a frame's brightness is its number.
    levels = np.array(_brightness(copy))
    shown = np.searchsorted(times, np.arange(len(levels)), side="right") - 1
    assert levels - levels[0] == pytest.approx(shown, abs=1.5)


def test_a_copy_of_a_part_begins_with_the_part(tmp_path: Path) -> None:
    copy = _copied(write_film(tmp_path / "film.mp4", frames=60), start=2.0)
    assert copy.get(cv2.CAP_PROP_FRAME_COUNT) == 20


def test_a_copy_of_a_camera_begins_with_its_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "camera0.annotated.mp4"
    copy = AnnotatedVideo(path, 0, every=1)
    for number, time in enumerate((10.0, 10.2, 10.6)):
        copy.add(gray_frame(30 * number), _result(time))
    copy.finish(10.8)
    levels = _brightness(cv2.VideoCapture(str(path)))
    # 25 frames a second: 0.2, 0.4 and 0.2 seconds, and nothing of the ten seconds before.
    assert len(levels) == 20
    assert [round((level - levels[0]) / 30) for level in levels] == [0] * 5 + [1] * 10 + [2] * 5


def test_tracks_are_numbered_as_in_the_rows(tmp_path: Path) -> None:
    images = []
    for name, track in (("one.mp4", 1), ("two.mp4", 2), ("again.mp4", 2)):
        copy = AnnotatedVideo(tmp_path / name, 0, every=1)
        copy.add(np.full((480, 640, 3), 120, np.uint8), _result(0.0, track))
        copy.finish(0.04)
        images.append(cv2.VideoCapture(str(tmp_path / name)).read()[1])
    assert np.array_equal(images[1], images[2])
    assert not np.array_equal(images[0], images[1])


def test_videos_of_one_name_do_not_overwrite_each_other() -> None:
    paths = annotated_paths(Path("out"), [Path("a/film.mp4"), Path("b/film.avi"), 0])
    assert [path.name for path in paths] == ["film.annotated.mp4", "film-2.annotated.mp4", "camera0.annotated.mp4"]


def test_a_copy_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="File name too long"):
        AnnotatedVideo(tmp_path / ("x" * 250 + ".annotated.mp4"), 0, every=1)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another folder"):
        AnnotatedVideo(tmp_path / "file" / "copy.mp4", 0, every=1)


def test_a_copy_replaces_a_copy_and_nothing_else(tmp_path: Path) -> None:
    other, path, link = tmp_path / "film.mp4", tmp_path / "copy.mp4", tmp_path / "link.mp4"
    write_film(other, frames=2)
    before = other.read_bytes()
    link.symlink_to(other)
    for taken in (other, link):
        with pytest.raises(OutputError, match="would overwrite a file that is not an annotated copy"):
            AnnotatedVideo(taken, 0, every=1)
    for frames in (1, 3):
        copy = AnnotatedVideo(path, 0, every=1)
        copy.add(gray_frame(0), _result(0.0))
        copy.finish(frames / 25)
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert other.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["copy.mp4", "film.mp4", "link.mp4"]


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "film.annotated.mp4"
    left = tmp_path / ".film.annotated.mp4.abcd_123.partial.mp4"
    others = tmp_path / ".other.annotated.mp4.abcd_123.partial.mp4"
    for file in (left, others):
        file.write_bytes(b"half")
    copy = AnnotatedVideo(path, 0, every=1)
    assert not left.exists()
    second = AnnotatedVideo(path, 0, every=1)  # another run's file, at work, stays
    assert len(list(tmp_path.iterdir())) == 3
    copy.close()
    second.close()
    assert list(tmp_path.iterdir()) == [others]


def test_frames_of_another_size_are_fitted_into_the_copy(tmp_path: Path) -> None:
    path = tmp_path / "copy.mp4"
    copy = AnnotatedVideo(path, 0, every=1, anonymize="solid")
    for number, (height, width) in enumerate([(96, 128), (192, 128), (48, 128)]):
        copy.add(np.full((height, width, 3), 255, np.uint8), _result(number / 25))
    copy.finish(3 / 25)
    copy.close()
    video = cv2.VideoCapture(str(path))
    frames = [np.asarray(video.read()[1]) for _ in range(3)]
    # The second frame is 64 pixels wide then, the third 48 high. Compression blurs their edges.
    assert [frame.shape for frame in frames] == [(96, 128, 3)] * 3
    assert [frame.mean() for frame in frames] == pytest.approx([255, 255 / 2, 255 / 2], abs=6)
    assert frames[1][:, 36:92].min() > 200
    assert frames[2][28:68].min() > 200
