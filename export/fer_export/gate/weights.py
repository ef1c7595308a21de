"""Compare each integer weight of an int8 file with the float weight that it stands for.

The outputs of a file, and of its units, hide a single wrong weight among thousands. The weights themselves do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from fer_export.gate.units import quantized_scales
from fer_export.int8.quantize import blocked_weights
from fer_export.int8.shared import find_shared, separate_layer
from fer_runtime.model.parity import Check

# Steps by which a weight may be off. Half a step is rounding; GPTQ moves a weight further to make up for the errors of
# those before it, by up to 2.5 steps in v0 and v3 and 3.0 in v1. Twice that.
MOST_STEPS = 6.0
# Root of a unit's summed squared errors, as a share of its weights': up to 3.1 % in v0, 3.4 % in v3, 3.3 % in v1.
MOST_ERROR = 0.07
_SCORE = "unfamiliarity"
_Array = npt.NDArray[np.float64]


def weights_check(fp32: onnx.ModelProto, int8: onnx.ModelProto) -> Check:
    """Compare the integer weights of a file of our quantizer with those of the float graph.

    Layers that compute `unfamiliarity` have a check of their own.

    Raises:
        ParityError: the file's shared layer is not one.
    """
    shared = find_shared(int8, _SCORE)
    int8 = separate_layer(int8, _SCORE)
    worst, error, count, place = 0.0, 0.0, 0, ""
    faults = _zero_points(fp32, int8)
    floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in fp32.graph.initializer}
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    layers = {node.input[1]: node for node in fp32.graph.node if node.op_type in ("Conv", "Gemm")}
    readers = {node.input[0]: node for node in int8.graph.node if node.op_type == "DequantizeLinear"}
    maps = _flattened(fp32)
    for name, node in layers.items():
        if name.startswith(_SCORE):
            continue
        reader = readers.get(name)
        if name not in held or reader is None:
            faults.append(f"{name} is not in the int8 graph")
            continue
        scale = held[reader.input[1]].astype(np.float64)
        zero = held[reader.input[2]] if len(reader.input) > 2 else 0
        own, steps = held[name].astype(np.float64), _steps(int8, reader.output[0])
        if np.any(zero):
            faults.append(f"{name} has a zero point")
            continue
        given = floats[name].astype(np.float64)
        if shared is not None and name in (shared.weights, shared.next_weights):
            # Units left out are those that gate/units.py finds idle.
            is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            given = shared.kept(given, axis=int(is_transposed == (name == shared.next_weights)))
        expected = _expected(given, node, own.shape, maps.get(node.input[0]))
        if expected is None:
            faults.append(f"{name} has the shape {own.shape}")
            continue
        if own.ndim == 2:  # of a linear layer, its outputs last
            own = own.T
        own, expected = own.reshape(len(own), -1), expected.reshape(len(own), -1)
        expected = expected / (np.broadcast_to(scale, len(own)) * steps)[:, None]
        difference = np.abs(own - expected)
        by_unit = np.sqrt((difference**2).sum(1) / np.maximum((expected**2).sum(1), 1e-12))
        count += own.size
        # Written so that NaN counts, and that a later layer does not replace it.
        if worst == worst and not difference.max() <= worst:
            worst, place = float(difference.max()), f" ({name}, unit {int(difference.max(1).argmax())})"
        error = float(np.maximum(error, by_unit.max()))
    detail = f"{count:,} integers, each within {worst:.1f} steps of its weight (allowed {MOST_STEPS:g})"
    passed = not faults and bool(worst <= MOST_STEPS) and bool(error <= MOST_ERROR)
    return Check(
        name="int8 weights",
        passed=passed,
        detail=("; ".join(faults[:3]) + ": " if faults else "")
        + detail
        + ("" if passed or faults else place)
        + f", each unit's within {error:.1%} (allowed {MOST_ERROR:.0%})",
    )


def _zero_points(fp32: onnx.ModelProto, int8: onnx.ModelProto) -> list[str]:
    """Tensors behind a ReLU whose zero point is not 0: uint8 cuts off there in the ReLU's place."""
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    written = {node.output[0]: node for node in int8.graph.node if node.op_type == "QuantizeLinear"}
    names = [f"{node.output[0]}_u8" for node in fp32.graph.node if node.op_type == "Relu"]
    return [
        f"{name} has the zero point {held[written[name].input[2]]}, not 0 as behind a ReLU"
        for name in names
        if name in written and held[written[name].input[2]].any()
    ]


def _steps(int8: onnx.ModelProto, weights: str) -> float:
    """The step of a layer's output divided by that of its input: the unit in which its scales count."""
    found = quantized_scales(int8)
    producers = {node.output[0]: node for node in int8.graph.node}
    (layer,) = [node for node in int8.graph.node if len(node.input) > 1 and node.input[1] == weights]
    written = [
        node.output[0] for node in int8.graph.node if node.input[0] == layer.output[0] and node.output[0] in found
    ]
    name = producers[layer.input[0]].input[0]
    while name not in found and name in producers:
        name = producers[name].input[0]
    return (found[written[0]][0] if written else 1.0) / found.get(name, (1.0, 0))[0]


def _flattened(fp32: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Channels, height and width of the maps that a tensor of one row per face was flattened from."""
    inferred = onnx.shape_inference.infer_shapes(fp32).graph.value_info
    shapes = {value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim[1:]) for value in inferred}
    reshapes = [node for node in fp32.graph.node if node.op_type in ("Reshape", "Flatten")]
    return {node.output[0]: shapes[node.input[0]] for node in reshapes if len(shapes.get(node.input[0], ())) == 3}


def _expected(
    weights: _Array, node: onnx.NodeProto, shape: tuple[int, ...], maps: tuple[int, ...] | None
) -> _Array | None:
    """The float weights in the layout of the integers, outputs first; None if these have another shape.

    Args:
        maps: that a linear layer's input was flattened from; the integers have their channels last.
    """
    attributes: dict[str, Any] = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Conv":
        if weights.shape == shape:
            return weights
        kernel, stride, pad = weights.shape[2], attributes["strides"][0], attributes["pads"][0]
        rows = 2 if shape[2] == kernel + stride else 1
        blocked, _, _ = blocked_weights(weights[:, 0], stride=stride, pad=pad, rows=rows)
        return blocked if blocked.shape == shape else None
    outputs_first = weights if attributes.get("transB") else weights.T
    if outputs_first.T.shape != shape:
        return None
    if maps is None:
        return outputs_first
    turned: _Array = outputs_first.reshape(-1, *maps).transpose(0, 2, 3, 1).reshape(len(outputs_first), -1)
    return turned
