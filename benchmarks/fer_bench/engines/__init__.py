"""The engines that can run a model: one module and one entry each.

An engine of your own is a module that registers an entry, named in `FER_EDGE_PLUGINS`:

    ENGINES.register(Engine(name="mine", code="my_engine:load", needs="mine", install="pip install mine"))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fer_runtime.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    # Takes faces uint8 as the model does, returns probabilities (batch, classes) once they are computed.
    Run = Callable[[npt.NDArray[np.uint8]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An engine's entry; listing engines imports none of them."""

    name: str
    code: str  # "module:function", the function as `load(source: Path, *, model: str, threads: int, batch: int) -> Run`
    needs: str  # the package that it imports
    install: str  # the command that installs it
    arithmetic: str | None = None  # "bf16" if it computes in another precision than the file's
    # Runs the exported "model", the "checkpoint" as a PyTorch network, or the "target" file of fer-export --target.
    source: str = "model"
    target: str = ""  # the entry in TARGETS whose files it runs

    @property
    def is_installed(self) -> bool:
        return find_spec(self.needs) is not None


_TRAIN, _BENCH = "pip install 'fer-edge[train]'", "pip install 'fer-edge[bench]'"

ENGINES = Registry(
    "engine",
    Engine(
        name="onnxruntime",
        code="fer_bench.engines.onnxruntime_engine:load",
        needs="onnxruntime",
        install="pip install fer-edge",
    ),
    Engine(
        name="torch",
        code="fer_bench.engines.torch_engine:load",
        needs="torch",
        install=_TRAIN,
        source="checkpoint",
    ),
    Engine(
        name="torch-compile",
        code="fer_bench.engines.torch_engine:load_compiled",
        needs="torch",
        install=_TRAIN,
        source="checkpoint",
    ),
    Engine(name="openvino", code="fer_bench.engines.openvino_engine:load", needs="openvino", install=_BENCH),
    Engine(
        name="openvino-bf16",
        code="fer_bench.engines.openvino_engine:load_bf16",
        needs="openvino",
        install=_BENCH,
        arithmetic="bf16",
    ),
    Engine(
        name="opencv-dnn",
        code="fer_bench.engines.opencv_dnn_engine:load",
        needs="cv2",
        install="pip install fer-edge",
    ),
    # Files of fer-export --target. Each is replayed before it is timed.
    Engine(
        name="openvino-ir",
        code="fer_bench.engines.target_engine:load",
        needs="openvino",
        install="pip install openvino",
        source="target",
        target="openvino",
    ),
    Engine(
        name="ncnn",
        code="fer_bench.engines.target_engine:load",
        needs="ncnn",
        install="pip install ncnn",
        source="target",
        target="ncnn",
    ),
    Engine(
        name="ort-format",
        code="fer_bench.engines.target_engine:load",
        needs="onnxruntime",
        install="pip install fer-edge",
        source="target",
        target="ort",
    ),
    Engine(
        name="executorch",
        code="fer_bench.engines.target_engine:load",
        needs="executorch",
        install="pip install executorch",
        source="target",
        target="executorch",
    ),
    Engine(
        name="litert",
        code="fer_bench.engines.target_engine:load",
        needs="ai_edge_litert",
        install="pip install ai-edge-litert",
        source="target",
        target="litert",
    ),
)
