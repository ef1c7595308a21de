"""A linear layer with one output behind the maps of an int8 graph, computed in integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from fer_export.int8.gptq import round_weights, trim_pairs, weight_scales
from fer_export.int8.qdq import GraphWriter
from fer_runtime.errors import ParityError
from fer_runtime.model.parity import FloatArray


def append_score(
    model: onnx.ModelProto,
    *,
    maps: str,
    flat: str | None,
    shape: Sequence[int],
    weights: FloatArray,
    scales: dict[str, tuple[float, int]],
    name: str,
) -> str:
    """Append the nodes of the layer to an int8 graph of `quantize_model`; returns the tensor of the score, (batch, 1).

    Args:
        maps: tensor of the float graph whose values the layer reads.
        flat: tensor of the float graph that holds them in one row already.
        shape: of one face's maps in the float graph, (channels, rows, columns) or (features,).
        weights: float32 (features,), in the float graph's order.
        scales: scale and zero point of each uint8 tensor of the int8 graph.
        name: begins the names of all new tensors.

    Raises:
        ParityError: the int8 graph does not have the maps.
    """
    writer = GraphWriter()
    there = {output for node in model.graph.node for output in node.output}
    if flat is not None and f"{flat}_u8" in there:
        features = f"{flat}_u8"
        if len(shape) == 3:  # the integer graph flattens with the channels last
            weights = weights.reshape(shape).transpose(1, 2, 0).reshape(-1)
        scale, zero = scales[features]
    else:
        if f"{maps}_u8" not in there:
            raise ParityError(f"the int8 graph has no tensor {maps}_u8, which {name} is computed from")
        features = writer.reshape(f"{maps}_u8", f"{name}_u8", (0, weights.size))
        scale, zero = scales[f"{maps}_u8"]
    step = weight_scales(weights[None])
    rounded, _ = round_weights(weights[None], step)
    # (features, 1): the form that onnxruntime packs once, when the session opens.
    parameters: tuple[npt.NDArray[Any], ...] = (np.ascontiguousarray(trim_pairs(rounded).T), step, np.zeros(1, np.int8))
    read = [
        writer.constant(f"{name}_input_scale", np.array(scale, np.float32)),
        writer.constant(f"{name}_input_zero", np.array(zero, np.uint8)),
    ]
    held = [
        writer.constant(f"{name}_weights{end}", part)
        for end, part in zip(("", "_scale", "_zero"), parameters, strict=True)
    ]
    dequantized = writer.node("DequantizeLinear", [features, *read], f"{name}_float")
    layer = writer.node("DequantizeLinear", held, f"{name}_weights_float", axis=1)
    score = writer.node("Gemm", [dequantized, layer], f"{name}_score")
    model.graph.node.extend(writer.nodes)
    model.graph.initializer.extend(writer.constants.values())
    return score
