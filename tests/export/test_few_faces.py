"""int8 of a person with few photographs: nothing is proven, and no fault is hidden."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.export.conftest import Kept, exporting_once
from tests.train.images import write_images

from fer_export.candidates import make_candidate
from fer_export.gate.candidate import Candidate
from fer_export.gate.judge import judge
from fer_export.gate.report import ExportedModel
from fer_export.gate.subject import Subject
from fer_export.gate.timing import Timing
from fer_export.int8.quantize import quantize_model
from fer_export.int8.ranges import observe
from fer_export.options import ExportOptions
from fer_export.pipeline import prepare
from fer_train.checkpoints import Checkpoint, save_checkpoint

_SLOW, _FAST = (Timing(batch=1, undisturbed_ms=ms, p50_ms=ms, runs=1, turns_ms=(ms,)) for ms in (2.0, 1.0))
_Made = tuple[Subject, onnx.ModelProto, tuple[Candidate, ExportedModel]]


@pytest.fixture(scope="module")
def made(trained_narrow: Checkpoint, kept: Kept, tmp_path_factory: pytest.TempPathFactory) -> _Made:
    """What files are judged by with two labelled faces of each label, the int8 graph, and fp32 with its verdict."""
    folder = tmp_path_factory.mktemp("few")
    save_checkpoint(folder / "narrow.pth", trained_narrow)
    data = write_images(folder / "data", train=10, validation=2)
    with exporting_once(kept):
        subject, graph = prepare("narrow", ExportOptions(precisions=("fp32", "int8"), data=data, models_dir=folder))
    some = np.r_[: subject.real_faces, subject.real_faces : len(subject.faces) : 10]
    subject = dataclasses.replace(subject, faces=subject.faces[some], logits=subject.logits[some])
    assert subject.train is not None
    fp32 = make_candidate(subject, "fp32", graph)
    verdict = judge(subject, fp32, None, Path(), _FAST, _FAST, _SLOW)
    return subject, quantize_model(graph, observe(graph, subject.train.faces)), (fp32, verdict)


def _scaled(model: onnx.ModelProto, factor: float, *ends: str) -> None:
    for tensor in model.graph.initializer:
        if tensor.name.endswith(ends):
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values * np.asarray(factor, values.dtype), tensor.name))


def _convolutions_times_1_1(model: onnx.ModelProto) -> None:
    _scaled(model, 1.1, *(f"conv_block_{number}.0.weight_scale" for number in (1, 2, 3)))


def _last_layer_times_3(model: onnx.ModelProto) -> None:
    _scaled(model, 3, "fc_layer.4.weight_scale", "fc_layer.4.weight_bias_scale")


@pytest.mark.parametrize(
    ("fault", "found_by"), [(None, ""), (_convolutions_times_1_1, "units"), (_last_layer_times_3, "logit error")]
)
def test_fourteen_labelled_faces_prove_nothing_and_hide_no_fault(
    made: _Made, fault: Callable[[onnx.ModelProto], None] | None, found_by: str
) -> None:
    subject, int8, reference = made
    model = onnx.ModelProto()
    model.CopyFrom(int8)
    if fault is not None:
        fault(model)
        assert model != int8
    # The file has a temperature of its own, as in an export.
    judged = judge(subject, make_candidate(subject, "int8", model), reference, Path(), _FAST, _FAST, _SLOW)
    failures = [check.name for check in judged.parity.failures]
    assert judged.outcome == ("not proven" if fault is None else "failed"), judged.parity.failures
    assert "14 labelled faces" in judged.not_proven
    assert found_by in ["", *failures]
