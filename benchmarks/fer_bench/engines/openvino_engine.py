"""OpenVINO on the CPU, with its recommended settings for latency."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Importing openvino sends telemetry and writes a device id to the home folder, unless this package is missing.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino  # noqa: E402

if TYPE_CHECKING:
    from fer_bench.engines import Run


def load(source: Path, *, model: str, threads: int, batch: int) -> Run:
    """Run the model file with a fixed batch size and arrays shared with numpy."""
    return _compile(source, threads=threads, batch=batch, arithmetic="f32")


def load_bf16(source: Path, *, model: str, threads: int, batch: int) -> Run:
    """Run the model file in bfloat16; a processor without it computes in float32."""
    return _compile(source, threads=threads, batch=batch, arithmetic="bf16")


def _compile(source: Path, *, threads: int, batch: int, arithmetic: str) -> Run:
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # The default on processors with AVX512-BF16 or AMX is bf16, another precision than the file's.
        "INFERENCE_PRECISION_HINT": arithmetic,
    }
    core = openvino.Core()
    network = core.read_model(str(source))
    network.reshape({"faces": [batch, *(size.get_length() for size in list(network.input("faces").partial_shape)[1:])]})
    compiled = core.compile_model(network, "CPU", settings)
    request = compiled.create_infer_request()

    def run(faces: Any) -> Any:
        return request.infer({"faces": faces}, share_inputs=True, share_outputs=True)[1]

    return run
