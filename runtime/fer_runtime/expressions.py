"""The seven expressions, in the order of the logits, and the size of the faces they are read from."""

from __future__ import annotations

# ImageFolder numbers class folders alphabetically, so this order is that of the logits.
EXPRESSIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")

FACE_SIZE = 48  # pixels; a model takes faces of FACE_SIZE x FACE_SIZE, grayscale
