"""Images with their faces drawn in: a box, the expression, and a bar per probability."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from fer_runtime.errors import NO_MEMORY, OutputError
from fer_runtime.files import write_atomically
from fer_runtime.images import Uint8Array, is_no_memory
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
    """A copy of the image with its faces drawn in; lines and letters grow with the image.

    Args:
        image: uint8 (height, width, 3) in BGR, or (height, width).
        faces: as `Recognizer.predict` gives them for this image.
        numbers: the tracks of the faces, written before their expressions.

    Returns:
        uint8 (height, width, 3), or larger: a small image is enlarged until letters can be read.
    """
    drawn = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image.copy()
    # In a small image no letter fits a face, so the image itself is enlarged.
    factor = max(1, min(-(-_READABLE_SIDE // min(drawn.shape[:2])), _ENLARGED_SIDE // max(drawn.shape[:2])))
    if factor > 1:
        drawn = cv2.resize(drawn, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    unit = max(1.0, min(drawn.shape[:2]) / 480)
    boxes: list[_Box] = []
    for face in faces:
        x, y, width, height = (value * factor for value in face.box)
        boxes.append((x, y, width, height))
    eyes = [_eyes(face, box, factor) for face, box in zip(faces, boxes, strict=True)]
    taken = list(boxes)
    for index, (face, box) in enumerate(zip(faces, boxes, strict=True)):
        number = f"{numbers[index]}: " if numbers else ""
        title = _draw_box(drawn, face, box, unit, number, hidden=eyes, taken=taken[len(boxes) :], boxes=boxes)
        taken.append(title)
    # The largest first: where there is no room for all panels, it keeps its own.
    for face, box in sorted(zip(faces, boxes, strict=True), key=lambda pair: -pair[1][2]):
        if not _draw_panel(drawn, face, box, unit, taken, eyes):
            _draw_strip(drawn, face, box, unit, [*taken[len(boxes) :], *eyes])
    return drawn  # type: ignore[return-value]


def _eyes(face: Face, box: _Box, factor: int) -> _Box:
    """The box around the eyes of a face, by its landmarks; without those, the upper half of its box."""
    x, y, width, height = box
    if len(face.landmarks) < 2:
        return x, y, width, height // 2
    (first_x, first_y), (second_x, second_y) = ((factor * x, factor * y) for x, y in face.landmarks[:2])
    reach = max(abs(first_x - second_x), width / 4) / 2
    left, top = min(first_x, second_x) - reach, min(first_y, second_y) - reach
    return (
        round(left),
        round(top),
        round(abs(first_x - second_x) + 2 * reach),
        round(abs(first_y - second_y) + 2 * reach),
    )


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
    raise OutputError(f"a {suffix} file cannot hold {width} x {height} pixels")


def _encoded(suffix: str, image: Uint8Array) -> bytes | None:
    try:
        encoded, content = cv2.imencode(suffix, image)
    except cv2.error as error:
        if is_no_memory(error):
            raise MemoryError(NO_MEMORY) from error
        return None
    return content.tobytes() if encoded else None


def _draw_box(
    image: cv2.typing.MatLike,
    face: Face,
    box: _Box,
    unit: float,
    number: str,
    *,
    hidden: list[_Box],
    taken: list[_Box],
    boxes: list[_Box],
) -> _Box:
    """Draw the box and its title, with the reasons against the answer below it; where the title is.

    Args:
        hidden: what the title may not cover, all eyes.
        taken: titles that are drawn already.
        boxes: of all faces: the title is beside them where there is room.
    """
    x, y, width, height = box
    labels = tuple(face.probabilities)
    color = label_colors(labels).get(face.expression, _INK)
    line = max(1, round(2 * unit))
    cv2.rectangle(image, (x, y), (x + width, y + height), color, line, cv2.LINE_AA)
    title = f"{number}{drawn_label(face.expression, labels)} {face.confidence:.0%}{'?' if face.uncertain else ''}"
    # As wide as the box where that can be read, never wider than the image.
    fitting = min(max(width / (cv2.getTextSize(title, _FONT, 1, 2)[0][0] + 12), 0.42 * unit), 0.9 * unit)
    # Smaller letters where larger ones would cover somebody's eyes.
    for scale in (fitting, 0.75 * fitting, 0.5 * fitting):
        lines = [(title, scale), *((text, 0.75 * scale) for text in _reason_lines(face, width / scale))]
        heights = [round((_FONT_HEIGHT + 14) * size) for _, size in lines]
        across = max(cv2.getTextSize(text, _FONT, size, line)[0][0] for text, size in lines) + heights[0] // 2
        down = sum(heights)
        left, right = max(0, min(x, image.shape[1] - across)), max(0, min(x + width, image.shape[1]) - across)
        places = [
            (place, top, across, down)
            for top in (y - down, y + height, y + height - down)
            for place in (left, right)
            if 0 <= top <= image.shape[0] - down
        ]
        others = [other for other in boxes if other != box]
        covered = ([*hidden, *taken, *others], [*hidden, *taken])
        free = next(
            (place for forbidden in covered for place in places if _is_free(place, image.shape, forbidden)),
            None,
        )
        if free is not None:
            break
    else:
        return x, y, 0, 0  # in a crowd, where every letter would be on a face
    left, top = free[:2]
    cv2.rectangle(image, (left, top), (left + across, top + down), color, -1)
    for (text, size), bar in zip(lines, heights, strict=True):
        baseline = (left + heights[0] // 4, top + round(bar * 0.72))
        cv2.putText(image, text, baseline, _FONT, size, _PANEL, max(1, round(1.6 * size)), cv2.LINE_AA)
        top += bar
    return free


def _reason_lines(face: Face, width: float) -> list[str]:
    """The reasons against an answer, in lines that are about as wide as the box.

    Args:
        width: of the box, in pixels of letters at scale 1.
    """
    lines: list[str] = []
    for reason in face.reasons:
        text = reason.replace("_", " ")
        joined = f"{lines[-1]}, {text}" if lines else text
        if lines and 0.75 * cv2.getTextSize(joined, _FONT, 1, 2)[0][0] <= width:
            lines[-1] = joined
        else:
            lines.append(text)
    return lines


def _draw_panel(
    image: cv2.typing.MatLike, face: Face, box: _Box, unit: float, taken: list[_Box], eyes: list[_Box]
) -> bool:
    """Draw a bar per probability where nothing else is drawn, and add it to `taken`; False where there is no room."""
    x, y, width, height = box
    fills = 10 * width >= 7 * image.shape[1] and 10 * height >= 7 * image.shape[0]
    smallest = 0.38 * unit
    largest = smallest if fills else max(smallest, min(0.55 * unit, height / 340))
    labels = tuple(face.probabilities)
    colors, bars_of = label_colors(labels), _bars(face)
    titles = {name: drawn_label(name, labels) for name in bars_of}
    gap = round(6 * unit)
    for scale in (largest, smallest):
        row = round((_FONT_HEIGHT + 8) * scale)
        names = round(max(cv2.getTextSize(title, _FONT, scale, 1)[0][0] for title in titles.values()) + 8 * scale)
        bars = round(100 * scale)
        size = names + bars + round(16 * scale), row * len(bars_of) + round(10 * scale)
        panel = _place_beside(box, size, gap, image.shape, taken)
        if panel is None and fills:
            # A crop: in its corner, small enough to leave the eyes free.
            corner = (x + width - size[0] - gap, y + gap, *size)
            panel = corner if _is_free(corner, image.shape, [other for other in taken if other != box]) else None
        if panel is not None:
            break
    line = None
    if panel is None and not fills:
        panel, line = _place_away(box, size, gap, image.shape, taken, eyes)
    if panel is None:
        return False
    taken.append(panel)
    left, top, panel_width, panel_height = panel
    patch = image[top : top + panel_height, left : left + panel_width]
    patch[:] = (patch * 0.28 + np.array(_PANEL) * 0.72).astype(np.uint8)
    if line is not None:
        cv2.line(image, *line, colors.get(face.expression, _INK), max(1, round(unit)), cv2.LINE_AA)
    for number, (name, probability) in enumerate(bars_of.items()):
        middle = top + round(5 * scale) + row * number + row // 2
        text = (left + round(5 * scale), middle + round(_FONT_HEIGHT * scale / 2.4))
        cv2.putText(image, titles[name], text, _FONT, scale, _WHITE, max(1, round(1.2 * scale)), cv2.LINE_AA)
        start, half = left + names + round(4 * scale), max(1, round(row * 0.28))
        cv2.rectangle(image, (start, middle - half), (start + bars, middle + half), (70, 66, 62), -1)
        end = start + round(bars * probability)
        cv2.rectangle(image, (start, middle - half), (end, middle + half), colors[name], -1)
    return True


def _place_beside(box: _Box, size: tuple[int, int], gap: int, shape: tuple[int, ...], taken: list[_Box]) -> _Box | None:
    (x, y, width, height), (across, down) = box, size
    places = (
        (x + width + gap, y),
        (x - gap - across, y),
        (x + (width - across) // 2, y + height + gap),
        (x + width + gap, y + height - down),
        (x - gap - across, y + height - down),
    )
    return next((place for left, top in places if _is_free(place := (left, top, *size), shape, taken)), None)


def _place_away(
    box: _Box, size: tuple[int, int], gap: int, shape: tuple[int, ...], taken: list[_Box], eyes: list[_Box]
) -> tuple[_Box | None, tuple[tuple[int, int], tuple[int, int]] | None]:
    """The nearest free place within two boxes' sizes, and a line to it that crosses no eyes."""
    (x, y, width, height), (across, down) = box, size
    step = max(gap, min(width, height) // 8, 1)
    places = [
        (left, top, across, down)
        for left in range(x - 2 * width - across, x + 3 * width, step)
        for top in range(y - 2 * height - down, y + 3 * height, step)
    ]

    def ends(place: _Box) -> tuple[tuple[int, int], tuple[int, int]]:
        start = min(max(place[0], x), x + width), min(max(place[1], y), y + height)
        return start, (min(max(x, place[0]), place[0] + across), min(max(y, place[1]), place[1] + down))

    def distance(place: _Box) -> int:
        (left, top), (right, bottom) = ends(place)
        return (right - left) ** 2 + (bottom - top) ** 2

    for place in sorted(places, key=distance):
        if _is_free(place, shape, taken) and not any(cv2.clipLine(eye, *ends(place))[0] for eye in eyes):
            return place, ends(place)
    return None, None


def _draw_strip(image: cv2.typing.MatLike, face: Face, box: _Box, unit: float, covered: list[_Box]) -> None:
    """In a crowd: the probabilities as one bar along the lower edge of the box, each in its label's colour."""
    x, y, width, height = box
    labels, down = tuple(face.probabilities), max(3, round(min(8 * unit, height / 8)))
    colors = label_colors(labels)
    for top in (y + height - down, y + height, y + height - 4 * down, y + height // 2):
        if _is_free((x, top, width, down), image.shape, covered):
            break
    else:
        return  # the box is under other faces' eyes and titles
    start = 0.0
    for name, probability in face.probabilities.items():
        left, right = round(x + width * start), round(x + width * min(start + probability, 1.0))
        if right > left:
            cv2.rectangle(image, (left, top), (right - 1, top + down - 1), colors[name], -1)
        start += probability


def _bars(face: Face) -> dict[str, float]:
    """The probabilities that are drawn: all of them in the order of the labels, or the largest of many."""
    if len(face.probabilities) <= _MOST_BARS:
        return face.probabilities
    return dict(sorted(face.probabilities.items(), key=lambda entry: -entry[1])[:_MOST_BARS])


def _is_free(box: _Box, shape: tuple[int, ...], taken: list[_Box]) -> bool:
    x, y, width, height = box
    inside = x >= 0 and y >= 0 and x + width <= shape[1] and y + height <= shape[0]
    return inside and not any(
        x < left + other_width and left < x + width and y < top + other_height and top < y + height
        for left, top, other_width, other_height in taken
    )
