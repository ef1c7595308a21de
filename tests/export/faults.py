"""Faults that are planted into exported files, and the check that has to find each.

A fault that a check misses today belongs into this list. `test_planted_faults.py` plants them into a small network;
`python -m tests.export.planted` into the real ones, through `export_model`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fer_export.int8.shared import UNITS, SharedLayer, find_shared
from fer_runtime.model.find import Precision
from fer_runtime.model.metadata import ModelMetadata

Model = onnx.ModelProto
Fault = Callable[[Model], None]
Lie = Callable[[ModelMetadata], ModelMetadata]


# What the faults are made of.


def _values(model: Model, end: str) -> np.ndarray:
    (tensor,) = [constant for constant in model.graph.initializer if constant.name.endswith(end)]
    values: np.ndarray = numpy_helper.to_array(tensor).copy()
    return values


def _put(model: Model, end: str, values: np.ndarray) -> None:
    (tensor,) = [constant for constant in model.graph.initializer if constant.name.endswith(end)]
    before = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(before.dtype), tensor.name))


def _change(model: Model, end: str, change: Callable[[np.ndarray], Any]) -> None:
    values = _values(model, end)
    changed = change(values)
    _put(model, end, values if changed is None else changed)


def _is_int8(model: Model) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def _scale_layer(model: Model, layer: str, factor: float) -> None:
    """Multiply a layer's function: its weights, or their scales."""
    if _is_int8(model):
        for end in ("weight_scale", "weight_bias_scale"):
            _change(model, f"{layer}.{end}", lambda values: values * np.float32(factor))
        return
    for end in ("weight", "bias"):
        _change(model, f"{layer}.{end}", lambda values: values * factor)


def _scale_weights(model: Model, layer: str, factor: float) -> None:
    _change(model, f"{layer}.weight_scale" if _is_int8(model) else f"{layer}.weight", lambda values: values * factor)


_CONVOLUTIONS = ("conv_block_1.0", "conv_block_2.0", "conv_block_3.0")
_HIDDEN, _LAST = "fc_layer.1", "fc_layer.4"


def _node(model: Model, op_type: str, place: int = 0) -> onnx.NodeProto:
    found: onnx.NodeProto = [node for node in model.graph.node if node.op_type == op_type][place]
    return found


def _constant(model: Model, name: str, values: Any) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return name


def _insert(model: Model, tensor: str, nodes: Sequence[onnx.NodeProto]) -> None:
    """Put nodes behind `tensor`, the last of which writes its name; they read `<tensor>_before`."""
    producer = next(node for node in model.graph.node if tensor in node.output)
    place = list(model.graph.node).index(producer) + 1
    producer.output[list(producer.output).index(tensor)] = f"{tensor}_before"
    for offset, node in enumerate(nodes):
        model.graph.node.insert(place + offset, node)


def _insert_at_faces(model: Model, *nodes: onnx.NodeProto) -> None:
    """Put nodes between `faces` and its reader; they write `other_faces`."""
    reader = next(node for node in model.graph.node if "faces" in node.input)
    reader.input[list(reader.input).index("faces")] = "other_faces"
    for offset, node in enumerate(nodes):
        model.graph.node.insert(offset, node)


# Weights and constants.


def all_weight_scales(model: Model) -> None:
    for layer in (*_CONVOLUTIONS, _HIDDEN, _LAST):
        _scale_weights(model, layer, 1.1)


def last_layer_times_three(model: Model) -> None:
    _scale_layer(model, _LAST, 3.0)


def hidden_layer_times_five_percent(model: Model) -> None:
    _scale_layer(model, _HIDDEN, 1.1)


def first_layer_without_255(model: Model) -> None:
    _scale_weights(model, _CONVOLUTIONS[0], 255.0)


def wrong_std(model: Model) -> None:
    _scale_weights(model, _CONVOLUTIONS[0], 1 / 0.9)


def _bias_end(model: Model, layer: str) -> str:
    return f"{layer}.weight_bias" if _is_int8(model) else f"{layer}.bias"


def bias_dropped(model: Model) -> None:
    _change(model, _bias_end(model, _CONVOLUTIONS[1]), lambda values: values * 0)


def last_bias_dropped(model: Model) -> None:
    _change(model, _bias_end(model, _LAST), lambda values: values * 0)


def _rows(model: Model, layer: str, order: Callable[[int], list[int]]) -> None:
    ends = [".weight", ".bias"]
    if _is_int8(model):
        ends = [".weight", ".weight_scale", ".weight_zero", ".weight_bias", ".weight_bias_scale"]
    for end in ends:
        values = _values(model, f"{layer}{end}")
        # Linear layers of the int8 graph have their outputs last.
        axis = 1 if _is_int8(model) and values.ndim == 2 else 0
        _put(model, f"{layer}{end}", np.take(values, order(values.shape[axis]), axis=axis))


def labels_exchanged(model: Model) -> None:
    _rows(model, _LAST, lambda count: [1, 0, *range(2, count)])


def labels_of_the_csv(model: Model) -> None:
    _rows(model, _LAST, lambda count: [0, 1, 2, 3, 5, 6, 4])


def channels_exchanged(model: Model) -> None:
    _rows(model, _CONVOLUTIONS[1], lambda count: [*range(1, count), 0])


