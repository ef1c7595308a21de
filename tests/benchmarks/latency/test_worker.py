"""Timed rounds: what a jumping clock may spoil, and what it may not."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count

from fer_bench.latency.worker import timed_runs
from fer_bench.statistics import percentiles


def _clock(jumps: dict[int, int]) -> Iterator[int]:
    """1 ms per reading, plus the planted jumps in ns."""
    now = 0
    for reading in count():
        now += 1_000_000 + jumps.get(reading, 0)
        yield now


def test_a_planted_clock_that_jumps_does_not_corrupt_the_median() -> None:
    hour = 3_600_000_000_000
    for jump in (hour, -hour):
        # Reading 101 ends a run: the jump falls into its duration.
        readings = _clock({101: jump})
        samples = timed_runs(lambda: None, 0.5, clock=partial(next, readings))
        # An hour back does not make the round an hour longer.
        assert len(samples) <= 502
        found = percentiles(samples)
        assert found.p50 == 1_000_000
        assert found.minimum == 1_000_000


def test_a_round_lasts_as_long_as_it_was_told() -> None:
    readings = _clock({})
    assert len(timed_runs(lambda: None, 0.2, clock=partial(next, readings))) == 200


def test_a_slow_run_is_timed_three_times_at_least() -> None:
    readings = _clock({1: 10**10, 3: 10**10, 5: 10**10})
    assert len(timed_runs(lambda: None, 0.001, clock=partial(next, readings))) == 3
