"""Percentiles, intervals and McNemar's test against numpy and values worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fer_bench.statistics import bootstrap, mcnemar, percentiles, ratio_interval, say_p


def test_percentiles_are_numpys_on_recorded_samples() -> None:
    samples = np.random.default_rng(0).lognormal(0, 1, 5001)
    found = percentiles(samples)
    assert (found.p50, found.p95, found.p99) == pytest.approx(np.percentile(samples, [50, 95, 99]))
    assert found.minimum == samples.min()


def test_order_does_not_matter() -> None:
    # Published benchmarks have taken the middle of an unsorted list.
    assert percentiles([3, 1, 2]).p50 == percentiles([1, 2, 3]).p50 == 2


def test_a_clock_that_was_set_back_spoils_its_own_sample_only() -> None:
    assert percentiles([1.0, 1.0, -500.0, 1.0, 0.0]).minimum == 1.0
    with pytest.raises(ValueError, match="no positive sample"):
        percentiles([-1.0])


def test_the_bootstrap_interval_of_a_share_is_the_binomial_one() -> None:
    right = np.arange(1000) < 600
    found = bootstrap(lambda chosen: float(right[chosen].mean()), 1000)
    half = 1.96 * (0.6 * 0.4 / 1000) ** 0.5
    assert found.value == 0.6
    # A thousand resamples place the ends to about a tenth of the half width.
    assert (found.low, found.high) == pytest.approx((0.6 - half, 0.6 + half), abs=half / 5)


def test_a_ratio_of_two_runs_has_an_interval_around_it() -> None:
    random = np.random.default_rng(1)
    old, new = random.normal(1.0, 0.02, 30), random.normal(1.2, 0.02, 30)
    found = ratio_interval(old, new)
    assert found.low < 1.2 < found.high
    assert found.high - found.low < 0.06


@pytest.mark.parametrize(
    ("first", "second", "p"),
    # By hand: 2 * C(3, 0) / 2**3; both equal is no evidence; 2 * (1 + 10) / 2**10.
    [(3, 0, 0.25), (0, 3, 0.25), (5, 5, 1.0), (0, 0, 1.0), (1, 9, 22 / 1024)],
)
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int, p: float) -> None:
    assert mcnemar(first, second) == pytest.approx(p)


def test_a_p_value_is_never_said_to_be_zero() -> None:
    assert say_p(0.00432) == "= 0.0043"
    assert say_p(0.0) == "< 1e-99"


def test_mcnemar_of_thousands_does_not_underflow() -> None:
    assert 0 <= mcnemar(4000, 3000) < 1e-20
