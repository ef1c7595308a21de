"""What a model can be run with: one small module per engine, registered by one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

# Takes faces uint8 (batch, 48, 48), returns probabilities (batch, 7) when they are there.
Run = Callable[[npt.NDArray[np.uint8]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How an engine is found. Its module has `load(source: Path, *, model: str, threads: int, batch: int) -> Run`."""

    name: str
    module: str
    needs: str  # the package that must be there
    install: str  # the command that installs it
    arithmetic: str | None = None  # "bf16" when it computes in another precision than the file's
    source: str = "model"  # runs the exported "model", or the "checkpoint" as a PyTorch network

    @property
    def is_installed(self) -> bool:
        return find_spec(self.needs) is not None


def _engine(name: str, needs: str, install: str, source: str = "model", arithmetic: str | None = None) -> Engine:
    module = f"fer_bench.engines.{name.replace('-', '_')}_engine"
    return Engine(name=name, module=module, needs=needs, install=install, source=source, arithmetic=arithmetic)


ENGINES = {
    engine.name: engine
    for engine in (
        _engine("onnxruntime", "onnxruntime", "pip install fer-edge"),
        _engine("torch", "torch", "pip install 'fer-edge[train]'", source="checkpoint"),
        _engine("torch-compile", "torch", "pip install 'fer-edge[train]'", source="checkpoint"),
        _engine("openvino", "openvino", "pip install 'fer-edge[bench]'"),
        _engine("openvino-bf16", "openvino", "pip install 'fer-edge[bench]'", arithmetic="bf16"),
        _engine("opencv-dnn", "cv2", "pip install fer-edge"),
    )
}
