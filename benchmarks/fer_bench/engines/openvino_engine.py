"""OpenVINO on the CPU, tuned for latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino

from fer_bench.engines import Run


def load(source: Path, *, model: str, threads: int, arithmetic: str = "f32") -> Run:
    """Run the model file; one request at a time."""
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # Its default on processors with AVX512-BF16 or AMX is bf16: another precision than the file's.
        "INFERENCE_PRECISION_HINT": arithmetic,
    }
    compiled = openvino.Core().compile_model(str(source), "CPU", settings)
    request = compiled.create_infer_request()

    def run(faces: Any) -> Any:
        return request.infer({"faces": faces})[1]

    return run
