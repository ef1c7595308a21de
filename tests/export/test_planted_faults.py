"""Broken exports of every kind: each is refused, and the check that finds it is named.

Every fault is planted into a file that is otherwise right, for each precision in which it can be, and goes through the
gate of `export_model`. A fault that a check misses today belongs into this list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.export.conftest import Kept, exporting_once

from fer_export.fp16 import halve_model
from fer_export.gate.accuracy import Budget
from fer_export.gate.publish import Subject
from fer_export.gate.report import ExportedModel
from fer_export.gate.timing import Timing
from fer_export.graph import serialize
from fer_export.int8.quantize import quantize_model
from fer_export.int8.ranges import observe
from fer_export.pipeline import Candidate, judge, make_candidate, prepare
from fer_runtime.model.find import Precision
from fer_train.checkpoints import Checkpoint, save_checkpoint

Model = onnx.ModelProto
Fault = Callable[[Model], None]
_SLOW = Timing(batch=1, undisturbed_ms=2.0, p50_ms=2.0, runs=1, turns_ms=(2.0,))
_FAST = Timing(batch=1, undisturbed_ms=1.0, p50_ms=1.0, runs=1, turns_ms=(1.0,))


@dataclasses.dataclass(frozen=True)
class Bench:
    """A subject with its three right candidates, and the verdict on fp32."""

    subject: Subject
    candidates: dict[Precision, Candidate]
    reference: tuple[Candidate, ExportedModel]

    def judge(self, precision: Precision, content: bytes, model: Model) -> ExportedModel:
        candidate = dataclasses.replace(self.candidates[precision], model=model, content=content)
        reference = None if precision == "fp32" else self.reference
        return judge(self.subject, candidate, reference, Path(), _FAST, _FAST, _SLOW)


@pytest.fixture(scope="module")
def bench(trained_narrow: Checkpoint, dataset: Path, kept: Kept, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    models_dir = tmp_path_factory.mktemp("faults")
    checkpoint = models_dir / "narrow.pth"
    save_checkpoint(checkpoint, trained_narrow)
    with exporting_once(kept):
        subject, fp32 = prepare(
            "narrow",
            wanted=("fp32", "fp16", "int8"),
            checkpoint=checkpoint,
            data=dataset,
            models_dir=models_dir,
            budget=Budget(accuracy=5, macro_f1=5, recall=20),
        )
    # A tenth of the made-up faces finds these faults as well, in a third of the time.
    some = np.r_[: subject.real_faces, subject.real_faces : len(subject.faces) : 10]
    subject = dataclasses.replace(subject, faces=subject.faces[some], logits=subject.logits[some])
    assert subject.train is not None
    int8 = quantize_model(fp32, observe(fp32, subject.train.faces))
    candidates: dict[Precision, Candidate] = {
        "fp32": make_candidate(subject, "fp32", fp32),
        "fp16": make_candidate(subject, "fp16", halve_model(fp32)),
        "int8": make_candidate(subject, "int8", int8),
    }
    right = judge(subject, candidates["fp32"], None, Path(), _FAST, _FAST, _SLOW)
    return Bench(subject=subject, candidates=candidates, reference=(candidates["fp32"], right))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_right_file_passes(bench: Bench, precision: Precision) -> None:
    candidate = bench.candidates[precision]
    found = bench.judge(precision, candidate.content, candidate.model)
    assert found.parity.passed, found.parity.failures


# What the faults are made of.


def _values(model: Model, end: str) -> np.ndarray:
    (tensor,) = [one for one in model.graph.initializer if one.name.endswith(end)]
    values: np.ndarray = numpy_helper.to_array(tensor).copy()
    return values


def _put(model: Model, end: str, values: np.ndarray) -> None:
    (tensor,) = [one for one in model.graph.initializer if one.name.endswith(end)]
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
        for attribute in [one for one in pool.attribute if one.name == name]:
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


def _strange_weights(model: Model, change: Callable[[np.ndarray], Any]) -> None:
    _change(model, "unfamiliarity_weights", change)


def one_weight_of_unfamiliarity(model: Model) -> None:
    """The largest, with the other sign: in int8 254 steps, of which the outputs on the compared faces show little."""

    def move(values: np.ndarray) -> None:
        place = int(np.abs(values.astype(np.float64)).argmax())
        values.reshape(-1)[place] = -values.reshape(-1)[place]

    _strange_weights(model, move)


def unfamiliarity_of_mirrored_maps(model: Model) -> None:
    _strange_weights(model, lambda values: values[::-1].copy())


def unfamiliarity_doubled(model: Model) -> None:
    _change(model, "unfamiliarity_weights" + ("_scale" if _is_int8(model) else ""), lambda values: 2 * values)


def unfamiliarity_upside_down(model: Model) -> None:
    _change(model, "unfamiliarity_signs", lambda values: -values)


def a_sign_of_unfamiliarity(model: Model) -> None:
    def turn(values: np.ndarray) -> None:
        values[0] = -values[0]

    _change(model, "unfamiliarity_signs", turn)


def a_bias_of_unfamiliarity(model: Model) -> None:
    def move(values: np.ndarray) -> None:
        values[0] += 1

    _change(model, "unfamiliarity_weights_bias" if _is_int8(model) else "unfamiliarity_bias", move)


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
    (tensor,) = [one for one in model.graph.initializer if one.name == "unfamiliarity_shape"]
    model.graph.initializer.remove(tensor)


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
    (activation_scale, _INT8, "units"),
    (reader_scale, _INT8, "units"),
    (negative_scale, _INT8, "weights"),
    (relu_left_out, _FLOAT, "logits"),
    (relu_leaks, ("fp32",), "logits"),
    (relu_leaks, ("fp16",), "logit error"),
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
    (subgraph, _ALL, "container"),
    (other_domain, _ALL, "operators"),
    (local_function, _ALL, "container"),
    (mean_of_the_batch, _ALL, "face by face"),
    (mean_of_the_batch, _ALL, "batch"),
    (batches_of_13_to_63, _ALL, "batch"),
    (batches_of_48, _ALL, "batch"),
    (batches_of_77, _ALL, "operators"),
    (batches_above_1000, _ALL, "operators"),
    (second_place_of_a_batch, _ALL, "batch"),
    (faces_exchanged, _ALL, "batch"),
    (faces_mixed_by_a_reshape, _ALL, "face by face"),
    (softmax_of_the_batch_in_a_layer, _ALL, "face by face"),
    (nan_for_black_faces, _ALL, "finite"),
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
]
# What the graph alone shows is the same in all precisions: each such fault takes its turn in one of them.
_SHOWN_BY_THE_GRAPH = ("container", "operators", "face by face", "contract", "opset", "weights")
_CASES = [
    (fault, precision, check)
    for number, (fault, precisions, check) in enumerate(FAULTS)
    for precision in ((precisions[number % len(precisions)],) if check in _SHOWN_BY_THE_GRAPH else precisions)
]


@pytest.mark.parametrize(
    ("fault", "precision", "found_by"), _CASES, ids=[f"{fault.__name__}-{one}-{by}" for fault, one, by in _CASES]
)
def test_a_planted_fault_is_found(bench: Bench, fault: Fault, precision: Precision, found_by: str) -> None:
    candidate = bench.candidates[precision]
    model = onnx.ModelProto()
    model.CopyFrom(candidate.model)
    fault(model)
    content = serialize(
        model, bench.subject.metadata(precision, candidate.model, candidate.calibration, candidate.point)
    )
    judged = bench.judge(precision, content, model)
    assert found_by in [check.name for check in judged.parity.failures], judged.parity.failures


def test_a_threshold_that_was_not_fitted_is_found(bench: Bench) -> None:
    candidate = bench.candidates["int8"]
    assert candidate.point is not None
    other = dataclasses.replace(candidate.point, unfamiliar_above=candidate.point.unfamiliar_above + 1)
    said = bench.subject.metadata("int8", candidate.model, candidate.calibration, other)
    judged = bench.judge("int8", serialize(candidate.model, said), candidate.model)
    assert [check.name for check in judged.parity.failures] == ["unfamiliar"]


def test_there_are_at_least_forty_kinds() -> None:
    assert len({fault for fault, _, _ in FAULTS}) >= 40
