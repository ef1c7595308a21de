"""Any classifier's graph in the few operators that the gate can follow, face by face, at one opset.

Exporters write the same network in many ways: shapes that are computed while the model runs, bias as an addition,
BatchNormalization beside a convolution, a batch of one in every Reshape, operators of opset 7. Here each node is
written again as one or a few operators of `gate.rows` at opset 18, with shapes of a face as constants and any batch.
What has no such form is refused by its name. The result is not trusted: the gate compares it with the original.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from fer_export.gate.rows import MORE_RULES, RULES, Array, NotAllowedError, Rows, RowWalk
from fer_runtime.errors import ModelFileError
from fer_runtime.model.structure import MAX_VALUES
from fer_runtime.text import printable

OPSET = 18
LOWEST_OPSET = 7  # the lowest that ONNX Runtime promises to run
_IR_VERSION = 10
_MOST_PIECES = 64  # of a Gather that is written as slices

# Operators that are gone afterwards: they compute shapes and constants, or have another form.
REWRITTEN = frozenset(
    """
    BatchNormalization Constant ConstantOfShape Dropout Equal Expand Flatten Gather Gelu GlobalAveragePool GlobalMaxPool
    Identity LogSoftmax Mish Range Shape Split Squeeze Sum Unsqueeze Where
    """.split()  # noqa: SIM905 - a list of a line each would fill a page
)


_KNOWN = REWRITTEN | RULES.keys() | MORE_RULES.keys()


class _Batch:
    """The batch size, among the numbers of a shape."""

    def __repr__(self) -> str:
        return "batch"


_BATCH = _Batch()
_FOLDED: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Div": lambda left, right: left // right if left.dtype.kind in "iuO" else left / right,
    "Equal": np.equal,
    "Mul": np.multiply,
    "Pow": np.power,
    "Sub": np.subtract,
    "Where": np.where,
}
_DTYPES = {
    TensorProto.FLOAT: np.float32,
    TensorProto.INT64: np.int64,
    TensorProto.INT32: np.int32,
    TensorProto.BOOL: np.bool_,
}


def canonical_graph(
    model: onnx.ModelProto,
    row: tuple[int, ...],
    *,
    outputs: Sequence[str],
    source: str,
    batch: int | None = None,
    written_opset: int = OPSET,
) -> onnx.ModelProto:
    """`model` with one row per face everywhere, any batch, and operators of RULES and MORE_RULES only.

    Args:
        model: its one input has a batch first; checked by `check_operators` before.
        row: the shape of the input for one face.
        outputs: names of the outputs to keep.
        source: the file, for messages.
        batch: the batch size that is written into the graph's shapes; None where it says none.
        written_opset: of the result, 18 or above.

    Raises:
        ModelFileError: an operator, or what it does, has no such form.
    """
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if opset < LOWEST_OPSET:
        raise ModelFileError(f"{source} has opset {opset}; opset {LOWEST_OPSET} and above can be read")
    writer = _Writer(model, row, opset, batch)
    for node in model.graph.node:
        name = f"{node.op_type} {printable(node.name or (node.output[0] if node.output else ''), limit=60)}"
        try:
            writer.rewrite(node)
        except NotAllowedError as error:
            raise ModelFileError(f"{source} cannot be written for any batch: {printable(str(error))}") from error
        except _RefusedError as error:
            raise ModelFileError(f"{source}: {name} {error}") from error
        except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError, OverflowError, AttributeError) as error:
            reason = printable(str(error) or type(error).__name__, limit=200)
            raise ModelFileError(f"{source}: {name} cannot be read ({reason})") from error
    return writer.model(outputs, source, max(written_opset, OPSET))


class _RefusedError(Exception):
    """What an operator does that has no other form; the message continues its name."""


class _Writer:
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
        self.taken = {name for node in graph.node for name in (*node.input, *node.output)} | self.values.keys()
        self.taken.add(self.input.name)
        self.uses = Counter(name for node in graph.node for name in node.input)
        self.uses.update(value.name for value in graph.output)

    def rewrite(self, node: onnx.NodeProto) -> None:
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        inputs = list(node.input)
        while inputs and not inputs[-1]:
            inputs.pop()
        if node.op_type not in _KNOWN or node.domain not in ("", "ai.onnx"):
            raise _RefusedError("is not among the operators that can be shown to answer each face by itself")
        if all(name in self.values or not name for name in inputs) and node.op_type != "Shape":
            folded = self._fold(node, [self.values.get(name) for name in inputs], attributes)
            if folded is not None:
                self.values[node.output[0]] = folded
            return
        if any(self.uses[name] for name in node.output[1:] if name) and node.op_type != "Split":
            raise _RefusedError(f"has {len(node.output)} outputs that are used")
        special = getattr(self, f"_{node.op_type.lower()}", None)
        if node.op_type in _FOLDED and all(name in self.values or name in self.repeated for name in inputs):
            raise _RefusedError("computes with a constant that is repeated for each face")
        if special is not None:
            special(node, inputs, attributes)
        elif any(name in self.repeated for name in inputs):
            raise _RefusedError("takes a constant that is repeated for each face")
        else:
            self._emit(node.op_type, [self._of(name) for name in inputs], node.output[0], **attributes)

    # Writing.

    def _of(self, name: str) -> str:
        """Our name of an original tensor; a constant is written under its own."""
        if not name:
            return ""
        if name in self.alias:
            return self.alias[name]
        if name in self.moved or name in self.merged:
            raise _RefusedError("reads a tensor whose first dimension is not the faces'")
        value = self.values[name]
        if value.dtype == object:
            raise _RefusedError("takes a shape that depends on the batch size")
        if value.dtype.kind == "f" and value.dtype != np.float32:
            raise _RefusedError(f"computes in {value.dtype}; save the model in float32")
        self.constants[name] = value
        return name

    def _new(self, name: str) -> str:
        """A name for a tensor or constant of ours that the original does not have."""
        number, free = 1, name
        while free in self.taken:
            number, free = number + 1, f"{name}.{number}"
        self.taken.add(free)
        return free

    def _constant(self, name: str, value: npt.ArrayLike) -> str:
        name = self._new(name)
        self.constants[name] = np.asarray(value)
        return name

    def _emit(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        if kind not in self.walk.rules:
            raise _RefusedError("is not among the operators that can be shown to answer each face by itself")
        node = helper.make_node(kind, list(inputs), [output], name=output, **attributes)
        for name in inputs:
            if name in self.constants:
                self.walk.states[name] = self.constants[name]
        self.walk.follow(node)
        if self.walk.wrong_attributes:
            raise NotAllowedError(self.walk.wrong_attributes[0])
        if math.prod(self._row(output)) > MAX_VALUES:
            raise _RefusedError(f"gives more than {MAX_VALUES:,} values for one face")
        self.nodes.append(node)
        self.alias[output] = output
        return output

    def _row(self, ours: str) -> tuple[int, ...]:
        state = self.walk.states[ours]
        if not isinstance(state, Rows):
            raise _RefusedError("takes a constant where faces should be")
        return state.shape

    def _input_row(self, name: str) -> tuple[int, ...]:
        return self._row(self._of(name))

    def _reshaped(self, ours: str, row: Sequence[int], output: str) -> str:
        if tuple(row) == self._row(ours):
            self.alias[output] = ours
            return ours
        return self._emit("Reshape", [ours, self._constant(f"{output}_row", np.array([0, *row], np.int64))], output)

    def _producer(self, name: str) -> onnx.NodeProto | None:
        """The node that made an original tensor, if nothing else reads it."""
        ours = self.alias.get(name)
        return next((node for node in self.nodes[-1:] if node.output[0] == ours and self.uses[name] == 1), None)

    def model(self, outputs: Sequence[str], source: str, opset: int) -> onnx.ModelProto:
        """The finished model: what its outputs do not need is left out."""
        renamed: dict[str, str] = {}
        for name in outputs:
            ours = self.alias.get(name)
            if ours is None or ours == self.input.name or ours in renamed:
                raise ModelFileError(f"{source}: the output {printable(name, limit=60)} is no result of the input")
            renamed[ours] = name
        needed, kept = set(renamed), []
        for node in reversed(self.nodes):
            if node.output[0] in needed:
                needed.update(node.input)
                kept.append(node)
        kept.reverse()
        rows = {name: self._row(ours) for ours, name in renamed.items()}
        for node in kept:
            node.output[0] = renamed.get(node.output[0], node.output[0])
            for index, name in enumerate(node.input):
                node.input[index] = renamed.get(name, name)
        kind = self.input.type.tensor_type.elem_type
        row = self._row(self.input.name)
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
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="fer-edge")
        made.ir_version = _IR_VERSION
        return made

    # Constants and shapes.

    def _fold(self, node: onnx.NodeProto, given: list[Array | None], attributes: dict[str, Any]) -> Array | None:
        """The value of a node whose inputs are constants, or shapes with the batch among them.

        None for one that repeats a row for each face; `repeated` has it then.
        """
        kind = node.op_type
        values: list[Any] = given
        if kind == "Constant":
            found = _constant_value(attributes)
        elif kind in ("Identity", "Dropout"):
            found = values[0]
        elif kind == "Cast":
            found = values[0] if values[0].dtype == object else values[0].astype(_DTYPES[attributes["to"]])
        elif kind in _FOLDED and len(values) in (2, 3):
            if math.prod(np.broadcast_shapes(*(value.shape for value in values))) > MAX_VALUES:
                raise _RefusedError("makes too large a constant")
            found = _FOLDED[kind](*values)
            if kind != "Where" and kind != "Equal" and all(value.dtype != object for value in values):
                found = found.astype(values[0].dtype)
        elif kind in ("Unsqueeze", "Squeeze"):
            axes = self._axes(attributes, values, 1)
            found = np.squeeze(values[0], axes) if kind == "Squeeze" else np.expand_dims(values[0], axes or ())
        elif kind == "Concat":
            if any(value.dtype == object for value in values):
                values = [value.astype(object) for value in values]
            found = np.concatenate(values, attributes["axis"])
        elif kind == "Gather":
            found = np.take(values[0], values[1].astype(np.int64), attributes.get("axis", 0))
        elif kind == "Slice":
            places: list[slice] = [slice(None)] * values[0].ndim
            for start, end, axis, step in self._slices(values[0].shape, attributes, values[1:]):
                places[axis] = slice(start, end if end >= 0 else None, step)
            found = values[0][tuple(places)]
        elif kind == "Reshape":
            found = values[0].reshape([int(size) for size in values[1]])
        elif kind == "Transpose":
            found = values[0].transpose(attributes.get("perm"))
        elif kind == "Range":
            if not 0 <= (values[1] - values[0]) // values[2] <= MAX_VALUES:
                raise _RefusedError("makes too large a constant")
            found = np.arange(*(one.item() for one in values)).astype(values[0].dtype)
        elif kind == "ConstantOfShape":
            shape = [int(size) for size in values[0]]
            if min(shape, default=1) < 0 or math.prod(shape) > MAX_VALUES:
                raise _RefusedError("makes too large a constant")
            value = attributes.get("value")
            found = np.full(shape, np.float32(0) if value is None else numpy_helper.to_array(value).reshape(()))
        elif kind == "Expand":
            return self._expanded_constant(values[0], values[1], node.output[0])
        else:
            raise _RefusedError("is computed from constants alone; simplify the model when you export it")
        folded = np.asarray(found)
        if folded.size > MAX_VALUES * 16:
            raise _RefusedError("makes too large a constant")
        return folded

    def _expanded_constant(self, value: Array, shape: Array, output: str) -> Array | None:
        if shape.dtype != object:
            sizes = [int(size) for size in shape]
            wanted = np.broadcast_shapes(value.shape, tuple(sizes))
            if math.prod(wanted) > MAX_VALUES:
                raise _RefusedError("makes too large a constant")
            return np.broadcast_to(value, wanted)
        first, *rest = shape.tolist()
        row_of = value[0] if value.ndim == len(rest) + 1 else value
        if first is not _BATCH or (value.ndim == len(rest) + 1 and len(value) != 1):
            raise _RefusedError("repeats a constant in another way than once for each face")
        row = np.broadcast_to(row_of, np.broadcast_shapes(row_of.shape, tuple(int(size) for size in rest)))
        if row.size > MAX_VALUES:
            raise _RefusedError("makes too large a constant")
        self.repeated[output] = row
        return None

    def _axes(self, attributes: dict[str, Any], values: Sequence[Any], place: int) -> tuple[int, ...] | None:
        if len(values) > place and values[place] is not None:
            return tuple(int(axis) for axis in np.asarray(values[place]).reshape(-1))
        return tuple(attributes["axes"]) if "axes" in attributes else None

    def _ints(self, inputs: Sequence[str], place: int) -> list[int] | None:
        """An input that must be known: a list of integers; None where it is left out."""
        if len(inputs) <= place or not inputs[place]:
            return None
        if inputs[place] not in self.values:
            raise _RefusedError("computes a shape from the faces")
        return [int(one) for one in self.values[inputs[place]].reshape(-1)]

    def _slices(
        self, shape: tuple[int, ...], attributes: dict[str, Any], values: Sequence[Any]
    ) -> list[tuple[int, int, int, int]]:
        """(start, end, axis, step) with the axis counted from the front; an end of -1 is beside the first value."""
        if "starts" in attributes:
            starts, ends, axes, steps = attributes["starts"], attributes["ends"], attributes.get("axes"), None
        else:
            starts, ends, axes, steps = (
                None
                if len(values) <= place or values[place] is None
                else [int(one) for one in values[place].reshape(-1)]
                for place in range(4)
            )
        found = []
        for number, (start, end) in enumerate(zip(starts or (), ends or (), strict=True)):
            axis = (number if axes is None else int(axes[number])) % len(shape)
            step = 1 if steps is None else int(steps[number])
            if step == 0:
                raise _RefusedError("has a step of 0")
            # numpy's rule for negative numbers is ONNX's but for an end before the first value.
            low = -shape[axis] - 1
            first, last, _ = slice(
                max(int(start), low), None if int(end) <= low and step < 0 else int(end), step
            ).indices(shape[axis])
            found.append((first, last, axis, step))
        return found

    def _shape(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        name = inputs[0]
        if name in self.repeated:
            sizes: list[Any] = [_BATCH, *self.repeated[name].shape]
        elif name in self.alias:
            sizes = [_BATCH, *self._input_row(name)]
        else:
            sizes = list(self.values[name].shape)
        if self.batch is not None and sizes and sizes[0] is _BATCH:
            sizes[0] = self.batch
        part = sizes[attributes.get("start", 0) : attributes.get("end")]
        found = np.empty(len(part), object)
        found[:] = part
        known = all(isinstance(size, int) for size in part)
        self.values[node.output[0]] = found.astype(np.int64) if known else found

    # One method an operator that has another form.

    def _identity(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        self.alias[node.output[0]] = self._of(inputs[0])

    def _dropout(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        if len(inputs) > 2 and (inputs[2] not in self.values or bool(self.values[inputs[2]])):
            raise _RefusedError("is in training mode: its answers are random")
        self._identity(node, inputs, attributes)

    def _cast(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        if attributes.get("to") != TensorProto.FLOAT:
            kind = attributes.get("to")
            name = TensorProto.DataType.Name(kind).lower() if kind in TensorProto.DataType.values() else kind
            raise _RefusedError(f"makes {name} of the faces; save the model in float32")
        self._emit("Cast", [self._of(inputs[0])], node.output[0], to=TensorProto.FLOAT)

    def _reshape(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        if inputs[1] not in self.values:
            raise _RefusedError("computes a shape from the faces")
        ours = self.merged.get(inputs[0]) or self._of(inputs[0])
        row = self._row(ours)
        first, *rest = self.values[inputs[1]].reshape(-1).tolist()
        if first == -1 and len(row) > 1 and rest == list(row[1:]) and row[0] != 1:
            self.merged[node.output[0]] = ours
            return
        if any(size is _BATCH for size in rest) or (attributes.get("allowzero") and 0 in (first, *rest)):
            raise _RefusedError(f"to ({', '.join(map(str, (first, *rest)))}) moves the faces' dimension")
        sizes = [row[place] if size == 0 else int(size) for place, size in enumerate(rest)]
        if sizes.count(-1) == 1:
            known = math.prod(size for size in sizes if size > 0)
            sizes = [math.prod(row) // known if size == -1 else size for size in sizes]
        keeps = first is _BATCH or first in (0, -1) or (self.batch is not None and first == self.batch)
        if not keeps or min(sizes, default=1) < 1 or math.prod(sizes) != math.prod(row):
            raise _RefusedError(
                f"to ({', '.join(map(str, (first, *rest)))}) does not keep one row per face"
                + ("; the file fixes the batch there" if isinstance(first, int) and first > 0 else "")
            )
        self._reshaped(ours, sizes, node.output[0])

    def _flatten(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        row = self._input_row(inputs[0])
        if attributes.get("axis", 1) % (len(row) + 1) != 1:
            raise _RefusedError("does not keep one row per face")
        self._reshaped(self._of(inputs[0]), [math.prod(row)], node.output[0])

    def _squeeze(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        axes = self._axes(attributes, [None, *([self.values[inputs[1]]] if len(inputs) > 1 else [])], 1)
        if axes is None:
            raise _RefusedError("names no axes, and takes the batch away where it is 1")
        if inputs[0] in self.moved:
            rank = len(self.moved[inputs[0]][1])
            self._without(inputs[0], {axis % rank for axis in axes}, node.output[0])
            return
        row = self._input_row(inputs[0])
        places = {axis % (len(row) + 1) for axis in axes}
        if 0 in places or any(row[place - 1] != 1 for place in places):
            raise _RefusedError("takes the faces' dimension away")
        kept = [size for place, size in enumerate(row, 1) if place not in places]
        self._reshaped(self._of(inputs[0]), kept, node.output[0])

    def _unsqueeze(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        row = list(self._input_row(inputs[0]))
        axes = self._axes(attributes, [None, *([self.values[inputs[1]]] if len(inputs) > 1 else [])], 1) or ()
        for axis in sorted(axis % (len(row) + 1 + len(axes)) for axis in axes):
            if axis == 0:
                raise _RefusedError("adds a dimension before the faces'")
            row.insert(axis - 1, 1)
        self._reshaped(self._of(inputs[0]), row, node.output[0])

    def _transpose(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        if inputs[0] in self.merged:
            first, *rest = list(attributes.get("perm") or (-1,))
            if first != 0:
                raise _RefusedError("reads a tensor whose first dimension is not the faces'")
            output = self._new(f"{node.output[0]}_apart")
            self._transposed(self.merged[inputs[0]], [0, 1, *(axis + 1 for axis in rest)], output)
            self.merged[node.output[0]] = self._of(output)
            return
        order = list(attributes.get("perm") or range(len(self._input_row(inputs[0])), -1, -1))
        self._transposed(self._of(inputs[0]), order, node.output[0])

    def _transposed(self, ours: str, order: list[int], output: str) -> None:
        if sorted(order) != list(range(len(self._row(ours)) + 1)):
            raise _RefusedError("has a perm of another rank")
        if order[0] != 0:
            # Attention puts query, key and value in front of the faces and takes them apart again.
            self.moved[output] = ours, order
        elif order == sorted(order):
            self.alias[output] = ours
        else:
            self._emit("Transpose", [ours], output, perm=order)

    def _without(self, name: str, places: set[int], output: str) -> None:
        """Take away dimensions of size 1 of a moved tensor; `places` counts them as the original does."""
        ours, order = self.moved[name]
        gone = {order[place] for place in places}
        row = self._row(ours)
        if 0 in gone or any(row[axis - 1] != 1 for axis in gone):
            raise _RefusedError("takes the faces' dimension away")
        left = [axis for place, axis in enumerate(order) if place not in places]
        target = self._new(f"{output}_before")
        kept = self._reshaped(ours, [size for axis, size in enumerate(row, 1) if axis not in gone], target)
        self._transposed(kept, [sorted(left).index(axis) for axis in left], output)

    def _expand(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        row = self._input_row(inputs[0])
        sizes = list(self.values[inputs[1]])
        same = len(sizes) <= len(row) + 1 and all(
            size is _BATCH or int(size) in (1, have) for size, have in zip(sizes[::-1], [*row[::-1], 1], strict=False)
        )
        if not same:
            raise _RefusedError("repeats values of the faces")
        self.alias[node.output[0]] = self._of(inputs[0])

    def _batchnormalization(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        if attributes.get("training_mode"):
            raise _RefusedError("is in training mode: faces depend on their batch")
        if attributes.get("spatial", 1) != 1:
            raise _RefusedError("has spatial = 0")
        scale, bias, mean, variance = (self.values[name].astype(np.float64) for name in inputs[1:5])
        factor = scale / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        shift = bias - mean * factor
        row = self._input_row(inputs[0])
        if not all(one.shape == row[:1] for one in (scale, bias, mean, variance)):
            raise _RefusedError("has parameters of another shape than its channels")
        made = self._producer(inputs[0])
        if made is not None and made.op_type in ("Conv", "Gemm"):
            self._scale_layer(made, factor, shift, node.output[0])
            return
        shape = (-1, *([1] * (len(row) - 1)))
        name = node.output[0]
        scaled = self._emit(
            "Mul",
            [self._of(inputs[0]), self._constant(f"{name}_factor", factor.reshape(shape).astype(np.float32))],
            self._new(f"{name}_scaled"),
        )
        self._emit("Add", [scaled, self._constant(f"{name}_shift", shift.reshape(shape).astype(np.float32))], name)

    def _scale_layer(self, layer: onnx.NodeProto, factor: Array, shift: Array, output: str) -> None:
        """Put a factor and a shift for each output into the weights of the last node, a Conv or Gemm."""
        attributes = {one.name: helper.get_attribute_value(one) for one in layer.attribute}
        weights = self.constants[layer.input[1]].astype(np.float64)
        axis = 1 if layer.op_type == "Gemm" and not attributes.get("transB") else 0
        bias = self.constants[layer.input[2]].astype(np.float64) if len(layer.input) > 2 else np.zeros(len(factor))
        shape = [1] * weights.ndim
        shape[axis] = -1
        self.nodes.pop()
        inputs = [
            layer.input[0],
            self._constant(f"{output}_weight", (weights * factor.reshape(shape)).astype(np.float32)),
            self._constant(f"{output}_bias", (bias * factor + shift).astype(np.float32)),
        ]
        self._emit(layer.op_type, inputs, output, **attributes)

    def _conv(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        weights = self.values[inputs[1]]
        size = self._input_row(inputs[0])[1:]
        kernel = tuple(weights.shape[2:])
        if tuple(attributes.get("kernel_shape", kernel)) != kernel or len(kernel) != len(size):
            raise _RefusedError("has a kernel of another size than its weights")
        kept = self._window(attributes, size, kernel)
        del kept["ceil_mode"]
        self._emit(
            "Conv",
            [self._of(name) for name in inputs],
            node.output[0],
            group=attributes.get("group", 1),
            kernel_shape=kernel,
            **kept,
        )

    def _window(self, attributes: dict[str, Any], size: tuple[int, ...], kernel: tuple[int, ...]) -> dict[str, Any]:
        """Padding, steps and dilations in numbers, for a face of `size`."""
        axes = len(size)
        strides = list(attributes.get("strides") or [1] * axes)
        dilations = list(attributes.get("dilations") or [1] * axes)
        pads = list(attributes.get("pads") or [0] * 2 * axes)
        if min(strides) < 1 or min(dilations) < 1:
            raise _RefusedError("has a step below 1")
        reach = [dilations[axis] * (kernel[axis] - 1) + 1 for axis in range(axes)]
        mode = attributes.get("auto_pad", b"NOTSET")
        if mode in (b"SAME_UPPER", b"SAME_LOWER"):
            total = [
                max((-(-size[axis] // strides[axis]) - 1) * strides[axis] + reach[axis] - size[axis], 0)
                for axis in range(axes)
            ]
            small, large = [one // 2 for one in total], [one - one // 2 for one in total]
            pads = [*small, *large] if mode == b"SAME_UPPER" else [*large, *small]
        elif mode == b"VALID":
            pads = [0] * 2 * axes
        elif mode != b"NOTSET":
            raise _RefusedError(f"has auto_pad = {printable(mode.decode(errors='replace'), limit=20)}")
        rounds_up = 0
        if attributes.get("ceil_mode"):
            # Rounded up, the last window begins inside the face or its padding and may end beyond them.
            for axis in range(axes):
                span = size[axis] + pads[axis] + pads[axis + axes] - reach[axis]
                windows = -(-span // strides[axis])
                if windows * strides[axis] >= size[axis] + pads[axis]:
                    windows -= 1
                more = max(windows * strides[axis] - span, 0)
                pads[axis + axes] += more
                rounds_up += more
        return {"pads": pads, "strides": strides, "dilations": dilations, "ceil_mode": rounds_up}

    def _pool(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        kernel = tuple(attributes["kernel_shape"])
        size = self._input_row(inputs[0])[1:]
        if len(kernel) != len(size) or not size:
            raise _RefusedError("pools over another number of dimensions than its input has")
        kept = self._window(attributes, size, kernel)
        grown = kept.pop("ceil_mode")
        if node.op_type == "AveragePool":
            included = attributes.get("count_include_pad", 0)
            if grown and included:
                raise _RefusedError("has ceil_mode = 1 and counts its padding")
            if any(one != 1 for one in kept.pop("dilations")):
                raise _RefusedError("has dilations")
            kept["count_include_pad"] = included
        elif attributes.get("storage_order"):
            raise _RefusedError("has storage_order = 1")
        if max(pad - kernel[axis % len(kernel)] for axis, pad in enumerate(kept["pads"])) >= 0:
            raise _RefusedError("pads by as much as its kernel")
        self._emit(node.op_type, [self._of(inputs[0])], node.output[0], kernel_shape=kernel, **kept)

    _maxpool = _averagepool = _pool

    def _globalaveragepool(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        kind = "ReduceMean" if node.op_type == "GlobalAveragePool" else "ReduceMax"
        axes = self._constant(f"{node.output[0]}_axes", np.arange(2, len(self._input_row(inputs[0])) + 1))
        self._emit(kind, [self._of(inputs[0]), axes], node.output[0], keepdims=1)

    _globalmaxpool = _globalaveragepool

    def _reduce(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        axes = self._ints(inputs, 1) or list(attributes.get("axes") or ())
        rank = len(self._input_row(inputs[0])) + 1
        if not axes:
            raise _RefusedError("reduces over all dimensions, the faces' too")
        places = self._constant(f"{node.output[0]}_axes", np.array(sorted(axis % rank for axis in axes)))
        self._emit(node.op_type, [self._of(inputs[0]), places], node.output[0], keepdims=attributes.get("keepdims", 1))

    _reducemean = _reducemax = _reducemin = _reducesum = _reducel2 = _reduce

    def _gemm(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        if attributes.get("transA"):
            raise _RefusedError("transposes the faces")
        alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
        weights = self.values[inputs[1]]
        turned = weights.T if attributes.get("transB") else weights
        bias = self.values[inputs[2]] if len(inputs) > 2 else np.zeros(1, np.float32)
        if weights.dtype != np.float32 or bias.dtype != np.float32:
            raise _RefusedError(f"computes in {weights.dtype}; save the model in float32")
        bias = np.broadcast_to(bias, np.broadcast_shapes(bias.shape, (1, turned.shape[1])))
        if bias.shape != (1, turned.shape[1]):
            raise _RefusedError("gives each face of a batch a bias of its own")
        if alpha != 1 or beta != 1:
            weights, bias = (weights * np.float32(alpha)), bias * np.float32(beta)
        name = node.output[0]
        made = [self._constant(f"{name}_weight", weights), self._constant(f"{name}_bias", bias[0])]
        self._emit("Gemm", [self._of(inputs[0]), *made], name, transB=int(attributes.get("transB", 0)))

    def _matmul(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        weights = self.values.get(inputs[1])
        if inputs[0] in self.alias and len(self._input_row(inputs[0])) == 1:
            if weights is None or weights.ndim != 2:
                raise _RefusedError("multiplies faces by faces")
            self._emit("Gemm", [self._of(inputs[0]), self._of(inputs[1])], node.output[0], transB=0)
            return
        self._emit("MatMul", [self._of(name) for name in inputs], node.output[0])

    def _add(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        """An addition of one constant for each channel is the bias of the layer before."""
        for rows, constant in (inputs, inputs[::-1]):
            made, value = self._producer(rows), self.values.get(constant)
            if made is None or value is None or value.dtype != np.float32 or made.op_type not in ("Conv", "Gemm"):
                continue
            row = self._input_row(rows)
            shape = (1,) * (len(row) + 1 - value.ndim) + value.shape
            if len(shape) > len(row) + 1 or math.prod(shape) != shape[1]:
                continue
            shift = np.broadcast_to(value.reshape(-1), row[:1]).astype(np.float64)
            self._scale_layer(made, np.ones(row[0]), shift, node.output[0])
            return
        self._elementwise(node, inputs, attributes)

    def _elementwise(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        names = []
        for place, name in enumerate(inputs):
            if name in self.repeated:
                # One row for every face is a constant with a first dimension of 1.
                row = self.repeated[name]
                names.append(self._constant(f"{node.output[0]}_row{place}", row[None]))
            else:
                names.append(self._of(name))
        self._emit(node.op_type, names, node.output[0])

    _mul = _sub = _div = _pow = _elementwise

    def _sum(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        kind = {"Sum": "Add"}.get(node.op_type, node.op_type)
        total = self._of(inputs[0])
        for place, name in enumerate(inputs[1:], 2):
            output = node.output[0] if place == len(inputs) else self._new(f"{node.output[0]}_{place}")
            total = self._emit(kind, [total, self._of(name)], output)
        self.alias[node.output[0]] = total

    _max = _min = _sum

    def _concat(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        """Constants beside faces, such as a class token, become padding and an addition."""
        rows = [self._concat_row(name) for name in inputs]
        axis = int(attributes["axis"]) % (len(rows[0]) + 1)
        fixed = [name in self.repeated or name in self.values for name in inputs]
        if axis == 0:
            raise _RefusedError("joins along the faces")
        if not any(fixed):
            self._emit("Concat", [self._of(name) for name in inputs], node.output[0], axis=axis)
            return
        moving = [place for place, one in enumerate(fixed) if not one]
        if moving != list(range(moving[0], moving[-1] + 1)):
            raise _RefusedError("joins constants between faces")
        name = node.output[0]
        ours = [self._of(inputs[place]) for place in moving]
        core = ours[0] if len(ours) == 1 else self._emit("Concat", ours, self._new(f"{name}_faces"), axis=axis)
        sizes = [row[axis - 1] for row in rows]
        pads = np.zeros(2 * (len(rows[0]) + 1), np.int64)
        pads[axis], pads[axis + len(rows[0]) + 1] = sum(sizes[: moving[0]]), sum(sizes[moving[-1] + 1 :])
        parts = [
            self._repeated_row(one) if is_fixed else np.zeros(row, np.float32)
            for one, is_fixed, row in zip(inputs, fixed, rows, strict=True)
        ]
        padded = self._emit(
            "Pad", [core, self._constant(f"{name}_pads", pads)], self._new(f"{name}_padded"), mode="constant"
        )
        beside = self._constant(f"{name}_beside", np.concatenate(parts, axis - 1)[None].astype(np.float32))
        self._emit("Add", [padded, beside], name)

    def _repeated_row(self, name: str) -> Array:
        if name in self.repeated:
            return self.repeated[name]
        value = self.values[name]
        if value.shape[:1] != (1,) or self.batch != 1:  # a constant beside a batch of one
            raise _RefusedError("joins a constant of a fixed batch")
        row: Array = value[0]
        return row

    def _concat_row(self, name: str) -> tuple[int, ...]:
        return self._input_row(name) if name in self.alias else self._repeated_row(name).shape

    def _split(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        ours, order = self._placed(inputs[0])
        row = self._row(ours)
        axis = order[int(attributes.get("axis", 0)) % len(order)]
        if axis == 0:
            raise _RefusedError("takes the faces of a batch apart")
        size, count = row[axis - 1], len(node.output)
        sizes = self._ints(inputs, 1) or list(attributes.get("split") or ())
        if not sizes:
            each = -(-size // count)
            sizes = [min(each, size - each * place) for place in range(count)]
        if len(sizes) != count or min(sizes) < 1 or sum(sizes) != size:
            raise _RefusedError("does not divide its input")
        start = 0
        for part, output in zip(sizes, node.output, strict=True):
            cut = self._sliced(ours, [(start, start + part, axis, 1)], self._new(f"{output}_part"))
            self._transposed(cut, order, output)
            start += part

    def _slice(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        ours, order = self._placed(inputs[0])
        values = [None if not name else self.values[name] for name in inputs[1:]]
        sizes = (self.batch or 1 << 31, *self._row(ours))
        cuts = []
        for start, end, place, step in self._slices(tuple(sizes[axis] for axis in order), attributes, values):
            axis = order[place]
            if axis == 0 and (start, step) == (0, 1) and end >= sizes[0]:
                continue
            if axis == 0:
                raise _RefusedError("cuts or turns the faces' dimension")
            cuts.append((start, end, axis, step))
        self._transposed(self._sliced(ours, cuts, self._new(f"{node.output[0]}_cut")), order, node.output[0])

    def _placed(self, name: str) -> tuple[str, list[int]]:
        """A tensor of ours, and how its dimensions lie in the original's."""
        if name in self.moved:
            return self.moved[name]
        ours = self._of(name)
        return ours, list(range(len(self._row(ours)) + 1))

    def _sliced(self, ours: str, cuts: Sequence[tuple[int, int, int, int]], output: str) -> str:
        if not cuts:
            self.alias[output] = ours
            return ours
        row = self._row(ours)
        ends = [end if end >= 0 else -row[axis - 1] - 1 for _, end, axis, _ in cuts]
        columns = ([cut[0] for cut in cuts], ends, [cut[2] for cut in cuts], [cut[3] for cut in cuts])
        names = [
            self._constant(f"{output}_{kind}", np.array(column, np.int64))
            for kind, column in zip(("starts", "ends", "axes", "steps"), columns, strict=True)
        ]
        return self._emit("Slice", [ours, *names], output)

    def _gather(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        if inputs[1] not in self.values:
            raise _RefusedError("picks values by what the faces say")
        ours, order = self._placed(inputs[0])
        place = int(attributes.get("axis", 0)) % len(order)
        axis = order[place]
        picked = self.values[inputs[1]]
        if axis == 0 or picked.ndim > 1 or not 1 <= picked.size <= _MOST_PIECES:
            raise _RefusedError("picks faces of a batch" if axis == 0 else "picks too many values one by one")
        size, name = self._row(ours)[axis - 1], node.output[0]
        found = [int(one) % size for one in picked.reshape(-1)]
        target = self._new(f"{name}_picked")
        if found == list(range(found[0], found[0] + len(found))):
            cut = self._sliced(ours, [(found[0], found[-1] + 1, axis, 1)], target)
        else:
            parts = [self._sliced(ours, [(one, one + 1, axis, 1)], self._new(f"{name}_{one}")) for one in found]
            cut = self._emit("Concat", parts, target, axis=axis)
        if picked.ndim:
            self._transposed(cut, order, name)
            return
        self.moved[target] = cut, order
        self._without(target, {place}, name)

    def _softmax(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        row = self._input_row(inputs[0])
        old = self.opset < 13  # over all dimensions from the axis on
        axis = int(attributes.get("axis", 1 if old else -1)) % (len(row) + 1)
        if axis == 0:
            raise _RefusedError("runs over the faces")
        name, ours = node.output[0], self._of(inputs[0])
        if not old or axis == len(row):
            self._emit("Softmax", [ours], name, axis=axis)
            return
        flat = self._reshaped(ours, [*row[: axis - 1], math.prod(row[axis - 1 :])], self._new(f"{name}_flat"))
        shares = self._emit("Softmax", [flat], self._new(f"{name}_shares"), axis=axis)
        self._reshaped(shares, row, name)

    def _clip(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        names = [self._of(inputs[0])]
        if self.opset < 11:
            for key, default in (("min", -3.4028235e38), ("max", 3.4028235e38)):
                names.append(self._constant(f"{node.output[0]}_{key}", np.float32(attributes.get(key, default))))
        else:
            names += [self._of(name) for name in inputs[1:]]
        self._emit("Clip", names, node.output[0])

    def _pad(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        row = self._input_row(inputs[0])
        pads = self._ints(inputs, 1) or list(attributes["pads"])
        axes = self._ints(inputs, 3)
        rank = len(row) + 1
        if axes is not None:
            every = [0] * 2 * rank
            for place, axis in enumerate(axes):
                every[axis % rank], every[axis % rank + rank] = pads[place], pads[place + len(axes)]
            pads = every
        if len(inputs) > 2 and inputs[2]:
            value = float(self.values[inputs[2]].reshape(()))
        else:
            value = float(attributes.get("value", 0.0))
        name = node.output[0]
        given = [self._of(inputs[0]), self._constant(f"{name}_pads", np.array(pads, np.int64))]
        if value:
            given.append(self._constant(f"{name}_value", np.float32(value)))
        self._emit("Pad", given, name, mode=attributes.get("mode", b"constant"))

    def _layernormalization(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        row = self._input_row(inputs[0])
        axis = int(attributes.get("axis", -1)) % (len(row) + 1)
        wanted = row[axis - 1 :]
        names = [
            self._constant(f"{node.output[0]}_{place}", np.broadcast_to(self.values[name], wanted))
            for place, name in enumerate(inputs[1:])
        ]
        kept = {key: value for key, value in attributes.items() if key in ("epsilon", "stash_type")}
        self._emit("LayerNormalization", [self._of(inputs[0]), *names], node.output[0], axis=axis, **kept)

    def _gelu(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        name, ours = node.output[0], self._of(inputs[0])
        if attributes.get("approximate", b"none") != b"none":
            raise _RefusedError("is approximated with tanh")
        root = self._constant(f"{name}_root", np.float32(math.sqrt(2)))
        one, half = self._constant(f"{name}_one", np.float32(1)), self._constant(f"{name}_half", np.float32(0.5))
        error = self._emit(
            "Erf", [self._emit("Div", [ours, root], self._new(f"{name}_divided"))], self._new(f"{name}_erf")
        )
        share = self._emit(
            "Mul", [self._emit("Add", [error, one], self._new(f"{name}_more")), half], self._new(f"{name}_share")
        )
        self._emit("Mul", [ours, share], name)

    def _mish(self, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
        name, ours = node.output[0], self._of(inputs[0])
        soft = self._emit("Softplus", [ours], self._new(f"{name}_soft"))
        self._emit("Mul", [ours, self._emit("Tanh", [soft], self._new(f"{name}_tanh"))], name)


def _constant_value(attributes: Mapping[str, Any]) -> Array:
    ((key, value),) = attributes.items()
    if key == "value":
        found: Array = numpy_helper.to_array(value)
        return found
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if key not in kinds:
        raise _RefusedError(f"holds {key}")
    return np.array(value, kinds[key])