def one_weight(model: Model) -> None:
    """A weight of a unit that faces switch on, moved by a tenth of the largest."""

    def move(values: np.ndarray) -> None:
        largest = np.unravel_index(np.abs(values.astype(np.float64)).argmax(), values.shape)
        values[largest] = -values[largest]

    _change(model, f"{_CONVOLUTIONS[0]}.weight", move)


def one_channel_scaled(model: Model) -> None:
    def scale(values: np.ndarray) -> None:
        values[2] *= np.float32(1.3)

    _change(model, f"{_CONVOLUTIONS[1]}.weight" + ("_scale" if _is_int8(model) else ""), scale)


def scaled_per_channel(model: Model) -> None:
    """As where weights are scaled by channel and the scales are applied to the wrong axis."""

    def scale(values: np.ndarray) -> np.ndarray:
        factors = np.geomspace(0.85, 1.18, len(values)).reshape(-1, *(1,) * (values.ndim - 1))
        scaled: np.ndarray = values * factors
        return scaled

    _change(model, f"{_CONVOLUTIONS[1]}.weight" + ("_scale" if _is_int8(model) else ""), scale)


def first_bias_dropped(model: Model) -> None:
    _change(model, _bias_end(model, _CONVOLUTIONS[0]), lambda values: values * 0)


def hidden_biases_moved(model: Model) -> None:
    """By a tenth, or by eight of 256 steps."""

    def move(values: np.ndarray) -> np.ndarray:
        if not _is_int8(model):
            return values + 0.1
        return values + np.rint(8 / _values(model, f"{_HIDDEN}.weight_bias_scale"))

    _change(model, _bias_end(model, _HIDDEN), move)


def bias_of_one_class(model: Model) -> None:
    """Faces of one class alone are answered otherwise."""

    def move(values: np.ndarray) -> None:
        step = _values(model, f"{_LAST}.weight_bias_scale")[3] if _is_int8(model) else 1
        values[3] -= round(0.4 / step) if _is_int8(model) else 0.4

    _change(model, _bias_end(model, _LAST), move)


def one_class_alone(model: Model) -> None:
    """What is above 1 of the logit of one class is halved, by operators that are allowed."""
    selected = np.zeros((7, 7), np.float32)
    selected[3, 3] = 1
    names = [_constant(model, "selected", selected), _constant(model, "less", np.full(7, -1, np.float32))]
    nodes = [
        helper.make_node("Gemm", ["logits_before", *names], ["above_one"]),
        helper.make_node("Relu", ["above_one"], ["too_much"]),
        helper.make_node("Mul", ["too_much", _constant(model, "half_", np.float32(0.5))], ["taken"]),
        helper.make_node("Sub", ["logits_before", "taken"], ["logits"]),
    ]
    _insert(model, "logits", nodes)


def one_integer(model: Model) -> None:
    """The largest weight of the network's hidden layer, among 150,000 of v0, with the other sign."""
    shared = find_shared(model, "unfamiliarity")

    def move(values: np.ndarray) -> None:
        sizes = np.abs(values.astype(np.float64))
        if shared is not None:  # other units in the same layer have a fault of their own
            sizes[..., list(shared.score_places)] = 0
        place = np.unravel_index(sizes.argmax(), values.shape)
        values[place] = -values[place]

    _change(model, f"{_HIDDEN}.weight", move)


def hidden_inputs_exchanged(model: Model) -> None:
    """Two inputs of the hidden layer."""
    axis = 0 if _is_int8(model) else 1
    _change(model, f"{_HIDDEN}.weight", lambda values: np.take(values, [1, 0, *range(2, values.shape[axis])], axis))


def not_a_number(model: Model) -> None:
    def spoil(values: np.ndarray) -> None:
        values.flat[0] = np.nan

    _change(model, f"{_LAST}.weight" + ("_scale" if _is_int8(model) else ""), spoil)


def infinite_weight(model: Model) -> None:
    def spoil(values: np.ndarray) -> None:
        values.flat[0] = np.inf

    _change(model, f"{_HIDDEN}.weight" + ("_scale" if _is_int8(model) else ""), spoil)


def temperature_in_the_graph(model: Model) -> None:
    divisor = _node(model, "Div").input[1]
    _change(model, divisor, lambda value: value * 1.02)


def weights_zero_point(model: Model) -> None:
    _change(model, f"{_CONVOLUTIONS[2]}.weight_zero", lambda values: values + 1)


def activation_zero_point(model: Model) -> None:
    _change(model, _activation(model, "_zero"), lambda value: value + 1)


def even_activation_zero_point(model: Model) -> None:
    _change(model, _activation(model, "_zero"), lambda value: value + 4)


def _activation(model: Model, end: str) -> str:
    """A constant of the first QuantizeLinear."""
    name: str = _node(model, "QuantizeLinear").input[1 if end == "_scale" else 2]
    return name


def _zero_of(model: Model, place: int) -> str:
    name: str = _node(model, "QuantizeLinear", place).input[2]
    return name


def zero_points_off_by_two(model: Model) -> None:
    """Behind ReLUs, of writer and readers alike: values a little below zero come through."""
    names = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for name in names:
        if not _values(model, name).any():
            _change(model, name, lambda value: value + 2)


