"""Compare two latency files and find configurations that became slower beyond noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_bench.statistics import Interval, ratio_interval
from fer_runtime.checksums import check_checksum
from fer_runtime.errors import DataError
from fer_runtime.untrusted_json import parse_json

KEY = ("engine", "model", "precision", "batch", "threads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One configuration that is in both files."""

    name: str
    old_p50_ms: float
    new_p50_ms: float
    ratio: Interval  # new / old, of the rounds' medians
    core_ratio: Interval | None  # the same, relative to the core's speed; None if a file lacks it
    is_regression: bool

    def __str__(self) -> str:
        verdict = "SLOWER" if self.is_regression else "ok"
        return (
            f"{verdict:6}  {self.name:48}  {self.old_p50_ms:8.3f} -> {self.new_p50_ms:8.3f} ms  "
            f"x {_say(self.ratio)}" + (f"  relative to core speed x {_say(self.core_ratio)}" if self.core_ratio else "")
        )


def read_latency(path: Path) -> dict[str, Any]:
    """Read a file of `fer-bench latency --json`, as far as `compare_results` uses it.

    Raises:
        DataError: it is missing, or something else.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"), finite=False)
        if not isinstance(content, dict) or not isinstance(content.get("environment"), dict):
            raise ValueError("it has no environment")
        check_checksum(content)
        flags = content["environment"].get("cpu_flags", [])
        if not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
            raise ValueError("cpu_flags is not a list of texts")
        results = content.get("results")
        if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
            raise ValueError("results is not a list of configurations")
        for result in results:
            _check_result(result)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{path} was not written by fer-bench latency --json ({reason}); "
            "write one with: fer-bench latency --json FILE"
        ) from error
    return content


def _check_result(result: dict[str, Any]) -> None:
    for key in KEY:
        if not isinstance(result.get(key), int if key in ("batch", "threads") else str):
            raise ValueError(f"a configuration has no {key}")
    rounds, controls = result.get("round_p50_ms"), result.get("round_control_ms")
    if not _are_times([result.get("p50_ms")]) or not _are_times(rounds):
        raise ValueError("a configuration has no rounds, or times that are not positive numbers")
    if controls and not (_are_times(controls) and rounds and len(controls) == len(rounds)):
        raise ValueError("round_control_ms does not fit round_p50_ms")


def _are_times(values: Any) -> bool:
    return (
        isinstance(values, list)
        and 0 < len(values) <= 1_000_000
        and all(isinstance(time, (int, float)) and not isinstance(time, bool) and 1e-9 < time < 1e9 for time in values)
    )


def compare_results(
    old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]], *, tolerance: float = 0.07
) -> tuple[list[Change], list[str]]:
    """Changes of the configurations in both files, and the names of those in only one.

    A regression is a ratio whose whole 95 % bootstrap interval lies above 1 + tolerance. The interval covers the
    variation within a process. The tolerance covers the variation between processes of the same build, whose memory
    layout differs. If both files have the core's speed beside each round, times are compared relative to it, so a
    slower core is not reported as a slower build and a faster core hides no regression.

    Args:
        old, new: the `results` of two files of `fer-bench latency --json`.
        tolerance: fraction of time that may be added.
    """
    before = {tuple(result[key] for key in KEY): result for result in old}
    after = {tuple(result[key] for key in KEY): result for result in new}
    changes = []
    for key in before.keys() & after.keys():
        ratio = ratio_interval(*(_quiet(results[key]["round_p50_ms"]) for results in (before, after)))
        core_ratio = None
        if all(results[key].get("round_control_ms") for results in (before, after)):
            # All rounds, because a disturbed product can err to either side.
            core_ratio = ratio_interval(*(_in_core_speed(results[key]) for results in (before, after)))
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
    """The faster half of the rounds: other processes only make a round slower."""
    return sorted(rounds)[: max(1, (len(rounds) + 1) // 2)]


def _in_core_speed(result: dict[str, Any]) -> list[float]:
    """The rounds' medians as multiples of the numpy product beside them."""
    return [p50 / control for p50, control in zip(result["round_p50_ms"], result["round_control_ms"], strict=True)]


def _say(ratio: Interval) -> str:
    return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _name(key: tuple[Any, ...]) -> str:
    engine, model, precision, batch, threads = key
    return f"{engine} {model} {precision} batch {batch} threads {threads}"
