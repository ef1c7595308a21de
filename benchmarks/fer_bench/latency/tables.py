"""The tables that `fer-bench latency` prints: times and cold starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]  # one of `rows_with_roofline`

_STAGES = {
    "python_ms": "Python",
    "numpy_ms": "numpy",
    "engine_ms": "engine",
    "model_ms": "model",
    "first_run_ms": "first run",
}


def latency_table(rows: Sequence[Row]) -> str:
    """A line per configuration: percentiles in ms, rates, the multiple of the roofline, sizes in MB."""
    lines = [
        f"{'engine':14} {'model':14} {'batch':>5} {'threads':>7} {'p50 ms':>8} {'p95':>8} {'p99':>8} {'min':>8} "
        f"{'images/s':>9} {'CPU ms':>8} {'x roofline':>10} {'MB':>6} {'peak MB':>8}"
    ]
    for row in _fastest_first(rows):
        times = "" if row["times_roofline"] is None else f"{row['times_roofline']:.1f}"
        lines.append(
            f"{row['engine']:14} {row['model'] + ' ' + row['precision']:14} {row['batch']:5} {row['threads']:7} "
            f"{row['p50_ms']:8.3f} {row['p95_ms']:8.3f} {row['p99_ms']:8.3f} {row['min_ms']:8.3f} "
            f"{row['images_per_second']:9.0f} {row['cpu_ms']:8.3f} {times:>10} {row['model_bytes'] / 1e6:6.2f} "
            f"{row['peak_mb']:8.0f}"
        )
    return "\n".join(lines)


def cold_start_table(rows: Sequence[Row]) -> str:
    """CPU time in ms from process start to the first answer, by stage, for each engine and model file."""
    lines = [f"{'cold start, CPU ms':29} " + " ".join(f"{name:>9}" for name in _STAGES.values()) + f" {'total':>9}"]
    seen = set()
    for row in _fastest_first(rows):
        key = (row["engine"], row["model"], row["precision"])
        if key in seen:
            continue
        seen.add(key)
        times = [row["cold_start_cpu_ms"][stage] for stage in _STAGES]
        name = f"{row['engine']:14} {row['model']} {row['precision']}"
        lines.append(f"{name:29} " + " ".join(f"{time:9.0f}" for time in (*times, sum(times))))
    return "\n".join(lines)


def _fastest_first(rows: Sequence[Row]) -> list[Row]:
    """By model, batch and threads; among those by the median."""
    return sorted(rows, key=lambda row: (row["model"], row["batch"], row["threads"], row["p50_ms"]))
