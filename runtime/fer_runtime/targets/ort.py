"""ONNX Runtime's own format: files of `fer-export --target ort`, also for builds without the ONNX reader."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_runtime.model.parity import run_model
from fer_runtime.model.session import open_session

if TYPE_CHECKING:
    from fer_runtime.targets import Run


def load(path: Path, settings: Mapping[str, Any], *, threads: int) -> Run:
    """Run an .ort file."""
    session = open_session(path, threads=threads, advice="write one with: fer-export --target ort").session
    return lambda faces: run_model(session, faces, batch=len(faces))
