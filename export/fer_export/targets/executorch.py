"""ExecuTorch's .pte, with the XNNPACK kernels for CPUs."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import onnx
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower

from fer_export.targets import Converted, Source
from fer_export.torch_module import OnnxModule
from fer_runtime.model.find import Precision


def convert(source: Source, precision: Precision, path: Path) -> Converted:
    """Write `path`, which takes one face."""
    module = OnnxModule(onnx.load_model_from_string(source.content)).eval()
    example = torch.from_numpy(source.certificate.faces[:1].copy())
    with torch.no_grad():
        program = torch.export.export(module, (example,))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)
    return Converted(
        preprocessing="none: the input takes one uint8 face, with a batch axis of 1",
        versions={"executorch": version("executorch"), "torch": torch.__version__},
    )
