"""Fold the arithmetic between the pixels and the first convolution into its weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fer_export.gate.rows import Array

_ARITHMETIC = ("Add", "Sub", "Mul", "Div")


def fold_affine(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model whose first convolution does the scaling of its pixels.

    Scaling and shifting by one number, or one for each channel, become (pixel - offset) before the convolution and a
    factor in its weights. The offset stays outside: folded into the bias it would be wrong beside the border, where
    the padding adds zeros. Anything else is left as it is.
    """
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    graph = folded.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    cast = next((node for node in graph.node if node.op_type == "Cast" and node.input[0] == graph.input[0].name), None)
    if cast is None:
        return folded
    name, factor, shift = cast.output[0], np.ones(1), np.zeros(1)
    arithmetic: list[onnx.NodeProto] = []
    moves: list[onnx.NodeProto] = []
    while len(readers.get(name, ())) == 1:
        (node,) = readers[name]
        if node.op_type == "Conv" and node.input[0] == name:
            _fold(graph, node, name, arithmetic, moves, factor, shift, constants)
            return folded
        if node.op_type in ("Unsqueeze", "Transpose") and not arithmetic:
            moves.append(node)
        elif node.op_type in _ARITHMETIC:
            other = next((source for source in node.input if source != name), "")
            value = _per_channel(constants.get(other))
            if value is None or (node.op_type == "Div" and node.input[0] != name):
                return folded
            sign = -1.0 if node.op_type == "Sub" and node.input[0] != name else 1.0
            if node.op_type in ("Mul", "Div"):
                by = value if node.op_type == "Mul" else 1 / value
                factor, shift = factor * by, shift * by
            else:
                factor, shift = factor * sign, shift * sign + (value if node.op_type == "Add" or sign < 0 else -value)
            arithmetic.append(node)
        else:
            return folded
        name = node.output[0]
    return folded


def _per_channel(tensor: onnx.TensorProto | None) -> Array | None:
    """A number, or one for each channel of (channels, height, width), as float64 (channels,)."""
    if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
        return None
    value = numpy_helper.to_array(tensor)
    shape = (1,) * (3 - value.ndim) + value.shape if value.ndim < 4 else value.shape[-3:]
    if value.size != shape[0] or not np.isfinite(value).all():
        return None
    found: Array = value.reshape(-1).astype(np.float64)
    return found


def _fold(
    graph: onnx.GraphProto,
    layer: onnx.NodeProto,
    source: str,
    arithmetic: Sequence[onnx.NodeProto],
    moves: Sequence[onnx.NodeProto],
    factor: Array,
    shift: Array,
    constants: dict[str, onnx.TensorProto],
) -> None:
    weights = numpy_helper.to_array(constants[layer.input[1]]) if layer.input[1] in constants else None
    groups = next((attribute.i for attribute in layer.attribute if attribute.name == "group"), 1)
    if not arithmetic or weights is None or weights.dtype != np.float32 or groups != 1 or not (factor != 0).all():
        return
    channels = weights.shape[1]
    offset = -shift / factor
    if np.broadcast_shapes(offset.shape, (channels,)) != (channels,) or not np.isfinite(offset).all():
        return
    scale = np.broadcast_to(factor, channels).reshape(1, channels, *([1] * (weights.ndim - 2)))
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    scaled, zero, shifted = (_free(name, taken) for name in ("pixel_weights", "pixel_offset", "pixels_shifted"))
    # Gray planes that were wanted three times came from the constants' channels.
    repeats = max(len(factor), len(shift)) == channels > 1 and moves and moves[-1].op_type == "Unsqueeze"
    if repeats:
        equal = len(set(np.broadcast_to(offset, channels))) == 1
        if not equal:
            return
        weights, scale = (weights * scale).sum(1, keepdims=True), np.ones(1)
        offset = offset[:1]
    graph.initializer.append(numpy_helper.from_array((weights.astype(np.float64) * scale).astype(np.float32), scaled))
    before = arithmetic[0].input[0] if arithmetic[0].input[0] not in constants else arithmetic[0].input[1]
    layer.input[1] = scaled
    place = list(graph.node).index(arithmetic[0])
    for node in arithmetic:
        graph.node.remove(node)
    if offset.any():
        value = offset if len(set(offset)) > 1 else offset[:1]
        shape = (len(value), 1, 1) if len(value) > 1 else ()
        graph.initializer.append(numpy_helper.from_array(value.reshape(shape).astype(np.float32), zero))
        graph.node.insert(place, helper.make_node("Sub", [before, zero], [shifted], name=shifted))
        before = shifted
    layer.input[0] = before
    used = {name for node in graph.node for name in node.input}
    for tensor in [constant for constant in graph.initializer if constant.name not in used]:
        graph.initializer.remove(tensor)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
