"""Face detectors: each a small module, registered by one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from fer_runtime.images import Uint8Array

Point = tuple[float, float]  # x, y in pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """A face in a picture."""

    box: tuple[int, int, int, int]  # x, y, width, height in pixels: the part that a model is shown
    score: float = 1.0  # how sure the detector is, 0 to 1
    landmarks: tuple[Point, ...] = ()  # right eye, left eye, nose, right and left corner of the mouth, where found


class Detector(Protocol):
    """Finds faces. One detector serves one thread at a time."""

    name: str

    def detect(self, image: Uint8Array) -> tuple[Detection, ...]:
        """Faces in `image`, uint8 (height, width, 3) in BGR or (height, width), from left to right."""
        ...


# Name, module and class. Imported on use: a run over face crops loads no detector.
DETECTORS: dict[str, tuple[str, str]] = {
    "haar": ("fer_runtime.detectors.haar", "HaarDetector"),
    "whole": ("fer_runtime.detectors.whole", "WholeDetector"),
}
DETECTOR_NAMES = ("auto", *DETECTORS)


def create_detector(name: str, *, min_face: int = 24) -> Detector:
    """The detector registered as `name`; "auto" is Haar.

    Args:
        min_face: smallest side of a face in pixels.

    Raises:
        ValueError: no detector has that name.
    """
    chosen = "haar" if name == "auto" else name
    if chosen not in DETECTORS:
        raise ValueError(f"no detector named {name!r}; one of: {', '.join(DETECTOR_NAMES)}")
    module, attribute = DETECTORS[chosen]
    factory: Callable[..., Detector] = getattr(import_module(module), attribute)
    return factory(min_face=min_face)
