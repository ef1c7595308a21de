"""Core ML's .mlmodel, written by coremltools from the float32 ONNX file. It converts anywhere and runs on a Mac."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import coremltools
import onnx
import torch

from fer_export.targets import Converted, Source
from fer_export.torch_module import OnnxModule
from fer_runtime.model.find import Precision


def convert(source: Source, precision: Precision, path: Path) -> Converted:
    """Write `path`, which takes one face as float32."""
    module = OnnxModule(onnx.load_model_from_string(source.content)).eval()
    example = torch.from_numpy(source.certificate.faces[:1].copy()).float()
    with torch.no_grad():
        trace: Any = torch.jit.trace  # without types
        traced = trace(module, example)
    model = coremltools.convert(
        traced,
        inputs=[coremltools.TensorType(name="faces", shape=example.shape)],
        outputs=[coremltools.TensorType(name="logits"), coremltools.TensorType(name="probabilities")],
        convert_to="neuralnetwork",  # one file; the newer kind is a folder
    )
    model.save(str(path))
    return Converted(
        preprocessing="a face as float32, 0 to 255, with a batch axis of 1; scaling is inside",
        versions={"coremltools": version("coremltools"), "torch": torch.__version__},
        settings={"input": "faces", "logits": "logits", "probabilities": "probabilities"},
    )
