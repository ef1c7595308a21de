"""Small models of the contract, written with the onnx package: another program than the exporter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.model.metadata import METADATA_KEY, ModelMetadata


def _band(label: int, side: int, classes: int = 7) -> slice:
    """Rows of a face that stand for a label: as many bands as labels, from top to bottom."""
    return slice(label * side // classes, (label + 1) * side // classes)


def write_band_model(path: Path, *, metadata: ModelMetadata | str | None = None, input_shape: int = 48) -> Path:
    """A model whose logits are the mean brightness, 0 to 10, of a horizontal band of the face for each label.

    Labels, size and colour are those of the metadata; in RGB, the brightness is that of red.
    """
    given = metadata if isinstance(metadata, ModelMetadata) else None
    classes, side = (7, input_shape) if given is None else (len(given.labels), given.size)
    shape = (side, side) if given is None else given.face_shape
    weights = np.zeros((int(np.prod(shape)), classes), np.float32)
    for label in range(classes):
        mask = np.zeros(shape, np.float32)
        if mask.ndim == 2:
            mask[_band(label, side, classes)] = 1
        else:
            mask[_band(label, side, classes), :, 0] = 1
        weights[:, label] = mask.ravel() * (10 / 255 / mask.sum())
    nodes = [
        helper.make_node("Cast", ["faces"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "bands",
        [helper.make_tensor_value_info("faces", TensorProto.UINT8, ["batch", *shape])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", classes])
            for name in ("logits", "probabilities")
        ],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if metadata is None:
        metadata = ModelMetadata(name="v0", labels=EXPRESSIONS, precision="fp32", opset=18)
    if metadata != "":
        text = metadata if isinstance(metadata, str) else metadata.to_json()
        helper.set_model_props(model, {METADATA_KEY: text})
    onnx.save(model, path)
    return path


def band_face(label: int, *, side: int = 48, classes: int = 7) -> np.ndarray:
    """A face, uint8 (side, side), that the band model takes for the label of that index."""
    face = np.full((side, side), 20, np.uint8)
    face[_band(label, side, classes)] = 250
    return face
