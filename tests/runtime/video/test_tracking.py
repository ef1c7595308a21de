"""Tracks on made-up movement: people keep their numbers at any frame rate."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fer_bench.tracks import SCENES, count_kept
from fer_runtime.video.tracking import BoxTracker, assign


@pytest.mark.parametrize("rate", [2, 5, 10, 15, 30])
def test_walk_bys_keep_their_numbers_at_every_frame_rate(rate: int) -> None:
    for scene in ("one walks by", "hidden for 1 s"):
        assert count_kept(BoxTracker, scene, rate) == 20, scene
    # Of two people who hide each other the one that comes out first may be either.
    for scene in ("two cross", "one passes another"):
        assert count_kept(BoxTracker, scene, rate) >= 19, scene
    assert set(SCENES) == {"one walks by", "hidden for 1 s", "two cross", "one passes another"}


def test_two_faces_that_pass_each_other_keep_their_numbers() -> None:
    tracker = BoxTracker()
    numbers = []
    for frame in range(60):
        right, left = (10 + 8 * frame, 100, 60, 60), (480 - 8 * frame, 130, 60, 60)
        # The detector's order changes from frame to frame.
        boxes = [right, left] if frame % 2 else [left, right]
        found = tracker.update(frame / 25, boxes)
        numbers.append(tuple(found if frame % 2 else found[::-1]))
    assert set(numbers) == {numbers[0]}


def test_a_hidden_face_keeps_its_number_for_the_gap_and_no_longer() -> None:
    tracker = BoxTracker(max_gap=1.0)
    box = (50, 50, 40, 40)
    assert tracker.update(0.0, [box]) == [1]
    assert tracker.update(0.5, []) == []
    assert tracker.update(0.9, [box]) == [1]
    assert tracker.update(2.5, [box]) == [2]


@pytest.mark.parametrize("seconds", [1.2, 5.0, 60.0])
def test_a_timelapse_has_one_track_for_a_face_that_stays(seconds: float) -> None:
    tracker = BoxTracker()
    # In the fourth frame the face is not found.
    numbers = [tracker.update(seconds * frame, [] if frame == 3 else [(50, 50, 40, 40)]) for frame in range(8)]
    assert numbers == [[1], [1], [1], [], [1], [1], [1], [1]]


def test_another_size_is_another_face() -> None:
    tracker = BoxTracker()
    assert tracker.update(0.0, [(50, 50, 40, 40)]) == [1]
    assert tracker.update(0.04, [(20, 20, 100, 100)]) == [2]


def test_another_face_in_the_same_place_has_another_number() -> None:
    random = np.random.default_rng(0)
    first, second = (random.integers(0, 255, (6, 6), np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(2))
    tracker, box = BoxTracker(), (50, 50, 40, 40)
    assert tracker.update(0.0, [box], [first]) == [1]
    assert tracker.update(0.04, [box], [np.roll(first, 3, 1)]) == [1]
    assert tracker.update(0.08, [box], [second]) == [2]
    # Frames that are further apart say nothing: a face may have turned.
    assert tracker.update(0.58, [box], [first]) == [2]


def test_ended_tracks_are_not_taken_up_again() -> None:
    tracker = BoxTracker()
    assert tracker.update(0.0, [(50, 50, 40, 40)]) == [1]
    tracker.end_tracks()
    assert tracker.update(0.04, [(50, 50, 40, 40)]) == [2]


def test_the_assignment_is_the_cheapest_of_all() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        rows, columns = (int(size) for size in random.integers(1, 5, 2))
        costs = 3 * random.random((rows, columns))
        costs[random.random((rows, columns)) < 0.3] = math.inf
        loss = float(random.choice([0.5, 1, 2]))
        pairs = assign(costs, loss)
        assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
        cheapest = min(
            sum(loss if column < 0 else costs[row, column] for row, column in enumerate(choice))
            for choice in itertools.product(range(-1, columns), repeat=rows)
            if len(taken := [column for column in choice if column >= 0]) == len(set(taken))
        )
        total = sum(costs[row, column] for row, column in pairs) + loss * (rows - len(pairs))
        assert total == pytest.approx(cheapest)
