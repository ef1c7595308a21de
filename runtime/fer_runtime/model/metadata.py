"""What a model file says about itself: one JSON value under the key `fer` of its metadata_props."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from fer_runtime.errors import ModelFileError

METADATA_KEY = "fer"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """The contents of the `fer` entry. Fields that only a report reads stay plain JSON."""

    name: str  # of the network, such as "v0"
    expressions: tuple[str, ...]  # in the order of the logits
    precision: str  # "fp32", "int8" or "fp16"
    opset: int
    temperature: float = 1.0  # probabilities = softmax(logits / temperature), inside the graph
    uncertain_below: float | None = None  # confidence under which the answer is `uncertain`; None: not calibrated
    checkpoint_sha256: str = ""
    training: dict[str, Any] = field(default_factory=dict)  # summary: recipe, data, accuracy
    calibration: dict[str, Any] = field(default_factory=dict)  # how temperature and uncertain_below were fitted
    verdict: dict[str, Any] = field(default_factory=dict)  # what the export's gate measured
    versions: dict[str, str] = field(default_factory=dict)  # of the tools that made the file
    certificate: dict[str, Any] = field(default_factory=dict)  # golden faces and logits, see certificate.py

    def to_json(self) -> str:
        """The JSON text that stands in the file; keys sorted, so that equal metadata gives equal bytes."""
        return json.dumps({"schema": SCHEMA_VERSION, **asdict(self)}, sort_keys=True, allow_nan=False)


def parse_metadata(text: str | None, *, source: str) -> ModelMetadata:
    """Read a model's `fer` entry.

    Args:
        text: the entry, None when the file has none.
        source: the file, for messages.

    Raises:
        ModelFileError: there is no entry, it is not ours, or a newer version wrote it.
    """
    if text is None:
        raise ModelFileError(
            f"{source} has no '{METADATA_KEY}' metadata, so its labels and input are unknown; "
            "export the model again with fer-export"
        )
    try:
        values = json.loads(text)
        schema = values.pop("schema")
        if schema > SCHEMA_VERSION:
            raise ModelFileError(
                f"{source} was written by a newer fer-edge (metadata schema {schema}, this one reads up to "
                f"{SCHEMA_VERSION}); upgrade with: pip install -U fer-edge"
            )
        known = {key: values[key] for key in ModelMetadata.__dataclass_fields__ if key in values}
        known["expressions"] = tuple(known["expressions"])
        known["temperature"] = float(known.get("temperature", 1.0))
        if known.get("uncertain_below") is not None:
            known["uncertain_below"] = float(known["uncertain_below"])
        for key in ("name", "precision", "checkpoint_sha256"):
            if not isinstance(known.get(key, ""), str):
                raise TypeError(f"{key} is no text")
        for key in ("training", "calibration", "verdict", "versions", "certificate"):
            if not isinstance(known.get(key, {}), dict):
                raise TypeError(f"{key} is no object")
        return ModelMetadata(**known)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelFileError(
            f"{source} has '{METADATA_KEY}' metadata that cannot be read ({error!r}); "
            "export the model again with fer-export"
        ) from error