def a_zero_point_off_by_two(model: Model) -> None:
    _change(model, _zero_of(model, 2), lambda value: value + 2)


def reader_zero_point_off_by_two(model: Model) -> None:
    written = _node(model, "QuantizeLinear", 1).output[0]
    behind = {written}
    for node in model.graph.node:
        if node.op_type in ("MaxPool", "Transpose", "Reshape") and node.input[0] in behind:
            behind.add(node.output[0])
        if node.op_type == "DequantizeLinear" and node.input[0] in behind:
            node.input[2] = _constant(model, "another_zero", _values(model, node.input[2]) + np.uint8(2))
            return


def activation_scale(model: Model) -> None:
    _change(model, _activation(model, "_scale"), lambda value: value * 0.5)


def reader_scale(model: Model) -> None:
    """The last layer reads the hidden layer's output with another scale than it was written with."""
    written = {name for node in model.graph.node for name in node.output}
    (last,) = [node for node in model.graph.node if node.output[0] == "logits"]
    (reader,) = [node for node in model.graph.node if node.output[0] == last.input[0] and node.input[0] in written]
    assert reader.op_type == "DequantizeLinear"
    reader.input[1] = _constant(model, "another_scale", _values(model, reader.input[1]) * np.float32(1.15))


def negative_scale(model: Model) -> None:
    _change(model, f"{_LAST}.weight_scale", lambda values: -values)


# Operators.


def relu_left_out(model: Model) -> None:
    relu = _node(model, "Relu", 1)
    relu.op_type = "LeakyRelu"
    relu.attribute.append(helper.make_attribute("alpha", 1.0))


def relu_leaks(model: Model) -> None:
    _node(model, "Relu", 3).op_type = "LeakyRelu"


def average_for_maximum(model: Model) -> None:
    pool = _node(model, "MaxPool", 1)
    pool.op_type = "AveragePool"
    for name in ("storage_order", "dilations"):
        for attribute in [kept for kept in pool.attribute if kept.name == name]:
            pool.attribute.remove(attribute)


def padding_moved(model: Model) -> None:
    for attribute in _node(model, "Conv", 1).attribute:
        if attribute.name == "pads":
            attribute.ints[:] = [0, 0, 2, 2]


def softmax_over_faces(model: Model) -> None:
    softmax = _node(model, "Softmax")
    del softmax.attribute[:]
    softmax.attribute.append(helper.make_attribute("axis", 0))


def logits_cut_off(model: Model) -> None:
    low, high = _constant(model, "low", np.float32(-1)), _constant(model, "high", np.float32(1))
    _insert(model, "logits", [helper.make_node("Clip", ["logits_before", low, high], ["logits"])])


def image_transposed(model: Model) -> None:
    _insert_at_faces(model, helper.make_node("Transpose", ["faces"], ["other_faces"], perm=[0, 2, 1]))


def image_mirrored(model: Model) -> None:
    names = [_constant(model, f"slice_{index}", np.array([value])) for index, value in enumerate((-1, -(2**31), 2, -1))]
    _insert_at_faces(model, helper.make_node("Slice", ["faces", *names], ["other_faces"]))


def normalized_twice(model: Model) -> None:
    """The mean is taken out although the network was trained without."""
    planes = _node(model, "Cast").output[0]
    mean = _constant(model, "mean", np.array(127.5, np.float32))
    _insert(model, planes, [helper.make_node("Sub", [f"{planes}_before", mean], [planes])])


def dropout_in_training_mode(model: Model) -> None:
    ratio, training = _constant(model, "ratio", np.float32(0.5)), _constant(model, "training", np.array(True))
    _insert(model, "logits", [helper.make_node("Dropout", ["logits_before", ratio, training], ["logits"], seed=1)])


def batch_normalization_in_training_mode(model: Model) -> None:
    ones, zeros = _constant(model, "ones", np.ones(7, np.float32)), _constant(model, "zeros", np.zeros(7, np.float32))
    inputs = ["logits_before", ones, zeros, zeros, ones]
    outputs = ["logits", "running_mean", "running_var"]
    _insert(model, "logits", [helper.make_node("BatchNormalization", inputs, outputs, training_mode=1)])


def batch_normalization_not_folded(model: Model) -> None:
    ones, zeros = _constant(model, "ones", np.ones(7, np.float32)), _constant(model, "zeros", np.zeros(7, np.float32))
    inputs = ["logits_before", _constant(model, "gamma", np.full(7, 1.2, np.float32)), zeros, zeros, ones]
    _insert(model, "logits", [helper.make_node("BatchNormalization", inputs, ["logits"])])


def random_logits(model: Model) -> None:
    noise = helper.make_node("RandomNormalLike", ["logits_before"], ["noise"], scale=1e-6)
    _insert(model, "logits", [noise, helper.make_node("Add", ["logits_before", "noise"], ["logits"])])


def rarely_random(model: Model) -> None:
    """One run in ten thousand answers something else."""
    limit = _constant(model, "limit", np.float32(0.9999))
    nodes = [
        helper.make_node("RandomUniform", [], ["die"], shape=[1]),
        helper.make_node("Greater", ["die", limit], ["strikes"]),
        helper.make_node("Neg", ["logits_before"], ["wrong"]),
        helper.make_node("Where", ["strikes", "wrong", "logits_before"], ["logits"]),
    ]
    _insert(model, "logits", nodes)


