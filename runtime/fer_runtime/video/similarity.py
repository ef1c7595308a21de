"""The similarity of two images, as a correlation."""

from __future__ import annotations

import cv2
import numpy as np

from fer_runtime.images import Uint8Array


def similarity(first: Uint8Array, second: Uint8Array, margin: int) -> float:
    """Correlation, -1 to 1, of the middle of one image with the best match in the other.

    Brightness and contrast do not matter, nor does a shift of up to `margin` pixels. It is symmetric.

    Args:
        first: uint8 (height, width).
        second: of the same shape.
        margin: pixels around the middle.
    """
    return max(_middle_found(first, second, margin), _middle_found(second, first, margin))


def _middle_found(first: Uint8Array, second: Uint8Array, margin: int) -> float:
    middle = first[margin:-margin, margin:-margin]
    found = float(cv2.matchTemplate(second, middle, cv2.TM_CCOEFF_NORMED).max())
    return found if np.isfinite(found) else 1.0  # an even image has no structure to compare
