"""From an image and a box to the face that a model takes."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from fer_runtime.expressions import FACE_SIZE
from fer_runtime.images import Uint8Array, to_gray

# Images of up to this many pixels on their short side are face crops already, as FER2013's are.
CROP_SIDE = 64
# A crop of a face, even a loose one with hair and chin, is not longer than this many times its short side. Banners are.
_LONGEST = 2
# Sizes in which crops are common as well as small photographs; the summary of a run names `--detector whole` for them.
_CROP_SIZED = 256
# Below this many degrees turning changes less than resampling blurs; FER2013's own faces are tilted more.
_LEAST_ROLL = 5.0


def is_face_crop(width: int, height: int) -> bool:
    """Whether an image of this size is taken for one face."""
    return min(width, height) <= CROP_SIDE and max(width, height) <= _LONGEST * min(width, height)


def may_be_face_crop(width: int, height: int) -> bool:
    """Whether an image of this size may be the crop of a face, although it is searched for faces."""
    return max(width, height) <= _CROP_SIZED and max(width, height) <= _LONGEST * min(width, height)


def prepare_face(
    image: Uint8Array,
    box: tuple[int, int, int, int] | None = None,
    *,
    roll: float = 0.0,
    size: int = FACE_SIZE,
    color: str = "gray",
) -> Uint8Array:
    """The part of `image` inside `box` as a model takes it: uint8 (size, size), or (size, size, 3) in RGB.

    Args:
        image: uint8 (height, width, 3) in BGR, or (height, width).
        box: x, y, width, height in pixels, None for the whole image. What lies outside the image
            repeats its border, so that a face at the edge keeps its proportions.
        roll: degrees by which the face is turned clockwise; it is turned back around the box's centre.
        size: pixels, side of the face.
        color: "gray" or "rgb".

    Raises:
        ValueError: the box is empty or lies outside the image.
    """
    if image.shape == (size, size) and color == "gray" and box in (None, (0, 0, size, size)) and not roll:
        return np.ascontiguousarray(image)  # most crops of a folder
    if box is not None and abs(roll) >= _LEAST_ROLL:
        return _upright(image, box, roll, size, color)
    if box is not None and box != (0, 0, image.shape[1], image.shape[0]):
        image = _crop(image, box)
    return _shrunk(_in_color(image, color), size)


def _upright(image: Uint8Array, box: tuple[int, int, int, int], roll: float, size: int, color: str) -> Uint8Array:
    x, y, width, height = box
    # Half a box more on every side holds every corner of the turned box. Shrinking comes first and
    # averages; turning afterwards needs no more than bilinear weights.
    around = (x - width // 2, y - height // 2, 2 * width, 2 * height)
    patch = _shrunk(_in_color(_crop(image, around), color), 2 * size)
    matrix: Any = cv2.getRotationMatrix2D((size - 0.5, size - 0.5), roll, 1.0)
    matrix[:, 2] -= size / 2
    turned: Any = cv2.warpAffine(patch, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
    face: Uint8Array = turned
    return face


def _in_color(image: Uint8Array, color: str) -> Uint8Array:
    if color == "gray":
        return to_gray(image)
    rgb: Any = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB)
    planes: Uint8Array = rgb
    return planes


def _shrunk(image: Uint8Array, side: int) -> Uint8Array:
    if image.shape[:2] == (side, side):
        return np.ascontiguousarray(image)
    # INTER_AREA averages what it drops; enlarging has nothing to average.
    interpolation = cv2.INTER_AREA if min(image.shape[:2]) >= side else cv2.INTER_LINEAR
    resized: Any = cv2.resize(image, (side, side), interpolation=interpolation)
    planes: Uint8Array = resized
    return planes


def _crop(image: Uint8Array, box: tuple[int, int, int, int]) -> Uint8Array:
    x, y, width, height = box
    rows, columns = image.shape[:2]
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, columns), min(y + height, rows)
    if left >= right or top >= bottom:
        raise ValueError(f"the box {box} lies outside the image of {columns} x {rows} pixels")
    inside = image[top:bottom, left:right]
    missing = (top - y, y + height - bottom, left - x, x + width - right)
    if not any(missing):
        return inside
    padded: Any = cv2.copyMakeBorder(inside, *missing, cv2.BORDER_REPLICATE)
    whole: Uint8Array = padded
    return whole