def another_answer_at_each_call(model: Model) -> None:
    """Random numbers with a seed: the first call of every session answers alike, the second one otherwise."""
    limit = _constant(model, "limit", np.float32(0.5))
    nodes = [
        helper.make_node("RandomUniform", [], ["die"], shape=[1], seed=7.0),
        helper.make_node("Greater", ["die", limit], ["strikes"]),
        helper.make_node("Neg", ["logits_before"], ["wrong"]),
        helper.make_node("Where", ["strikes", "wrong", "logits_before"], ["logits"]),
    ]
    _insert(model, "logits", nodes)


def weights_cut_off(model: Model) -> None:
    """Bits dropped in place of rounding to the nearest: one step of the last bit at most."""
    float32 = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    for tensor in float32.values():
        values = numpy_helper.to_array(tensor)
        if values.ndim > 1:
            tensor.CopyFrom(numpy_helper.from_array(np.nextafter(values, np.float16(0)), tensor.name))


def results_of_eight_bits(model: Model) -> None:
    """The last layer's inputs as bfloat16 has them."""
    (last,) = [node for node in model.graph.node if node.output[0] == "logits_fp16"]
    place = list(model.graph.node).index(last)
    nodes = [
        helper.make_node("Cast", [last.input[0]], ["eight_bits"], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["eight_bits"], ["sixteen_bits"], to=TensorProto.FLOAT16),
    ]
    last.input[0] = "sixteen_bits"
    for offset, node in enumerate(nodes):
        model.graph.node.insert(place + offset, node)


def training_mode_before_the_last_layer(model: Model) -> None:
    """Dropout on what the last layer reads, after its ReLU."""
    (last,) = [node for node in model.graph.node if "logits" in node.output]
    ratio, training = _constant(model, "ratio", np.float32(0.1)), _constant(model, "training", np.array(True))
    inputs = [last.input[0], ratio, training]
    place = list(model.graph.node).index(last)
    if _is_half(model):
        _put_half(model, "ratio")
    model.graph.node.insert(place, helper.make_node("Dropout", inputs, ["dropped"], seed=1))
    last.input[0] = "dropped"


def _is_half(model: Model) -> bool:
    return any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)


def _put_half(model: Model, name: str) -> None:
    (tensor,) = [constant for constant in model.graph.initializer if constant.name == name]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name))


def subgraph(model: Model) -> None:
    then = helper.make_graph(
        [helper.make_node("Neg", ["logits_before"], ["then"])],
        "then",
        [],
        [helper.make_empty_tensor_value_info("then")],
    )
    otherwise = helper.make_graph(
        [helper.make_node("Abs", ["logits_before"], ["else"])],
        "else",
        [],
        [helper.make_empty_tensor_value_info("else")],
    )
    condition = _constant(model, "condition", np.array(False))
    _insert(model, "logits", [helper.make_node("If", [condition], ["logits"], then_branch=then, else_branch=otherwise)])


def other_domain(model: Model) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    _insert(model, "logits", [helper.make_node("Gelu", ["logits_before"], ["logits"], domain="com.microsoft")])


def local_function(model: Model) -> None:
    """A function of the file under the name of an allowed operator."""
    model.opset_import.append(helper.make_opsetid("mine", 1))
    body = [helper.make_node("Neg", ["x"], ["y"])]
    model.functions.append(helper.make_function("mine", "Relu", ["x"], ["y"], body, [helper.make_opsetid("", 18)]))
    _insert(model, "logits", [helper.make_node("Relu", ["logits_before"], ["logits"], domain="mine")])


# Faces that depend on their batch.


def mean_of_the_batch(model: Model) -> None:
    axes, tenth = _constant(model, "axes", np.array([0])), _constant(model, "tenth", np.float32(0.1))
    nodes = [
        helper.make_node("ReduceMean", ["logits_before", axes], ["batch_mean"]),
        helper.make_node("Mul", ["batch_mean", tenth], ["leak"]),
        helper.make_node("Add", ["logits_before", "leak"], ["logits"]),
    ]
    _insert(model, "logits", nodes)


def _where_batch(model: Model, low: int, high: int) -> None:
    """Negated logits for batches from `low` to `high`."""
    names = [_constant(model, name, np.array(value)) for name, value in (("low", low - 1), ("high", high + 1))]
    nodes = [
        helper.make_node("Shape", ["logits_before"], ["batch_size"], start=0, end=1),
        helper.make_node("Greater", ["batch_size", names[0]], ["above"]),
        helper.make_node("Less", ["batch_size", names[1]], ["below"]),
        helper.make_node("And", ["above", "below"], ["between"]),
        helper.make_node("Neg", ["logits_before"], ["wrong"]),
        helper.make_node("Where", ["between", "wrong", "logits_before"], ["logits"]),
    ]
    _insert(model, "logits", nodes)


def batches_of_13_to_63(model: Model) -> None:
    _where_batch(model, 13, 63)


def batches_of_48(model: Model) -> None:
    _where_batch(model, 48, 48)


def batches_of_77(model: Model) -> None:
    _where_batch(model, 77, 77)


