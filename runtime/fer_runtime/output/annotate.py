"""Images with their faces drawn in: a box, the expression, and a bar per probability."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from fer_runtime.errors import OutputError
from fer_runtime.files import write_atomically
from fer_runtime.images import Uint8Array
from fer_runtime.output.colors import drawn_label, label_colors
from fer_runtime.results import Face

_WHITE, _PANEL, _INK = (255, 255, 255), (32, 28, 24), (200, 200, 200)
_Box = tuple[int, int, int, int]  # x, y, width, height in pixels
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_HEIGHT = 22  # pixels of a capital letter at scale 1
_READABLE_SIDE = 320  # pixels that the short side is enlarged to
_ENLARGED_SIDE = 4096  # pixels that the long side stays within: a strip of 10 x 16,000 would take 0.5 GB

_MOST_BARS = 12  # of a face; of more labels, the most probable are drawn


def draw_faces(image: Uint8Array, faces: Sequence[Face], *, numbers: Sequence[int] = ()) -> Uint8Array:
    """A copy of the picture with its faces drawn in; lines and letters grow with the picture.

    Args:
        image: uint8 (height, width, 3) in BGR, or (height, width).
        faces: as `Recognizer.predict` gives them for this picture.
        numbers: the tracks of the faces, written before their expressions.

    Returns:
        uint8 (height, width, 3), or larger: a small picture is enlarged until letters can be read.
    """
    drawn = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image.copy()
    # In a small picture no letter fits a face, so what is enlarged is the picture.
    factor = max(1, min(-(-_READABLE_SIDE // min(drawn.shape[:2])), _ENLARGED_SIDE // max(drawn.shape[:2])))
    if factor > 1:
        drawn = cv2.resize(drawn, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    unit = max(1.0, min(drawn.shape[:2]) / 480)
    boxes: list[_Box] = []
    for face in faces:
        x, y, width, height = (value * factor for value in face.box)
        boxes.append((x, y, width, height))
    taken = list(boxes)
    for index, (face, box) in enumerate(zip(faces, boxes, strict=True)):
        taken.append(_draw_box(drawn, face, box, unit, f"{numbers[index]}: " if numbers else ""))
    # The largest first: where there is no room for all panels, it keeps its own.
    for face, box in sorted(zip(faces, boxes, strict=True), key=lambda one: -one[1][2]):
        _draw_panel(drawn, face, box, unit, taken)
    return drawn  # type: ignore[return-value]


def write_image(path: Path, image: Uint8Array) -> None:
    """Encode by the path's suffix and write atomically.

    Raises:
        OutputError: OpenCV cannot encode the image in that format, or the file cannot be written.
    """
    write_atomically(path, encode_image(path, image))


def encode_image(path: Path, image: Uint8Array) -> bytes:
    """The bytes of an image file of that name.

    Raises:
        OutputError: OpenCV writes no format of that suffix, or no image of that size in it.
    """
    # OpenCV's formats have ASCII names, and a suffix that is no UTF-8 would crash it.
    suffix = path.suffix if path.suffix.isascii() else ""
    content = _encoded(suffix, image)
    if content is not None:
        return content
    if _encoded(suffix, np.zeros((1, 1, 3), np.uint8)) is None:
        raise OutputError(f"cannot write an image to {path}; end its name in .jpg or .png")
    height, width = image.shape[:2]
    raise OutputError(f"a {suffix} file does not hold {width} x {height} pixels")


def _encoded(suffix: str, image: Uint8Array) -> bytes | None:
    try:
        encoded, content = cv2.imencode(suffix, image)
    except cv2.error:
        return None
    return content.tobytes() if encoded else None


def _draw_box(image: cv2.typing.MatLike, face: Face, box: _Box, unit: float, number: str) -> _Box:
    """Draw the box and its title; where the title is."""
    x, y, width, height = box
    labels = tuple(face.probabilities)
    color = label_colors(labels).get(face.expression, _INK)
    line = max(1, round(2 * unit))
    cv2.rectangle(image, (x, y), (x + width, y + height), color, line, cv2.LINE_AA)
    title = f"{number}{drawn_label(face.expression, labels)} {face.confidence:.0%}{'?' if face.uncertain else ''}"
    # As wide as the box where that can be read, never wider than the picture.
    scale = min(max(width / (cv2.getTextSize(title, _FONT, 1, 2)[0][0] + 12), 0.42 * unit), 0.9 * unit)
    text_width = cv2.getTextSize(title, _FONT, scale, line)[0][0]
    bar = round((_FONT_HEIGHT + 14) * scale)
    left = max(0, min(x, image.shape[1] - text_width - bar // 2))
    top = y - bar if y - bar >= 0 else min(y + height, image.shape[0] - bar)
    cv2.rectangle(image, (left, top), (left + text_width + bar // 2, top + bar), color, -1)
    baseline = (left + bar // 4, top + round(bar * 0.72))
    cv2.putText(image, title, baseline, _FONT, scale, _PANEL, max(1, round(1.6 * scale)), cv2.LINE_AA)
    return left, top, text_width + bar // 2, bar


def _draw_panel(image: cv2.typing.MatLike, face: Face, box: _Box, unit: float, taken: list[_Box]) -> None:
    """Draw a bar per probability beside or below the box, where nothing else is drawn; add it to `taken`."""
    x, y, width, height = box
    fills = 10 * width >= 7 * image.shape[1] and 10 * height >= 7 * image.shape[0]
    scale = 0.38 * unit if fills else max(0.38 * unit, min(0.55 * unit, height / 340))
    row = round((_FONT_HEIGHT + 8) * scale)
    labels = tuple(face.probabilities)
    colors, bars_of = label_colors(labels), _bars(face)
    titles = {name: drawn_label(name, labels) for name in bars_of}
    names = round(max(cv2.getTextSize(title, _FONT, scale, 1)[0][0] for title in titles.values()) + 8 * scale)
    bars = round(100 * scale)
    panel_width, panel_height = names + bars + round(16 * scale), row * len(bars_of) + round(10 * scale)
    gap = round(6 * unit)
    places = (
        (x + width + gap, y),
        (x - gap - panel_width, y),
        (x + (width - panel_width) // 2, y + height + gap),
        (x + width + gap, y + height - panel_height),
        (x - gap - panel_width, y + height - panel_height),
    )
    panels = ((left, top, panel_width, panel_height) for left, top in places)
    panel = next((one for one in panels if _is_free(one, image.shape, taken)), None)
    if panel is None and fills:
        # A crop: in its corner, small enough to leave the eyes free.
        corner = (x + width - panel_width - gap, y + gap, panel_width, panel_height)
        panel = corner if _is_free(corner, image.shape, [one for one in taken if one != box]) else None
    if panel is None:
        return  # a crowd: the boxes and their titles say enough
    taken.append(panel)
    left, top = panel[:2]
    patch = image[top : top + panel_height, left : left + panel_width]
    patch[:] = (patch * 0.28 + np.array(_PANEL) * 0.72).astype(np.uint8)
    for number, (name, probability) in enumerate(bars_of.items()):
        middle = top + round(5 * scale) + row * number + row // 2
        text = (left + round(5 * scale), middle + round(_FONT_HEIGHT * scale / 2.4))
        cv2.putText(image, titles[name], text, _FONT, scale, _WHITE, max(1, round(1.2 * scale)), cv2.LINE_AA)
        start, half = left + names + round(4 * scale), max(1, round(row * 0.28))
        cv2.rectangle(image, (start, middle - half), (start + bars, middle + half), (70, 66, 62), -1)
        end = start + round(bars * probability)
        cv2.rectangle(image, (start, middle - half), (end, middle + half), colors[name], -1)


def _bars(face: Face) -> dict[str, float]:
    """The probabilities that are drawn: all of them in the order of the labels, or the largest of many."""
    if len(face.probabilities) <= _MOST_BARS:
        return face.probabilities
    return dict(sorted(face.probabilities.items(), key=lambda one: -one[1])[:_MOST_BARS])


def _is_free(box: _Box, shape: tuple[int, ...], taken: list[_Box]) -> bool:
    x, y, width, height = box
    inside = x >= 0 and y >= 0 and x + width <= shape[1] and y + height <= shape[0]
    return inside and not any(
        x < left + other_width and left < x + width and y < top + other_height and top < y + height
        for left, top, other_width, other_height in taken
    )
