"""A foreign classifier's graph between our pixels and our outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fer_export.adopt.inputs import FaceInput, Row

_OURS = ("faces", "logits", "probabilities")  # the names of our contract, which the foreign file may use, too


def wrapped_graph(core: onnx.ModelProto, faces: FaceInput, row: Row, count: int) -> onnx.ModelProto:
    """The classifier between our pixels and our outputs: logits of `count` classes and their softmax."""
    wrapping = _Wrapping(core.graph)
    wrapping.add_classifier(core.graph, _normalized(wrapping, faces, row))
    _add_outputs(wrapping, core.graph.output[0], count)
    side = faces.size
    faces_shape: list[int | str] = ["batch", side, side] if faces.color == "gray" else ["batch", side, side, 3]
    graph = helper.make_graph(
        wrapping.nodes,
        "adopted",
        [helper.make_tensor_value_info("faces", TensorProto.UINT8, faces_shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", count])
            for name in ("logits", "probabilities")
        ],
        wrapping.constants,
    )
    wrapped = helper.make_model(graph, opset_imports=list(core.opset_import), producer_name="fer-edge")
    wrapped.ir_version = core.ir_version
    return wrapped


class _Wrapping:
    """The nodes and constants of the new graph; our names do not collide with the foreign file's."""

    def __init__(self, foreign: onnx.GraphProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        taken = {name for node in foreign.node for name in (*node.input, *node.output)}
        self._prefix = "fer_"
        while any(name.startswith(self._prefix) for name in taken):
            self._prefix += "_"

    def emit(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node, and return the name of its output."""
        name = output if output in _OURS else self._prefix + output
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: Any) -> str:
        """Add a constant, and return its name in the graph."""
        self.constants.append(numpy_helper.from_array(np.asarray(values), self._prefix + name))
        return self._prefix + name

    def theirs(self, name: str) -> str:
        """What a tensor of the foreign file is called here."""
        return f"{self._prefix}their_{name}" if name in _OURS else name

    def add_classifier(self, graph: onnx.GraphProto, pixels: str) -> None:
        """Add the foreign nodes and constants, which read `pixels` where they read their input."""
        for node in graph.node:
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.input[:] = [pixels if name == graph.input[0].name else self.theirs(name) for name in node.input]
            copied.output[:] = [self.theirs(name) for name in node.output]
            self.nodes.append(copied)
        for tensor in graph.initializer:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = self.theirs(tensor.name)
            self.constants.append(copy)

    def rename(self, old: str, new: str) -> None:
        """Rename a tensor wherever it is used."""
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]


def _normalized(wrapping: _Wrapping, faces: FaceInput, row: Row) -> str:
    """Turn uint8 faces into what the classifier takes: its type, layout, order of colours, scale and shift."""
    channel = 1 if row.layout == "nchw" else 3
    is_gray, is_float = faces.color == "gray", row.dtype == "float32"
    pixels = "faces"
    if is_float:
        pixels = wrapping.emit("Cast", [pixels], "pixels", to=TensorProto.FLOAT)
    if is_gray:
        pixels = wrapping.emit("Unsqueeze", [pixels, wrapping.constant("axis", np.array([channel]))], "planes")
    elif row.layout == "nchw":
        pixels = wrapping.emit("Transpose", [pixels], "planes", perm=[0, 3, 1, 2])
    if faces.color == "bgr":
        turn = {"start": 2, "end": -4, "axis": channel, "step": -1}
        cut = [wrapping.constant(f"turn_{key}", np.array([value])) for key, value in turn.items()]
        pixels = wrapping.emit("Slice", [pixels, *cut], "turned")
    factor, shift = faces.factor_and_shift(row.channels)
    shape = (row.channels, 1, 1) if row.layout == "nchw" else (1, 1, row.channels)

    def per_channel(name: str, values: Any) -> str:
        return wrapping.constant(name, values.reshape(shape if len(values) > 1 else (1, 1, 1)).astype(np.float32))

    repeats = is_gray and row.channels == 3
    if is_float and (repeats or (factor != 1).any()):
        # Three equal planes come from the constant's three channels.
        values = factor if repeats or len(set(factor)) > 1 else factor[:1]
        pixels = wrapping.emit("Mul", [pixels, per_channel("factor", values)], "scaled")
    elif repeats:
        pixels = wrapping.emit("Concat", [pixels] * 3, "repeated", axis=channel)
    if is_float and shift.any():
        values = shift if len(set(shift)) > 1 else shift[:1]
        pixels = wrapping.emit("Add", [pixels, per_channel("shift", values)], "normalized")
    return pixels


def _add_outputs(wrapping: _Wrapping, output: onnx.ValueInfoProto, count: int) -> None:
    """Call the classifier's scores logits, in one row per face, and add their softmax."""
    scores = wrapping.theirs(output.name)
    if [dimension.dim_value for dimension in output.type.tensor_type.shape.dim[1:]] == [count]:
        wrapping.rename(scores, "logits")
    else:
        wrapping.emit("Reshape", [scores, wrapping.constant("scores", np.array([0, count]))], "logits")
    wrapping.emit("Softmax", ["logits"], "probabilities", axis=1)