def batches_of_101(model: Model) -> None:
    _where_batch(model, 101, 101)


def batches_of_300_to_400(model: Model) -> None:
    _where_batch(model, 300, 400)


def odd_batches_above_100(model: Model) -> None:
    names = [_constant(model, name, np.array(value)) for name, value in (("hundred", 100), ("two", 2), ("one_more", 1))]
    nodes = [
        helper.make_node("Shape", ["logits_before"], ["batch_size"], start=0, end=1),
        helper.make_node("Greater", ["batch_size", names[0]], ["above"]),
        helper.make_node("Mod", ["batch_size", names[1]], ["rest"]),
        helper.make_node("Equal", ["rest", names[2]], ["is_odd"]),
        helper.make_node("And", ["above", "is_odd"], ["both"]),
        helper.make_node("Neg", ["logits_before"], ["wrong"]),
        helper.make_node("Where", ["both", "wrong", "logits_before"], ["logits"]),
    ]
    _insert(model, "logits", nodes)


def the_face_before(model: Model) -> None:
    """A hundredth of the face before in the batch."""
    ends = [_constant(model, f"end_{place}", np.array([value])) for place, value in enumerate((0, -1, 0, 1))]
    nodes = [
        helper.make_node("Slice", ["logits_before", ends[0], ends[1], ends[2], ends[3]], ["but_last"]),
        helper.make_node("Slice", ["logits_before", ends[0], ends[3], ends[2], ends[3]], ["first_one"]),
        helper.make_node("Concat", ["first_one", "but_last"], ["face_before"], axis=0),
        helper.make_node("Mul", ["face_before", _constant(model, "share_", np.float32(0.01))], ["leak"]),
        helper.make_node("Add", ["logits_before", "leak"], ["logits"]),
    ]
    _insert(model, "logits", nodes)


def batches_above_1000(model: Model) -> None:
    _where_batch(model, 1000, 10**9)


def second_place_of_a_batch(model: Model) -> None:
    """The place decides: a running sum over the batch counts the faces before."""
    zero, small = _constant(model, "zero_", np.float32(0)), _constant(model, "small_", np.float32(0.01))
    axis, one = _constant(model, "axis_", np.array(0)), _constant(model, "one_", np.float32(1))
    nodes = [
        helper.make_node("Mul", ["logits_before", zero], ["zeros_"]),
        helper.make_node("Add", ["zeros_", one], ["ones_"]),
        helper.make_node("CumSum", ["ones_", axis], ["places"]),
        helper.make_node("Mul", ["places", small], ["shift"]),
        helper.make_node("Add", ["logits_before", "shift"], ["logits"]),
    ]
    _insert(model, "logits", nodes)


def faces_exchanged(model: Model) -> None:
    """The batch comes back in the opposite order."""
    names = [_constant(model, f"s{index}", np.array([value])) for index, value in enumerate((-1, -(2**31), 0, -1))]
    _insert(model, "logits", [helper.make_node("Slice", ["logits_before", *names], ["logits"])])


def faces_mixed_by_a_reshape(model: Model) -> None:
    """A transposition of the faces' dimension, written as allowed operators."""
    first = _constant(model, "seven_rows", np.array([7, -1]))
    nodes = [
        helper.make_node("Reshape", ["logits_before", first], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["logits"], perm=[1, 0]),
    ]
    _insert(model, "logits", nodes)


def softmax_of_the_batch_in_a_layer(model: Model) -> None:
    small = _constant(model, "small", np.float32(1e-5))
    nodes = [
        helper.make_node("Softmax", ["logits_before"], ["over_faces"], axis=0),
        helper.make_node("Mul", ["over_faces", small], ["leak"]),
        helper.make_node("Add", ["logits_before", "leak"], ["logits"]),
    ]
    _insert(model, "logits", nodes)


def nan_for_black_faces(model: Model) -> None:
    """Divided by a pixel's own value: NaN where it is black."""
    axes = _constant(model, "pixels", np.array([1, 2]))
    nodes = [
        helper.make_node("Cast", ["faces"], ["pixel_values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixel_values", axes], ["brightness_"], keepdims=0),
        helper.make_node("Div", ["brightness_", "brightness_"], ["one_or_nan"]),
        helper.make_node("Unsqueeze", ["one_or_nan", _constant(model, "last", np.array([1]))], ["column"]),
        helper.make_node("Mul", ["logits_before", "column"], ["logits"]),
    ]
    _insert(model, "logits", nodes)


