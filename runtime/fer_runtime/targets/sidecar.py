"""`NAME.TARGET.json`, the sidecar: labels, preprocessing and checksums that a target's own format cannot hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fer_runtime.errors import ModelFileError
from fer_runtime.model.metadata import ModelMetadata, parse_metadata
from fer_runtime.targets import Target
from fer_runtime.targets.golden import read_file
from fer_runtime.untrusted_json import parse_json

SIDECAR_SCHEMA = 1
_MOST_FILES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """Labels, preprocessing, versions and verdict of a target's file."""

    target: str
    metadata: ModelMetadata  # of the ONNX file, with the target's precision and without its certificate
    golden: str  # name of the file with the golden faces
    sha256: Mapping[str, str]  # of each file of the conversion, by its name in the same folder
    preprocessing: str  # for people: what has to be done with a face before the file takes it
    settings: Mapping[str, Any] = field(default_factory=dict)  # for the target's `load`: names of inputs and outputs
    versions: Mapping[str, str] = field(default_factory=dict)
    verdict: Mapping[str, Any] = field(default_factory=dict)  # what the conversion's gate measured
    source: Mapping[str, str] = field(default_factory=dict)  # the ONNX file: name and SHA-256

    def to_json(self) -> str:
        """The file's text, with a digest over all the rest."""
        values = {
            "schema": SIDECAR_SCHEMA,
            "target": self.target,
            "model": json.loads(self.metadata.to_json()),
            "golden": self.golden,
            "sha256": dict(self.sha256),
            "preprocessing": self.preprocessing,
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "verdict": dict(self.verdict),
            "source": dict(self.source),
        }
        return json.dumps({**values, "digest": _digest(values)}, indent=1, sort_keys=True) + "\n"


def read_sidecar(path: Path, target: Target) -> tuple[Sidecar, bool]:
    """The sidecar of a target's file, and whether it is as it was written.

    Raises:
        ModelFileError: it is missing or damaged.
    """
    place = target.sidecar_path(path)
    content = read_file(place, needed_by=path)
    try:
        values = parse_json(content)
        if not isinstance(values, dict) or values.get("schema") != SIDECAR_SCHEMA:
            raise ValueError(f"its schema is not {SIDECAR_SCHEMA}")
        if values.get("target") != target.name:
            raise ValueError(f"it is for the target {values.get('target')!r}, not {target.name}")
        files = values["sha256"]
        names = [*files, values["golden"]] if isinstance(files, dict) else []
        if not 2 <= len(names) <= _MOST_FILES or any(not _is_file_name(name) for name in names):
            raise ValueError("sha256 is not an object with the names of files in this folder")
        digest = values.pop("digest", "")
        sidecar = Sidecar(
            target=target.name,
            metadata=parse_metadata(json.dumps(values["model"]), source=str(place)),
            golden=values["golden"],
            sha256=files,
            preprocessing=str(values.get("preprocessing", "")),
            settings=_object(values, "settings"),
            versions=_object(values, "versions"),
            verdict=_object(values, "verdict"),
            source=_object(values, "source"),
        )
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{place} cannot be read ({error}); convert the model again with fer-export") from error
    return sidecar, digest == _digest(values)


def changed_files(folder: Path, sidecar: Sidecar, *, needed_by: Path) -> list[str]:
    """The files of a conversion that are not as they were written."""
    return [
        name
        for name, expected in sidecar.sha256.items()
        if hashlib.sha256(read_file(folder / name, needed_by=needed_by)).hexdigest() != expected
    ]


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and 0 < len(name) < 256 and Path(name).name == name and name not in (".", "..")


def _object(values: dict[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{key} is not an object")
    return value
