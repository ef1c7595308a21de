"""ncnn's .param and .bin, written by pnnx from the float32 ONNX file."""

from __future__ import annotations

import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

import onnx
import pnnx

from fer_export.targets import Converted, Source
from fer_runtime.errors import ModelFileError
from fer_runtime.model.find import Precision

_TIMEOUT_SECONDS = 600


def convert(source: Source, precision: Precision, path: Path) -> Converted:
    """Write `path` and the .bin file beside it.

    Raises:
        ModelFileError: pnnx cannot convert the graph.
    """
    model = _float_input(onnx.load_model_from_string(source.content))
    shape = ",".join(str(dimension.dim_value or 1) for dimension in model.graph.input[0].type.tensor_type.shape.dim)
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "model.onnx"
        onnx.save(model, given)
        done = subprocess.run(
            # It writes a dozen files beside its input. fp16 is its default.
            [pnnx.EXEC_PATH, given.name, f"inputshape=[{shape}]f32", f"fp16={int(precision == 'fp16')}"],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
        )
        param = Path(folder) / "model.ncnn.param"
        if done.returncode or not param.is_file():
            tail = (done.stdout + done.stderr).strip().splitlines()[-1:]
            raise ModelFileError(f"pnnx cannot convert {source.path}: {' '.join(tail) or f'exit {done.returncode}'}")
        path.write_bytes(param.read_bytes())
        path.with_suffix(".bin").write_bytes((Path(folder) / "model.ncnn.bin").read_bytes())
    return Converted(
        preprocessing="a face as float32 (channels, height, width), 0 to 255, without a batch axis; scaling is inside",
        versions={"pnnx": version("pnnx"), "ncnn": version("ncnn")},
        # pnnx numbers inputs and outputs in the graph's order.
        settings={"input": "in0", "logits": "out0", "probabilities": "out1", "float16": precision == "fp16"},
    )


def _float_input(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float32 faces of a batch of one: ncnn has neither bytes nor a cast from them."""
    graph = model.graph
    for cast in [node for node in graph.node if node.op_type == "Cast" and node.input[0] == "faces"]:
        for node in graph.node:
            node.input[:] = ["faces" if name == cast.output[0] else name for name in node.input]
        graph.node.remove(cast)
    graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    wanted = {output.name: output for output in graph.output}
    del graph.output[:]
    graph.output.extend(wanted[name] for name in ("logits", "probabilities"))
    return model
