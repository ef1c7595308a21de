"""Conversion of an exported ONNX file for runtimes beside ONNX Runtime.

The entries are in `fer_runtime.targets`, because a device that only runs a file needs them, too. A module here writes
the file of one target: `convert(source: Source, precision: Precision, path: Path) -> Converted`.

- `publish`: converts, replays the golden faces in the target's runtime, and only then gives the files their names
- `golden_header`: the golden faces for programs in C
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fer_runtime.model.certificate import Certificate
from fer_runtime.model.metadata import ModelMetadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The ONNX file that a target's file is made from."""

    path: Path
    content: bytes
    metadata: ModelMetadata
    certificate: Certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """Facts about the file that a converter wrote."""

    preprocessing: str  # for people: what has to be done with a face before the file takes it
    versions: Mapping[str, str]  # of the packages that converted
    settings: Mapping[str, Any] = field(default_factory=dict)  # for the target's `load`
