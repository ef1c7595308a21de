"""Facial expressions from pictures, without PyTorch.

from fer_runtime import Recognizer

faces = Recognizer("v0").predict("portrait.jpg").faces
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fer_runtime.expressions import EXPRESSIONS as EXPRESSIONS
    from fer_runtime.recognizer import Recognizer as Recognizer
    from fer_runtime.results import Face as Face
    from fer_runtime.results import ImageResult as ImageResult

# Importing these costs OpenCV and ONNX Runtime (0.1 s), which `--help` and the training code never use.
_LAZY = {
    "EXPRESSIONS": "fer_runtime.expressions",
    "Recognizer": "fer_runtime.recognizer",
    "Face": "fer_runtime.results",
    "ImageResult": "fer_runtime.results",
}
__all__ = ["EXPRESSIONS", "Face", "ImageResult", "Recognizer", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
