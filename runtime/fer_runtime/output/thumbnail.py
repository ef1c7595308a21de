"""An image as a thumbnail, for pages of many."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from fer_runtime.images import Uint8Array


def square_thumbnail(image: Uint8Array, side: int, *, paper: int) -> Uint8Array:
    """The image whole and undistorted: its longer side fills the square, and the rest is paper.

    Args:
        image: uint8 (height, width, 3) in BGR, or (height, width).
        side: pixels of the square.
        paper: gray level of what the image does not cover, 0 to 255.

    Returns:
        uint8 (side, side, 3) in BGR.
    """
    scale = side / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small: Any = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    if small.ndim == 2:
        small = cv2.cvtColor(small, cv2.COLOR_GRAY2BGR)
    square = np.full((side, side, 3), paper, np.uint8)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    square[top : top + size[1], left : left + size[0]] = small
    return square
