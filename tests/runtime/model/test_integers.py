"""Checksums of the tensors inside an int8 file, against zlib's own over tensors that onnx shows."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from fer_runtime.errors import ModelFileError
from fer_runtime.model.find import find_model
from fer_runtime.model.integers import integer_checksums
from fer_runtime.model.parity import Uint8Array


def _faces(count: int) -> Uint8Array:
    return np.random.default_rng(0).integers(0, 256, (count, 48, 48), np.uint8)


def _written(path: Path) -> tuple[onnx.ModelProto, list[str]]:
    model = onnx.load(path)
    return model, [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]


def test_checksums_are_those_of_the_tensors() -> None:
    path = find_model("v0", precision="int8")
    model, names = _written(path)
    faces = _faces(37)  # two whole runs and a part of one
    for name in names:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.UINT8, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = [f"{zlib.crc32(value.tobytes()):08x}" for value in session.run(names, {"faces": faces})]
    assert integer_checksums(path.read_bytes(), names, faces) == dict(zip(names, expected, strict=True))


def test_a_fixed_batch_has_the_same_checksums() -> None:
    path = find_model("v0", precision="int8")
    model, names = _written(path)
    faces = _faces(7)
    expected = integer_checksums(path.read_bytes(), names, faces)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    assert integer_checksums(model.SerializeToString(), names, faces, batch=4) == expected


def test_another_pixel_is_another_checksum() -> None:
    path = find_model("v0", precision="int8")
    names = _written(path)[1]
    faces = _faces(2)
    expected = integer_checksums(path.read_bytes(), names, faces)
    faces[1, 24, 24] ^= 255
    found = integer_checksums(path.read_bytes(), names, faces)
    assert found[names[0]] != expected[names[0]]


@pytest.mark.parametrize(
    "choose",
    [
        lambda model: "no tensor",
        lambda model: next(node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"),  # float
    ],
)
def test_a_name_of_something_else_is_refused(choose: Callable[[Any], str]) -> None:
    path = find_model("v0", precision="int8")
    model, names = _written(path)
    with pytest.raises(ModelFileError, match="with its inner tensors as outputs"):
        integer_checksums(path.read_bytes(), [*names, choose(model)], _faces(2))
