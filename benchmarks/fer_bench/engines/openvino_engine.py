"""OpenVINO on the CPU, tuned for latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino

from fer_bench.engines import Run


def load(source: Path, *, model: str, threads: int) -> Run:
    """Run the model file; one request at a time."""
    compiled = openvino.Core().compile_model(
        str(source), "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    )
    request = compiled.create_infer_request()

    def run(faces: Any) -> Any:
        return request.infer({"faces": faces})[1]

    return run
