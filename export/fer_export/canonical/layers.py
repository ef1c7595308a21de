"""Layers: convolutions, products, pooling, normalization."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from fer_export.canonical.operators import rewrites
from fer_export.canonical.writer import RefusedError, Writer
from fer_export.gate.rows import Array
from fer_runtime.text import printable


@rewrites("Conv")
def write_conv(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    weights = writer.values[inputs[1]]
    size = writer.input_row(inputs[0])[1:]
    kernel = tuple(weights.shape[2:])
    if tuple(attributes.get("kernel_shape", kernel)) != kernel or len(kernel) != len(size):
        raise RefusedError("has a kernel of another size than its weights")
    kept = _window(writer, attributes, size, kernel)
    del kept["ceil_mode"]
    writer.emit(
        "Conv",
        [writer.name_of(name) for name in inputs],
        node.output[0],
        group=attributes.get("group", 1),
        kernel_shape=kernel,
        **kept,
    )


def _window(
    writer: Writer, attributes: dict[str, Any], size: tuple[int, ...], kernel: tuple[int, ...]
) -> dict[str, Any]:
    """Padding, steps and dilations in numbers, for a face of `size`."""
    axes = len(size)
    strides = list(attributes.get("strides") or [1] * axes)
    dilations = list(attributes.get("dilations") or [1] * axes)
    pads = list(attributes.get("pads") or [0] * 2 * axes)
    if min(strides) < 1 or min(dilations) < 1:
        raise RefusedError("has a step below 1")
    reach = [dilations[axis] * (kernel[axis] - 1) + 1 for axis in range(axes)]
    mode = attributes.get("auto_pad", b"NOTSET")
    if mode in (b"SAME_UPPER", b"SAME_LOWER"):
        total = [
            max((-(-size[axis] // strides[axis]) - 1) * strides[axis] + reach[axis] - size[axis], 0)
            for axis in range(axes)
        ]
        small, large = [pad // 2 for pad in total], [pad - pad // 2 for pad in total]
        pads = [*small, *large] if mode == b"SAME_UPPER" else [*large, *small]
    elif mode == b"VALID":
        pads = [0] * 2 * axes
    elif mode != b"NOTSET":
        raise RefusedError(f"has auto_pad = {printable(mode.decode(errors='replace'), limit=20)}")
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


@rewrites("Gemm")
def write_gemm(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    if attributes.get("transA"):
        raise RefusedError("transposes the faces")
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    weights = writer.values[inputs[1]]
    turned = weights.T if attributes.get("transB") else weights
    bias = writer.values[inputs[2]] if len(inputs) > 2 else np.zeros(1, np.float32)
    if weights.dtype != np.float32 or bias.dtype != np.float32:
        raise RefusedError(f"computes in {weights.dtype}; save the model in float32")
    bias = np.broadcast_to(bias, np.broadcast_shapes(bias.shape, (1, turned.shape[1])))
    if bias.shape != (1, turned.shape[1]):
        raise RefusedError("gives each face of a batch a bias of its own")
    if alpha != 1 or beta != 1:
        weights, bias = (weights * np.float32(alpha)), bias * np.float32(beta)
    name = node.output[0]
    constants = [writer.constant(f"{name}_weight", weights), writer.constant(f"{name}_bias", bias[0])]
    writer.emit("Gemm", [writer.name_of(inputs[0]), *constants], name, transB=int(attributes.get("transB", 0)))


@rewrites("MatMul")
def write_matmul(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    weights = writer.values.get(inputs[1])
    if inputs[0] in writer.alias and len(writer.input_row(inputs[0])) == 1:
        if weights is None or weights.ndim != 2:
            raise RefusedError("multiplies faces by faces")
        writer.emit("Gemm", [writer.name_of(inputs[0]), writer.name_of(inputs[1])], node.output[0], transB=0)
        return
    writer.emit("MatMul", [writer.name_of(name) for name in inputs], node.output[0])


@rewrites("BatchNormalization")
def write_batch_normalization(
    writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]
) -> None:
    if attributes.get("training_mode"):
        raise RefusedError("is in training mode: faces depend on their batch")
    if attributes.get("spatial", 1) != 1:
        raise RefusedError("has spatial = 0")
    scale, bias, mean, variance = (writer.values[name].astype(np.float64) for name in inputs[1:5])
    factor = scale / np.sqrt(variance + attributes.get("epsilon", 1e-5))
    shift = bias - mean * factor
    row = writer.input_row(inputs[0])
    if not all(parameter.shape == row[:1] for parameter in (scale, bias, mean, variance)):
        raise RefusedError("has parameters of another shape than its channels")
    producer = writer.producer(inputs[0])
    if producer is not None and producer.op_type in ("Conv", "Gemm"):
        scale_layer(writer, producer, factor, shift, node.output[0])
        return
    shape = (-1, *([1] * (len(row) - 1)))
    name = node.output[0]
    scaled = writer.emit(
        "Mul",
        [writer.name_of(inputs[0]), writer.constant(f"{name}_factor", factor.reshape(shape).astype(np.float32))],
        writer.new_name(f"{name}_scaled"),
    )
    writer.emit("Add", [scaled, writer.constant(f"{name}_shift", shift.reshape(shape).astype(np.float32))], name)


def scale_layer(writer: Writer, layer: onnx.NodeProto, factor: Array, shift: Array, output: str) -> None:
    """Put a factor and a shift for each output into the weights of the last node, a Conv or Gemm."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in layer.attribute}
    weights = writer.constants[layer.input[1]].astype(np.float64)
    axis = 1 if layer.op_type == "Gemm" and not attributes.get("transB") else 0
    bias = writer.constants[layer.input[2]].astype(np.float64) if len(layer.input) > 2 else np.zeros(len(factor))
    shape = [1] * weights.ndim
    shape[axis] = -1
    writer.nodes.pop()
    inputs = [
        layer.input[0],
        writer.constant(f"{output}_weight", (weights * factor.reshape(shape)).astype(np.float32)),
        writer.constant(f"{output}_bias", (bias * factor + shift).astype(np.float32)),
    ]
    writer.emit(layer.op_type, inputs, output, **attributes)


