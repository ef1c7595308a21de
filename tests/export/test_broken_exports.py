"""Exports that are broken in one way each, and the check that notices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.export.conftest import TEMPERATURE, few_runs, narrow_metadata

from fer_export.gate.golden import synthetic_faces
from fer_export.gate.original import original_of
from fer_export.gate.parity import FileSpec, check_parity
from fer_export.graph import export_graph, serialize
from fer_runtime.errors import ModelFileError
from fer_runtime.model.metadata import ModelMetadata
from fer_train.checkpoints import Checkpoint

Breakage = Callable[[onnx.ModelProto, ModelMetadata], ModelMetadata]


def _change(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(name))
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), tensor.name))


def _one_weight_by_one_percent(model: onnx.ModelProto, metadata: ModelMetadata) -> ModelMetadata:
    def change(weights: np.ndarray) -> np.ndarray:
        largest = np.unravel_index(np.abs(weights).argmax(), weights.shape)
        weights[largest] *= 1.01
        return weights

    _change(model, "conv_block_1.0.weight", change)
    return metadata


def _swapped_labels(model: onnx.ModelProto, metadata: ModelMetadata) -> ModelMetadata:
    names = list(metadata.labels)
    names[4], names[6] = names[6], names[4]
    return dataclasses.replace(metadata, labels=tuple(names))


def _swapped_logits(model: onnx.ModelProto, metadata: ModelMetadata) -> ModelMetadata:
    _change(model, "fc_layer.4.weight", lambda weights: weights[[1, 0, 2, 3, 4, 5, 6]])
    return metadata


def _without_255(model: onnx.ModelProto, metadata: ModelMetadata) -> ModelMetadata:
    _change(model, "conv_block_1.0.weight", lambda weights: weights * 255)
    return metadata


def _fixed_batch(model: onnx.ModelProto, metadata: ModelMetadata) -> ModelMetadata:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    return metadata


def _nan_weight(model: onnx.ModelProto, metadata: ModelMetadata) -> ModelMetadata:
    def change(weights: np.ndarray) -> np.ndarray:
        weights.flat[0] = np.nan
        return weights

    _change(model, "fc_layer.4.weight", change)
    return metadata


def _wrong_temperature_in_the_graph(model: onnx.ModelProto, metadata: ModelMetadata) -> ModelMetadata:
    divisor = next(node for node in model.graph.node if node.op_type == "Div").input[1]
    _change(model, divisor, lambda value: value * np.float32(1.01))
    return metadata


def _wrong_temperature_in_the_metadata(model: onnx.ModelProto, metadata: ModelMetadata) -> ModelMetadata:
    return dataclasses.replace(metadata, temperature=1.0)


def _other_opset(model: onnx.ModelProto, metadata: ModelMetadata) -> ModelMetadata:
    model.opset_import[0].version = 19
    return metadata


def _other_network(model: onnx.ModelProto, metadata: ModelMetadata) -> ModelMetadata:
    return dataclasses.replace(metadata, name="v1")


def _float_input(model: onnx.ModelProto, metadata: ModelMetadata) -> ModelMetadata:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return metadata


def _renamed_output(model: onnx.ModelProto, metadata: ModelMetadata) -> ModelMetadata:
    model.graph.node.append(helper.make_node("Identity", ["probabilities"], ["scores"]))
    model.graph.output[1].name = "scores"
    return metadata


BREAKAGES: list[tuple[Breakage, str]] = [
    (_one_weight_by_one_percent, "logits"),
    (_swapped_labels, "labels"),
    (_swapped_logits, "top-1"),
    (_without_255, "logits"),
    (_fixed_batch, "contract"),
    (_nan_weight, "finite"),
    (_wrong_temperature_in_the_graph, "temperature"),
    (_wrong_temperature_in_the_metadata, "metadata"),
    (_other_opset, "opset"),
    (_other_network, "metadata"),
    (_float_input, "contract"),
]


@pytest.mark.parametrize(("breakage", "noticed_by"), BREAKAGES, ids=lambda value: getattr(value, "__name__", value))
def test_a_broken_export_is_noticed(
    breakage: Breakage, noticed_by: str, narrow_graph: onnx.ModelProto, trained_narrow: Checkpoint
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(narrow_graph)
    content = serialize(model, breakage(model, narrow_metadata()))
    spec = FileSpec(original=original_of(trained_narrow), temperature=TEMPERATURE, opset=18)
    with few_runs():
        report = check_parity(content, spec, synthetic_faces())
    assert noticed_by in [check.name for check in report.failures]


def test_channels_that_were_not_summed_are_noticed(trained_narrow: Checkpoint, narrow_graph: onnx.ModelProto) -> None:
    """Three times the first channel's weights instead of the sum of all three: the classical slip in this fold."""
    model = onnx.ModelProto()
    model.CopyFrom(narrow_graph)
    plain = trained_narrow.state_dict["conv_block_1.0.weight"].numpy()
    ratio = 3 * plain[:, :1] / plain.sum(1, keepdims=True)
    _change(model, "conv_block_1.0.weight", lambda weights: (weights * ratio).astype(np.float32))
    spec = FileSpec(original=original_of(trained_narrow), temperature=TEMPERATURE)
    with few_runs():
        report = check_parity(serialize(model, narrow_metadata()), spec, synthetic_faces())
    assert "logits" in [check.name for check in report.failures]


def test_reversed_colour_order_is_no_fault_of_gray_faces(trained_narrow: Checkpoint) -> None:
    """RGB against BGR cannot go wrong here: the three channels are one plane, and the fold sums them."""
    state = dict(trained_narrow.state_dict)
    state["conv_block_1.0.weight"] = state["conv_block_1.0.weight"].flip(1)
    flipped = dataclasses.replace(trained_narrow, state_dict=state)
    content = serialize(export_graph(flipped, temperature=TEMPERATURE), narrow_metadata())
    assert check_parity(
        content, FileSpec(original=original_of(trained_narrow), temperature=TEMPERATURE), synthetic_faces()
    ).passed


@pytest.mark.parametrize("length", [0, 1, 100, 0.5, 0.999])
def test_a_truncated_file_is_named(length: float, narrow_content: bytes, trained_narrow: Checkpoint) -> None:
    part = narrow_content[: int(length * len(narrow_content)) if isinstance(length, float) else length]
    with pytest.raises(ModelFileError):
        check_parity(part, FileSpec(original=original_of(trained_narrow), temperature=TEMPERATURE), synthetic_faces())


def test_a_renamed_output_is_noticed(narrow_graph: onnx.ModelProto, trained_narrow: Checkpoint) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(narrow_graph)
    content = serialize(model, _renamed_output(model, narrow_metadata()))
    report = check_parity(
        content, FileSpec(original=original_of(trained_narrow), temperature=TEMPERATURE), synthetic_faces()
    )
    assert "contract" in [check.name for check in report.failures]
