"""What the processor can: the instruction sets that decide how fast a network runs, and in which arithmetic."""

from __future__ import annotations

from pathlib import Path

_INSTRUCTION_SETS = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "i8mm"),
)


def instruction_sets() -> list[str]:
    """Those of them that the processor has, by Linux's names; none where the system does not say."""
    try:
        present = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return []
    return [name for name in _INSTRUCTION_SETS if name in present]
