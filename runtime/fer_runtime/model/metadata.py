"""The metadata of a model file: one JSON value under the key `fer` of its metadata_props."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from fer_runtime.errors import ModelFileError
from fer_runtime.expressions import FACE_SIZE
from fer_runtime.labels import check_labels
from fer_runtime.untrusted_json import parse_json

METADATA_KEY = "fer"
SCHEMA_VERSION = 2  # 1 had `expressions` for `labels`; its faces are 48 x 48, grayscale
COLORS = ("gray", "rgb")
MIN_SIZE, MAX_SIZE = 16, 512  # pixels, of a face


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """The contents of the `fer` entry. Fields that only a report reads stay plain JSON."""

    name: str  # of the network, such as "v0"
    labels: tuple[str, ...]  # in the order of the logits
    precision: str  # "fp32", "int8" or "fp16"
    opset: int
    size: int = FACE_SIZE  # pixels, side of the faces that the model takes
    color: str = "gray"  # or "rgb": faces are (size, size) or (size, size, 3)
    temperature: float = 1.0  # probabilities = softmax(logits / temperature), inside the graph
    uncertain_below: float | None = None  # confidence below which an answer is `uncertain`; None: not calibrated
    quality: dict[str, Any] = field(default_factory=dict)  # unfamiliar_above and how it was fitted
    checkpoint_sha256: str = ""
    training: dict[str, Any] = field(default_factory=dict)  # summary: recipe, data, accuracy
    calibration: dict[str, Any] = field(default_factory=dict)  # how temperature and uncertain_below were fitted
    verdict: dict[str, Any] = field(default_factory=dict)  # what the export's gate measured
    versions: dict[str, str] = field(default_factory=dict)  # of the tools that made the file
    certificate: dict[str, Any] = field(default_factory=dict)  # golden faces and logits, see certificate.py

    @property
    def face_shape(self) -> tuple[int, ...]:
        """The shape of one face: (size, size), or (size, size, 3) in RGB."""
        return (self.size, self.size) if self.color == "gray" else (self.size, self.size, 3)

    @property
    def unfamiliar_above(self) -> float | None:
        """The value of the output `unfamiliarity` above which a face is `unfamiliar`; None: nothing was fitted."""
        value = self.quality.get("unfamiliar_above")
        return None if value is None else float(value)

    def to_json(self) -> str:
        """The JSON text in the file; keys sorted, so that equal metadata gives equal bytes."""
        return json.dumps({"schema": SCHEMA_VERSION, **asdict(self)}, sort_keys=True, allow_nan=False)


def parse_metadata(text: str | None, *, source: str) -> ModelMetadata:
    """Read a model's `fer` entry.

    Args:
        text: the entry, None when the file has none.
        source: the file, for messages.

    Raises:
        ModelFileError: there is no entry, it does not fit the schema, or a newer version wrote it.
    """
    if text is None:
        raise ModelFileError(
            f"{source} has no '{METADATA_KEY}' metadata, so its labels and input are unknown; "
            "export the model again with fer-export"
        )
    try:
        values = parse_json(text)
        if not isinstance(values, dict):
            raise ValueError("it is not an object")
        schema = _integer(values, "schema", 1, 1 << 31)
        if schema > SCHEMA_VERSION:
            raise ModelFileError(
                f"{source} was written by a newer fer-edge (metadata schema {schema}, this one reads up to "
                f"{SCHEMA_VERSION}); upgrade with: pip install -U fer-edge"
            )
        return ModelMetadata(
            name=_text(values, "name", 1, 100),
            labels=check_labels(values.get("labels" if schema > 1 else "expressions")),
            precision=_text(values, "precision", 1, 20),
            opset=_integer(values, "opset", 1, 1000),
            size=_integer(values, "size", MIN_SIZE, MAX_SIZE) if schema > 1 else FACE_SIZE,
            color=_color(values.get("color")) if schema > 1 else "gray",
            temperature=_number(values, "temperature", 1.0),
            uncertain_below=_share(values.get("uncertain_below")),
            quality=_quality(_object(values, "quality")),
            checkpoint_sha256=_text(values, "checkpoint_sha256", 0, 64, ""),
            training=_object(values, "training"),
            calibration=_object(values, "calibration"),
            verdict=_object(values, "verdict"),
            versions=_texts(_object(values, "versions"), "versions"),
            certificate=_object(values, "certificate"),
        )
    except ValueError as error:
        raise ModelFileError(
            f"{source} has '{METADATA_KEY}' metadata that cannot be read ({error}); "
            "export the model again with fer-export"
        ) from error


def _color(value: Any) -> str:
    if value not in COLORS:
        raise ValueError(f"color must be one of {', '.join(COLORS)}")
    return str(value)


def _text(values: dict[str, Any], key: str, shortest: int, longest: int, default: str | None = None) -> str:
    value = values.get(key, default)
    if not isinstance(value, str) or not shortest <= len(value) <= longest or not value.isprintable():
        raise ValueError(f"{key} must be a printable text of {shortest} to {longest} characters")
    return value


def _integer(values: dict[str, Any], key: str, lowest: int, highest: int) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise ValueError(f"{key} must be a whole number from {lowest} to {highest}")
    return value


def _number(values: dict[str, Any], key: str, default: float) -> float:
    value = values.get(key, default)
    # A temperature outside these makes all probabilities equal, or 0 and 1.
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 1e-3 <= value <= 1e3:
        raise ValueError(f"{key} must be a number from 0.001 to 1000, got {str(value)[:40]}")
    return float(value)


def _share(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"uncertain_below must be a number from 0 to 1, got {str(value)[:40]}")
    return float(value)


def _quality(value: dict[str, Any]) -> dict[str, Any]:
    limit = value.get("unfamiliar_above")
    if limit is not None and (not isinstance(limit, (int, float)) or isinstance(limit, bool) or not abs(limit) < 1e6):
        raise ValueError(f"unfamiliar_above must be a number, got {str(limit)[:40]}")
    return value


def _object(values: dict[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{key} is not an object")
    return value


def _texts(value: dict[str, Any], key: str) -> dict[str, str]:
    if not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"{key} must hold only texts")
    return value
