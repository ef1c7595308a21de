"""Images and videos with their faces made unrecognizable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cv2

from fer_runtime.images import Uint8Array

if TYPE_CHECKING:
    from fer_runtime.video.results import FrameResult

METHODS = ("pixelate", "blur", "solid")

_Box = tuple[int, int, int, int]  # x, y, width, height in pixels
# A covered region keeps so many values along each side, whatever the method: blurring alone can be undone, and faces of
# 16 x 16 pixels can still be told apart by people who know them (Harmon and Julesz, 1973).
BLOCKS = 4
# Of the box on each side: hair, ears and chin, and a face that moves before the next frame.
_MARGIN = 0.25
_SOLID = 64  # gray
_HIDDEN_SECONDS = 1.0  # that the place of a face stays covered after the face was last seen
_GROWTH = 0.5  # of the box on each side, for each second without the face


def cover_faces(image: Uint8Array, boxes: Iterable[_Box], method: str) -> Uint8Array:
    """A copy of the image whose faces cannot be recognized, nor restored: their pixels are gone.

    Args:
        image: uint8 (height, width, 3), or (height, width).
        boxes: the faces.
        method: one of METHODS.

    Raises:
        ValueError: no method has that name.
    """
    if method not in METHODS:
        raise ValueError(f"no method named {method!r}; one of: {', '.join(METHODS)}")
    covered: Uint8Array = image.copy()
    for box in boxes:
        left, top, right, bottom = _region(box, image.shape[1], image.shape[0])
        if left >= right or top >= bottom:
            continue
        size = (right - left, bottom - top)
        if method == "solid":
            covered[top:bottom, left:right] = _SOLID
            continue
        # Of the image as it was: where two faces overlap, the second would otherwise keep the first one's blocks.
        few = cv2.resize(image[top:bottom, left:right], (BLOCKS, BLOCKS), interpolation=cv2.INTER_AREA)
        how = cv2.INTER_NEAREST if method == "pixelate" else cv2.INTER_LINEAR
        covered[top:bottom, left:right] = cv2.resize(few, size, interpolation=how)
    return covered


def _region(box: _Box, width: int, height: int) -> tuple[int, int, int, int]:
    x, y, across, down = box
    margin_x, margin_y = round(_MARGIN * across), round(_MARGIN * down)
    return (
        max(0, x - margin_x),
        max(0, y - margin_y),
        min(width, x + across + margin_x),
        min(height, y + down + margin_y),
    )


@dataclass(slots=True)
class CoveredFaces:
    """Which places of a video's frames to cover: the faces, and where a face was until a second ago.

    A face that the detector misses, or that something hides, stays covered; the place grows with the time, because the
    face may move. A hard cut ends it.
    """

    _last: dict[int, tuple[float, _Box]] = field(default_factory=dict)  # time and box of each track

    def update(self, result: FrameResult) -> list[_Box]:
        """The places to cover in the next frame."""
        if result.is_cut:
            self._last = {}
        for tracked in result.faces:
            self._last[tracked.track] = (result.time, tracked.face.box)
        self._last = {
            track: (time, box) for track, (time, box) in self._last.items() if result.time - time <= _HIDDEN_SECONDS
        }
        return [_grown(box, result.time - time) for time, box in self._last.values()]


def _grown(box: _Box, seconds: float) -> _Box:
    x, y, width, height = box
    more_x, more_y = round(_GROWTH * seconds * width), round(_GROWTH * seconds * height)
    return x - more_x, y - more_y, width + 2 * more_x, height + 2 * more_y
