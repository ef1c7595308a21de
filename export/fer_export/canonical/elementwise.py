"""Operators that compute value by value, and the softmax."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from fer_export.canonical.layers import scale_layer
from fer_export.canonical.operators import rewrites
from fer_export.canonical.writer import RefusedError, Writer


@rewrites("Add")
def write_add(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    """An addition of one constant for each channel is the bias of the layer before."""
    for rows, constant in (inputs, inputs[::-1]):
        producer, value = writer.producer(rows), writer.values.get(constant)
        if producer is None or value is None or value.dtype != np.float32 or producer.op_type not in ("Conv", "Gemm"):
            continue
        row = writer.input_row(rows)
        shape = (1,) * (len(row) + 1 - value.ndim) + value.shape
        if len(shape) > len(row) + 1 or math.prod(shape) != shape[1]:
            continue
        shift = np.broadcast_to(value.reshape(-1), row[:1]).astype(np.float64)
        scale_layer(writer, producer, np.ones(row[0]), shift, node.output[0])
        return
    write_elementwise(writer, node, inputs, attributes)


@rewrites("Mul", "Sub", "Div", "Pow")
def write_elementwise(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    names = []
    for place, name in enumerate(inputs):
        if name in writer.repeated:
            # One row for every face is a constant with a first dimension of 1.
            row = writer.repeated[name]
            names.append(writer.constant(f"{node.output[0]}_row{place}", row[None]))
        else:
            names.append(writer.name_of(name))
    writer.emit(node.op_type, names, node.output[0])


@rewrites("Sum", "Max", "Min")
def write_sum(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    kind = {"Sum": "Add"}.get(node.op_type, node.op_type)
    total = writer.name_of(inputs[0])
    for place, name in enumerate(inputs[1:], 2):
        output = node.output[0] if place == len(inputs) else writer.new_name(f"{node.output[0]}_{place}")
        total = writer.emit(kind, [total, writer.name_of(name)], output)
    writer.alias[node.output[0]] = total


@rewrites("Cast")
def write_cast(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    if attributes.get("to") != TensorProto.FLOAT:
        kind = attributes.get("to")
        name = TensorProto.DataType.Name(kind).lower() if kind in TensorProto.DataType.values() else kind
        raise RefusedError(f"makes {name} of the faces; save the model in float32")
    writer.emit("Cast", [writer.name_of(inputs[0])], node.output[0], to=TensorProto.FLOAT)


@rewrites("Dropout")
def write_dropout(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    if len(inputs) > 2 and (inputs[2] not in writer.values or bool(writer.values[inputs[2]])):
        raise RefusedError("is in training mode: its answers are random")
    writer.alias[node.output[0]] = writer.name_of(inputs[0])


@rewrites("Softmax")
def write_softmax(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    row = writer.input_row(inputs[0])
    old = writer.opset < 13  # over all dimensions from the axis on
    axis = int(attributes.get("axis", 1 if old else -1)) % (len(row) + 1)
    if axis == 0:
        raise RefusedError("runs over the faces")
    name, ours = node.output[0], writer.name_of(inputs[0])
    if not old or axis == len(row):
        writer.emit("Softmax", [ours], name, axis=axis)
        return
    flat = writer.reshaped(ours, [*row[: axis - 1], math.prod(row[axis - 1 :])], writer.new_name(f"{name}_flat"))
    shares = writer.emit("Softmax", [flat], writer.new_name(f"{name}_shares"), axis=axis)
    writer.reshaped(shares, row, name)


@rewrites("Clip")
def write_clip(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    names = [writer.name_of(inputs[0])]
    if writer.opset < 11:
        for key, default in (("min", -3.4028235e38), ("max", 3.4028235e38)):
            names.append(writer.constant(f"{node.output[0]}_{key}", np.float32(attributes.get(key, default))))
    else:
        names += [writer.name_of(name) for name in inputs[1:]]
    writer.emit("Clip", names, node.output[0])


@rewrites("Gelu")
def write_gelu(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    name, ours = node.output[0], writer.name_of(inputs[0])
    if attributes.get("approximate", b"none") != b"none":
        raise RefusedError("is approximated with tanh")
    root = writer.constant(f"{name}_root", np.float32(math.sqrt(2)))
    one, half = writer.constant(f"{name}_one", np.float32(1)), writer.constant(f"{name}_half", np.float32(0.5))
    error = writer.emit(
        "Erf", [writer.emit("Div", [ours, root], writer.new_name(f"{name}_divided"))], writer.new_name(f"{name}_erf")
    )
    share = writer.emit(
        "Mul",
        [writer.emit("Add", [error, one], writer.new_name(f"{name}_more")), half],
        writer.new_name(f"{name}_share"),
    )
    writer.emit("Mul", [ours, share], name)


@rewrites("Mish")
def write_mish(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    name, ours = node.output[0], writer.name_of(inputs[0])
    soft = writer.emit("Softplus", [ours], writer.new_name(f"{name}_soft"))
    writer.emit("Mul", [ours, writer.emit("Tanh", [soft], writer.new_name(f"{name}_tanh"))], name)
