"""LiteRT (TensorFlow Lite) on the CPU: files of `fer-export --target litert`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_runtime.targets import one_by_one

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fer_runtime.targets import Run


def load(path: Path, settings: Mapping[str, Any], *, threads: int) -> Run:
    """Run a .tflite file, face by face."""
    from ai_edge_litert.interpreter import Interpreter

    # The runner refers to the interpreter's memory.
    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    runner = interpreter.get_signature_runner()

    def run(face: npt.NDArray[np.uint8]) -> tuple[Any, Any]:
        answers = runner(**{settings["input"]: face[None]})
        return answers[settings["logits"]], answers[settings["probabilities"]]

    return one_by_one(run)
