"""fer-edge, as its README shows: Recognizer(model).predict(image)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fer_runtime import Recognizer

_EXPRESSIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")


def load(source: Path, *, model: str, threads: int, batch: int) -> Any:
    """Classify whole crops through the public interface."""
    recognizer = Recognizer(source, detector="whole")

    def run(faces: Any) -> Any:
        answers = []
        for face in faces:
            (found,) = recognizer.predict(face).faces
            answers.append([found.probabilities[name] for name in _EXPRESSIONS])
        return np.array(answers)

    return run
