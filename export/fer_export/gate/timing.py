"""Time several models on this machine in turns, so that other load slows all of them alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import nan
from statistics import fmean, median
from time import perf_counter_ns
from typing import Any

import numpy as np

from fer_runtime.errors import ModelFileError
from fer_runtime.model.parity import Check, Uint8Array
from fer_runtime.model.session import open_session

_WARMUP_RUNS = 5
_SLICE_MS = 2.0  # of one model before the next one's turn: shorter than the scheduler's slices
# Where two models lie closer than this, the rounds are repeated up to so many times.
_CLOSE_CALL, _MOST_REPEATS = 0.05, 5
# A large model on a busy machine gets fewer rounds.
_MOST_SECONDS, _FEWEST_ROUNDS = 10.0, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Wall-clock time of one model on one thread."""

    batch: int
    # Mean of the fastest tenth of the runs. Interruptions only ever add, so this is what the model costs
    # by itself, also on a machine that is at work; the median is what a user met.
    undisturbed_ms: float
    p50_ms: float
    runs: int  # timed runs, after the warm-up; 0 where the model does not run
    turns_ms: tuple[float, ...] = field(repr=False, default=())  # fastest run of each turn

    @property
    def images_per_second(self) -> float:
        """At the median."""
        return self.batch / self.p50_ms * 1e3

    def to_dict(self) -> dict[str, Any]:
        """The figures; NaN, which JSON lacks, as None."""
        figures = {**asdict(self), "images_per_second": self.images_per_second}
        del figures["turns_ms"]
        return {key: None if value != value else value for key, value in figures.items()}


def measure_in_turns(
    models: Mapping[str, bytes], faces: Uint8Array, *, batch: int = 1, rounds: int = 200
) -> dict[str, Timing]:
    """Time each model in turns with the others.

    Args:
        models: file contents by name.
        faces: uint8, at least `batch` of them.
        batch: faces per run.
        rounds: turns of each model.
    """
    given = {"faces": np.ascontiguousarray(faces[:batch])}
    opened = {name: _opened(content, name) for name, content in models.items()}
    sessions = {name: session for name, session in opened.items() if session is not None and _runs(session, given)}
    runs_per_turn: dict[str, int] = {}
    for name, session in sessions.items():
        # The first runs allocate memory arenas and fill caches; users never wait for them.
        for _ in range(_WARMUP_RUNS):
            session.run(None, given)
        started = perf_counter_ns()
        session.run(None, given)
        runs_per_turn[name] = max(1, min(50, round(_SLICE_MS * 1e6 / (perf_counter_ns() - started))))
    times: dict[str, list[float]] = {name: [] for name in sessions}
    turns: dict[str, list[float]] = {name: [] for name in sessions}
    deadline = perf_counter_ns() + _MOST_SECONDS * 1e9
    for turn in range(rounds * _MOST_REPEATS):
        if turn and turn % rounds == 0 and not _is_close_call([_fastest_tenth(values) for values in times.values()]):
            break
        if turn >= _FEWEST_ROUNDS and perf_counter_ns() > deadline:
            break
        # Forwards and backwards, so that none always follows the same one.
        for name in list(sessions)[:: -1 if turn % 2 else 1]:
            session = sessions[name]
            session.run(None, given)  # the other model has emptied the caches
            for _ in range(runs_per_turn[name]):
                started = perf_counter_ns()
                session.run(None, given)
                times[name].append((perf_counter_ns() - started) / 1e6)
            turns[name].append(min(times[name][-runs_per_turn[name] :]))
    nothing = Timing(batch=batch, undisturbed_ms=nan, p50_ms=nan, runs=0)
    return dict.fromkeys(opened, nothing) | {
        name: Timing(
            batch=batch,
            undisturbed_ms=_fastest_tenth(values),
            p50_ms=median(values),
            runs=len(values),
            turns_ms=tuple(turns[name]),
        )
        for name, values in times.items()
    }


def _opened(content: bytes, name: str) -> Any:
    """A session, or None for a file that cannot be opened: it has no speed, and the gate says why."""
    try:
        return open_session(content, source=name).session
    except ModelFileError:
        return None


def _runs(session: Any, given: dict[str, Uint8Array]) -> bool:
    """A file that does not run has no speed; the gate says why."""
    try:
        session.run(None, given)
    except Exception:  # onnxruntime's exceptions share no base class of their own
        return False
    return True


def _fastest_tenth(values: list[float]) -> float:
    return fmean(sorted(values)[: max(1, len(values) // 10)])


def _is_close_call(milliseconds: list[float]) -> bool:
    if not milliseconds:
        return False
    first, *others = milliseconds
    return any(abs(time / first - 1) < _CLOSE_CALL for time in others)


def speed_check(own: Timing, reference: Timing) -> Check:
    """Check that a model is faster than `reference`, the fp32 model measured in turns with it.

    The factor is that of neighbouring turns; "at least" is what nine turns in ten reached.
    """
    factors = np.array(reference.turns_ms[: len(own.turns_ms)]) / np.array(own.turns_ms[: len(reference.turns_ms)])
    low, middle, high = np.quantile(factors, (0.1, 0.5, 0.9)) if len(factors) else (nan, nan, nan)
    return Check(
        name="speed",
        passed=own.undisturbed_ms < reference.undisturbed_ms,
        detail=f"at least {low:.2f} times as fast as fp32 at batch {own.batch} (median of {len(factors)} turns "
        f"{middle:.2f}, nine in ten up to {high:.2f}; fastest tenth {own.undisturbed_ms:.3f} ms, fp32 "
        f"{reference.undisturbed_ms:.3f} ms)",
    )
