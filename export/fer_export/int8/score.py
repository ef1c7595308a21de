"""The two linear layers of `unfamiliarity` in an int8 graph, computed in integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from fer_export.int8.gptq import round_weights, trim_pairs, weight_scales
from fer_export.int8.qdq import GraphWriter, IntegerLayer, QuantizedTensor
from fer_export.int8.ranges import ActivationRange
from fer_export.int8.scales import short_scales
from fer_runtime.errors import ParityError
from fer_runtime.model.parity import FloatArray

# A sign as an integer. Two neighbouring ones are no more than the 128 that CPUs without VNNI add up safely.
SIGN = 64
_MEAN_INPUT = 32.0  # of 255; how large the sums of real faces get


def append_score(
    model: onnx.ModelProto,
    *,
    maps: str,
    flat: str | None,
    shape: Sequence[int],
    layers: tuple[FloatArray, FloatArray, FloatArray],
    highest: float,
    scales: dict[str, tuple[float, int]],
    name: str,
) -> str:
    """Append the nodes of both layers to an int8 graph of `quantize_model`; returns the score's tensor, (batch, 1).

    Args:
        maps: tensor of the float graph whose values the first layer reads.
        flat: tensor of the float graph that holds them in one row already.
        shape: of one face's maps in the float graph, (channels, rows, columns) or (features,).
        layers: weights float32 (features, units), the features in the float graph's order; bias and signs (units,).
        highest: value that a unit between the layers has; what is above it is cut off.
        scales: step and zero point of each uint8 tensor of the int8 graph.
        name: begins the names of all new tensors.

    Raises:
        ParityError: the int8 graph does not have the maps.
    """
    weights, bias, signs = layers
    writer = GraphWriter()
    tensors = {output for node in model.graph.node for output in node.output}
    if flat is not None and f"{flat}_u8" in tensors:
        features = f"{flat}_u8"
        if len(shape) == 3:  # the integer graph flattens with the channels last
            weights = channels_last(weights, shape)
        step, zero = scales[features]
    else:
        if f"{maps}_u8" not in tensors:
            raise ParityError(f"the int8 graph has no tensor {maps}_u8, which {name} is computed from")
        features = writer.reshape(f"{maps}_u8", f"{name}_u8", (0, len(weights)))
        step, zero = scales[f"{maps}_u8"]
    # Few bits: the sum of the signed units is exact in float32, in every runtime.
    largest_sum = SIGN * 255.0 * len(signs)
    unit_step = float(short_scales(np.array([ActivationRange(0.0, highest).step]), np.array([largest_sum]))[0])
    # A bias counts in steps of input times weight scale, and must not leave what float32 holds.
    smallest = np.maximum(weight_scales(weights.T).astype(np.float64), np.abs(bias) / (step * 2.0**22))
    sums = _MEAN_INPUT * np.abs(weights).sum(0) / smallest + np.abs(bias) / (step * smallest)
    scale = short_scales(smallest * step / unit_step, sums)
    rounded, _ = round_weights(weights.T, (scale * unit_step / step).astype(np.float32))
    read = [
        writer.constant(f"{name}_input_scale", np.array(1, np.float32)),
        writer.constant(f"{name}_input_zero", np.array(zero, np.uint8)),
    ]
    dequantized = writer.node("DequantizeLinear", [features, *read], f"{name}_float")
    # (features, units): the form that onnxruntime packs once, when the session opens.
    first = IntegerLayer(np.ascontiguousarray(trim_pairs(rounded).T), scale, bias.astype(np.float64) / unit_step)
    parameters = writer.parameters(f"{name}_weights", first, axis=1)
    hidden = writer.node("Gemm", [dequantized, *parameters], f"{name}_hidden")
    # uint8 with the zero point 0 cuts at 0, as the float graph's Relu does.
    units = writer.quantize(hidden, QuantizedTensor(f"{name}_units_u8", unit_step, 0))
    held = [
        writer.constant(f"{name}_signs", (SIGN * signs[:, None]).astype(np.int8)),
        writer.constant(f"{name}_signs_scale", np.full(1, unit_step / SIGN, np.float32)),
        writer.constant(f"{name}_signs_zero", np.zeros(1, np.int8)),
    ]
    last = writer.node("DequantizeLinear", held, f"{name}_signs_float", axis=1)
    score = writer.node("Gemm", [writer.dequantize(units), last], f"{name}_score")
    model.graph.node.extend(writer.nodes)
    model.graph.initializer.extend(writer.constants.values())
    return score


def channels_last(weights: FloatArray, shape: Sequence[int]) -> FloatArray:
    """Weights (features, units) of maps (channels, rows, columns), in the order of maps with the channels last."""
    turned: FloatArray = weights.reshape(*shape, -1).transpose(1, 2, 0, 3).reshape(len(weights), -1)
    return turned
