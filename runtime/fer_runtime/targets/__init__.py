"""Runtimes beside ONNX Runtime that a model can be converted for: one module and one entry each.

`fer-export --target NAME` converts, and `fer-infer --self-test --model FILE` replays the golden faces of the file in
the target's own runtime. A target of your own is an entry, named in `FER_EDGE_PLUGINS`:

    TARGETS.register(Target(name="mine", help="...", suffix=".mine", load="mine:load", convert="mine:convert",
                            needs="mine", install="pip install mine"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from fer_runtime.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from fer_runtime.model.find import Precision
    from fer_runtime.model.parity import Outputs

    # Takes faces uint8 (faces, size, size) or (faces, size, size, 3), any number of them.
    Run = Callable[[npt.NDArray[np.uint8]], Outputs]


class Target(NamedTuple):
    """A target's entry; listing targets imports none of them."""

    name: str
    help: str
    suffix: str  # of its file, ".param"; other files that belong to it are named in its sidecar
    load: str  # "module:function", the function as `load(path: Path, settings: Mapping, *, threads: int) -> Run`
    convert: str  # "module:function" of fer_export; see fer_export.targets for its arguments
    needs: str  # the package that runs its files
    install: str  # the command that installs that package
    converters: tuple[str, ...] = ()  # packages that convert
    install_converter: str = ""  # the command that installs those
    # Precisions that it is written in, each with that of the ONNX file that it is made from.
    precisions: Mapping[str, Precision] = MappingProxyType({"fp32": "fp32"})
    runs_on: str | None = None  # where its runtime runs, if not everywhere: a file converted elsewhere is unproven

    @property
    def is_installed(self) -> bool:
        from importlib.util import find_spec

        return find_spec(self.needs) is not None

    def base_name(self, path: Path) -> str:
        """The name that the files of one conversion share: `model_0` of `model_0.ncnn.param`."""
        return path.name.removesuffix(self.suffix).removesuffix(f".{self.name}")

    def path(self, folder: Path, base_name: str) -> Path:
        """The target's file, `model_0.ncnn.param`; `model_0.ort`, where the suffix says it."""
        return folder / f"{base_name}.{self.name}{self.suffix}".replace(f".{self.name}.{self.name}", f".{self.name}")

    def sidecar_path(self, path: Path) -> Path:
        """What is written about the target's file, `model_0.ncnn.json`."""
        return path.with_name(f"{self.base_name(path)}.{self.name}.json")


_ANY_FLOAT: dict[str, Precision] = {"fp32": "fp32", "fp16": "fp32"}

TARGETS = Registry[Target](
    "target",
    Target(
        name="openvino",
        help="Intel's OpenVINO, .xml and .bin",
        suffix=".xml",
        load="fer_runtime.targets.openvino:load",
        convert="fer_export.targets.openvino:convert",
        needs="openvino",
        install="pip install openvino",
        converters=("openvino",),
        install_converter="pip install 'fer-edge[export,openvino]'",
        precisions={**_ANY_FLOAT, "int8": "int8"},
    ),
    Target(
        name="ncnn",
        help="ncnn for phones and small boards, .param and .bin",
        suffix=".param",
        load="fer_runtime.targets.ncnn:load",
        convert="fer_export.targets.ncnn:convert",
        needs="ncnn",
        install="pip install ncnn",
        converters=("ncnn", "pnnx"),
        install_converter="pip install 'fer-edge[export,ncnn]'",
        precisions=_ANY_FLOAT,
    ),
    Target(
        name="ort",
        help="ONNX Runtime's own format with the list of operators for a minimal build",
        suffix=".ort",
        load="fer_runtime.targets.ort:load",
        convert="fer_export.targets.ort:convert",
        needs="onnxruntime",
        install="pip install fer-edge",
        precisions={"fp32": "fp32", "int8": "int8", "fp16": "fp16"},
    ),
    Target(
        name="executorch",
        help="PyTorch's ExecuTorch with XNNPACK, .pte",
        suffix=".pte",
        load="fer_runtime.targets.executorch:load",
        convert="fer_export.targets.executorch:convert",
        needs="executorch",
        install="pip install executorch",
        converters=("executorch",),
        install_converter="pip install 'fer-edge[export,executorch]'",
    ),
    Target(
        name="litert",
        help="LiteRT, formerly TensorFlow Lite, .tflite",
        suffix=".tflite",
        load="fer_runtime.targets.litert:load",
        convert="fer_export.targets.litert:convert",
        needs="ai_edge_litert",
        install="pip install ai-edge-litert",
        converters=("litert_torch",),
        install_converter="pip install 'fer-edge[export,litert]'",
    ),
    Target(
        name="coreml",
        help="Apple's Core ML, .mlmodel; runs only on macOS",
        suffix=".mlmodel",
        load="fer_runtime.targets.coreml:load",
        convert="fer_export.targets.coreml:convert",
        needs="coremltools",
        install="pip install coremltools",
        converters=("coremltools",),
        install_converter="pip install 'fer-edge[export,coreml]'",
        runs_on="Darwin",
    ),
)


def target_of(model: str | Path | None) -> Target | None:
    """The target whose file `model` is, by its suffix; None for anything else."""
    if model is None:
        return None
    name = str(model)
    return next((target for target in TARGETS.values() if name.endswith(target.suffix)), None)


def one_by_one(run: Callable[[Any], tuple[Any, Any]]) -> Run:
    """A Run of a function that takes one face and returns its logits and probabilities."""
    import numpy as np

    from fer_runtime.model.parity import Outputs

    def run_all(faces: npt.NDArray[np.uint8]) -> Outputs:
        answers = [run(face) for face in faces]
        return Outputs(
            logits=np.stack([np.asarray(logits, np.float32).reshape(-1) for logits, _ in answers]),
            probabilities=np.stack([np.asarray(shares, np.float32).reshape(-1) for _, shares in answers]),
        )

    return run_all
