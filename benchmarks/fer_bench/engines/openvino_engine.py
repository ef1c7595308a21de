"""OpenVINO on the CPU, tuned for latency."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# Importing openvino sends telemetry and leaves a device id in the home folder, unless this package is missing.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino  # noqa: E402

from fer_bench.engines import Run  # noqa: E402


def load(source: Path, *, model: str, threads: int, batch: int, arithmetic: str = "f32") -> Run:
    """Run the model file as OpenVINO advises for latency: one size of batch, arrays shared with numpy."""
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # Its default on processors with AVX512-BF16 or AMX is bf16: another precision than the file's.
        "INFERENCE_PRECISION_HINT": arithmetic,
    }
    core = openvino.Core()
    network = core.read_model(str(source))
    network.reshape({"faces": [batch, 48, 48]})
    compiled = core.compile_model(network, "CPU", settings)
    request = compiled.create_infer_request()

    def run(faces: Any) -> Any:
        return request.infer({"faces": faces}, share_inputs=True, share_outputs=True)[1]

    return run
