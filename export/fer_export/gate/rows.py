"""A proof that every face is answered by itself: operator by operator, row i of each tensor comes from face i alone.

RULES has the operators of our own networks. MORE_RULES has those that other people's networks need. Each rule
computes the shape of one row, or says why rows may mix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

Array = npt.NDArray[Any]


class NotAllowedError(Exception):
    """An operator, an attribute or a connection that the list does not allow."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A tensor with one row per face; `shape` is that of one row."""

    shape: tuple[int, ...]


State = Rows | Array  # rows, or a constant
_Rule = Callable[["RowWalk", onnx.NodeProto, dict[str, Any]], State]
_Attributes = dict[str, Callable[[Any], bool]]  # allowed ones, with what their values may be


def operator_name(node: onnx.NodeProto) -> str:
    """ONNX's name of the operator, after its domain where that is not ONNX's own."""
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


class RowWalk:
    """The walk through the nodes that shows that rows stay apart.

    Args:
        states: the graph's constants; its input is to be added as Rows.
        batch: the fixed batch size; None for a dynamic one.
        rules: the operators that are followed.
    """

    def __init__(
        self, states: Mapping[str, State], batch: int | None, rules: Mapping[str, tuple[_Rule, _Attributes]]
    ) -> None:
        self.batch = batch
        self.rules = rules
        self.states = dict(states)
        self.wrong_attributes: list[str] = []

    def follow(self, node: onnx.NodeProto) -> None:
        """The state of the node's output.

        Raises:
            NotAllowedError: the node may mix rows.
        """
        rule, allowed = self.rules[operator_name(node)]
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        for name, value in attributes.items():
            if name not in allowed or not allowed[name](value):
                shown = value.decode(errors="replace") if isinstance(value, bytes) else value
                self.wrong_attributes.append(f"{node.op_type} {node.name} has {name} = {shown}")
        if len(node.output) != 1:
            raise NotAllowedError(f"{node.op_type} {node.name} has {len(node.output)} outputs")
        try:
            self.states[node.output[0]] = rule(self, node, attributes)
        except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError) as error:
            raise NotAllowedError(f"{node.op_type} {node.name} cannot be followed ({error!r})") from error

    def rows(self, node: onnx.NodeProto, index: int = 0) -> tuple[int, ...]:
        state = self.states[node.input[index]]
        if not isinstance(state, Rows):
            raise NotAllowedError(f"{node.op_type} {node.name} reads a constant where rows of faces should be")
        return state.shape

    def constant(self, node: onnx.NodeProto, index: int) -> Array:
        state = self.states[node.input[index]]
        if isinstance(state, Rows):
            raise NotAllowedError(f"{node.op_type} {node.name} takes its input {index} from the faces")
        return state


def _same(graph: RowWalk, node: onnx.NodeProto, _: dict[str, Any]) -> State:
    for index in range(1, len(node.input)):
        if node.input[index]:
            graph.constant(node, index)
    return Rows(graph.rows(node))


def _elementwise(graph: RowWalk, node: onnx.NodeProto, _: dict[str, Any]) -> State:
    if len(node.input) != 2:
        raise NotAllowedError(f"{node.op_type} {node.name} has {len(node.input)} inputs, not two")
    left, right = (graph.states[name] for name in node.input)
    if isinstance(left, Rows) and isinstance(right, Rows):
        if len(left.shape) != len(right.shape):  # numpy's rule would put one's batch beside the other's rows
            raise NotAllowedError(f"{node.op_type} {node.name} adds tensors of different rank")
        return Rows(tuple(np.broadcast_shapes(left.shape, right.shape)))
    rows, constant = (left, right) if isinstance(left, Rows) else (right, left)
    if not isinstance(rows, Rows) or isinstance(constant, Rows):
        raise NotAllowedError(f"{node.op_type} {node.name} has no rows of faces among its inputs")
    shape = constant.shape
    if len(shape) > len(rows.shape) + 1 or (len(shape) == len(rows.shape) + 1 and shape[0] != 1):
        raise NotAllowedError(f"{node.op_type} {node.name} gives each place in the batch a constant of its own")
    row = tuple(np.broadcast_shapes(rows.shape, shape[1:] if len(shape) == len(rows.shape) + 1 else shape))
    if len(row) != len(rows.shape):
        raise NotAllowedError(f"{node.op_type} {node.name} changes the number of dimensions")
    return Rows(row)


