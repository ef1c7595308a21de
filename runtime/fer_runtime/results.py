"""Results of recognition (`Face`, `ImageResult`) and their JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ROWS_SCHEMA = 2  # of schema/image.schema.json


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """A face, with its expression: the most probable label."""

    box: tuple[int, int, int, int]  # x, y, width, height in pixels of the upright image
    expression: str
    confidence: float  # probability of `expression`
    probabilities: dict[str, float]  # of every label, in the order of the model's logits
    # Whether `confidence` is below `min_confidence`; with "auto", whether there is any reason. None without
    # `min_confidence`.
    uncertain: bool | None = None
    detector_score: float | None = None  # 0 to 1; None with Haar and for whole images
    landmarks: tuple[tuple[float, float], ...] = ()  # x, y in pixels: eyes, nose, corners of the mouth; () with Haar
    reasons: tuple[str, ...] = ()  # to doubt the answer, out of quality.REASONS
    not_checked: tuple[str, ...] = ()  # reasons that could not be checked

    def to_dict(self) -> dict[str, Any]:
        """The face as the JSON lines hold it."""
        values: dict[str, Any] = {
            "box": list(self.box),
            "detector_score": self.detector_score,
            "landmarks": [list(point) for point in self.landmarks] or None,
            "expression": self.expression,
            "confidence": self.confidence,
            "probabilities": self.probabilities,
        }
        if self.uncertain is not None:
            values["uncertain"] = self.uncertain
        return values | {"reasons": list(self.reasons), "not_checked": list(self.not_checked)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Face:
        """The face of a row; the inverse of `to_dict`."""
        lists = {
            "box": tuple(values["box"]),
            "landmarks": tuple((x, y) for x, y in values["landmarks"] or ()),
            "reasons": tuple(values["reasons"]),
            "not_checked": tuple(values["not_checked"]),
        }
        return cls(**{**values, **lists})


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResult:
    """One row: an image's faces, or the reason why there are none."""

    path: str
    width: int | None  # pixels, None when the image could not be read
    height: int | None
    error: str | None  # why it could not be read; None if it could
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
