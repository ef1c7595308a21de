"""A graph written again, node by node, while the shape of a face is followed through it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from fer_export.gate.rows import MORE_RULES, RULES, Array, NotAllowedError, Rows, RowWalk
from fer_runtime.errors import ModelFileError
from fer_runtime.model.structure import MAX_VALUES
from fer_runtime.text import printable

_IR_VERSION = 10
# As much as a file may hold (`onnx_file.MAX_FILE_BYTES`): an exporter's graph computes a weight once, if at all.
MAX_FOLDED_BYTES = 1 << 30


class RefusedError(Exception):
    """An operator cannot be written in another form; the message continues its name ("has ...", "computes ...")."""


class Writer:
    """Writes the nodes front to back and follows the shape of a face through them."""

    def __init__(self, model: onnx.ModelProto, row: tuple[int, ...], opset: int, batch: int | None) -> None:
        graph = model.graph
        self.opset, self.batch = opset, batch
        self.values: dict[str, Array] = {}  # constants and computed shapes, by the original's names
        for tensor in graph.initializer:
            self.values[tensor.name] = numpy_helper.to_array(tensor)
        (self.input,) = [value for value in graph.input if value.name not in self.values]
        self.input_name: str = self.input.name
        self.alias: dict[str, str] = {self.input.name: self.input.name}  # the original's names to ours
        self.repeated: dict[str, Array] = {}  # the same row for every face, by the original's names
        # Tensors whose first dimension is not the faces': one of ours, and the transposition that is still to be done.
        self.moved: dict[str, tuple[str, list[int]]] = {}
        # Tensors whose first dimension holds the faces and the heads of each; ours keeps the two apart.
        self.merged: dict[str, str] = {}
        self.walk = RowWalk({self.input.name: Rows(row)}, None, RULES | MORE_RULES)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.folded_bytes = 0  # of the constants that were computed from others
        self.taken = {name for node in graph.node for name in (*node.input, *node.output)} | self.values.keys()
        self.taken.add(self.input.name)
        self.uses = Counter(name for node in graph.node for name in node.input)
        self.uses.update(value.name for value in graph.output)

    def name_of(self, name: str) -> str:
        """Our name of an original tensor; a constant is written under its own."""
        if not name:
            return ""
        if name in self.alias:
            return self.alias[name]
        if name in self.moved or name in self.merged:
            raise RefusedError("reads a tensor whose first dimension is not the faces'")
        value = self.values[name]
        if value.dtype == object:
            raise RefusedError("takes a shape that depends on the batch size")
        if value.dtype.kind == "f" and value.dtype != np.float32:
            raise RefusedError(f"computes in {value.dtype}; save the model in float32")
        self.constants[name] = value
        return name

    def keep(self, name: str, value: Array) -> None:
        """Keep a constant that was computed from others, under its name in the original."""
        self.folded_bytes += value.nbytes
        if self.folded_bytes > MAX_FOLDED_BYTES:
            raise RefusedError("is one of too many large constants")
        self.values[name] = value

    def new_name(self, name: str) -> str:
        """A name for a tensor or constant of ours that the original does not have."""
        number, free = 1, name
        while free in self.taken:
            number, free = number + 1, f"{name}.{number}"
        self.taken.add(free)
        return free

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        """The name of a new constant, `name` or one like it."""
        name = self.new_name(name)
        self.constants[name] = np.asarray(value)
        return name

    def emit(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node of one output, and follow the shape of a face through it."""
        if kind not in self.walk.rules:
            raise RefusedError("is not among the operators that can be shown to answer each face by itself")
        node = helper.make_node(kind, list(inputs), [output], name=output, **attributes)
        for name in inputs:
            if name in self.constants:
                self.walk.states[name] = self.constants[name]
        self.walk.follow(node)
        if self.walk.wrong_attributes:
            raise NotAllowedError(self.walk.wrong_attributes[0])
        if math.prod(self.row_of(output)) > MAX_VALUES:
            raise RefusedError(f"gives more than {MAX_VALUES:,} values for one face")
        self.nodes.append(node)
        self.alias[output] = output
        return output

    def row_of(self, ours: str) -> tuple[int, ...]:
        """The shape of one face in a tensor of ours."""
        state = self.walk.states[ours]
        if not isinstance(state, Rows):
            raise RefusedError("takes a constant where faces should be")
        return state.shape

    def input_row(self, name: str) -> tuple[int, ...]:
        """The shape of one face in an original tensor."""
        return self.row_of(self.name_of(name))

    def reshaped(self, ours: str, row: Sequence[int], output: str) -> str:
        """A tensor of ours with another row; the same tensor where it has that row already."""
        if tuple(row) == self.row_of(ours):
            self.alias[output] = ours
            return ours
        return self.emit("Reshape", [ours, self.constant(f"{output}_row", np.array([0, *row], np.int64))], output)

    def transposed(self, ours: str, order: list[int], output: str) -> None:
        """A tensor of ours with its dimensions in another order, under an original name."""
        if sorted(order) != list(range(len(self.row_of(ours)) + 1)):
            raise RefusedError("has a perm of another rank")
        if order[0] != 0:
            # Attention puts query, key and value in front of the faces and takes them apart again.
            self.moved[output] = ours, order
        elif order == sorted(order):
            self.alias[output] = ours
        else:
            self.emit("Transpose", [ours], output, perm=order)

    def placed(self, name: str) -> tuple[str, list[int]]:
        """A tensor of ours, and how its dimensions lie in the original's."""
        if name in self.moved:
            return self.moved[name]
        ours = self.name_of(name)
        return ours, list(range(len(self.row_of(ours)) + 1))

    def sliced(self, ours: str, cuts: Sequence[tuple[int, int, int, int]], output: str) -> str:
        """A tensor of ours, cut by (start, end, axis, step)."""
        if not cuts:
            self.alias[output] = ours
            return ours
        row = self.row_of(ours)
        ends = [end if end >= 0 else -row[axis - 1] - 1 for _, end, axis, _ in cuts]
        columns = ([cut[0] for cut in cuts], ends, [cut[2] for cut in cuts], [cut[3] for cut in cuts])
        names = [
            self.constant(f"{output}_{kind}", np.array(column, np.int64))
            for kind, column in zip(("starts", "ends", "axes", "steps"), columns, strict=True)
        ]
        return self.emit("Slice", [ours, *names], output)

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that made an original tensor, if nothing else reads it."""
        ours = self.alias.get(name)
        return next((node for node in self.nodes[-1:] if node.output[0] == ours and self.uses[name] == 1), None)

    def known_ints(self, inputs: Sequence[str], place: int) -> list[int] | None:
        """An input that must be known: a list of integers; None where it is left out."""
        if len(inputs) <= place or not inputs[place]:
            return None
        if inputs[place] not in self.values:
            raise RefusedError("computes a shape from the faces")
        return [int(number) for number in self.values[inputs[place]].reshape(-1)]

    def model(self, outputs: Sequence[str], source: str, opset: int) -> onnx.ModelProto:
        """The finished model: what its outputs do not need is left out."""
        renamed: dict[str, str] = {}
        for name in outputs:
            ours = self.alias.get(name)
            if ours is None or ours == self.input.name or ours in renamed:
                raise ModelFileError(f"{source}: the output {printable(name, limit=60)} is not computed from the input")
            renamed[ours] = name
        needed, kept = set(renamed), []
        for node in reversed(self.nodes):
            if node.output[0] in needed:
                needed.update(node.input)
                kept.append(node)
        kept.reverse()
        rows = {name: self.row_of(ours) for ours, name in renamed.items()}
        for node in kept:
            node.output[0] = renamed.get(node.output[0], node.output[0])
            for index, name in enumerate(node.input):
                node.input[index] = renamed.get(name, name)
        kind = self.input.type.tensor_type.elem_type
        row = self.row_of(self.input.name)
        graph = helper.make_graph(
            kept,
            "classifier",
            [helper.make_tensor_value_info(self.input.name, kind, ["batch", *row])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *rows[name]]) for name in outputs],
            [
                numpy_helper.from_array(np.asarray(value, order="C"), name)
                for name, value in self.constants.items()
                if name in needed
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="fer-edge")
        model.ir_version = _IR_VERSION
        return model
