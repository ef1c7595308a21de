"""Viola and Jones' cascades, which ship with OpenCV, so there is no file to download."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fer_runtime.detectors import Detection, DetectorOptions, square_crop
from fer_runtime.errors import ModelFileError
from fer_runtime.images import Uint8Array, to_gray

# alt2 found all of 64 faces in 63 portraits with no false box at this size; "default" gave up to 28 false ones.
_CASCADE = "haarcascade_frontalface_alt2.xml"
_LONG_SIDE = 320  # pixels that the image is shrunk to
# The second search finds faces of a quarter of the size, in three to thirteen times the time.
_LARGER_SIDE = 1280
_SMALLEST = 20  # pixels of the faces that the cascade was trained on
_SCALE_STEP = 1.1
_NEIGHBOURS = 5
# Two boxes of one face, found at different sizes, lie inside each other; the square boxes of two people who stand cheek
# to cheek share less than half of the smaller one, because each ends at the face's own edge.
_SHARED = 0.5
# As for YuNet: FER2013's crop around the cascade's box, the median over its training images.
_CROP = (1.03, 0.01)


class HaarDetector:
    """Frontal faces by the cascade `frontalface_alt2`."""

    name = "haar"

    def __init__(self, *, min_face: int = 24) -> None:
        self._min_face = min_face
        data: Any = getattr(cv2, "data", None)
        if not hasattr(cv2, "CascadeClassifier") or data is None:
            raise ModelFileError(
                f"this OpenCV ({cv2.__version__}) has no Haar cascades; install one that has: "
                "pip install 'opencv-python-headless<5'"
            )
        path = Path(data.haarcascades) / _CASCADE
        if not path.is_file():
            raise ModelFileError(
                f"OpenCV's file {path} is missing; reinstall opencv-python-headless, or in a PyInstaller program add "
                "--collect-data cv2"
            )
        self._cascade = cv2.CascadeClassifier(str(path))

    def detect(self, image: Uint8Array) -> tuple[Detection, ...]:
        """Faces in `image`, from left to right; none under a 16th of its long side."""
        return self._search(to_gray(image), _LONG_SIDE)

    def search_again(self, image: Uint8Array) -> tuple[Detection, ...]:
        """Faces in `image` down to a 64th of its long side, or to `min_face`."""
        # No larger than needed for a face of `min_face`.
        side = min(_LARGER_SIDE, math.ceil(max(image.shape[:2]) * min(1.0, _SMALLEST / self._min_face)))
        return self._search(to_gray(image), side) if side > _LONG_SIDE else ()

    def _search(self, gray: Uint8Array, long_side: int) -> tuple[Detection, ...]:
        height, width = gray.shape
        shrink = min(1.0, long_side / max(height, width))
        if shrink < 1:
            size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
            gray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        smallest = max(_SMALLEST, round(self._min_face * shrink))
        found, hits = self._cascade.detectMultiScale2(gray, _SCALE_STEP, _NEIGHBOURS, minSize=(smallest, smallest))
        # The one with the most hits is the face; OpenCV joins boxes of about the same size only.
        best_first = [found[int(place)] for place in np.argsort(-np.asarray(hits, np.int64), kind="stable")]
        boxes = sorted(square_crop([float(value) / shrink for value in box], _CROP) for box in _apart(best_first))
        return tuple(Detection(box=box) for box in boxes)


def _apart(boxes: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """The boxes that lie apart from the ones before them: the others are of the same faces."""
    kept: list[Sequence[int]] = []
    for box in boxes:
        if all(_shared(box, other) <= _SHARED for other in kept):
            kept.append(box)
    return kept


def _shared(box: Sequence[int], other: Sequence[int]) -> float:
    """The area that two boxes have in common, as a share of the smaller one."""
    (x, y, width, height), (left, top, across, down) = box, other
    shared_x = min(x + width, left + across) - max(x, left)
    shared_y = min(y + height, top + down) - max(y, top)
    if shared_x <= 0 or shared_y <= 0:
        return 0.0
    return int(shared_x) * int(shared_y) / min(int(width) * int(height), int(across) * int(down))


def create(options: DetectorOptions) -> HaarDetector:
    """The detector for the registry."""
    return HaarDetector(min_face=options.min_face)
