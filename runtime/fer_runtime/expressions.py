"""The seven expressions, in the order of the logits, and the size of the faces they are read from."""

from __future__ import annotations

# ImageFolder numbers class folders alphabetically, so this order is that of the logits.
EXPRESSIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")

FACE_SIZE = 48  # pixels; a model takes faces of FACE_SIZE x FACE_SIZE, grayscale


def parse_labels(text: str) -> tuple[str, ...]:
    """Labels as an option takes them, "angry,disgust,...": all of EXPRESSIONS, in any order.

    Raises:
        ValueError: a label is missing, unknown or given twice.
    """
    labels = tuple(label.strip() for label in text.split(","))
    if sorted(labels) != sorted(EXPRESSIONS):
        raise ValueError(f"{text!r} does not name each of these once: {', '.join(EXPRESSIONS)}")
    return labels
