"""Which model to recommend: a rule over measurements, and its sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

REAL_TIME_MS = 1000 / 30  # a common camera rate
SIGNIFICANT_P = 0.05  # significance level of McNemar's test

PValues = Mapping[frozenset[str], float]  # of McNemar's exact test, by the two labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One model file with the figures that decide."""

    label: str  # "v1 int8"
    model: str
    precision: str
    accuracy: float  # fraction of the faces
    low: float  # 95 % interval of the accuracy
    high: float
    p50_ms: float  # of one face on one thread
    megabytes: float  # of the file, 1 MB = 1,000,000 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer to "which one?"."""

    pick: Candidate
    lean: Candidate | None  # the choice if speed or size decides; None if that is `pick`
    headline: str
    reason: str
    pick_reason: str  # compared with the others
    lean_reason: str  # empty without `lean`


def pareto_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates on the Pareto front of accuracy, time and size."""
    return [candidate for candidate in candidates if not any(_beats(other, candidate) for other in candidates)]


def _beats(candidate: Candidate, other: Candidate) -> bool:
    mine = (candidate.accuracy, -candidate.p50_ms, -candidate.megabytes)
    theirs = (other.accuracy, -other.p50_ms, -other.megabytes)
    return mine != theirs and all(a >= b for a, b in zip(mine, theirs, strict=True))


def decide(candidates: Sequence[Candidate], p_values: PValues | None = None) -> Verdict:
    """Choose a model.

    Considers the models that keep up with a camera (30 faces per second), or all if none does. `pick` is the fastest
    that is not significantly less accurate than the most accurate. `lean` is the smallest file that is faster.

    Args:
        p_values: McNemar's p-value of pairs of candidates. Without one, an accuracy inside the best one's interval
            counts as equal.

    Raises:
        ValueError: there are no candidates.
    """
    if not candidates:
        raise ValueError("no candidates to choose from")
    in_time = [candidate for candidate in candidates if candidate.p50_ms <= REAL_TIME_MS]
    eligible = in_time or list(candidates)
    best = max(eligible, key=lambda candidate: candidate.accuracy)
    # A difference within the sampling error is not worth a slower model.
    as_good = (candidate for candidate in eligible if _is_as_good(candidate, best, p_values or {}))
    pick = min(as_good, key=lambda candidate: (candidate.p50_ms, candidate.megabytes))
    leaner = [
        candidate
        for candidate in candidates
        if candidate.p50_ms < pick.p50_ms and candidate.megabytes <= pick.megabytes
    ]
    lean = min(leaner, key=lambda candidate: (candidate.megabytes, candidate.p50_ms)) if leaner else None
    reason = (
        f"Accuracy {pick.accuracy:.1%}, {say_ms(pick.p50_ms)} ms per face on one thread, "
        f"file size {say_megabytes(pick.megabytes)} MB."
    )
    if not in_time:
        reason += " No model reaches 30 faces per second on this machine."
    return Verdict(
        pick=pick,
        lean=lean,
        headline=f"Use {pick.label}.",
        reason=reason,
        pick_reason=_pick_reason(pick, best, len(candidates)),
        lean_reason=_lean_reason(pick, lean) if lean else "",
    )


def _is_as_good(candidate: Candidate, best: Candidate, p_values: PValues) -> bool:
    p_value = p_values.get(frozenset((candidate.label, best.label)))
    # The paired test is more sensitive than two intervals, because models share most of their errors.
    return candidate == best or (candidate.accuracy >= best.low if p_value is None else p_value >= SIGNIFICANT_P)


def _pick_reason(pick: Candidate, best: Candidate, count: int) -> str:
    if count == 1:
        return "The only measured model."
    if pick == best:
        return f"The most accurate of {count}."
    points = 100 * (best.accuracy - pick.accuracy)
    return (
        f"{points:.1f} points below the most accurate ({best.label}, {best.accuracy:.1%}), which is not significant, "
        f"and {say_ratio(best.p50_ms / pick.p50_ms)} times as fast."
    )


def _lean_reason(pick: Candidate, lean: Candidate) -> str:
    faster = say_ratio(pick.p50_ms / lean.p50_ms)
    smaller = say_ratio(pick.megabytes / lean.megabytes)
    points = 100 * (pick.accuracy - lean.accuracy)
    price = f"loses {points:.1f} points of accuracy" if points >= 0.05 else "loses no accuracy"
    return f"It is {faster} times as fast and {smaller} times smaller, and {price}."


def say_ratio(ratio: float) -> str:
    """A ratio with two figures."""
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def say_ms(milliseconds: float) -> str:
    """A time with two to three figures, never in scientific notation."""
    if milliseconds >= 100:
        return f"{milliseconds:.0f}"
    if milliseconds >= 10:
        return f"{milliseconds:.1f}"
    return f"{milliseconds:.2f}" if milliseconds >= 1 else f"{milliseconds:.3f}"


def say_megabytes(megabytes: float) -> str:
    """A file size in megabytes of a million bytes."""
    return f"{megabytes:.1f}" if megabytes >= 10 else f"{megabytes:.2f}"
