"""Face detectors: each a small module, created by name in `create_detector`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from fer_runtime.detectors.yunet_file import cached_yunet, given_yunet, yunet_path
from fer_runtime.images import Uint8Array

Point = tuple[float, float]  # x, y in pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """A face in an image."""

    box: tuple[int, int, int, int]  # x, y, width, height in pixels: the part that a model is shown
    score: float = 1.0  # how sure the detector is, 0 to 1
    landmarks: tuple[Point, ...] = ()  # right eye, left eye, nose, right and left corner of the mouth, where found

    @property
    def roll(self) -> float:
        """Degrees that the line through the eyes is turned, clockwise in the image; 0 without landmarks."""
        if len(self.landmarks) < 2:
            return 0.0
        (right_x, right_y), (left_x, left_y) = self.landmarks[:2]
        return math.degrees(math.atan2(left_y - right_y, left_x - right_x))


def square_crop(face: Sequence[float], crop: tuple[float, float]) -> tuple[int, int, int, int]:
    """The square that a model is shown, around the box that a detector gives.

    Args:
        face: x, y, width, height in pixels.
        crop: side of the square, and how far its centre lies below the box's, in units of the box's longer side.
    """
    x, y, width, height = face
    longer = max(width, height)
    side, below = crop[0] * longer, crop[1] * longer
    left, top = x + width / 2 - side / 2, y + height / 2 - side / 2 + below
    return round(left), round(top), max(1, round(side)), max(1, round(side))


class Detector(Protocol):
    """Finds faces. One detector serves one thread at a time."""

    name: str

    def detect(self, image: Uint8Array) -> tuple[Detection, ...]:
        """Faces in `image`, uint8 (height, width, 3) in BGR or (height, width), from left to right."""
        ...


@runtime_checkable
class SearchesAgain(Protocol):
    """A detector whose quick search passes over small faces."""

    def search_again(self, image: Uint8Array) -> tuple[Detection, ...]:
        """Smaller faces in `image` than `detect` finds, in more time."""
        ...


DETECTOR_NAMES = ("auto", "haar", "yunet", "whole")


def find_detector(name: str, *, yunet: Path | None = None) -> str:
    """The detector that `name` stands for here: "auto" is "yunet" where its file is given or cached, else "haar"."""
    if name == "auto":
        return "yunet" if yunet is not None or yunet_path().is_file() else "haar"
    return name


def create_detector(name: str, *, min_face: int = 24, yunet: Path | None = None) -> Detector:
    """The detector of that name; "auto" is YuNet where its file is, else Haar.

    Args:
        name: one of DETECTOR_NAMES.
        min_face: smallest side of a face in pixels.
        yunet: YuNet's file; None takes the one that `fer-infer --fetch-yunet` left in the cache folder.

    Raises:
        ModelFileError: YuNet is asked for and its file is missing or damaged.
        ValueError: no detector has that name.
    """
    # Imported on use: a run over face crops loads no detector, one with Haar no session.
    name = find_detector(name, yunet=yunet)
    if name == "haar":
        from fer_runtime.detectors.haar import HaarDetector

        return HaarDetector(min_face=min_face)
    if name == "yunet":
        from fer_runtime.detectors.yunet import YuNetDetector

        return YuNetDetector(cached_yunet() if yunet is None else given_yunet(yunet), min_face=min_face)
    if name == "whole":
        from fer_runtime.detectors.whole import WholeDetector

        return WholeDetector()
    raise ValueError(f"no detector named {name!r}; one of: {', '.join(DETECTOR_NAMES)}")
