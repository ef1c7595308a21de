"""The one place that imports torchvision.

torchvision's Linux wheels are built for CUDA. Beside a CPU-only torch their import dies with
"operator torchvision::nms does not exist", although networks and transforms need no such operator.
Defining the two schemas before the import cures it.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch

# torch undefines a library's schemas when the object dies, so it must live as long as the process.
_schemas: Any = None


def _torchvision(submodule: str) -> ModuleType:
    global _schemas
    try:
        return importlib.import_module(f"torchvision.{submodule}")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    _schemas = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    _schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module(f"torchvision.{submodule}")


def torchvision_models() -> ModuleType:
    """`torchvision.models`, also beside a CPU-only torch."""
    return _torchvision("models")


def torchvision_transforms() -> ModuleType:
    """`torchvision.transforms.v2`, also beside a CPU-only torch."""
    return _torchvision("transforms.v2")
