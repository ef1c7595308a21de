"""The nodes that compute `unfamiliarity` in an exported file, behind the maps of its own precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from fer_export.gate.units import quantized_scales
from fer_export.int8.score import append_score
from fer_export.int8.shared import share_layer
from fer_export.unfamiliar.head import OUTPUT, Head
from fer_runtime.model.find import Precision


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
    if precision == "int8":
        score = append_score(
            changed,
            maps=head.maps.tensor,
            flat=head.maps.flat,
            shape=head.maps.shape,
            layers=(head.weights, head.bias, head.signs),
            highest=head.highest,
            scales=quantized_scales(changed),
            name=OUTPUT,
        )
        share_layer(changed, OUTPUT, head.idle)
    else:
        score = _append_float_score(changed, head, is_half=precision == "fp16")
    _append(changed, "Reshape", [score, _constant(changed, "shape", np.array([-1], np.int64))], OUTPUT)
    changed.graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None]))
    batch = changed.graph.output[0].type.tensor_type.shape.dim[0]
    changed.graph.output[-1].type.tensor_type.shape.dim[0].CopyFrom(batch)
    onnx.checker.check_model(changed)
    return changed


def _append_float_score(model: onnx.ModelProto, head: Head, *, is_half: bool) -> str:
    features = head.maps.flat
    if features is None:
        shape = _constant(model, "features_shape", np.array([0, len(head.weights)], np.int64))
        features = _append(model, "Reshape", [head.maps.tensor, shape], f"{OUTPUT}_features")
    if is_half:  # the sum of thousands of products is no task for 11 bits
        features = _append(model, "Cast", [features], f"{OUTPUT}_float", to=TensorProto.FLOAT)
    first = [_constant(model, "weights", head.weights), _constant(model, "bias", head.bias)]
    hidden = _append(model, "Gemm", [features, *first], f"{OUTPUT}_hidden")
    units = _append(model, "Relu", [hidden], f"{OUTPUT}_units")
    return _append(model, "Gemm", [units, _constant(model, "signs", head.signs[:, None])], f"{OUTPUT}_score")


def _constant(model: onnx.ModelProto, end: str, values: npt.NDArray[Any]) -> str:
    name = f"{OUTPUT}_{end}"
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return name


def _append(model: onnx.ModelProto, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
    model.graph.node.append(helper.make_node(op, inputs, [output], name=output, **attributes))
    return output
