"""Facial expressions from images and videos, without PyTorch.

    from fer_runtime import Recognizer, find_images, recognize_files

    with Recognizer() as recognizer:
        print(recognizer.predict("portrait.jpg").faces)
        for result in recognize_files(recognizer, find_images("holiday/", recursive=True)):
            print(result.path, result.error, result.faces)

Importing the library changes nothing in your application, except that it turns off ONNX Runtime's telemetry.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# onnxruntime's Linux wheel records telemetry unless this is set before its import. Every module of ours imports this
# one first.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fer_runtime.batch.jobs import recognize_files as recognize_files
    from fer_runtime.batch.sources import find_images as find_images
    from fer_runtime.errors import FerError as FerError
    from fer_runtime.errors import ImageError as ImageError
    from fer_runtime.errors import ModelFileError as ModelFileError
    from fer_runtime.errors import OutputError as OutputError
    from fer_runtime.errors import ProviderError as ProviderError
    from fer_runtime.expressions import EXPRESSIONS as EXPRESSIONS
    from fer_runtime.model.find import AvailableModel as AvailableModel
    from fer_runtime.model.find import available_models as available_models
    from fer_runtime.recognizer import Recognizer as Recognizer
    from fer_runtime.results import Face as Face
    from fer_runtime.results import ImageResult as ImageResult
    from fer_runtime.video.recognize import Tracker as Tracker
    from fer_runtime.video.recognize import recognize_video as recognize_video
    from fer_runtime.video.results import FrameResult as FrameResult

# Loaded on first use: OpenCV and ONNX Runtime take 0.1 s, which `--help` and the training code never need.
_MODULES = {
    "AvailableModel": "fer_runtime.model.find",
    "EXPRESSIONS": "fer_runtime.expressions",
    "Face": "fer_runtime.results",
    "FerError": "fer_runtime.errors",
    "FrameResult": "fer_runtime.video.results",
    "ImageError": "fer_runtime.errors",
    "ImageResult": "fer_runtime.results",
    "ModelFileError": "fer_runtime.errors",
    "OutputError": "fer_runtime.errors",
    "ProviderError": "fer_runtime.errors",
    "Recognizer": "fer_runtime.recognizer",
    "Tracker": "fer_runtime.video.recognize",
    "available_models": "fer_runtime.model.find",
    "find_images": "fer_runtime.batch.sources",
    "recognize_files": "fer_runtime.batch.jobs",
    "recognize_video": "fer_runtime.video.recognize",
}
__all__ = [
    "EXPRESSIONS",
    "AvailableModel",
    "Face",
    "FerError",
    "FrameResult",
    "ImageError",
    "ImageResult",
    "ModelFileError",
    "OutputError",
    "ProviderError",
    "Recognizer",
    "Tracker",
    "__version__",
    "available_models",
    "find_images",
    "recognize_files",
    "recognize_video",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__]
