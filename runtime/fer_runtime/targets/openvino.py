"""OpenVINO on the CPU: files of `fer-export --target openvino`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_runtime.model.parity import Outputs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fer_runtime.targets import Run


def load(path: Path, settings: Mapping[str, Any], *, threads: int) -> Run:
    """Run an OpenVINO IR file in float32."""
    # Importing openvino sends telemetry and writes a device id to the home folder, unless this package is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    core = openvino.Core()
    properties = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # The default on processors with AVX512-BF16 or AMX is bf16, another precision than the file's.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    requests: dict[int, Any] = {}

    def request_for(batch: int) -> Any:
        # With a dynamic batch each run takes longer.
        if batch not in requests:
            model = core.read_model(str(path))
            model.reshape(
                {"faces": [batch, *(size.get_length() for size in list(model.input("faces").partial_shape)[1:])]}
            )
            requests[batch] = core.compile_model(model, "CPU", properties).create_infer_request()
        return requests[batch]

    def run(faces: npt.NDArray[np.uint8]) -> Outputs:
        answers = request_for(len(faces)).infer({"faces": faces}, share_inputs=True)
        return Outputs(logits=answers["logits"].copy(), probabilities=answers["probabilities"].copy())

    return run
