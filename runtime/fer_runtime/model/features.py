"""What a model sees in faces before it decides: the values that its last layer takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fer_runtime.images import Uint8Array
from fer_runtime.model.load import load_model
from fer_runtime.model.onnx_file import OnnxFile
from fer_runtime.model.session import open_session

FloatArray = npt.NDArray[np.float32]

_BATCH = 32
_LAST_LAYERS = ("Gemm", "MatMul")
# Operators that only pass on what the last layer gives.
_PASSING = ("Add", "Cast", "DequantizeLinear", "Identity", "QuantizeLinear")
# onnx.proto3: ModelProto.graph, GraphProto.output, ValueInfoProto.name.
_GRAPH, _OUTPUT, _NAME = 7, 12, 1


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
    content = model.content if name == "logits" else with_output(model.content, name)
    session = open_session(content, source=str(path)).session
    batch = model.batch or _BATCH
    found: list[FloatArray] = []
    for start in range(0, len(faces), batch):
        part = faces[start : start + batch]
        missing = batch - len(part) if model.batch else 0
        given = np.concatenate([part, np.repeat(part[:1], missing, axis=0)]) if missing else part
        answer = session.run([name], {"faces": given})[0][: len(part)]
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


def with_output(content: bytes, name: str) -> bytes:
    """The model's bytes with one more output, a tensor of its graph.

    Protobuf joins the fields of a message that occurs twice: a graph with nothing but the output is appended.
    """
    return content + _field(_GRAPH, _field(_OUTPUT, _field(_NAME, name.encode())))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
