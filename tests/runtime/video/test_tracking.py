"""Tracks and smoothing on made-up movement and made-up probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fer_runtime.video.smoothing import Smoother
from fer_runtime.video.tracking import Tracker, overlap


def test_overlap_worked_by_hand() -> None:
    # Two squares of side 10, moved by 5: 50 shared of 150 covered.
    assert overlap((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(50 / 150)
    assert overlap((0, 0, 10, 10), (10, 0, 10, 10)) == 0


def test_two_faces_that_pass_each_other_keep_their_numbers() -> None:
    tracker = Tracker()
    numbers = []
    for frame in range(60):
        right, left = (10 + 8 * frame, 100, 60, 60), (480 - 8 * frame, 130, 60, 60)
        # The detector's order changes from frame to frame.
        boxes = [right, left] if frame % 2 else [left, right]
        found = tracker.update(frame / 25, boxes)
        numbers.append(tuple(found if frame % 2 else found[::-1]))
    assert set(numbers) == {numbers[0]}


def test_a_hidden_face_keeps_its_number_for_a_second_and_no_longer() -> None:
    tracker = Tracker(max_gap=1.0)
    box = (50, 50, 40, 40)
    assert tracker.update(0.0, [box]) == [1]
    assert tracker.update(0.5, []) == []
    assert tracker.update(0.9, [box]) == [1]
    assert tracker.update(2.5, [box]) == [2]


def test_smoothing_is_the_formula_and_does_not_depend_on_the_frame_rate() -> None:
    before, after = np.eye(7, dtype=np.float32)[0], np.eye(7, dtype=np.float32)[3]
    for rate in (5, 30):
        smoother = Smoother(time_constant=0.5)
        smoother.update(0.0, before)
        for frame in range(1, rate + 1):
            average, _ = smoother.update(frame / rate, after)
        # After one second of a new answer the old one has decayed by exp(-1 / 0.5).
        assert average[0] == pytest.approx(math.exp(-2), rel=1e-4)


def test_an_expression_changes_only_when_the_other_one_is_clearly_ahead() -> None:
    smoother = Smoother(time_constant=0.01, hysteresis=0.2)
    assert smoother.update(0.0, np.array([0.55, 0.45], np.float32))[1] == 0
    assert smoother.update(1.0, np.array([0.45, 0.55], np.float32))[1] == 0
    assert smoother.update(2.0, np.array([0.30, 0.70], np.float32))[1] == 1
    assert smoother.update(3.0, np.array([0.55, 0.45], np.float32))[1] == 1
