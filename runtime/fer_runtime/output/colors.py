"""A colour for each label, however many there are, and labels in the letters that OpenCV draws."""

from __future__ import annotations

import colorsys
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from fer_runtime.text import printable

Color = tuple[int, int, int]  # BGR, 0-255

# Told apart on light and dark images, and by most colour-blind readers (after Okabe and Ito's palette). The labels of
# the default data set have fixed ones; other labels take those that are left.
_FIXED: dict[str, Color] = {
    "angry": (0, 94, 213),
    "disgust": (115, 158, 0),
    "fear": (167, 121, 204),
    "happy": (0, 159, 230),
    "neutral": (160, 160, 160),
    "sad": (178, 114, 0),
    "surprise": (233, 180, 86),
}
_MORE: tuple[Color, ...] = ((66, 228, 240),)
_GOLDEN_ANGLE = 0.381966  # of a turn: each further hue falls into the largest gap between those before
_LONGEST = 24  # characters of a label that is drawn: one of any length leaves room for the rest


@lru_cache(maxsize=64)
def label_colors(labels: tuple[str, ...]) -> dict[str, Color]:
    """A colour for each of a model's labels, BGR; all are light enough for dark letters on them."""
    left = iter([color for label, color in _FIXED.items() if label not in labels] + list(_MORE))
    colors = {}
    for number, label in enumerate(labels):
        colors[label] = _FIXED.get(label) or next(left, None) or _hue(number)
    return colors


def _hue(number: int) -> Color:
    # Two steps of brightness tell hues apart that are close after several turns.
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN_ANGLE % 1, 0.55, 0.95 if number % 2 else 0.78)
    return round(255 * blue), round(255 * green), round(255 * red)


def drawn_label(label: str, labels: Sequence[str]) -> str:
    """A label in the letters that OpenCV's fonts have, which are ASCII: "müde" as "mude", "疲れ" as "label 3"."""
    if not label.isascii():
        plain = "".join(
            character for character in unicodedata.normalize("NFKD", label) if not unicodedata.combining(character)
        )
        plain = plain.replace("ß", "ss")
        number = list(labels).index(label) + 1 if label in labels else "?"
        label = plain if plain.isascii() else f"label {number}"
    shown = printable(label)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 3]}..."
