"""The runtime as it ships: its session, its options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fer_bench.engines import Run
from fer_runtime.model.session import open_session


def load(source: Path, *, model: str, threads: int, batch: int) -> Run:
    """Run the model file through ONNX Runtime."""
    session = open_session(source, threads=threads).session

    def run(faces: Any) -> Any:
        return session.run(["probabilities"], {"faces": faces})[0]

    return run
