"""A picture of the most confident mistakes: what a model sees wrong, at a glance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fer_bench.accuracy import AccuracyResult, LabelledImages, confident_mistakes
from fer_runtime.errors import OutputError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.files import write_atomically

_COLUMNS = 8
_FACE = 96  # pixels that a face is drawn at
_CAPTION = 30


def draw_mistakes(result: AccuracyResult, pictures: LabelledImages, path: Path, *, count: int = 40) -> None:
    """Write a page of the wrong predictions with the highest confidence; under each the two labels.

    Args:
        path: where the page goes, its suffix says the format.

    Raises:
        OutputError: the suffix is of no picture, or the file cannot be written.
    """
    chosen = confident_mistakes(result, pictures.labels, count=count)
    rows = max(1, -(-len(chosen) // _COLUMNS))
    page = np.full((rows * (_FACE + _CAPTION + 8) + 8, _COLUMNS * (_FACE + 8) + 8), 255, np.uint8)
    for number, index in enumerate(chosen):
        top = 8 + number // _COLUMNS * (_FACE + _CAPTION + 8)
        left = 8 + number % _COLUMNS * (_FACE + 8)
        face: Any = cv2.resize(pictures.faces[index], (_FACE, _FACE), interpolation=cv2.INTER_CUBIC)
        page[top : top + _FACE, left : left + _FACE] = face
        said = EXPRESSIONS[int(result.predictions[index])]
        lines = (f"{said} {result.probabilities[index].max():.0%}", f"label {EXPRESSIONS[int(pictures.labels[index])]}")
        for line, text in enumerate(lines):
            position = (left, top + _FACE + 12 + 13 * line)
            cv2.putText(page, text, position, cv2.FONT_HERSHEY_SIMPLEX, 0.38, 0, 1, cv2.LINE_AA)
    try:
        encoded, content = cv2.imencode(path.suffix, page)
    except cv2.error as error:
        raise OutputError(f"cannot draw to {path}: its suffix is of no picture; use .png or .jpg") from error
    if not encoded:
        raise OutputError(f"cannot draw to {path}; use .png or .jpg")
    write_atomically(path, content.tobytes())
