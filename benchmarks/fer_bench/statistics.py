"""Percentiles, confidence intervals and McNemar's test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fer_runtime.metrics import wilson_interval

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_list(self) -> list[float]:
        """[low, high], as stored in results files beside the value."""
        return [self.low, self.high]


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Percentiles of single runs, in the unit of the samples."""

    minimum: float
    p50: float
    p95: float
    p99: float


def percentiles(samples: npt.ArrayLike) -> Percentiles:
    """Minimum, median, 95th and 99th percentile, interpolated linearly as numpy does.

    Samples that are not positive are dropped: they mean that the clock was set back.

    Raises:
        ValueError: no sample is positive.
    """
    values = np.asarray(samples, dtype=np.float64)
    values = values[values > 0]
    if not len(values):
        raise ValueError("no positive sample")
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return Percentiles(minimum=float(values.min()), p50=float(p50), p95=float(p95), p99=float(p99))


def bootstrap(
    statistic: Callable[[npt.NDArray[np.int64]], float], count: int, *, resamples: int = 1000, seed: int = 0
) -> Interval:
    """95 % percentile bootstrap interval (Efron, 1979) of a statistic.

    Args:
        statistic: takes indices of observations, returns its value for them.
        count: number of observations.
    """
    (interval,) = bootstrap_all(lambda chosen: [statistic(chosen)], count, resamples=resamples, seed=seed)
    return interval


def bootstrap_all(
    statistics: Callable[[npt.NDArray[np.int64]], Sequence[float]], count: int, *, resamples: int = 1000, seed: int = 0
) -> list[Interval]:
    """The intervals of several statistics over the same resamples, see `bootstrap`."""
    random = np.random.default_rng(seed)
    values = statistics(np.arange(count))
    drawn = [statistics(random.integers(0, count, count)) for _ in range(resamples)]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return [
        Interval(value=float(value), low=float(lowest), high=float(highest))
        for value, lowest, highest in zip(values, low, high, strict=True)
    ]


def or_wilson(found: Interval, right: int, count: int) -> Interval:
    """`found`, the bootstrap interval of right / count; Wilson's where it has no width.

    Of images that are all right, or all wrong, every resample is the same, however few they are.
    """
    low, high = (found.low, found.high) if found.low < found.high else wilson_interval(right, count)
    return Interval(value=found.value, low=low, high=high)


def or_mean(found: Interval, parts: Sequence[Interval]) -> Interval:
    """`found`, the bootstrap interval of a mean over classes; the mean of the classes' own where it has no width."""
    if found.low < found.high:
        return found
    low, high = (float(np.mean([getattr(part, end) for part in parts])) for end in ("low", "high"))
    return Interval(value=found.value, low=low, high=high)


def ratio_interval(old: npt.ArrayLike, new: npt.ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """median(new) / median(old) with its 95 % bootstrap interval, both sides resampled."""
    before, after = np.asarray(old, dtype=np.float64), np.asarray(new, dtype=np.float64)
    random = np.random.default_rng(seed)
    medians_before = np.median(random.choice(before, (resamples, len(before))), axis=1)
    medians_after = np.median(random.choice(after, (resamples, len(after))), axis=1)
    low, high = np.percentile(medians_after / medians_before, [2.5, 97.5])
    return Interval(value=float(np.median(after) / np.median(before)), low=float(low), high=float(high))


def mcnemar(only_first_right: int, only_second_right: int) -> float:
    """Two-sided exact p-value of McNemar's test: the probability of so uneven a split if both models are equally good.

    Args:
        only_first_right: number of faces that only the first model classifies correctly.
        only_second_right: number of faces that only the second model classifies correctly.
    """
    total, fewer = only_first_right + only_second_right, min(only_first_right, only_second_right)
    if total == 0:
        return 1.0
    # In logarithms, because 2**-3000 underflows.
    tail = sum(
        math.exp(math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) - total * math.log(2))
        for k in range(fewer + 1)
    )
    return min(1.0, 2 * tail)


def say_p(value: float) -> str:
    """A p-value as text, such as "= 0.0043" or "< 1e-99"."""
    return f"= {value:.2g}" if value > 1e-99 else "< 1e-99"
