"""Temperatures and thresholds that are known beforehand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from fer_export.gate.calibration import (
    Calibration,
    added_by_chance,
    calibrate,
    calibration_check,
    fit_temperature,
    reject_threshold,
)
from fer_export.gate.original import Original
from fer_export.gate.subject import kept_calibration
from fer_export.places import metadata_of
from fer_runtime.metrics import expected_calibration_error
from fer_runtime.model.certificate import parse_certificate
from fer_runtime.model.find import packaged_models_dir
from fer_runtime.model.parity import FloatArray, softmax


def _labelled(temperature: float, faces: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from softmax(logits / temperature): calibrated at exactly that temperature."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (faces, 7)).astype(np.float32)
    shares = softmax(logits, temperature=temperature).astype(np.float64)
    labels = (shares.cumsum(1) < random.uniform(size=(faces, 1))).sum(1).clip(0, 6)
    return logits, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    # The standard error of a fit on 20,000 faces is about 1 %.
    assert fit_temperature(*_labelled(temperature)) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("faces", [2, 13, 1000])
def test_few_answers_that_are_all_right_make_no_model_certain(faces: int) -> None:
    """The rule of succession by hand: 1 / (1 + exp(-2 / T)) = (n + 1) / (n + 2) has the solution T = 2 / ln(n + 1)."""
    logits = np.tile(np.array([[2, 0]], np.float32), (faces, 1))
    assert fit_temperature(logits, np.zeros(faces, np.int64)) == pytest.approx(2 / math.log(faces + 1), rel=1e-3)


def test_overconfident_logits_are_calibrated() -> None:
    logits, labels = _labelled(2.5)
    found = calibrate(logits, labels)
    correct = logits.argmax(1) == labels
    assert found.ece_before == pytest.approx(expected_calibration_error(softmax(logits).max(1), correct), abs=1e-6)
    assert found.ece_before is not None
    assert found.ece_after is not None
    assert found.ece_before > 0.1
    assert found.ece_after < 0.02
    assert found.precision is not None
    assert found.precision_interval is not None
    # Cross-fitted: the threshold of one half on the other half, with the standard error of 10,000 faces.
    assert found.precision == pytest.approx(0.8, abs=0.02)
    assert found.precision_interval[0] < found.precision < found.precision_interval[1]


def test_the_threshold_keeps_as_many_as_it_may() -> None:
    # 200 faces at 0.9 of which 180 are right, 200 at 0.6 of which 140 are right, 200 at 0.3, none right.
    confidences = np.repeat([0.9, 0.6, 0.3], 200)
    correct = np.concatenate([np.arange(200) < 180, np.arange(200) < 140, np.zeros(200, bool)])
    # Down to 0.6: 320 of 400 right, exactly 80 %; below, fewer.
    # The lowest threshold on the stored grid is the first above 0.3.
    assert reject_threshold(confidences, correct, precision=0.8) == (0.301, 0.8, 0.666667)
    assert reject_threshold(confidences, correct, precision=0.85) == (0.601, 0.9, 0.333333)
    assert reject_threshold(confidences, correct, precision=0.95) == (None, None, None)


def test_no_threshold_separates_equal_confidences() -> None:
    confidences = np.full(300, 0.7)
    correct = np.concatenate([np.ones(250, bool), np.zeros(50, bool)])
    # The first 250 in order are all right; a threshold keeps all 300 or none.
    assert reject_threshold(confidences, correct, precision=0.9) == (None, None, None)
    assert reject_threshold(confidences, correct, precision=0.8) == (0.001, 0.833333, 1.0)


def test_with_raters_shares_probabilities_come_to_mean_shares() -> None:
    # Raters drawn from the softmax of the logits at temperature 2: each face has 50 of them.
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (2000, 7)).astype(np.float32)
    shares = np.stack([random.multinomial(50, row) / 50 for row in softmax(logits, temperature=2.0).astype(np.float64)])
    found = calibrate(logits, shares.astype(np.float32), labels_from="raters")
    assert found.temperature == pytest.approx(2.0, rel=0.03)
    assert found.ece_after is not None
    assert found.ece_after < 0.02
    # At or above the threshold, four of five raters agree with the answer on average; below it some do not.
    assert found.precision == pytest.approx(0.8, abs=0.02)
    assert found.coverage is not None
    assert 0.05 < found.coverage < 0.9


def _two_files(faces: int, seed: int) -> tuple[Calibration, Calibration]:
    """fp32 and int8 of a calibrated network on faces of their own: rounding moves each logit by 2 % of the spread."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (faces, 7)).astype(np.float32)
    shares = softmax(logits).astype(np.float64)
    labels = (shares.cumsum(1) < random.uniform(size=(faces, 1))).sum(1).clip(0, 6)
    rounded = logits + random.normal(0, 0.04, logits.shape).astype(np.float32)
    return calibrate(logits, labels), calibrate(rounded, labels)


def test_chance_refuses_few_faces_no_oftener_than_one_in_a_hundred() -> None:
    pairs = [_two_files(60, seed) for seed in range(100)]
    # Two points alone refuse every tenth of these right files.
    assert sum(int8.ece_after > fp32.ece_after + 0.02 for fp32, int8 in pairs) >= 5  # type: ignore[operator]
    assert sum(not calibration_check(int8, fp32).passed for fp32, int8 in pairs) <= 3  # P(more) is 2 % at 1 in 100


def test_a_file_that_is_too_sure_is_not_excused_by_few_faces() -> None:
    fp32, int8 = _two_files(60, 0)
    assert fp32.answers is not None
    confidences, correct = fp32.answers
    too_sure = 1 - (1 - confidences) / 4
    added = float((too_sure - confidences).mean())
    assert added > 0.2
    assert fp32.ece_after is not None
    sure = dataclasses.replace(int8, ece_after=fp32.ece_after + added, answers=(too_sure, correct))
    check = calibration_check(sure, fp32)
    assert not check.passed
    assert "calibration error" in check.detail


def test_equal_files_differ_by_nothing_and_many_faces_by_less_than_two_points() -> None:
    fp32, int8 = _two_files(3600, 2)
    assert fp32.answers is not None
    assert int8.answers is not None
    assert added_by_chance(fp32.answers, fp32.answers) == 0
    assert added_by_chance(int8.answers, fp32.answers) < 0.01


def test_a_calibration_is_kept_only_by_what_computes_the_same() -> None:
    """The same weights with another order of labels or range of pixels have other answers."""
    path = packaged_models_dir() / "model_0.onnx"
    metadata = metadata_of(path)
    assert metadata is not None
    certificate = parse_certificate(metadata, source=str(path))

    def kept(logits: FloatArray, *, sha256: str = metadata.checkpoint_sha256) -> int:
        original = Original(name="v0", labels=metadata.labels, logits=lambda _: logits)
        return kept_calibration(original, sha256, path.parent, "v0").faces

    assert kept(certificate.network_logits) == metadata.calibration["faces"] > 0
    assert kept(certificate.network_logits[:, ::-1]) == 0
    assert kept(certificate.network_logits * np.float32(1.01)) == 0
    assert kept(certificate.network_logits, sha256="0" * 64) == 0
