"""Face detectors: each is a small module and one entry in DETECTORS."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from fer_runtime.registry import Registry, load

if TYPE_CHECKING:
    from pathlib import Path

    from fer_runtime.images import Uint8Array

Point = tuple[float, float]  # x, y in pixels
MOST_MIN_FACE = 100_000  # pixels: more than an image has on a side


class Detection(NamedTuple):
    """A face in an image."""

    box: tuple[int, int, int, int]  # x, y, width, height in pixels: the part that a model takes
    score: float | None = None  # how sure the detector is, 0 to 1; None if it does not say
    landmarks: tuple[Point, ...] = ()  # right eye, left eye, nose, right and left corner of the mouth, where found

    @property
    def roll(self) -> float:
        """Degrees that the line through the eyes is turned, clockwise in the image; 0 without landmarks."""
        if len(self.landmarks) < 2:
            return 0.0
        (right_x, right_y), (left_x, left_y) = self.landmarks[:2]
        return math.degrees(math.atan2(left_y - right_y, left_x - right_x))


def square_crop(face: Sequence[float], crop: tuple[float, float]) -> tuple[int, int, int, int]:
    """Return the square that a model takes around a detected box: x, y, width, height in pixels.

    Args:
        face: x, y, width, height in pixels.
        crop: side of the square, and how far its centre is below the box's, in units of the box's longer side.
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
    """A detector whose quick search misses small faces."""

    def search_again(self, image: Uint8Array) -> tuple[Detection, ...]:
        """Find smaller faces in `image` than `detect` does, in more time."""
        ...


class DetectorOptions(NamedTuple):
    """The options of all detectors; each uses some of them."""

    min_face: int = 24  # smallest side of a face in pixels
    yunet: Path | None = None  # YuNet's file; None takes the one that `fer-infer --fetch-yunet` left in the cache


class DetectorEntry(NamedTuple):
    """A detector, and what the command line says about it."""

    name: str  # as --detector takes it
    help: str  # for --help
    create: str  # "module:function" that makes a Detector of DetectorOptions; imported on use
    uses: tuple[str, ...] = ()  # the fields of DetectorOptions that it uses; the command line refuses the others


DETECTORS = Registry[DetectorEntry](
    "detector",
    DetectorEntry(
        name="haar",
        help="search every image with OpenCV's cascade",
        create="fer_runtime.detectors.haar:create",
        uses=("min_face",),
    ),
    DetectorEntry(
        name="yunet",
        help="search every image with YuNet",
        create="fer_runtime.detectors.yunet:create",
        uses=("min_face", "yunet"),
    ),
    DetectorEntry(name="whole", help="take every image as a face", create="fer_runtime.detectors.whole:create"),
)


def find_detector(name: str, *, yunet: Path | None = None) -> str:
    """The detector that `name` stands for here: "auto" is "yunet" if its file is given or cached, else "haar"."""
    if name == "auto":
        from fer_runtime.detectors.yunet_file import yunet_path

        return "yunet" if yunet is not None or os.path.isfile(yunet_path()) else "haar"
    return name


def create_detector(name: str, *, min_face: int = 24, yunet: Path | None = None) -> Detector:
    """The detector of that name; "auto" is YuNet if its file is available, else Haar.

    Args:
        name: "auto" or one of DETECTORS.
        min_face: smallest side of a face in pixels.
        yunet: YuNet's file; None takes the one that `fer-infer --fetch-yunet` left in the cache folder.

    Raises:
        ModelFileError: YuNet is asked for and its file is missing or damaged.
        ValueError: no detector has that name.
    """
    name = find_detector(name, yunet=yunet)
    if name not in DETECTORS:
        raise ValueError(f"no detector named {name!r}; one of: {', '.join(('auto', *DETECTORS))}")
    detector: Detector = load(DETECTORS[name].create)(DetectorOptions(min_face=min_face, yunet=yunet))
    return detector
