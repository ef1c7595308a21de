"""Small models of the contract, written with the onnx package: another program than the exporter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.model.metadata import METADATA_KEY, ModelMetadata


def _band(expression: int, side: int) -> slice:
    """Rows of a face that stand for an expression: seven bands from top to bottom."""
    return slice(expression * side // 7, (expression + 1) * side // 7)


def write_band_model(path: Path, *, metadata: ModelMetadata | str | None = None, input_shape: int = 48) -> Path:
    """A model whose logits are the mean brightness, 0 to 10, of seven horizontal bands of the face."""
    weights = np.zeros((input_shape * input_shape, 7), np.float32)
    for expression in range(7):
        mask = np.zeros((input_shape, input_shape), np.float32)
        mask[_band(expression, input_shape)] = 1
        weights[:, expression] = mask.ravel() * (10 / 255 / mask.sum())
    nodes = [
        helper.make_node("Cast", ["faces"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "bands",
        [helper.make_tensor_value_info("faces", TensorProto.UINT8, ["batch", input_shape, input_shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 7]) for name in ("logits", "probabilities")],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if metadata is None:
        metadata = ModelMetadata(name="v0", expressions=EXPRESSIONS, precision="fp32", opset=18)
    if metadata != "":
        text = metadata if isinstance(metadata, str) else metadata.to_json()
        helper.set_model_props(model, {METADATA_KEY: text})
    onnx.save(model, path)
    return path


def band_face(expression: int, *, side: int = 48) -> np.ndarray:
    """A face, uint8 (side, side), that the band model takes for the expression of that index."""
    face = np.full((side, side), 20, np.uint8)
    face[_band(expression, side)] = 250
    return face
