"""Operators that move or cut values: reshape, transpose, concat, split, slice, gather, pad."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx

from fer_export.canonical.folding import BATCH, axes_of, cuts_of
from fer_export.canonical.operators import rewrites
from fer_export.canonical.writer import RefusedError, Writer
from fer_export.gate.rows import Array

_MOST_PIECES = 64  # of a Gather that is written as slices


@rewrites("Shape")
def write_shape(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    name = inputs[0]
    if name in writer.repeated:
        sizes: list[Any] = [BATCH, *writer.repeated[name].shape]
    elif name in writer.alias:
        sizes = [BATCH, *writer.input_row(name)]
    else:
        sizes = list(writer.values[name].shape)
    if writer.batch is not None and sizes and sizes[0] is BATCH:
        sizes[0] = writer.batch
    part = sizes[attributes.get("start", 0) : attributes.get("end")]
    found = np.empty(len(part), object)
    found[:] = part
    known = all(isinstance(size, int) for size in part)
    writer.values[node.output[0]] = found.astype(np.int64) if known else found


@rewrites("Identity")
def write_identity(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    writer.alias[node.output[0]] = writer.name_of(inputs[0])


@rewrites("Reshape")
def write_reshape(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    if inputs[1] not in writer.values:
        raise RefusedError("computes a shape from the faces")
    ours = writer.merged.get(inputs[0]) or writer.name_of(inputs[0])
    row = writer.row_of(ours)
    first, *rest = writer.values[inputs[1]].reshape(-1).tolist()
    if first == -1 and len(row) > 1 and rest == list(row[1:]) and row[0] != 1:
        writer.merged[node.output[0]] = ours
        return
    if any(size is BATCH for size in rest) or (attributes.get("allowzero") and 0 in (first, *rest)):
        raise RefusedError(f"to ({', '.join(map(str, (first, *rest)))}) moves the faces' dimension")
    sizes = [row[place] if size == 0 else int(size) for place, size in enumerate(rest)]
    if sizes.count(-1) == 1:
        known = math.prod(size for size in sizes if size > 0)
        sizes = [math.prod(row) // known if size == -1 else size for size in sizes]
    keeps = first is BATCH or first in (0, -1) or (writer.batch is not None and first == writer.batch)
    if not keeps or min(sizes, default=1) < 1 or math.prod(sizes) != math.prod(row):
        raise RefusedError(
            f"to ({', '.join(map(str, (first, *rest)))}) does not keep one row per face"
            + ("; the file fixes the batch there" if isinstance(first, int) and first > 0 else "")
        )
    writer.reshaped(ours, sizes, node.output[0])


@rewrites("Flatten")
def write_flatten(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    row = writer.input_row(inputs[0])
    if attributes.get("axis", 1) % (len(row) + 1) != 1:
        raise RefusedError("does not keep one row per face")
    writer.reshaped(writer.name_of(inputs[0]), [math.prod(row)], node.output[0])


@rewrites("Squeeze")
def write_squeeze(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    axes = axes_of(attributes, [None, *([writer.values[inputs[1]]] if len(inputs) > 1 else [])], 1)
    if axes is None:
        raise RefusedError("names no axes, and takes the batch away where it is 1")
    if inputs[0] in writer.moved:
        rank = len(writer.moved[inputs[0]][1])
        _without(writer, inputs[0], {axis % rank for axis in axes}, node.output[0])
        return
    row = writer.input_row(inputs[0])
    places = {axis % (len(row) + 1) for axis in axes}
    if 0 in places or any(row[place - 1] != 1 for place in places):
        raise RefusedError("takes the faces' dimension away")
    kept = [size for place, size in enumerate(row, 1) if place not in places]
    writer.reshaped(writer.name_of(inputs[0]), kept, node.output[0])


@rewrites("Unsqueeze")
def write_unsqueeze(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    row = list(writer.input_row(inputs[0]))
    axes = axes_of(attributes, [None, *([writer.values[inputs[1]]] if len(inputs) > 1 else [])], 1) or ()
    for axis in sorted(axis % (len(row) + 1 + len(axes)) for axis in axes):
        if axis == 0:
            raise RefusedError("adds a dimension before the faces'")
        row.insert(axis - 1, 1)
    writer.reshaped(writer.name_of(inputs[0]), row, node.output[0])


@rewrites("Transpose")
def write_transpose(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    if inputs[0] in writer.merged:
        first, *rest = list(attributes.get("perm") or (-1,))
        if first != 0:
            raise RefusedError("reads a tensor whose first dimension is not the faces'")
        output = writer.new_name(f"{node.output[0]}_apart")
        writer.transposed(writer.merged[inputs[0]], [0, 1, *(axis + 1 for axis in rest)], output)
        writer.merged[node.output[0]] = writer.name_of(output)
        return
    order = list(attributes.get("perm") or range(len(writer.input_row(inputs[0])), -1, -1))
    writer.transposed(writer.name_of(inputs[0]), order, node.output[0])


def _without(writer: Writer, name: str, places: set[int], output: str) -> None:
    """Take away dimensions of size 1 of a moved tensor; `places` counts them as the original does."""
    ours, order = writer.moved[name]
    gone = {order[place] for place in places}
    row = writer.row_of(ours)
    if 0 in gone or any(row[axis - 1] != 1 for axis in gone):
        raise RefusedError("takes the faces' dimension away")
    left = [axis for place, axis in enumerate(order) if place not in places]
    target = writer.new_name(f"{output}_before")
    kept = writer.reshaped(ours, [size for axis, size in enumerate(row, 1) if axis not in gone], target)
    writer.transposed(kept, [sorted(left).index(axis) for axis in left], output)


@rewrites("Expand")
def write_expand(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    row = writer.input_row(inputs[0])
    sizes = list(writer.values[inputs[1]])
    same = len(sizes) <= len(row) + 1 and all(
        size is BATCH or int(size) in (1, have) for size, have in zip(sizes[::-1], [*row[::-1], 1], strict=False)
    )
    if not same:
        raise RefusedError("repeats values of the faces")
    writer.alias[node.output[0]] = writer.name_of(inputs[0])


@rewrites("Concat")
def write_concat(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    """Constants beside faces, such as a class token, become padding and an addition."""
    rows = [_concat_row(writer, name) for name in inputs]
    axis = int(attributes["axis"]) % (len(rows[0]) + 1)
    fixed = [name in writer.repeated or name in writer.values for name in inputs]
    if axis == 0:
        raise RefusedError("joins along the faces")
    if not any(fixed):
        writer.emit("Concat", [writer.name_of(name) for name in inputs], node.output[0], axis=axis)
        return
    moving = [place for place, is_fixed in enumerate(fixed) if not is_fixed]
    if moving != list(range(moving[0], moving[-1] + 1)):
        raise RefusedError("joins constants between faces")
    name = node.output[0]
    ours = [writer.name_of(inputs[place]) for place in moving]
    core = ours[0] if len(ours) == 1 else writer.emit("Concat", ours, writer.new_name(f"{name}_faces"), axis=axis)
    sizes = [row[axis - 1] for row in rows]
    pads = np.zeros(2 * (len(rows[0]) + 1), np.int64)
    pads[axis], pads[axis + len(rows[0]) + 1] = sum(sizes[: moving[0]]), sum(sizes[moving[-1] + 1 :])
    parts = [
        _repeated_row(writer, source) if is_fixed else np.zeros(row, np.float32)
        for source, is_fixed, row in zip(inputs, fixed, rows, strict=True)
    ]
    padded = writer.emit(
        "Pad", [core, writer.constant(f"{name}_pads", pads)], writer.new_name(f"{name}_padded"), mode="constant"
    )
    beside = writer.constant(f"{name}_beside", np.concatenate(parts, axis - 1)[None].astype(np.float32))
    writer.emit("Add", [padded, beside], name)


def _repeated_row(writer: Writer, name: str) -> Array:
    if name in writer.repeated:
        return writer.repeated[name]
    value = writer.values[name]
    if value.shape[:1] != (1,) or writer.batch != 1:  # a constant beside a batch of one
        raise RefusedError("joins a constant of a fixed batch")
    row: Array = value[0]
    return row


def _concat_row(writer: Writer, name: str) -> tuple[int, ...]:
    return writer.input_row(name) if name in writer.alias else _repeated_row(writer, name).shape


@rewrites("Split")
def write_split(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    ours, order = writer.placed(inputs[0])
    row = writer.row_of(ours)
    axis = order[int(attributes.get("axis", 0)) % len(order)]
    if axis == 0:
        raise RefusedError("takes the faces of a batch apart")
    size, count = row[axis - 1], len(node.output)
    sizes = writer.known_ints(inputs, 1) or list(attributes.get("split") or ())
    if not sizes:
        each = -(-size // count)
        sizes = [min(each, size - each * place) for place in range(count)]
    if len(sizes) != count or min(sizes) < 1 or sum(sizes) != size:
        raise RefusedError("does not divide its input")
    start = 0
    for part, output in zip(sizes, node.output, strict=True):
        cut = writer.sliced(ours, [(start, start + part, axis, 1)], writer.new_name(f"{output}_part"))
        writer.transposed(cut, order, output)
        start += part


@rewrites("Slice")
def write_slice(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    ours, order = writer.placed(inputs[0])
    values = [None if not name else writer.values[name] for name in inputs[1:]]
    sizes = (writer.batch or 1 << 31, *writer.row_of(ours))
    cuts = []
    for start, end, place, step in cuts_of(tuple(sizes[axis] for axis in order), attributes, values):
        axis = order[place]
        if axis == 0 and (start, step) == (0, 1) and end >= sizes[0]:
            continue
        if axis == 0:
            raise RefusedError("cuts or turns the faces' dimension")
        cuts.append((start, end, axis, step))
    writer.transposed(writer.sliced(ours, cuts, writer.new_name(f"{node.output[0]}_cut")), order, node.output[0])


@rewrites("Gather")
def write_gather(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    if inputs[1] not in writer.values:
        raise RefusedError("picks values by what the faces say")
    ours, order = writer.placed(inputs[0])
    place = int(attributes.get("axis", 0)) % len(order)
    axis = order[place]
    picked = writer.values[inputs[1]]
    if axis == 0 or picked.ndim > 1 or not 1 <= picked.size <= _MOST_PIECES:
        raise RefusedError("picks faces of a batch" if axis == 0 else "picks too many values one by one")
    size, name = writer.row_of(ours)[axis - 1], node.output[0]
    found = [int(index) % size for index in picked.reshape(-1)]
    target = writer.new_name(f"{name}_picked")
    if found == list(range(found[0], found[0] + len(found))):
        cut = writer.sliced(ours, [(found[0], found[-1] + 1, axis, 1)], target)
    else:
        parts = [
            writer.sliced(ours, [(index, index + 1, axis, 1)], writer.new_name(f"{name}_{index}")) for index in found
        ]
        cut = writer.emit("Concat", parts, target, axis=axis)
    if picked.ndim:
        writer.transposed(cut, order, name)
        return
    writer.moved[target] = cut, order
    _without(writer, target, {place}, name)


@rewrites("Pad")
def write_pad(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    row = writer.input_row(inputs[0])
    pads = writer.known_ints(inputs, 1) or list(attributes["pads"])
    axes = writer.known_ints(inputs, 3)
    rank = len(row) + 1
    if axes is not None:
        every = [0] * 2 * rank
        for place, axis in enumerate(axes):
            every[axis % rank], every[axis % rank + rank] = pads[place], pads[place + len(axes)]
        pads = every
    if len(inputs) > 2 and inputs[2]:
        value = float(writer.values[inputs[2]].reshape(()))
    else:
        value = float(attributes.get("value", 0.0))
    name = node.output[0]
    given = [writer.name_of(inputs[0]), writer.constant(f"{name}_pads", np.array(pads, np.int64))]
    if value:
        given.append(writer.constant(f"{name}_value", np.float32(value)))
    writer.emit("Pad", given, name, mode=attributes.get("mode", b"constant"))
