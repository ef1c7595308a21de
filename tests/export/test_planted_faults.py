"""Broken exports of every kind: each is refused, and the check that finds it is named.

Every fault is planted into a file that is otherwise right, for each precision in which it can be, and goes through the
gate of `export_model`. A fault that a check misses today belongs into this list.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.export.conftest import Kept, digest, exporting_once, few_runs
from tests.export.faults import (
    FAULTS,
    LIES,
    Fault,
    Model,
    all_weight_scales,
    batches_of_13_to_63,
    infinite_weight,
    one_class_alone,
)
from tests.export.planted import found_by, planted

from fer_export.candidates import make_candidate
from fer_export.fp16 import halve_model
from fer_export.gate import publish, roundings
from fer_export.gate.accuracy import Budget
from fer_export.gate.candidate import Candidate
from fer_export.gate.judge import judge
from fer_export.gate.report import ExportedModel
from fer_export.gate.subject import Subject
from fer_export.gate.timing import Timing
from fer_export.graph import serialize
from fer_export.int8.quantize import quantize_model
from fer_export.int8.ranges import observe
from fer_export.options import ExportOptions
from fer_export.pipeline import export_model, prepare
from fer_runtime.errors import ParityError
from fer_runtime.model.find import Precision
from fer_runtime.model.metadata import ModelMetadata
from fer_runtime.model.parity import FloatArray, Uint8Array
from fer_train.checkpoints import Checkpoint, save_checkpoint

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
            ExportOptions(
                precisions=("fp32", "fp16", "int8"),
                data=dataset,
                models_dir=models_dir,
                budget=Budget(accuracy=5, macro_f1=5, recall=20),
            ),
            checkpoint=checkpoint,
        )
    # A tenth of the made-up faces, and those of one gray, find these faults as well, in a third of the time.
    made = subject.faces[subject.real_faces :].reshape(len(subject.faces) - subject.real_faces, -1)
    is_chosen = (np.arange(len(made)) % 10 == 0) | (made.min(1) == made.max(1))
    some = np.r_[: subject.real_faces, subject.real_faces + np.flatnonzero(is_chosen)]
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


@pytest.fixture(scope="module", autouse=True)
def _rounded_once() -> Iterator[None]:
    """What roundings make of the right float graph is the same in the verdict on every fp16 file."""
    kept: dict[str, FloatArray] = {}
    rounded = roundings._logits

    def logits(model: Model, faces: Uint8Array, batch: int) -> FloatArray:
        key = f"{digest(model)} {digest(faces)} {batch}"
        if key not in kept:
            kept[key] = rounded(model, faces, batch)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roundings, "_logits", logits)
        yield


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_right_file_passes(bench: Bench, precision: Precision) -> None:
    candidate = bench.candidates[precision]
    found = bench.judge(precision, candidate.content, candidate.model)
    assert found.parity.passed, found.parity.failures


# What the graph alone shows is the same in all precisions: each such fault takes its turn in one of them.
_SHOWN_BY_THE_GRAPH = ("container", "operators", "face by face", "contract", "opset", "weights")
_CASES = [
    (fault, precision, check)
    for number, (fault, precisions, check) in enumerate(FAULTS)
    for precision in ((precisions[number % len(precisions)],) if check in _SHOWN_BY_THE_GRAPH else precisions)
]


@pytest.mark.parametrize(
    ("fault", "precision", "found_by"),
    _CASES,
    ids=[f"{fault.__name__}-{precision}-{by}" for fault, precision, by in _CASES],
)
def test_a_planted_fault_is_found(bench: Bench, fault: Fault, precision: Precision, found_by: str) -> None:
    candidate = bench.candidates[precision]
    model = onnx.ModelProto()
    model.CopyFrom(candidate.model)
    fault(model)
    content = serialize(
        model, bench.subject.metadata(precision, candidate.model, candidate.calibration, candidate.point)
    )
    with few_runs(batches=None if found_by == "batch" else (2, 13, 64)):
        judged = bench.judge(precision, content, model)
    assert found_by in [check.name for check in judged.parity.failures], judged.parity.failures


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_infinite_numbers_are_told_by_checks_and_not_by_numpy(bench: Bench, precision: Precision) -> None:
    candidate = bench.candidates[precision]
    model = onnx.ModelProto()
    model.CopyFrom(candidate.model)
    infinite_weight(model)
    content = serialize(model, bench.subject.metadata(precision, model, candidate.calibration, candidate.point))
    with few_runs(), warnings.catch_warnings():
        warnings.simplefilter("error")
        judged = bench.judge(precision, content, model)
    assert {"weights", "finite", "logits"} <= {check.name for check in judged.parity.failures}


def test_a_threshold_that_was_not_fitted_is_found(bench: Bench) -> None:
    candidate = bench.candidates["int8"]
    assert candidate.point is not None
    other = dataclasses.replace(candidate.point, unfamiliar_above=candidate.point.unfamiliar_above + 1)
    metadata = bench.subject.metadata("int8", candidate.model, candidate.calibration, other)
    with few_runs():
        judged = bench.judge("int8", serialize(candidate.model, metadata), candidate.model)
    assert [check.name for check in judged.parity.failures] == ["unfamiliar"]


def test_there_are_at_least_forty_kinds() -> None:
    assert len({fault for fault, _, _ in FAULTS}) >= 40


@pytest.mark.parametrize("lie", LIES)
def test_what_a_file_says_of_itself_is_compared(bench: Bench, lie: str) -> None:
    tell, found_by_check = LIES[lie]
    candidate = bench.candidates["int8"]
    metadata = bench.subject.metadata("int8", candidate.model, candidate.calibration, candidate.point)
    if metadata.uncertain_below is None and lie == "no threshold":  # so few faces give none: then one is the lie
        tell = LIES["threshold upside down"][0]
    with few_runs():
        judged = bench.judge("int8", serialize(candidate.model, tell(metadata)), candidate.model)
    assert found_by_check in [check.name for check in judged.parity.failures]


@pytest.mark.parametrize(
    ("precision", "changes", "check"),
    [
        ("int8", {"fault": all_weight_scales}, "int8 weights"),
        ("int8", {"fault": batches_of_13_to_63}, "batch"),
        ("fp32", {"fault": one_class_alone}, "logits"),
        ("fp16", {"lie": LIES["threshold upside down"][0]}, "fitted"),
    ],
)
def test_a_fault_does_not_come_through_the_whole_export(
    precision: Precision,
    changes: dict[str, Any],
    check: str,
    trained_narrow: Checkpoint,
    dataset: Path,
    kept: Kept,
    tmp_path: Path,
) -> None:
    """`python -m tests.export.planted` does this with the real v0 and all faults."""
    save_checkpoint(tmp_path / "narrow.pth", trained_narrow)
    with exporting_once(kept), planted(precision, **changes):
        found = found_by("narrow", ExportOptions(precisions=(precision,), data=dataset, models_dir=tmp_path))
    assert check in found
    assert not list(tmp_path.glob("*.onnx"))


def test_what_is_written_is_what_was_judged(
    trained_narrow: Checkpoint, dataset: Path, kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault between the gate and the disk: the replay alone would pass, for its certificate has the fault as well."""
    save_checkpoint(tmp_path / "narrow.pth", trained_narrow)

    def serialize_with_a_fault(model: Model, metadata: ModelMetadata) -> bytes:
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        all_weight_scales(changed)
        return serialize(changed, metadata)

    monkeypatch.setattr(publish, "serialize", serialize_with_a_fault)
    with exporting_once(kept), pytest.raises(ParityError, match="the graph of the file to write differs"):
        export_model("narrow", ExportOptions(precisions=("fp32",), data=dataset, models_dir=tmp_path))
    assert not list(tmp_path.glob("*.onnx"))
