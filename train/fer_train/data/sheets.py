"""Contact sheets: what a data set looks like, a page for each class."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from fer_runtime.images import Uint8Array
from fer_runtime.output.thumbnail import square_thumbnail
from fer_runtime.text import printable

_COLUMNS, _ROWS = 12, 20
SHOWN = _COLUMNS * _ROWS  # images of a page
_SIDE, _CAPTION, _GAP, _HEADER = 96, 32, 8, 40
_INK, _PAPER = (40, 36, 32), 250
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_CHARACTERS = 16  # of a caption's line


def evenly(count: int, shown: int = SHOWN) -> list[int]:
    """At most `shown` of `count` indices, evenly spaced from the first to the last."""
    if count <= shown:
        return list(range(count))
    return [round(place) for place in np.linspace(0, count - 1, shown)]


def draw_sheet(title: str, images: Sequence[Uint8Array], captions: Sequence[str]) -> Uint8Array:
    """A page of images, uint8 (height, width, 3) in BGR.

    Args:
        images: of any size, uint8 (height, width, 3) in BGR or (height, width).
        captions: one or two lines for each image.
    """
    columns = min(_COLUMNS, max(4, len(images)))
    rows = -(-len(images) // columns)
    page = np.full((_HEADER + rows * (_SIDE + _CAPTION) + _GAP, columns * (_SIDE + _GAP) + _GAP, 3), _PAPER, np.uint8)
    cv2.putText(page, printable(title, limit=60), (_GAP, 26), _FONT, 0.6, _INK, 1, cv2.LINE_AA)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = _GAP + number % columns * (_SIDE + _GAP), _HEADER + number // columns * (_SIDE + _CAPTION)
        page[y : y + _SIDE, x : x + _SIDE] = square_thumbnail(image, _SIDE, paper=_PAPER)
        for line, text in enumerate(caption.split("\n")[:2]):
            place = (x, y + _SIDE + 12 + 13 * line)
            cv2.putText(page, _shown(text), place, _FONT, 0.36, _INK, 1, cv2.LINE_AA)
    return page


def _shown(text: str) -> str:
    """A caption's line; OpenCV draws nothing but ASCII."""
    text = printable(text)
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 2]}.."
