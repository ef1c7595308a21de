"""`fer` (PyPI), as its README shows: FER().detect_emotions(image)."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# The README imports it from `fer`, where 25.10.3 no longer has it.
_fer: Any = import_module("fer.fer")
_EXPRESSIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")


def load(source: Path, *, model: str, threads: int, batch: int) -> Any:
    """Classify whole crops; `source` stands for the model inside the package, threads are its default."""
    # The crops are framed already: its padding, made for its own detector's boxes, would cost it accuracy.
    detector = _fer.FER(offsets=(0, 0))

    def run(faces: Any) -> Any:
        answers = []
        for face in faces:
            height, width = face.shape
            image = cv2.cvtColor(face, cv2.COLOR_GRAY2BGR)  # it takes what cv2.imread gives
            (found,) = detector.detect_emotions(image, face_rectangles=[(0, 0, width, height)])
            answers.append([found["emotions"][name] for name in _EXPRESSIONS])
        return np.array(answers)

    return run
