"""The labels of the default data set, FER2013, and the size of its faces.

A model's own labels, size and colour are in its file (`Recognizer.labels`, `.size`, `.color`); a data set's labels are
its class folders.
"""

from __future__ import annotations

# ImageFolder numbers class folders alphabetically, so this order is that of the logits.
EXPRESSIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")

FACE_SIZE = 48  # pixels; the side of a face where nothing else is said
