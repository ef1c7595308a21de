"""The comparison's figures, worked by hand, and a good file's way through the gate."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from tests.export.conftest import TEMPERATURE

from fer_export.gate.golden import synthetic_faces
from fer_export.gate.original import original_of
from fer_export.gate.parity import FileSpec, as_outputs, check_parity
from fer_runtime.model.parity import Outputs, Tolerance, compare_outputs, softmax, worst_of
from fer_train.checkpoints import Checkpoint


def _outputs(*rows: list[float]) -> Outputs:
    logits = np.array(rows, np.float32)
    return Outputs(logits=logits, probabilities=softmax(logits))


def test_differences_worked_by_hand() -> None:
    found = compare_outputs(_outputs([0.0, 3.0], [1.0, 1.0005]), _outputs([0.0, 2.0], [1.0, 0.6]), margin=1e-3)
    assert found.max_logit_difference == pytest.approx(1.0)
    assert found.max_relative_difference == pytest.approx(1 / 4)  # 1 over 1 + |3|; the other is 0.4005 over 2.0005
    # The second face flips, but its margin is half a thousandth: a tie.
    assert (found.top1_flips, found.top1_flips_beyond_margin) == (1, 0)


def test_nan_fails_every_limit() -> None:
    found = compare_outputs(_outputs([0.0, 3.0]), _outputs([0.0, float("nan")]))
    assert found.not_finite > 0
    assert {"finite", "logits", "probabilities"} <= set(found.failures(Tolerance()))
    assert found.to_dict()["max_logit_difference"] is None  # JSON has no NaN
    same = _outputs([0.0, 3.0])
    assert np.isnan(worst_of([compare_outputs(same, same), found]).max_logit_difference)


def test_one_face_is_not_broadcast_over_many() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(1, 2\)"):
        compare_outputs(_outputs([0.0, 1.0], [0.0, 1.0]), _outputs([0.0, 1.0]))


def test_a_good_file_passes_every_check(narrow_content: bytes, trained_narrow: Checkpoint) -> None:
    report = check_parity(
        narrow_content,
        FileSpec(original=original_of(trained_narrow), temperature=TEMPERATURE, opset=18),
        synthetic_faces(),
    )
    assert report.passed, report.failures
    assert report.outputs is not None
    assert report.outputs.logits.shape == (16, 7)


def test_reference_probabilities_are_pytorchs(trained_narrow: Checkpoint) -> None:
    outputs = as_outputs(original_of(trained_narrow).logits(synthetic_faces()), TEMPERATURE)
    # Softmax of seven float32 numbers by two libraries: a few epsilons of 6e-8.
    assert np.allclose(softmax(outputs.logits, temperature=TEMPERATURE), outputs.probabilities, atol=1e-6)


def test_infinite_logits_have_no_probabilities_and_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(softmax(np.array([[np.inf, 0.0]], np.float32))).all()


def test_synthetic_faces_are_the_same_everywhere() -> None:
    faces = synthetic_faces()
    assert faces.shape == (16, 48, 48)
    assert faces[0].max() == 0
    assert faces[1].min() == 255
    assert (faces[3] > 0).sum() == 1  # one pixel
    assert int(faces.astype(np.int64).sum()) == int(synthetic_faces().astype(np.int64).sum())
