"""The public tracker on films made of the package's samples."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.runtime.video.films import portraits, scene, write_film

from fer_runtime import Recognizer, Tracker
from fer_runtime.images import Uint8Array
from fer_runtime.video.recognize import recognize_video


@pytest.fixture(scope="module")
def recognizer() -> Iterator[Recognizer]:
    with Recognizer("v0", detector="haar") as opened:
        yield opened


def _walk(second: float, side: int = 120) -> Uint8Array:
    """One person walks to the right, another one to the left, 2 and 1.5 face widths a second, on two heights."""
    first, other = portraits(side)
    return scene([(first, round(-side + 2 * side * second), 20), (other, round(640 - 1.5 * side * second), 220)])


def test_two_people_keep_their_numbers_at_two_frames_a_second(recognizer: Recognizer) -> None:
    tracker = Tracker(recognizer)
    seen: dict[int, set[int]] = {}
    for frame in range(8):
        result = tracker.update(_walk(frame / 2), frame / 2)
        assert result.frame == frame
        for tracked in result:
            seen.setdefault(tracked.track, set()).add(0 if tracked.face.box[1] < 180 else 1)
    # Each number was in one row of the image only.
    assert sorted(map(tuple, seen.values())) == [(0,), (1,)]


def test_a_person_who_is_hidden_for_a_second_keeps_the_number(recognizer: Recognizer, tmp_path: Path) -> None:
    face = portraits(120)[0]
    hidden = range(18, 27)  # frames
    film = write_film(
        tmp_path / "film.mp4",
        frames=(scene([] if n in hidden else [(face, 20 + 11 * n, 120)]) for n in range(45)),
        rate=9,
    )
    results = list(recognize_video(recognizer, film))
    assert {tracked.track for result in results for tracked in result} == {1}
    assert not any(result.faces for result in results if result.frame in hidden)
    assert results[30].faces


@pytest.mark.parametrize("same_background", [True, False])
def test_a_hard_cut_ends_all_tracks_and_takes_no_expression_across(
    same_background: bool, recognizer: Recognizer
) -> None:
    first, second = portraits(240)
    before, after = (scene([(first, 200, 60)]), scene([(second, 200, 60)]))
    if not same_background:
        after = scene([(second, 200, 60)]) // 3
        after[:, :100] = (0, 90, 200)
    tracker = Tracker(recognizer)
    for frame in range(10):
        (old,) = tracker.update(before, frame / 25)
    (new,) = tracker.update(after, 10 / 25)
    assert new.track != old.track
    # Not averaged with the face before: what the recognizer says of this frame alone.
    (alone,) = recognizer.recognize(after, is_frame=True).faces
    assert new.face.probabilities == pytest.approx(alone.probabilities, abs=1e-6)
    assert new.face.expression == alone.expression != old.face.expression


def test_lamps_pans_and_zooms_are_no_cuts(recognizer: Recognizer) -> None:
    random = np.random.default_rng(0)
    wide = random.integers(0, 255, (36, 96, 3), np.uint8).repeat(20, 0).repeat(20, 1)
    wide[200:440, 500:740] = portraits(240)[0]
    tracker = Tracker(recognizer)
    for frame in range(8):  # a pan of a full width in three seconds
        view = wide[:, 20 * frame : 20 * frame + 1280]
        assert not tracker.update(view, frame / 15).is_cut
    lamp = np.clip(view.astype(int) + 60, 0, 255).astype(np.uint8)
    assert not tracker.update(lamp, 1.0).is_cut
    assert tracker.update(np.ascontiguousarray(wide[::-1, 140:1420, ::-1]), 1.04).is_cut


def test_numbers_do_not_depend_on_the_clock(recognizer: Recognizer) -> None:
    frame = scene([(portraits()[0], 200, 100)])
    for start in (0.0, 1.7e9):
        tracker = Tracker(recognizer)
        tracks = {tracked.track for n in range(3) for tracked in tracker.update(frame, start + n / 10)}
        assert tracks == {1}


def test_time_must_rise(recognizer: Recognizer) -> None:
    tracker = Tracker(recognizer)
    frame = np.zeros((64, 64, 3), np.uint8)
    tracker.update(frame, 1.0)
    for seconds in (1.0, 0.5, float("nan")):
        with pytest.raises(ValueError, match="must rise"):
            tracker.update(frame, seconds)


def test_the_example_for_a_camera_of_your_own_says_what_changes(recognizer: Recognizer) -> None:
    example = runpy.run_path(str(Path(__file__).parents[3] / "examples" / "pi_camera.py"))
    smile, calm = portraits()
    frames = [scene([(smile, 40, 100)])] * 3 + [scene([(smile, 40, 100), (calm, 440, 100)])] * 3
    lines = list(example["changes"]([(n / 10, frame) for n, frame in enumerate(frames)], recognizer))
    assert [line.split()[:2] for line in lines] == [["face", "1:"], ["face", "2:"]]
    assert "happy" in lines[0]


def test_the_example_for_a_camera_of_your_own_forgets_faces() -> None:
    example = runpy.run_path(str(Path(__file__).parents[3] / "examples" / "pi_camera.py"))

    class Passing:
        """A tracker that sees somebody else in every frame."""

        def update(self, frame: int, seconds: float) -> Any:
            face = SimpleNamespace(expression="happy", confidence=1.0)
            return SimpleNamespace(faces=[SimpleNamespace(track=frame, face=face)])

    example["changes"].__globals__["Tracker"] = lambda recognizer: Passing()
    lines = example["changes"](((float(number), number) for number in range(5000)), None)
    assert sum(1 for _ in islice(lines, 4000)) == 4000
    assert len(lines.gi_frame.f_locals["shown"]) <= 1000
