"""ONNX Runtime with the runtime's own session and options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_runtime.model.session import open_session

if TYPE_CHECKING:
    from fer_bench.engines import Run


def load(source: Path, *, model: str, threads: int, batch: int) -> Run:
    """Run the model file with ONNX Runtime."""
    session = open_session(source, threads=threads).session

    def run(faces: Any) -> Any:
        return session.run(["probabilities"], {"faces": faces})[0]

    return run
