"""OpenCV's DNN module, which is part of every install."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2

if TYPE_CHECKING:
    from fer_bench.engines import Run


def load(source: Path, *, model: str, threads: int, batch: int) -> Run:
    """Run the model file. OpenCV 4 misreads our int8 files."""
    cv2.setNumThreads(threads)
    network = cv2.dnn.readNetFromONNX(str(source))

    def run(faces: Any) -> Any:
        network.setInput(faces, "faces")
        return network.forward("probabilities")

    return run
