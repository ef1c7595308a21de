"""ncnn's .param and .bin, written by pnnx from the float32 ONNX file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import onnx
import pnnx

from fer_export.targets import Converted, Source
from fer_runtime.errors import ModelFileError
from fer_runtime.model.find import Precision

_TIMEOUT_SECONDS = 600
_ONE_FACE = """
import json, sys
from pathlib import Path
import numpy as np
from fer_runtime.targets.ncnn import load
path, settings, shape = sys.argv[1:]
load(Path(path), json.loads(settings), threads=1)(np.zeros((1, *json.loads(shape)), np.uint8))
"""


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
        # It writes a dozen files beside its input. fp16 is its default.
        done = _run(
            [pnnx.EXEC_PATH, given.name, f"inputshape=[{shape}]f32", f"fp16={int(precision == 'fp16')}"],
            source=source,
            cwd=folder,
        )
        param = Path(folder) / "model.ncnn.param"
        if done.returncode or not param.is_file():
            tail = (done.stdout + done.stderr).strip().splitlines()[-1:]
            raise ModelFileError(f"pnnx cannot convert {source.path}: {' '.join(tail) or f'exit {done.returncode}'}")
        path.write_bytes(param.read_bytes())
        path.with_suffix(".bin").write_bytes((Path(folder) / "model.ncnn.bin").read_bytes())
    # pnnx numbers inputs and outputs in the graph's order.
    settings = {"input": "in0", "logits": "out0", "probabilities": "out1", "float16": precision == "fp16"}
    # In a process of its own: of some files that pnnx writes, ncnn computes nothing and crashes.
    face = json.dumps(source.certificate.faces.shape[1:])
    tried = _run([sys.executable, "-c", _ONE_FACE, str(path), json.dumps(settings), face], source=source, cwd=None)
    if tried.returncode not in (0, 1):  # 1 is an exception, which the replay has, too
        raise ModelFileError(
            f"ncnn crashes on what pnnx makes of {source.path} (exit code {tried.returncode}); choose another --target"
        )
    return Converted(
        preprocessing="a face as float32 (channels, height, width), 0 to 255, without a batch axis; scaling is inside",
        versions={"pnnx": version("pnnx"), "ncnn": version("ncnn")},
        settings=settings,
    )


def _run(command: list[str], *, source: Source, cwd: str | None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelFileError(
            f"pnnx and ncnn cannot convert {source.path} in {_TIMEOUT_SECONDS} seconds; choose another --target"
        ) from error
    except OSError as error:
        raise ModelFileError(f"cannot run {command[0]} ({error.strerror or error}); install pnnx again") from error


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
