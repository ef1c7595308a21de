"""Which of several models is faster on this machine, in turns, so that a busy machine slows all alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter_ns
from typing import Any

import numpy as np

from fer_runtime.comparison import Uint8Array
from fer_runtime.session import open_session

_WARMUP_RUNS = 5
_SLICE_MS = 2.0  # of one model before the next one's turn: shorter than the scheduler's slices


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Wall-clock time of one model on one thread."""

    batch: int
    min_ms: float
    p50_ms: float
    runs: int  # timed runs, after the warm-up

    @property
    def images_per_second(self) -> float:
        """At the median."""
        return self.batch / self.p50_ms * 1e3

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "images_per_second": self.images_per_second}


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingReport:
    """Several models measured in turns."""

    timings: dict[str, Timing]
    # Median over the rounds of a model's time over the first model's in the same round. A
    # slow second hits both sides of the quotient.
    ratios: dict[str, float]


def measure_in_turns(
    models: Mapping[str, bytes], faces: Uint8Array, *, batch: int = 1, rounds: int = 60
) -> TimingReport:
    """Time models against the first of them.

    Args:
        models: file contents by name.
        faces: uint8, at least `batch` of them.
        batch: faces per run.
        rounds: turns of each model.
    """
    given = {"faces": np.ascontiguousarray(faces[:batch])}
    sessions = {name: open_session(content, source=name).session for name, content in models.items()}
    repeats: dict[str, int] = {}
    for name, session in sessions.items():
        # The first runs allocate memory arenas and fill caches; users never wait for them.
        for _ in range(_WARMUP_RUNS):
            session.run(None, given)
        started = perf_counter_ns()
        session.run(None, given)
        repeats[name] = max(1, min(50, round(_SLICE_MS * 1e6 / (perf_counter_ns() - started))))
    times: dict[str, list[float]] = {name: [] for name in sessions}
    per_round: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            session.run(None, given)  # the other model has emptied the caches
            turn = []
            for _ in range(repeats[name]):
                started = perf_counter_ns()
                session.run(None, given)
                turn.append((perf_counter_ns() - started) / 1e6)
            times[name] += turn
            # The fastest of a turn: interruptions only ever add.
            per_round[name].append(min(turn))
    first = per_round[next(iter(models))]
    return TimingReport(
        timings={
            name: Timing(batch=batch, min_ms=min(values), p50_ms=median(values), runs=len(values))
            for name, values in times.items()
        },
        ratios={
            name: median(own / base for own, base in zip(values, first, strict=True))
            for name, values in per_round.items()
        },
    )
