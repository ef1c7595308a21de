"""OpenVINO with bfloat16 arithmetic, its own default where the processor has it: faster, and no longer fp32."""

from __future__ import annotations

from pathlib import Path

from fer_bench.engines import Run, openvino_engine


def load(source: Path, *, model: str, threads: int, batch: int) -> Run:
    """Run the model file in bfloat16; a processor without it computes in float32."""
    return openvino_engine.load(source, model=model, threads=threads, batch=batch, arithmetic="bf16")
