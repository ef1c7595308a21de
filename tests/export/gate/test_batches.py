"""Files of a fixed batch: right ones pass, and answers that depend on neighbours, places or calls do not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests.export import faults

from fer_export.fp16 import halve_model
from fer_export.gate.batches import fixed_batch_checks
from fer_export.gate.original import original_of
from fer_export.gate.parity import FileSpec, check_parity
from fer_export.graph import fix_batch
from fer_runtime.model.parity import Uint8Array
from fer_train.checkpoints import Checkpoint


@pytest.fixture(scope="module")
def faces() -> Uint8Array:
    return np.random.default_rng(3).integers(0, 256, (60, 48, 48)).astype(np.uint8)


def _failed(model: onnx.ModelProto, faces: Uint8Array, batch: int, precision: str = "fp32") -> list[str]:
    content = fix_batch(model, batch).SerializeToString()
    return [
        check.name for check in fixed_batch_checks(content, faces, precision=precision, batch=batch) if not check.passed
    ]


@pytest.mark.parametrize("batch", [1, 2, 7, 64, 200])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_right_file_passes(narrow_content: bytes, faces: Uint8Array, batch: int, precision: str) -> None:
    model = onnx.load_model_from_string(narrow_content)
    assert _failed(halve_model(model) if precision == "fp16" else model, faces, batch, precision) == []


@pytest.mark.parametrize(
    ("fault", "batch", "check"),
    [
        (faults.mean_of_the_batch, 4, "batch"),
        (faults.the_face_before, 4, "batch"),
        (faults.second_place_of_a_batch, 4, "batch"),
        (faults.faces_exchanged, 4, "batch"),
        (faults.faces_exchanged, 2, "batch"),
        (faults.faces_mixed_by_a_reshape, 8, "batch"),
        (faults.mean_of_the_batch, 64, "batch"),
        (faults.random_logits, 1, "repeat"),
        (faults.random_logits, 4, "repeat"),
        (faults.another_answer_at_each_call, 1, "batch"),
        (faults.another_answer_at_each_call, 1, "repeat"),
        (faults.another_answer_at_each_call, 7, "repeat"),
        (faults.dropout_in_training_mode, 1, "repeat"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_fault_is_found(
    narrow_content: bytes, faces: Uint8Array, fault: faults.Fault, batch: int, check: str
) -> None:
    model = onnx.load_model_from_string(narrow_content)
    fault(model)
    assert check in _failed(model, faces, batch)


def test_the_gate_runs_both_on_a_fixed_batch(
    narrow_content: bytes, trained_narrow: Checkpoint, faces: Uint8Array
) -> None:
    model = onnx.load_model_from_string(narrow_content)
    faults.the_face_before(model)
    report = check_parity(
        fix_batch(model, 4).SerializeToString(),
        FileSpec(original=original_of(trained_narrow), temperature=1.6, batch=4),
        faces,
    )
    found = {check.name: check.passed for check in report.checks}
    assert (found["batch"], found["repeat"]) == (False, True)
