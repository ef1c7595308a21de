"""Core ML on a Mac's CPU: files of `fer-export --target coreml`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fer_runtime.targets import one_by_one

if TYPE_CHECKING:
    import numpy.typing as npt

    from fer_runtime.targets import Run


def load(path: Path, settings: Mapping[str, Any], *, threads: int) -> Run:
    """Run a .mlmodel file, face by face. Core ML decides its own number of threads."""
    import coremltools

    # The graphics processor and the neural engine compute in float16.
    model = coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit.CPU_ONLY)

    def run(face: npt.NDArray[np.uint8]) -> tuple[Any, Any]:
        answers = model.predict({settings["input"]: face[None].astype(np.float32)})
        return answers[settings["logits"]], answers[settings["probabilities"]]

    return one_by_one(run)
