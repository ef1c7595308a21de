"""Two latency files against each other: has anything become slower, beyond noise?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fer_bench.statistics import Interval, ratio_interval

KEY = ("engine", "model", "precision", "batch", "threads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One configuration in both files."""

    name: str
    old_p50_ms: float
    new_p50_ms: float
    ratio: Interval  # new / old of the rounds' medians
    core_ratio: Interval | None  # the same of medians in units of the core's speed beside them; None: not in both files
    is_regression: bool

    def __str__(self) -> str:
        verdict = "SLOWER" if self.is_regression else "ok"
        return (
            f"{verdict:6}  {self.name:48}  {self.old_p50_ms:8.3f} -> {self.new_p50_ms:8.3f} ms  "
            f"x {_say(self.ratio)}" + (f"  by the core's speed x {_say(self.core_ratio)}" if self.core_ratio else "")
        )


def compare_results(
    old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]], *, tolerance: float = 0.07
) -> tuple[list[Change], list[str]]:
    """Changes of the configurations that stand in both, and the names of those that stand in one only.

    A regression is a ratio that lies above 1 + tolerance with its whole interval, 95 % of the resampled rounds: they
    say how much the machine wavers while a process runs. From process to process the same build differs by more (memory
    lies elsewhere), which the tolerance is for: the interval alone excludes 1 too often. Where both files have the
    core's own speed beside each round, it is the ratio of times in its units that counts: a core that was slower is no
    slower build, and one that was faster hides none.

    Args:
        old, new: the `results` of two files of `fer-bench latency --json`.
        tolerance: fraction that may be lost.
    """
    before = {tuple(one[key] for key in KEY): one for one in old}
    after = {tuple(one[key] for key in KEY): one for one in new}
    changes = []
    for key in before.keys() & after.keys():
        ratio = ratio_interval(*(_quiet(one[key]["round_p50_ms"]) for one in (before, after)))
        core_ratio = None
        if all(one[key].get("round_control_ms") for one in (before, after)):
            # All rounds: a disturbed product errs to either side, so there is no quiet half.
            core_ratio = ratio_interval(*(_in_core_speed(one[key]) for one in (before, after)))
        changes.append(
            Change(
                name=_name(key),
                old_p50_ms=before[key]["p50_ms"],
                new_p50_ms=after[key]["p50_ms"],
                ratio=ratio,
                core_ratio=core_ratio,
                is_regression=(core_ratio or ratio).low > 1 + tolerance,
            )
        )
    single = sorted(_name(key) for key in before.keys() ^ after.keys())
    return sorted(changes, key=lambda change: change.name), single


def _quiet(rounds: Sequence[float]) -> list[float]:
    """The faster half of the rounds: other processes only ever make a round slower."""
    return sorted(rounds)[: max(1, (len(rounds) + 1) // 2)]


def _in_core_speed(result: dict[str, Any]) -> list[float]:
    """The rounds' medians as multiples of numpy's product beside them."""
    return [p50 / control for p50, control in zip(result["round_p50_ms"], result["round_control_ms"], strict=True)]


def _say(ratio: Interval) -> str:
    return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _name(key: tuple[Any, ...]) -> str:
    engine, model, precision, batch, threads = key
    return f"{engine} {model} {precision} batch {batch} threads {threads}"
