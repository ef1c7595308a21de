"""Breaks of graphs that are not ours, and the gate that has to find them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.export.conftest import few_runs

from fer_export.gate import coverage
from fer_export.gate.candidate import Candidate
from fer_export.gate.judge import judge
from fer_export.gate.subject import Subject
from fer_export.gate.timing import Timing
from fer_export.graph import serialize


@contextmanager
def few_faces() -> Iterator[None]:
    """A tenth of the made-up faces finds these breaks as well."""
    with pytest.MonkeyPatch.context() as patch:
        for name, count in (("_CANDIDATES", 80), ("_MORE_CANDIDATES", 16), ("_MOST_SEARCHES", 0)):
            patch.setattr(coverage, name, count)
        yield


_FAST = Timing(batch=1, undisturbed_ms=1.0, p50_ms=1.0, runs=1, turns_ms=(1.0,))


@dataclasses.dataclass(frozen=True)
class Bench:
    """A subject with its right float32 candidate."""

    subject: Subject
    candidate: Candidate

    def failures(self, fault: Callable[[onnx.ModelProto], None]) -> list[str]:
        model = onnx.ModelProto()
        model.CopyFrom(self.candidate.model)
        fault(model)
        content = serialize(model, self.subject.metadata("fp32", self.candidate.model, self.candidate.calibration))
        candidate = dataclasses.replace(self.candidate, model=model, content=content)
        with nullcontext() if fault is nothing else few_runs():  # none shows in batches or other interpreters alone
            judged = judge(self.subject, candidate, None, Path(), _FAST, _FAST, _FAST)
        return [check.name for check in judged.parity.failures]


def _initializer(model: onnx.ModelProto, node: onnx.NodeProto, place: int) -> onnx.TensorProto:
    found: onnx.TensorProto = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[place])
    return found


def change_values(tensor: onnx.TensorProto, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor.CopyFrom(
        numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()).astype(np.float32), tensor.name)
    )


def _node(model: onnx.ModelProto, kind: str, place: int = 0) -> onnx.NodeProto:
    found: onnx.NodeProto = [node for node in model.graph.node if node.op_type == kind][place]
    return found


def nothing(model: onnx.ModelProto) -> None:
    pass


def one_weight_by_one_percent(model: onnx.ModelProto) -> None:
    """The largest weight of the last layer: one per cent of it is what this test is about, not its place."""

    def move(values: np.ndarray) -> np.ndarray:
        values[np.unravel_index(np.abs(values).argmax(), values.shape)] *= 1.01
        return values

    change_values(_initializer(model, _node(model, "Gemm"), 1), move)


def one_weight_of_the_first_layer_by_one_percent(model: onnx.ModelProto) -> None:
    def move(values: np.ndarray) -> np.ndarray:
        values[np.unravel_index(np.abs(values).argmax(), values.shape)] *= 1.01
        return values

    change_values(_initializer(model, _node(model, "Conv"), 1), move)


def the_first_layer_by_one_percent(model: onnx.ModelProto) -> None:
    change_values(_initializer(model, _node(model, "Conv"), 1), lambda values: values * 1.01)


def swapped_channel_order(model: onnx.ModelProto) -> None:
    change_values(_initializer(model, _node(model, "Conv"), 1), lambda values: values[:, ::-1])


def missing_normalization(model: onnx.ModelProto) -> None:
    """The pixels go into the convolution without their mean taken out."""
    shift = _node(model, "Sub")
    _node(model, "Conv").input[0] = shift.input[0]
    model.graph.initializer.remove(_initializer(model, shift, 1))
    model.graph.node.remove(shift)


def fixed_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def fixed_batch_in_a_reshape(model: onnx.ModelProto) -> None:
    shape = _initializer(model, _node(model, "Reshape"), 1)
    shape.CopyFrom(numpy_helper.from_array(np.array([1, 8]), shape.name))


def mean_over_faces(model: onnx.ModelProto) -> None:
    gemm = _node(model, "Gemm")
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "faces_axis"))
    place = list(model.graph.node).index(gemm)
    model.graph.node.insert(
        place, helper.make_node("ReduceMean", [gemm.input[0], "faces_axis"], ["mean_face"], name="leak", keepdims=1)
    )
    model.graph.node.insert(place + 1, helper.make_node("Sub", [gemm.input[0], "mean_face"], ["shifted"], name="sub"))
    gemm.input[0] = "shifted"


# A break, and a check that has to find it.
FAULTS = [
    (one_weight_by_one_percent, "logits"),
    (one_weight_of_the_first_layer_by_one_percent, "logits"),
    (swapped_channel_order, "logits"),
    (missing_normalization, "logits"),
    (fixed_batch, "contract"),
    (mean_over_faces, "face by face"),
]
