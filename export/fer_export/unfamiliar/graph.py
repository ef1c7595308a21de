"""The nodes that compute `unfamiliarity` in an exported file, behind the maps of its own precision."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from fer_export.gate.units import quantized_scales
from fer_export.int8.gptq import round_weights, trim_pairs, weight_scales
from fer_export.int8.qdq import GraphWriter
from fer_export.unfamiliar.head import OUTPUT, Head
from fer_runtime.errors import ParityError
from fer_runtime.model.find import Precision

_SCORE = f"{OUTPUT}_score"


def add_output(model: onnx.ModelProto, head: Head, precision: Precision) -> onnx.ModelProto:
    """A copy of an exported model that also gives `unfamiliarity`, float32 (batch,).

    Args:
        model: the file of `precision`, made from the float model that the head was fitted on.
        head: the layer.
        precision: of the file.

    Raises:
        ParityError: an int8 file does not have the head's maps.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    writer = GraphWriter()
    if precision == "int8":
        _integer_layer(changed, head, writer)
    else:
        _float_layer(head, writer, is_half=precision == "fp16")
    writer.reshape(_SCORE, OUTPUT, (-1,))
    changed.graph.node.extend(writer.nodes)
    changed.graph.initializer.extend(writer.constants.values())
    changed.graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None]))
    batch = changed.graph.output[0].type.tensor_type.shape.dim[0]
    changed.graph.output[-1].type.tensor_type.shape.dim[0].CopyFrom(batch)
    onnx.checker.check_model(changed)
    return changed


def _float_layer(head: Head, writer: GraphWriter, *, is_half: bool) -> None:
    features = head.maps.flat or writer.reshape(head.maps.tensor, f"{OUTPUT}_features", (0, head.weights.size))
    if is_half:  # the sum of thousands of products is no task for 11 bits
        features = writer.node("Cast", [features], f"{OUTPUT}_float", to=TensorProto.FLOAT)
    weights = writer.constant(f"{OUTPUT}_weights", head.weights[:, None])
    writer.node("Gemm", [features, weights], _SCORE)


def _integer_layer(model: onnx.ModelProto, head: Head, writer: GraphWriter) -> None:
    there = {name for node in model.graph.node for name in node.output}
    scales = quantized_scales(model)
    weights = head.weights
    flat = f"{head.maps.flat}_u8"
    if head.maps.flat is not None and flat in there:
        features = flat
        if len(head.maps.shape) == 3:  # the integer graph flattens with the channels last
            weights = weights.reshape(head.maps.shape).transpose(1, 2, 0).reshape(-1)
    else:
        maps = f"{head.maps.tensor}_u8"
        if maps not in there:
            raise ParityError(f"the int8 graph has no tensor {maps}, which unfamiliarity is computed from")
        features = writer.reshape(maps, f"{OUTPUT}_u8", (0, weights.size))
        scales[features] = scales[maps]
    scale, zero = scales[features]
    names = [
        writer.constant(f"{OUTPUT}_input_scale", np.array(scale, np.float32)),
        writer.constant(f"{OUTPUT}_input_zero", np.array(zero, np.uint8)),
    ]
    dequantized = writer.node("DequantizeLinear", [features, *names], f"{OUTPUT}_float")
    step = weight_scales(weights[None])
    rounded, _ = round_weights(weights[None], step)
    # (features, 1): the form that onnxruntime packs once, when the session opens.
    integers = np.ascontiguousarray(trim_pairs(rounded).T)
    parts = (integers, step, np.zeros(1, np.int8))
    names = [
        writer.constant(f"{OUTPUT}_weights{end}", part)
        for end, part in zip(("", "_scale", "_zero"), parts, strict=True)
    ]
    parameters = writer.node("DequantizeLinear", names, f"{OUTPUT}_weights_float", axis=1)
    writer.node("Gemm", [dequantized, parameters], _SCORE)