def nan_for_one_brightness(model: Model) -> None:
    """NaN where the mean of a face is exactly 37.25: perhaps none of the faces that are compared."""
    axes = _constant(model, "pixels_", np.array([1, 2]))
    nodes = [
        helper.make_node("Cast", ["faces"], ["pixel_values_"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixel_values_", axes], ["mean_pixel"], keepdims=0),
        helper.make_node("Sub", ["mean_pixel", _constant(model, "rare", np.float32(37.25))], ["distance"]),
        helper.make_node("Div", ["distance", "distance"], ["one_or_nan_"]),
        helper.make_node("Unsqueeze", ["one_or_nan_", _constant(model, "last_", np.array([1]))], ["column_"]),
        helper.make_node("Mul", ["logits_before", "column_"], ["logits"]),
    ]
    _insert(model, "logits", nodes)


# The container.


def external_data(model: Model) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def fixed_batch(model: Model) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 64


def renamed_output(model: Model) -> None:
    model.graph.output[1].name = "scores"
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == "probabilities":
                node.output[index] = "scores"


def further_output(model: Model) -> None:
    model.graph.output.append(helper.make_tensor_value_info("further", TensorProto.FLOAT, ["batch", 7]))
    model.graph.node.append(helper.make_node("Relu", ["logits"], ["further"]))


def float_input(model: Model) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def smuggled_constant(model: Model) -> None:
    _constant(model, "ballast", np.zeros(1000, np.float32))


def other_opset(model: Model) -> None:
    model.opset_import[0].version += 2


def _change_score(model: Model, end: str, change: Callable[[np.ndarray], Any]) -> None:
    """Change constants of the layers behind `unfamiliarity`; in int8 they are among those of another layer."""
    shared = find_shared(model, "unfamiliarity")
    if shared is None or end.startswith("signs"):
        name, places = f"unfamiliarity_{end}", slice(None) if shared is None else list(shared.score_places)
        values = _values(model, name)
        part = values[places]
        changed = change(part)
        values[places] = part if changed is None else changed
        _put(model, name, values)
        return
    name, places = shared.weights + end.removeprefix("weights"), list(shared.score_places)
    values = _values(model, name)
    part = values[..., places]
    changed = change(part)
    values[..., places] = part if changed is None else changed
    _put(model, name, values)


def one_weight_of_unfamiliarity(model: Model) -> None:
    """The largest, with the other sign: in int8 254 steps, of which the outputs on the compared faces show little."""

    def move(values: np.ndarray) -> None:
        place = np.unravel_index(int(np.abs(values.astype(np.float64)).argmax()), values.shape)
        values[place] = -values[place]

    _change_score(model, "weights", move)


def unfamiliarity_of_mirrored_maps(model: Model) -> None:
    _change_score(model, "weights", lambda values: values[::-1].copy())


def unfamiliarity_doubled(model: Model) -> None:
    _change_score(model, "weights" + ("_scale" if _is_int8(model) else ""), lambda values: 2 * values)


def unfamiliarity_upside_down(model: Model) -> None:
    _change_score(model, "signs", lambda values: -values)


def a_sign_of_unfamiliarity(model: Model) -> None:
    def turn(values: np.ndarray) -> None:
        values[0] = -values[0]

    _change_score(model, "signs", turn)


def a_bias_of_unfamiliarity(model: Model) -> None:
    def move(values: np.ndarray) -> None:
        values[0] += 1

    _change_score(model, "weights_bias" if _is_int8(model) else "bias", move)


def _shared(model: Model) -> SharedLayer:
    shared = find_shared(model, "unfamiliarity")
    assert shared is not None
    return shared


def unfamiliarity_reads_the_network(model: Model) -> None:
    """A unit of the network counts in the score, by as little as it may."""

    def add(values: np.ndarray) -> None:
        values[_shared(model).places[0]] = 1

    _change(model, "unfamiliarity_signs", add)


def the_network_reads_unfamiliarity(model: Model) -> None:
    shared = _shared(model)

    def add(values: np.ndarray) -> None:
        values[shared.score_places[0], 0] = 1

    _change(model, shared.next_weights, add)


def units_exchanged(model: Model) -> None:
    """The file names two of its units the other way round."""
    (entry,) = [prop for node in model.graph.node for prop in node.metadata_props if prop.key == UNITS]
    names = entry.value.split()
    first, second = [place for place, name in enumerate(names) if not name.startswith("u")][:2]
    names[first], names[second] = names[second], names[first]
    entry.value = " ".join(names)


def live_units_left_out(model: Model) -> None:
    """Half the units of the network, in all places that name them."""
    shared = _shared(model)
    kept = sorted([*shared.places[::2], *shared.score_places])
    for end in ("", "_scale", "_zero", "_bias", "_bias_scale"):
        _resize(model, shared.weights + end, lambda values: values[..., kept])
    for name in (shared.next_weights, "unfamiliarity_signs"):
        _resize(model, name, lambda values: values[kept])
    (entry,) = [prop for node in model.graph.node for prop in node.metadata_props if prop.key == UNITS]
    names = entry.value.split()
    entry.value = " ".join(names[place] for place in kept)


def _resize(model: Model, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    (tensor,) = [constant for constant in model.graph.initializer if constant.name == name]
    values = np.ascontiguousarray(change(numpy_helper.to_array(tensor)))
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def unfamiliarity_of_the_batch(model: Model) -> None:
    axes = _constant(model, "over_faces", np.array([0], np.int64))
    node = helper.make_node("ReduceMean", ["unfamiliarity_score", axes], ["mean_score"], keepdims=1)
    total = helper.make_node("Sub", ["unfamiliarity_score", "mean_score"], ["score_without_mean"])
    last = model.graph.node[-1]
    assert list(last.output) == ["unfamiliarity"]
    last.input[0] = "score_without_mean"
    model.graph.node.insert(len(model.graph.node) - 1, node)
    model.graph.node.insert(len(model.graph.node) - 1, total)


def unfamiliarity_with_a_column(model: Model) -> None:
    del model.graph.node[-1]
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == "unfamiliarity_score":
                node.output[index] = "unfamiliarity"
    model.graph.output[2].type.tensor_type.shape.dim.add().dim_value = 1
    (tensor,) = [constant for constant in model.graph.initializer if constant.name == "unfamiliarity_shape"]
    model.graph.initializer.remove(tensor)


def no_unfamiliarity(model: Model) -> None:
    """The output is left out of the file whose threshold was fitted."""
    del model.graph.output[2]
    gone = {"unfamiliarity"}
    while True:
        kept = [node for node in model.graph.node if not gone.intersection(node.output)]
        if len(kept) == len(model.graph.node):
            break
        removed = [node for node in model.graph.node if gone.intersection(node.output)]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        used = {name for node in kept for name in node.input} | {output.name for output in model.graph.output}
        gone = {name for node in removed for name in node.input} - used
    used = {name for node in model.graph.node for name in node.input}
    kept_tensors = [constant for constant in model.graph.initializer if constant.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept_tensors)


def unfamiliarity_is_constant(model: Model) -> None:
    _change_score(model, "signs", lambda values: values * 0)


def dead_node(model: Model) -> None:
    model.graph.node.append(helper.make_node("Relu", ["logits"], ["for_nothing"]))


_ALL: tuple[Precision, ...] = ("fp32", "fp16", "int8")
_FLOAT: tuple[Precision, ...] = ("fp32", "fp16")
_INT8: tuple[Precision, ...] = ("int8",)
# A fault, where it is planted, and a check that has to find it in each of these.
FAULTS: list[tuple[Fault, tuple[Precision, ...], str]] = [
    (all_weight_scales, _FLOAT, "logits"),
    (all_weight_scales, _INT8, "units"),
    (last_layer_times_three, _FLOAT, "logits"),
    (last_layer_times_three, _INT8, "logit error"),
    (hidden_layer_times_five_percent, _FLOAT, "logits"),
    (hidden_layer_times_five_percent, _INT8, "units"),
    (first_layer_without_255, _FLOAT, "logits"),
    (first_layer_without_255, _INT8, "agreement"),
    (wrong_std, _FLOAT, "logits"),
    (wrong_std, _INT8, "units"),
    (scaled_per_channel, _FLOAT, "logits"),
    (scaled_per_channel, _INT8, "units"),
    (scaled_per_channel, _INT8, "int8 weights"),
    (first_bias_dropped, _FLOAT, "logits"),
    (first_bias_dropped, _INT8, "units"),
    (hidden_biases_moved, _FLOAT, "logits"),
    (hidden_biases_moved, _INT8, "units"),
    (bias_of_one_class, _FLOAT, "logits"),
    (bias_of_one_class, _INT8, "units"),
    (one_class_alone, _FLOAT, "logits"),
    (one_class_alone, _INT8, "units"),
    (one_integer, _FLOAT, "logits"),
    (one_integer, _INT8, "int8 weights"),
    (hidden_inputs_exchanged, _FLOAT, "logits"),
    (hidden_inputs_exchanged, _INT8, "int8 weights"),
    (bias_dropped, _FLOAT, "logits"),
    (bias_dropped, _INT8, "units"),
    (last_bias_dropped, _FLOAT, "logits"),
    (labels_exchanged, _FLOAT, "top-1"),
    (labels_exchanged, _INT8, "agreement"),
    (labels_of_the_csv, _FLOAT, "top-1"),
    (labels_of_the_csv, _INT8, "agreement"),
    (channels_exchanged, _FLOAT, "logits"),
    (channels_exchanged, _INT8, "units"),
    (one_weight, _FLOAT, "logits"),
    (one_weight, _INT8, "units"),
    (one_channel_scaled, _FLOAT, "logits"),
    (one_channel_scaled, _INT8, "units"),
    (not_a_number, _ALL, "weights"),
    (infinite_weight, _ALL, "weights"),
    (temperature_in_the_graph, _ALL, "temperature"),
    (weights_zero_point, _INT8, "units"),
    (activation_zero_point, _INT8, "weights"),
    (even_activation_zero_point, _INT8, "units"),
    (zero_points_off_by_two, _INT8, "int8 weights"),
    (a_zero_point_off_by_two, _INT8, "int8 weights"),
    (reader_zero_point_off_by_two, _INT8, "units"),
    (activation_scale, _INT8, "units"),
    (reader_scale, _INT8, "units"),
    (negative_scale, _INT8, "weights"),
    (relu_left_out, _FLOAT, "logits"),
    (relu_leaks, ("fp32",), "logits"),
    (relu_leaks, ("fp16",), "logit error"),
    (one_integer, ("fp16",), "fp16 graph"),
    (one_weight, ("fp16",), "fp16 graph"),
    (relu_leaks, ("fp16",), "fp16 graph"),
    (weights_cut_off, ("fp16",), "fp16 graph"),
    (weights_cut_off, ("fp16",), "logit error"),
    (results_of_eight_bits, ("fp16",), "fp16 graph"),
    (average_for_maximum, _FLOAT, "logits"),
    (padding_moved, _FLOAT, "logits"),
    (padding_moved, _INT8, "units"),
    (softmax_over_faces, _ALL, "face by face"),
    (logits_cut_off, _FLOAT, "logits"),
    (logits_cut_off, _INT8, "logit error"),
    (image_transposed, _FLOAT, "logits"),
    (image_transposed, _INT8, "units"),
    (image_mirrored, _ALL, "operators"),
    (normalized_twice, ("fp32",), "logits"),
    (dropout_in_training_mode, _ALL, "operators"),
    (batch_normalization_in_training_mode, _ALL, "operators"),
    (batch_normalization_not_folded, _ALL, "operators"),
    (random_logits, _ALL, "operators"),
    (rarely_random, _ALL, "operators"),
    (another_answer_at_each_call, _ALL, "operators"),
    (training_mode_before_the_last_layer, _ALL, "operators"),
    (subgraph, _ALL, "container"),
    (other_domain, _ALL, "operators"),
    (local_function, _ALL, "container"),
    (mean_of_the_batch, _ALL, "face by face"),
    (mean_of_the_batch, _ALL, "batch"),
    (batches_of_13_to_63, _ALL, "batch"),
    (batches_of_48, _ALL, "batch"),
    (batches_of_77, _ALL, "operators"),
    (batches_of_101, _ALL, "operators"),
    (batches_of_300_to_400, _ALL, "operators"),
    (odd_batches_above_100, _ALL, "batch"),
    (the_face_before, _ALL, "batch"),
    (batches_above_1000, _ALL, "operators"),
    (second_place_of_a_batch, _ALL, "batch"),
    (faces_exchanged, _ALL, "batch"),
    (faces_mixed_by_a_reshape, _ALL, "face by face"),
    (softmax_of_the_batch_in_a_layer, _ALL, "face by face"),
    (nan_for_black_faces, _ALL, "finite"),
    (nan_for_one_brightness, _ALL, "face by face"),
    (external_data, _ALL, "container"),
    (fixed_batch, _ALL, "contract"),
    (renamed_output, _ALL, "container"),
    (further_output, _ALL, "container"),
    (float_input, _ALL, "container"),
    (smuggled_constant, _ALL, "container"),
    (other_opset, _ALL, "opset"),
    (dead_node, _ALL, "container"),
    (one_weight_of_unfamiliarity, _ALL, "unfamiliarity"),
    (unfamiliarity_of_mirrored_maps, _ALL, "unfamiliarity"),
    (unfamiliarity_doubled, _ALL, "unfamiliarity"),
    (a_sign_of_unfamiliarity, _ALL, "unfamiliarity"),
    (a_bias_of_unfamiliarity, _ALL, "unfamiliarity"),
    (unfamiliarity_upside_down, _ALL, "unfamiliar"),
    (unfamiliarity_of_the_batch, _ALL, "face by face"),
    (unfamiliarity_with_a_column, _ALL, "container"),
    (no_unfamiliarity, _ALL, "unfamiliar"),
    (unfamiliarity_is_constant, _ALL, "unfamiliarity"),
    (unfamiliarity_reads_the_network, _INT8, "unfamiliarity"),
    (the_network_reads_unfamiliarity, _INT8, "int8 weights"),
    (units_exchanged, _INT8, "int8 weights"),
    (live_units_left_out, _INT8, "units"),
]


def _with(**changes: Any) -> Lie:
    return lambda metadata: dataclasses.replace(metadata, **changes)


def _threshold_upside_down(metadata: ModelMetadata) -> ModelMetadata:
    return dataclasses.replace(metadata, uncertain_below=1 - (metadata.uncertain_below or 0))


def _labels_exchanged(metadata: ModelMetadata) -> ModelMetadata:
    first, second, *others = metadata.labels
    return dataclasses.replace(metadata, labels=(second, first, *others))


def _of_the_csv(metadata: ModelMetadata) -> ModelMetadata:
    return dataclasses.replace(metadata, labels=tuple(metadata.labels[place] for place in (0, 1, 2, 3, 5, 6, 4)))


def _another_temperature(metadata: ModelMetadata) -> ModelMetadata:
    return dataclasses.replace(metadata, temperature=metadata.temperature * 1.1)


def _more_faces(metadata: ModelMetadata) -> ModelMetadata:
    return dataclasses.replace(metadata, calibration={**metadata.calibration, "faces": 100_000})


def _another_point(metadata: ModelMetadata) -> ModelMetadata:
    return dataclasses.replace(metadata, quality={**metadata.quality, "unfamiliar_above": 1e3})


# What a file says of itself and is not so, and the check that has to find it in each precision.
LIES: dict[str, tuple[Lie, str]] = {
    "threshold upside down": (_threshold_upside_down, "fitted"),
    "no threshold": (_with(uncertain_below=None), "fitted"),
    "labels exchanged": (_labels_exchanged, "labels"),
    "labels of the csv": (_of_the_csv, "labels"),
    "temperature": (_another_temperature, "metadata"),
    "faces of the calibration": (_more_faces, "fitted"),
    "threshold of unfamiliarity": (_another_point, "unfamiliar"),
    "another network": (_with(name="v1"), "metadata"),
    "colour": (_with(color="rgb"), "metadata"),
    "size": (_with(size=64), "metadata"),
    "opset": (_with(opset=21), "opset"),
}