@rewrites("LayerNormalization")
def write_layer_normalization(
    writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]
) -> None:
    row = writer.input_row(inputs[0])
    axis = int(attributes.get("axis", -1)) % (len(row) + 1)
    wanted = row[axis - 1 :]
    names = [
        writer.constant(f"{node.output[0]}_{place}", np.broadcast_to(writer.values[name], wanted))
        for place, name in enumerate(inputs[1:])
    ]
    kept = {key: value for key, value in attributes.items() if key in ("epsilon", "stash_type")}
    writer.emit("LayerNormalization", [writer.name_of(inputs[0]), *names], node.output[0], axis=axis, **kept)


@rewrites("MaxPool", "AveragePool")
def write_pool(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    kernel = tuple(attributes["kernel_shape"])
    size = writer.input_row(inputs[0])[1:]
    if len(kernel) != len(size) or not size:
        raise RefusedError("pools over another number of dimensions than its input has")
    kept = _window(writer, attributes, size, kernel)
    grown = kept.pop("ceil_mode")
    if node.op_type == "AveragePool":
        included = attributes.get("count_include_pad", 0)
        if grown and included:
            raise RefusedError("has ceil_mode = 1 and counts its padding")
        if any(dilation != 1 for dilation in kept.pop("dilations")):
            raise RefusedError("has dilations")
        kept["count_include_pad"] = included
    elif attributes.get("storage_order"):
        raise RefusedError("has storage_order = 1")
    if max(pad - kernel[axis % len(kernel)] for axis, pad in enumerate(kept["pads"])) >= 0:
        raise RefusedError("pads by as much as its kernel")
    writer.emit(node.op_type, [writer.name_of(inputs[0])], node.output[0], kernel_shape=kernel, **kept)


@rewrites("GlobalAveragePool", "GlobalMaxPool")
def write_global_pool(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    kind = "ReduceMean" if node.op_type == "GlobalAveragePool" else "ReduceMax"
    axes = writer.constant(f"{node.output[0]}_axes", np.arange(2, len(writer.input_row(inputs[0])) + 1))
    writer.emit(kind, [writer.name_of(inputs[0]), axes], node.output[0], keepdims=1)


@rewrites("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2")
def write_reduce(writer: Writer, node: onnx.NodeProto, inputs: list[str], attributes: dict[str, Any]) -> None:
    axes = writer.known_ints(inputs, 1) or list(attributes.get("axes") or ())
    rank = len(writer.input_row(inputs[0])) + 1
    if not axes:
        raise RefusedError("reduces over all dimensions, the faces' too")
    places = writer.constant(f"{node.output[0]}_axes", np.array(sorted(axis % rank for axis in axes)))
    writer.emit(
        node.op_type, [writer.name_of(inputs[0]), places], node.output[0], keepdims=attributes.get("keepdims", 1)
    )
