"""OpenCV's own network module, which every install has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2

from fer_bench.engines import Run


def load(source: Path, *, model: str, threads: int, batch: int) -> Run:
    """Run the model file; OpenCV 4 reads no graph with int8 nodes of ours."""
    cv2.setNumThreads(threads)
    network = cv2.dnn.readNetFromONNX(str(source))

    def run(faces: Any) -> Any:
        network.setInput(faces, "faces")
        return network.forward("probabilities")

    return run
