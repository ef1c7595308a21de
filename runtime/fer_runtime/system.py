"""The CPUs that this process may use, and their instruction sets."""

from __future__ import annotations

import math
import os
from pathlib import Path

_INSTRUCTION_SETS = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "i8mm"),
)
# ONNX Runtime starts all of them, whatever there is for them to do: 4,096 take seconds, and a million hang. The largest
# servers have several hundred CPUs.
MAX_THREADS = 1024


def available_cpus() -> int:
    """CPUs by affinity and cgroup quota, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(Path("/sys/fs/cgroup"))
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def cgroup_quota(root: Path) -> float | None:
    """CPUs that the cgroup under `root` (version 2 or 1) grants, None when it sets no limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((root / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((root / "cpu/cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else None
    except (OSError, ValueError):
        return None


def instruction_sets() -> list[str]:
    """Those of them that the processor has, by Linux's names; none where the system does not say."""
    try:
        present = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return []
    return [name for name in _INSTRUCTION_SETS if name in present]
