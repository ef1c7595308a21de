"""LiteRT's .tflite, written by litert-torch from the float32 ONNX file."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import litert_torch
import onnx
import torch

from fer_export.targets import Converted, Source
from fer_export.torch_module import OnnxModule
from fer_runtime.model.find import Precision


def convert(source: Source, precision: Precision, path: Path) -> Converted:
    """Write `path`, which takes one face."""
    module = OnnxModule(onnx.load_model_from_string(source.content)).eval()
    example = torch.from_numpy(source.certificate.faces[:1].copy())
    litert_torch.convert(module, (example,)).export(str(path))
    return Converted(
        preprocessing="none: the input takes one uint8 face, with a batch axis of 1",
        versions={"litert-torch": version("litert-torch"), "ai-edge-litert": version("ai-edge-litert")},
        # litert-torch numbers them in the order of the arguments and results.
        settings={"input": "args_0", "logits": "output_0", "probabilities": "output_1"},
    )