def _by_constant(graph: RowWalk, node: onnx.NodeProto, attributes: dict[str, Any]) -> State:
    """A division by rows may be one by zero for a face that nobody has tried."""
    divisor = graph.constant(node, 1)
    if not np.all(divisor):
        raise NotAllowedError(f"{node.op_type} {node.name} divides by zero")
    return _elementwise(graph, node, attributes)


def _windows(size: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, Any]) -> tuple[int, ...]:
    axes = len(size)
    pads = attributes.get("pads") or [0] * 2 * axes
    strides = attributes.get("strides") or [1] * axes
    dilations = attributes.get("dilations") or [1] * axes
    return tuple(
        (size[axis] + pads[axis] + pads[axis + axes] - dilations[axis] * (kernel[axis] - 1) - 1) // strides[axis] + 1
        for axis in range(axes)
    )


def _conv(graph: RowWalk, node: onnx.NodeProto, attributes: dict[str, Any]) -> State:
    channels, *size = graph.rows(node)
    weights = graph.constant(node, 1)
    if len(node.input) > 2 and graph.constant(node, 2).shape != weights.shape[:1]:
        raise NotAllowedError(f"Conv {node.name} has a bias of another size than its weights")
    if weights.shape[1] * attributes.get("group", 1) != channels or not size:
        raise NotAllowedError(f"Conv {node.name} has weights {weights.shape} for {channels} channels")
    return Rows((weights.shape[0], *_windows(tuple(size), weights.shape[2:], attributes)))


def _pool(graph: RowWalk, node: onnx.NodeProto, attributes: dict[str, Any]) -> State:
    channels, *size = graph.rows(node)
    if not size:
        raise NotAllowedError(f"{node.op_type} {node.name} would pool over the faces")
    return Rows((channels, *_windows(tuple(size), tuple(attributes["kernel_shape"]), attributes)))


def _global_pool(graph: RowWalk, node: onnx.NodeProto, _: dict[str, Any]) -> State:
    channels, *size = graph.rows(node)
    return Rows((channels, *(1 for _ in size)))


def _gemm(graph: RowWalk, node: onnx.NodeProto, attributes: dict[str, Any]) -> State:
    (inputs,) = graph.rows(node)
    weights = graph.constant(node, 1)
    weights = weights.T if attributes.get("transB") else weights
    if weights.shape[0] != inputs:
        raise NotAllowedError(f"Gemm {node.name} has weights {weights.shape} for {inputs} inputs")
    if len(node.input) > 2 and graph.constant(node, 2).shape != (weights.shape[1],):
        raise NotAllowedError(f"Gemm {node.name} has a bias that is not one value per output")
    return Rows((weights.shape[1],))


