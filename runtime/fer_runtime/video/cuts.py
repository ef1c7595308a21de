"""Hard cuts: where one scene ends and another begins between two frames."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from fer_runtime.images import Uint8Array, to_gray
from fer_runtime.video.similarity import similarity

_WIDTH, _HEIGHT = 64, 36  # pixels that a frame is shrunk to
_MARGIN = 10  # pixels that the camera may pan between two frames
_LEVELS = 8  # of each colour channel in the histogram
# A cut changes the colours and leaves no part of the image where one could find it again. A camera that pans and
# people who walk by leave parts of it, a flash or a lamp that is switched on leaves its structure.
_MOST_SIMILAR = 0.65  # correlation of the middle of one frame with the best place in the other
_LEAST_COLOR_CHANGE = 0.2  # share of the pixels whose colour is not in the frame before
# Frames that are further apart than this differ more without a cut.
_CLOSE_SECONDS = 0.25
_LEAST_COLOR_CHANGE_APART = 0.4


class CutDetector:
    """Compares each frame with the one before."""

    def __init__(self) -> None:
        self._before: tuple[float, Any, Any] | None = None  # seconds, shrunk frame, colours

    def is_cut(self, image: Uint8Array, seconds: float) -> bool:
        """Whether a new scene begins.

        Args:
            image: uint8 (height, width, 3) in BGR or (height, width).
            seconds: time of the frame.
        """
        small: Any = cv2.resize(image, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_AREA)
        if small.ndim == 2:
            small = cv2.cvtColor(small, cv2.COLOR_GRAY2BGR)
        colors: Any = cv2.calcHist([small], [0, 1, 2], None, [_LEVELS] * 3, [0.0, 256.0] * 3) / (_WIDTH * _HEIGHT)
        gray = to_gray(small)
        before, self._before = self._before, (seconds, gray, colors)
        if before is None:
            return False
        is_close = seconds - before[0] <= _CLOSE_SECONDS
        change = 1.0 - float(np.minimum(before[2], colors).sum())
        if change <= (_LEAST_COLOR_CHANGE if is_close else _LEAST_COLOR_CHANGE_APART):
            return False
        return similarity(before[1], gray, _MARGIN) < _MOST_SIMILAR
