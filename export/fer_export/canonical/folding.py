"""Constants, and shapes that a graph computes: their values, so that no operator is left for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from fer_export.canonical.writer import RefusedError, Writer
from fer_export.gate.rows import Array
from fer_runtime.model.structure import MAX_VALUES

_MOST_VALUES = 16 * MAX_VALUES  # of a constant that is joined or picked from others


class Batch:
    """The batch size, among the numbers of a shape."""

    def __repr__(self) -> str:
        return "batch"


BATCH = Batch()

FOLDED: dict[str, Callable[..., Any]] = {
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


def fold(writer: Writer, node: onnx.NodeProto, given: list[Array | None], attributes: dict[str, Any]) -> Array | None:
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
    elif kind == "Pow" and any(value.dtype == object for value in values):
        raise RefusedError("raises the sizes of a shape to a power")  # of any length: they are Python's integers
    elif kind in FOLDED and len(values) in (2, 3):
        if math.prod(np.broadcast_shapes(*(value.shape for value in values))) > MAX_VALUES:
            raise RefusedError("makes too large a constant")
        found = FOLDED[kind](*values)
        if kind != "Where" and kind != "Equal" and all(value.dtype != object for value in values):
            found = found.astype(values[0].dtype)
    elif kind in ("Unsqueeze", "Squeeze"):
        axes = axes_of(attributes, values, 1)
        found = np.squeeze(values[0], axes) if kind == "Squeeze" else np.expand_dims(values[0], axes or ())
    elif kind == "Concat":
        if any(value.dtype == object for value in values):
            values = [value.astype(object) for value in values]
        if sum(value.size for value in values) > _MOST_VALUES:
            raise RefusedError("makes too large a constant")
        found = np.concatenate(values, attributes["axis"])
    elif kind == "Gather":
        size = values[0].shape[attributes.get("axis", 0)]
        if values[0].size // max(size, 1) * values[1].size > _MOST_VALUES:
            raise RefusedError("makes too large a constant")
        found = np.take(values[0], values[1].astype(np.int64), attributes.get("axis", 0))
    elif kind == "Slice":
        places: list[slice] = [slice(None)] * values[0].ndim
        for start, end, axis, step in cuts_of(values[0].shape, attributes, values[1:]):
            places[axis] = slice(start, end if end >= 0 else None, step)
        found = values[0][tuple(places)]
    elif kind == "Reshape":
        found = values[0].reshape([int(size) for size in values[1]])
    elif kind == "Transpose":
        found = values[0].transpose(attributes.get("perm"))
    elif kind == "Range":
        if not 0 <= (values[1] - values[0]) // values[2] <= MAX_VALUES:
            raise RefusedError("makes too large a constant")
        found = np.arange(*(bound.item() for bound in values)).astype(values[0].dtype)
    elif kind == "ConstantOfShape":
        shape = [int(size) for size in values[0]]
        if min(shape, default=1) < 0 or math.prod(shape) > MAX_VALUES:
            raise RefusedError("makes too large a constant")
        value = attributes.get("value")
        found = np.full(shape, np.float32(0) if value is None else numpy_helper.to_array(value).reshape(()))
    elif kind == "Expand":
        return _expanded(writer, values[0], values[1], node.output[0])
    else:
        raise RefusedError("is computed from constants alone; simplify the model when you export it")
    folded = np.asarray(found)
    if folded.size > _MOST_VALUES:
        raise RefusedError("makes too large a constant")
    if folded.dtype == object and any(isinstance(size, int) and abs(size) >= 1 << 63 for size in folded.flat):
        raise RefusedError("computes a size of more than 64 bits")
    return folded


def _expanded(writer: Writer, value: Array, shape: Array, output: str) -> Array | None:
    if shape.dtype != object:
        sizes = [int(size) for size in shape]
        wanted = np.broadcast_shapes(value.shape, tuple(sizes))
        if math.prod(wanted) > MAX_VALUES:
            raise RefusedError("makes too large a constant")
        return np.broadcast_to(value, wanted)
    first, *rest = shape.tolist()
    row_of = value[0] if value.ndim == len(rest) + 1 else value
    if first is not BATCH or (value.ndim == len(rest) + 1 and len(value) != 1):
        raise RefusedError("repeats a constant in another way than once for each face")
    row = np.broadcast_to(row_of, np.broadcast_shapes(row_of.shape, tuple(int(size) for size in rest)))
    if row.size > MAX_VALUES:
        raise RefusedError("makes too large a constant")
    writer.repeated[output] = row
    return None


def axes_of(attributes: dict[str, Any], values: Sequence[Any], place: int) -> tuple[int, ...] | None:
    """The axes of an operator: an input of newer opsets, at `place`, or an attribute of older ones."""
    if len(values) > place and values[place] is not None:
        return tuple(int(axis) for axis in np.asarray(values[place]).reshape(-1))
    return tuple(attributes["axes"]) if "axes" in attributes else None


def cuts_of(
    shape: tuple[int, ...], attributes: dict[str, Any], values: Sequence[Any]
) -> list[tuple[int, int, int, int]]:
    """(start, end, axis, step) with the axis counted from the front; an end of -1 is beside the first value."""
    if "starts" in attributes:
        starts, ends, axes, steps = attributes["starts"], attributes["ends"], attributes.get("axes"), None
    else:
        starts, ends, axes, steps = (
            None
            if len(values) <= place or values[place] is None
            else [int(number) for number in values[place].reshape(-1)]
            for place in range(4)
        )
    found = []
    for number, (start, end) in enumerate(zip(starts or (), ends or (), strict=True)):
        axis = (number if axes is None else int(axes[number])) % len(shape)
        step = 1 if steps is None else int(steps[number])
        if step == 0:
            raise RefusedError("has a step of 0")
        # numpy's rule for negative numbers is ONNX's but for an end before the first value.
        low = -shape[axis] - 1
        first, last, _ = slice(max(int(start), low), None if int(end) <= low and step < 0 else int(end), step).indices(
            shape[axis]
        )
        found.append((first, last, axis, step))
    return found


def _constant_value(attributes: Mapping[str, Any]) -> Array:
    ((key, value),) = attributes.items()
    if key == "value":
        found: Array = numpy_helper.to_array(value)
        return found
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if key not in kinds:
        raise RefusedError(f"holds {key}")
    return np.array(value, kinds[key])