def _reshape(graph: RowWalk, node: onnx.NodeProto, attributes: dict[str, Any]) -> State:
    row = graph.rows(node)
    first, *rest = (int(size) for size in graph.constant(node, 1))
    if attributes.get("allowzero") and 0 in (first, *rest):
        raise NotAllowedError(f"Reshape {node.name} asks for an empty tensor")
    sizes = [row[place] if size == 0 else size for place, size in enumerate(rest)]
    if sizes.count(-1) == 1 and first != -1:
        known = math.prod(size for size in sizes if size > 0)
        sizes = [math.prod(row) // known if size == -1 else size for size in sizes]
    keeps_batch = first in (0, -1) or (graph.batch is not None and first == graph.batch)
    if not keeps_batch or min(sizes, default=1) < 1 or math.prod(sizes) != math.prod(row):
        raise NotAllowedError(f"Reshape {node.name} to ({', '.join(map(str, [first, *rest]))}) mixes faces")
    return Rows(tuple(sizes))


def _transpose(graph: RowWalk, node: onnx.NodeProto, attributes: dict[str, Any]) -> State:
    row = graph.rows(node)
    order = list(attributes.get("perm") or range(len(row), -1, -1))
    if order[0] != 0 or sorted(order) != list(range(len(row) + 1)):
        raise NotAllowedError(f"Transpose {node.name} moves the faces' dimension")
    return Rows(tuple(row[axis - 1] for axis in order[1:]))


def _flatten(graph: RowWalk, node: onnx.NodeProto, _: dict[str, Any]) -> State:
    return Rows((math.prod(graph.rows(node)),))


def _unsqueeze(graph: RowWalk, node: onnx.NodeProto, _: dict[str, Any]) -> State:
    row = list(graph.rows(node))
    axes = graph.constant(node, 1).reshape(-1).tolist()
    if len(axes) != 1 or not 1 <= (axis := axes[0] % (len(row) + 2)) <= len(row) + 1:
        raise NotAllowedError(f"Unsqueeze {node.name} adds a dimension before the faces'")
    row.insert(axis - 1, 1)
    return Rows(tuple(row))


def _reduce(graph: RowWalk, node: onnx.NodeProto, attributes: dict[str, Any]) -> State:
    row = graph.rows(node)
    axes = graph.constant(node, 1).reshape(-1).tolist() if len(node.input) > 1 and node.input[1] else []
    axes = [axis % (len(row) + 1) for axis in axes]
    if not axes or 0 in axes:
        raise NotAllowedError(f"{node.op_type} {node.name} averages over faces")
    if attributes.get("keepdims", 1):
        return Rows(tuple(1 if axis + 1 in axes else size for axis, size in enumerate(row)))
    return Rows(tuple(size for axis, size in enumerate(row) if axis + 1 not in axes))


def _softmax(graph: RowWalk, node: onnx.NodeProto, attributes: dict[str, Any]) -> State:
    row = graph.rows(node)
    if attributes.get("axis", -1) % (len(row) + 1) != len(row):
        raise NotAllowedError(f"Softmax {node.name} does not run over the classes")
    return Rows(row)


def _concat(graph: RowWalk, node: onnx.NodeProto, attributes: dict[str, Any]) -> State:
    rows = [graph.rows(node, index) for index in range(len(node.input))]
    axis = attributes["axis"] % (len(rows[0]) + 1)
    if axis == 0 or any(len(row) != len(rows[0]) for row in rows):
        raise NotAllowedError(f"Concat {node.name} joins along the faces")
    joined = list(rows[0])
    joined[axis - 1] = sum(row[axis - 1] for row in rows)
    return Rows(tuple(joined))


def _quantize(graph: RowWalk, node: onnx.NodeProto, attributes: dict[str, Any]) -> State:
    source = graph.states[node.input[0]]
    scale = graph.constant(node, 1)
    zero = graph.constant(node, 2) if len(node.input) > 2 and node.input[2] else None
    if isinstance(source, Rows):
        if scale.size != 1 and attributes.get("axis", 1) % (len(source.shape) + 1) == 0:
            raise NotAllowedError(f"{node.op_type} {node.name} gives each place in the batch a scale of its own")
        return source
    if node.op_type != "DequantizeLinear":
        raise NotAllowedError(f"{node.op_type} {node.name} quantizes a constant")
    if scale.ndim:
        shape = [1] * source.ndim
        shape[attributes.get("axis", 1)] = -1
        scale = scale.reshape(shape)
        zero = None if zero is None else zero.reshape(shape)
    with np.errstate(all="ignore"):  # structure.py says that a scale is not finite
        values: Array = (source.astype(np.int64) - (0 if zero is None else zero.astype(np.int64))) * scale
    return values


def _is(*allowed: Any) -> Callable[[Any], bool]:
    return lambda value: value in allowed


def _anything(value: Any) -> bool:
    return True


def _ones(value: Any) -> bool:
    return all(number == 1 for number in value)


_WINDOW: _Attributes = {
    "auto_pad": _is(b"NOTSET"),
    "dilations": _ones,
    "kernel_shape": _anything,
    "pads": _anything,
    "strides": _anything,
}
_PLAIN: tuple[_Rule, _Attributes] = (_same, {})
# An operator is allowed with these attributes. A new one needs a rule that shows where its rows come from.
RULES: dict[str, tuple[_Rule, _Attributes]] = {
    "Add": (_elementwise, {}),
    "AveragePool": (_pool, {**_WINDOW, "ceil_mode": _is(0), "count_include_pad": _is(0, 1)}),
    "Cast": (_same, {"to": _is(TensorProto.FLOAT, TensorProto.FLOAT16), "saturate": _is(1)}),
    "Clip": _PLAIN,
    "Concat": (_concat, {"axis": _anything}),
    "Conv": (_conv, {**_WINDOW, "group": _anything}),
    "DequantizeLinear": (_quantize, {"axis": _anything, "block_size": _is(0)}),
    "Div": (_by_constant, {}),
    "Flatten": (_flatten, {"axis": _is(1)}),
    "Gemm": (_gemm, {"alpha": _is(1.0), "beta": _is(1.0), "transA": _is(0), "transB": _is(0, 1)}),
    "GlobalAveragePool": (_global_pool, {}),
    "HardSigmoid": (_same, {"alpha": _anything, "beta": _anything}),
    "HardSwish": _PLAIN,
    "LeakyRelu": (_same, {"alpha": _anything}),
    "MaxPool": (_pool, {**_WINDOW, "ceil_mode": _is(0), "storage_order": _is(0)}),
    "Mul": (_elementwise, {}),
    "QuantizeLinear": (
        _quantize,
        {"axis": _anything, "saturate": _is(1), "block_size": _is(0), "output_dtype": _is(0), "precision": _is(0)},
    ),
    "ReduceMean": (_reduce, {"keepdims": _is(0, 1), "noop_with_empty_axes": _is(0)}),
    "Relu": _PLAIN,
    "Reshape": (_reshape, {"allowzero": _is(0, 1)}),
    "Sigmoid": _PLAIN,
    "Softmax": (_softmax, {"axis": _anything}),
    "Sub": (_elementwise, {}),
    "Sum": (_elementwise, {}),
    "Tanh": _PLAIN,
    "Transpose": (_transpose, {"perm": _anything}),
    "Unsqueeze": (_unsqueeze, {}),
}


def _matmul(graph: RowWalk, node: onnx.NodeProto, _: dict[str, Any]) -> State:
    left, right = (graph.states[name] for name in node.input)
    shapes = [state.shape for state in (left, right)]
    # Both operands are matrices within one face; the dimensions before them go together one by one.
    for state, shape in zip((left, right), shapes, strict=True):
        if len(shape) < 2:
            raise NotAllowedError(f"MatMul {node.name} would multiply across faces")
        if not isinstance(state, Rows) and len(shape) > 2:
            raise NotAllowedError(f"MatMul {node.name} has a constant of {len(shape)} dimensions")
    if isinstance(left, Rows) and isinstance(right, Rows) and len(shapes[0]) != len(shapes[1]):
        raise NotAllowedError(f"MatMul {node.name} multiplies tensors of different rank")
    if not isinstance(left, Rows) and not isinstance(right, Rows):
        raise NotAllowedError(f"MatMul {node.name} has no rows of faces among its inputs")
    if shapes[0][-1] != shapes[1][-2]:
        raise NotAllowedError(f"MatMul {node.name} multiplies {shapes[0]} by {shapes[1]}")
    before = np.broadcast_shapes(shapes[0][:-2], shapes[1][:-2])
    return Rows((*before, shapes[0][-2], shapes[1][-1]))


def _layer_normalization(graph: RowWalk, node: onnx.NodeProto, attributes: dict[str, Any]) -> State:
    row = graph.rows(node)
    axis = attributes.get("axis", -1) % (len(row) + 1)
    if axis == 0:
        raise NotAllowedError(f"LayerNormalization {node.name} normalizes over faces")
    for index in range(1, len(node.input)):
        if graph.constant(node, index).shape != row[axis - 1 :]:
            raise NotAllowedError(f"LayerNormalization {node.name} has parameters of another shape than its axes")
    return Rows(row)


def _pad(graph: RowWalk, node: onnx.NodeProto, _: dict[str, Any]) -> State:
    row = graph.rows(node)
    pads = graph.constant(node, 1).reshape(-1).tolist()
    if len(node.input) > 3 and node.input[3]:
        raise NotAllowedError(f"Pad {node.name} names its axes")
    if len(node.input) > 2 and node.input[2]:
        graph.constant(node, 2)
    half = len(row) + 1
    if len(pads) != 2 * half or pads[0] or pads[half] or min(pads) < 0:
        raise NotAllowedError(f"Pad {node.name} adds or cuts off faces")
    return Rows(tuple(size + pads[1 + axis] + pads[half + 1 + axis] for axis, size in enumerate(row)))


def _slice(graph: RowWalk, node: onnx.NodeProto, _: dict[str, Any]) -> State:
    row = list(graph.rows(node))
    starts, ends, axes, steps = (graph.constant(node, index).reshape(-1).tolist() for index in range(1, 5))
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = axis % (len(row) + 1)
        if place == 0:
            raise NotAllowedError(f"Slice {node.name} cuts or turns the faces' dimension")
        row[place - 1] = len(
            range(*slice(start, end if end >= -row[place - 1] else None, step).indices(row[place - 1]))
        )
    if 0 in row:
        raise NotAllowedError(f"Slice {node.name} leaves nothing")
    return Rows(tuple(row))


def _any_softmax(graph: RowWalk, node: onnx.NodeProto, attributes: dict[str, Any]) -> State:
    row = graph.rows(node)
    if attributes.get("axis", -1) % (len(row) + 1) == 0:
        raise NotAllowedError(f"Softmax {node.name} runs over the faces")
    return Rows(row)


_DILATED: _Attributes = {**_WINDOW, "dilations": _anything}
_REDUCED: _Attributes = {"keepdims": _is(0, 1), "noop_with_empty_axes": _is(0)}
# For other people's networks: their gate prints which of these operators a file has.
MORE_RULES: dict[str, tuple[_Rule, _Attributes]] = {
    "Abs": _PLAIN,
    "Conv": (_conv, {**_DILATED, "group": _anything}),
    "Div": (_elementwise, {}),
    "Elu": (_same, {"alpha": _anything}),
    "Erf": _PLAIN,
    "Exp": _PLAIN,
    "LRN": (_same, {"alpha": _anything, "beta": _anything, "bias": _anything, "size": _anything}),
    "LayerNormalization": (
        _layer_normalization,
        {"axis": _anything, "epsilon": _anything, "stash_type": _is(1)},
    ),
    "MatMul": (_matmul, {}),
    "Max": (_elementwise, {}),
    "MaxPool": (_pool, {**_DILATED, "ceil_mode": _is(0), "storage_order": _is(0)}),
    "Min": (_elementwise, {}),
    "Neg": _PLAIN,
    "PRelu": (_elementwise, {}),
    "Pad": (_pad, {"mode": _is(b"constant", b"edge", b"reflect")}),
    "Pow": (_elementwise, {}),
    "Reciprocal": _PLAIN,
    "ReduceL2": (_reduce, _REDUCED),
    "ReduceMax": (_reduce, _REDUCED),
    "ReduceMin": (_reduce, _REDUCED),
    "ReduceSum": (_reduce, _REDUCED),
    "Selu": (_same, {"alpha": _anything, "gamma": _anything}),
    "Slice": (_slice, {}),
    "Softmax": (_any_softmax, {"axis": _anything}),
    "Softplus": _PLAIN,
    "Sqrt": _PLAIN,
}
