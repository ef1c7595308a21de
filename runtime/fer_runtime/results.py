"""What recognition returns: faces, images, and their JSON form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """One face and its expression: the label that is the most probable."""

    box: tuple[int, int, int, int]  # x, y, width, height in pixels of the upright image
    expression: str
    confidence: float  # probability of `expression`
    probabilities: dict[str, float]  # of every label, in the order of the model's logits
    uncertain: bool | None = None  # whether `confidence` is below the threshold; None: no threshold was asked for

    def to_dict(self) -> dict[str, Any]:
        """The face as the JSON lines hold it."""
        values = {
            "box": list(self.box),
            "expression": self.expression,
            "confidence": self.confidence,
            "probabilities": self.probabilities,
        }
        return values if self.uncertain is None else values | {"uncertain": self.uncertain}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResult:
    """One row: an image's faces, or the reason why there are none."""

    path: str
    width: int | None  # pixels, None when the image could not be read
    height: int | None
    error: str | None
    faces: tuple[Face, ...]

    def to_dict(self) -> dict[str, Any]:
        """The row as the JSON lines hold it."""
        return {
            "path": self.path,
            "width": self.width,
            "height": self.height,
            "error": self.error,
            "faces": [face.to_dict() for face in self.faces],
        }
