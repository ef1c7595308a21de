"""Features of faces: the inputs of a model's last layer, for audits and linear classifiers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fer_runtime.images import Uint8Array
from fer_runtime.model.batches import fill_batch
from fer_runtime.model.inner_tensors import with_outputs
from fer_runtime.model.load import load_model
from fer_runtime.model.onnx_file import OnnxFile
from fer_runtime.model.session import open_session

FloatArray = npt.NDArray[np.float32]

_BATCH = 32
_LAST_LAYERS = ("Gemm", "MatMul")
# Operators that only pass on what the last layer gives.
_PASSING = ("Add", "Cast", "DequantizeLinear", "Identity", "QuantizeLinear")


def features_of(path: Path, faces: Uint8Array, *, progress: Callable[[int], None] = lambda done: None) -> FloatArray:
    """The features of faces, float32 (faces, features).

    Args:
        path: a model file.
        faces: uint8 (faces, size, size) or (faces, size, size, 3), as the model takes them.
        progress: called with the number of faces so far.

    Raises:
        ModelFileError: the model cannot be used.
    """
    model = load_model(path)
    name = feature_name(model.file)
    content = model.content if name == "logits" else with_outputs(model.content, [name])
    session = open_session(content, source=str(path)).session
    batch = model.batch or _BATCH
    found: list[FloatArray] = []
    for start in range(0, len(faces), batch):
        part = faces[start : start + batch]
        answer = session.run([name], {"faces": fill_batch(part, model.batch or 0)})[0][: len(part)]
        found.append(answer.reshape(len(part), -1).astype(np.float32))
        progress(start + len(part))
    return np.concatenate(found) if found else np.zeros((0, 1), np.float32)


def feature_name(file: OnnxFile) -> str:
    """The tensor that the last layer takes; "logits" where the model does not end in a linear layer."""
    producers = {output: node for node in file.nodes for output in node.outputs}
    node = producers.get("logits")
    while node is not None and node.op_type in _PASSING:
        node = producers.get(node.inputs[0])
    return node.inputs[0] if node is not None and node.op_type in _LAST_LAYERS else "logits"
