"""Smoothing of made-up probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fer_runtime.video.smoothing import Smoother


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
