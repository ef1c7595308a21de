"""The dependency on ONNX Runtime, which comes in several distributions that hold the same module.

    pip install .                                             onnxruntime: the CPU, Core ML, and plugins beside it
    FER_EDGE_ONNXRUNTIME=onnxruntime-gpu pip install .        CUDA and TensorRT

A requirement cannot say "one of these", and pip knows no extra that replaces a dependency. So it is decided when the
package is built.
"""

from __future__ import annotations

import os
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

VARIABLE = "FER_EDGE_ONNXRUNTIME"
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")


class CustomMetadataHook(MetadataHookInterface):
    """Adds the distribution that `$FER_EDGE_ONNXRUNTIME` names to the dependencies in pyproject.toml."""

    def update(self, metadata: dict[str, Any]) -> None:
        name = os.environ.get(VARIABLE) or DISTRIBUTIONS[0]
        if name not in DISTRIBUTIONS:
            raise ValueError(f"{VARIABLE}={name} is none of {', '.join(DISTRIBUTIONS)}")
        metadata["dependencies"] = [*self.config["dependencies"], f"{name}>=1.20"]
