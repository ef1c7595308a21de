"""ncnn on the CPU: files of `fer-export --target ncnn`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fer_runtime.errors import ModelFileError
from fer_runtime.targets import one_by_one

if TYPE_CHECKING:
    import numpy.typing as npt

    from fer_runtime.targets import Run

_FLOAT16 = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage")


def load(path: Path, settings: Mapping[str, Any], *, threads: int) -> Run:
    """Run a .param file and its .bin, face by face.

    ncnn takes no bytes: a face is float32, 0 to 255, and has no batch axis.
    """
    import ncnn

    network = ncnn.Net()
    network.opt.num_threads = threads
    if not settings["float16"]:
        # On by default. It rounds between the layers, on ARM cores also inside them.
        for name in _FLOAT16:
            setattr(network.opt, name, False)
    # ncnn prints its reasons on standard error and returns a number.
    if network.load_param(str(path)) or network.load_model(str(path.with_suffix(".bin"))):
        raise ModelFileError(f"ncnn {ncnn.__version__} cannot load {path}; convert the model again with fer-export")

    def run(face: npt.NDArray[np.uint8]) -> tuple[Any, Any]:
        # Channels first. ncnn.Mat refers to the array, which therefore must outlive it.
        plane = np.ascontiguousarray(face if face.ndim == 2 else face.transpose(2, 0, 1), np.float32)
        with network.create_extractor() as extractor:
            extractor.input(settings["input"], ncnn.Mat(plane))
            answers = [extractor.extract(settings[name]) for name in ("logits", "probabilities")]
            if any(code for code, _ in answers):
                raise ModelFileError(
                    f"ncnn {ncnn.__version__} cannot run {path}; convert the model again with fer-export"
                )
            logits, shares = (np.array(answer) for _, answer in answers)
        return logits, shares

    return one_by_one(run)
