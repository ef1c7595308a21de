"""Risk, coverage and their intervals against scipy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fer_export.gate.calibration import TARGET_PRECISION, calibrate
from fer_runtime.metrics import wilson_interval
from fer_runtime.model.parity import FloatArray, softmax


@pytest.fixture(scope="module")
def stats() -> Any:
    """scipy.stats, loaded in the one process that runs these tests: it takes longer than they do."""
    return pytest.importorskip("scipy.stats", reason="scipy is missing: pip install scipy")


@pytest.mark.parametrize(("right", "faces"), [(0, 1), (1, 1), (0, 40), (39, 40), (797, 1000), (71, 3589), (3589, 3589)])
def test_intervals_are_those_of_scipys_binomial_test(stats: Any, right: int, faces: int) -> None:
    expected = stats.binomtest(right, faces).proportion_ci(0.95, method="wilson")
    # Ours has the normal distribution's quantile to seven digits.
    assert wilson_interval(right, faces) == pytest.approx((expected.low, expected.high), abs=1e-7)


def _drawn(count: int, *, temperature: float, seed: int) -> tuple[FloatArray, np.ndarray]:
    """Logits, and labels drawn from softmax(logits / temperature)."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (count, 7)).astype(np.float32)
    shares = softmax(logits, temperature=temperature).astype(np.float64)
    return logits, (shares.cumsum(1) < random.uniform(size=(count, 1))).sum(1).clip(0, 6)


def _temperature(logits: FloatArray, labels: np.ndarray) -> float:
    optimize = pytest.importorskip("scipy.optimize")

    def loss(temperature: float) -> float:
        scaled = logits.astype(np.float64) / temperature
        return float((np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(labels)), labels]).mean())

    return float(optimize.minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-7}).x)


def test_risk_and_coverage_are_counted_on_faces_that_did_not_fit_the_threshold(stats: Any) -> None:
    logits, labels = _drawn(3000, temperature=2.0, seed=0)
    right = logits.argmax(1) == labels
    kept = np.zeros(len(labels), bool)
    for fitted in (0, 1):
        # The lowest confidence of this half down to which enough answers of the half are right, by scipy's temperature.
        own = _temperature(logits[fitted::2], labels[fitted::2])
        confidences = softmax(logits[fitted::2], temperature=own).max(1)
        grid = np.arange(1, 1001) / 1000
        threshold = next(
            confidence for confidence in grid if right[fitted::2][confidences >= confidence].mean() >= TARGET_PRECISION
        )
        kept[1 - fitted :: 2] = softmax(logits[1 - fitted :: 2], temperature=own).max(1) >= threshold
    found = calibrate(logits, labels)
    # Temperatures are rounded to four digits, which may move a face across a threshold.
    assert found.coverage == pytest.approx(kept.mean(), abs=2 / len(labels))
    assert found.precision == pytest.approx(right[kept].mean(), abs=2 / kept.sum())
    expected = stats.binomtest(int(right[kept].sum()), int(kept.sum())).proportion_ci(0.95, method="wilson")
    assert found.precision_interval == pytest.approx((expected.low, expected.high), abs=1e-3)


def test_the_interval_holds_what_the_threshold_does_to_other_faces(stats: Any) -> None:
    logits, _ = _drawn(20_000, temperature=1.0, seed=1)
    shares = softmax(logits, temperature=1.0)  # how often each answer is right, exactly
    chances = shares[np.arange(len(shares)), logits.argmax(1)]
    held = 0
    for seed in range(60):
        found = calibrate(*_drawn(1000, temperature=1.0, seed=1000 + seed))
        assert found.precision_interval is not None
        assert found.uncertain_below is not None
        kept = softmax(logits, temperature=found.temperature).max(1) >= found.uncertain_below
        held += found.precision_interval[0] <= chances[kept].mean() <= found.precision_interval[1]
    # Fewer of 60 intervals of 95 % are a chance of one in 100,000.
    assert held >= stats.binom(60, 0.95).ppf(1e-5)
