"""A foreign classifier's graph between our pixels and our outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fer_export.adopt.inputs import FaceInput, Row


def wrapped_graph(core: onnx.ModelProto, faces: FaceInput, row: Row, count: int) -> onnx.ModelProto:
    """The classifier between our pixels and our outputs."""
    graph = core.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    prefix = "fer_"
    while any(name.startswith(prefix) for name in taken):
        prefix += "_"
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def emit(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        name = output if output in ("logits", "probabilities") else prefix + output
        nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(name: str, values: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(values), prefix + name))
        return prefix + name

    is_gray = faces.color == "gray"
    pixels = "faces"
    if row.dtype == "float32":
        pixels = emit("Cast", [pixels], "pixels", to=TensorProto.FLOAT)
    if is_gray:
        axis = 1 if row.layout == "nchw" else 3
        pixels = emit("Unsqueeze", [pixels, constant("axis", np.array([axis]))], "planes")
    elif row.layout == "nchw":
        pixels = emit("Transpose", [pixels], "planes", perm=[0, 3, 1, 2])
    channel = 1 if row.layout == "nchw" else 3
    if faces.color == "bgr":
        turn = {"start": 2, "end": -4, "axis": channel, "step": -1}
        cut = [constant(f"turn_{key}", np.array([value])) for key, value in turn.items()]
        pixels = emit("Slice", [pixels, *cut], "turned")
    factor, shift = faces.factor_and_shift(row.channels)
    shape = (row.channels, 1, 1) if row.layout == "nchw" else (1, 1, row.channels)
    repeats = is_gray and row.channels == 3
    if row.dtype == "float32" and (repeats or (factor != 1).any()):
        # Three equal planes come from the constant's three channels.
        values = factor if repeats or len(set(factor)) > 1 else factor[:1]
        scale = constant("factor", values.reshape(shape if len(values) > 1 else (1, 1, 1)).astype(np.float32))
        pixels = emit("Mul", [pixels, scale], "scaled")
    elif repeats:
        pixels = emit("Concat", [pixels] * 3, "repeated", axis=channel)
    if row.dtype == "float32" and shift.any():
        values = shift if len(set(shift)) > 1 else shift[:1]
        add = constant("shift", values.reshape(shape if len(values) > 1 else (1, 1, 1)).astype(np.float32))
        pixels = emit("Add", [pixels, add], "normalized")
    ours, theirs = graph.input[0].name, graph.output[0].name
    for node in graph.node:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        for index, name in enumerate(node.input):
            if name == ours:
                copied.input[index] = pixels
            elif name in ("logits", "probabilities", "faces"):  # the foreign file's own tensors of our names
                copied.input[index] = f"{prefix}their_{name}"
        for index, name in enumerate(node.output):
            if name in ("logits", "probabilities", "faces"):
                copied.output[index] = f"{prefix}their_{name}"
        nodes.append(copied)
    last = f"{prefix}their_{theirs}" if theirs in ("logits", "probabilities", "faces") else theirs
    given = [one.dim_value for one in graph.output[0].type.tensor_type.shape.dim[1:]]
    if given != [count]:
        emit("Reshape", [last, constant("scores", np.array([0, count]))], "logits")
    else:
        for node in nodes:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == last:
                        names[index] = "logits"
    emit("Softmax", ["logits"], "probabilities", axis=1)
    for tensor in graph.initializer:
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        if copy.name in ("logits", "probabilities", "faces"):
            copy.name = f"{prefix}their_{copy.name}"
        constants.append(copy)
    size = faces.size
    faces_shape: list[int | str] = ["batch", size, size] if is_gray else ["batch", size, size, 3]
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "adopted",
            [helper.make_tensor_value_info("faces", TensorProto.UINT8, faces_shape)],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", count])
                for name in ("logits", "probabilities")
            ],
            constants,
        ),
        opset_imports=list(core.opset_import),
        producer_name="fer-edge",
    )
    made.ir_version = core.ir_version
    return made
