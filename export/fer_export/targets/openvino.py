"""OpenVINO's IR: float32, float16 weights, and our own int8 graph."""

from __future__ import annotations

import sys
from pathlib import Path

# Importing openvino sends telemetry and writes a device id to the home folder, unless this package is missing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

from fer_export.targets import Converted, Source  # noqa: E402
from fer_runtime.model.find import Precision  # noqa: E402


def convert(source: Source, precision: Precision, path: Path) -> Converted:
    """Write `path` and the .bin file beside it."""
    model = openvino.Core().read_model(source.content)
    openvino.save_model(model, str(path), compress_to_fp16=precision == "fp16")
    return Converted(
        preprocessing="none: the input takes uint8 faces; compile with INFERENCE_PRECISION_HINT=f32, because the "
        "default is bfloat16 on some processors",
        versions={"openvino": openvino.__version__},
    )
