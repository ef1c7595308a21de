"""Each way of degrading a face against what it should do, and accuracy under it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from tests.runtime.tiny_models import band_face, write_band_model

from fer_bench.cli import main
from fer_bench.report import commands as report_commands
from fer_bench.robustness import (
    CONDITION_NAMES,
    CONDITIONS,
    DEFAULT_FACES,
    RobustnessPoint,
    clean_accuracy,
    degrade_faces,
    find_reach,
    find_reaches,
    measure_robustness,
    sample_indices,
)
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.recognizer import Recognizer

BY_NAME = {condition.name: condition for condition in CONDITIONS}


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    """Smooth random faces, uint8 (5, 48, 48)."""
    random = np.random.default_rng(7)
    small = random.integers(0, 256, (5, 9, 9), np.uint8)
    return np.stack([cv2.resize(face, (48, 48), interpolation=cv2.INTER_CUBIC) for face in small])


@pytest.mark.parametrize(
    "condition",
    [condition for condition in CONDITIONS if condition.neutral is not None],
    ids=lambda condition: condition.name,
)
def test_the_neutral_level_leaves_faces_as_they_are(condition: object, faces: np.ndarray) -> None:
    degradation = BY_NAME[condition.name]  # type: ignore[attr-defined]
    assert degradation.neutral in degradation.levels
    assert np.array_equal(degrade_faces(faces, degradation, degradation.neutral or 0), faces)


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name)
def test_every_other_level_changes_them_and_keeps_their_shape(condition: object, faces: np.ndarray) -> None:
    degradation = BY_NAME[condition.name]  # type: ignore[attr-defined]
    for level in degradation.levels:
        if level != degradation.neutral:
            degraded = degrade_faces(faces, degradation, level)
            assert degraded.shape == faces.shape
            assert degraded.dtype == np.uint8
            assert not np.array_equal(degraded, faces)


def test_rotation_is_clockwise(faces: np.ndarray) -> None:
    turned = degrade_faces(faces, BY_NAME["rotation"], 90)
    expected = np.rot90(faces, k=-1, axes=(1, 2))  # numpy counts counter-clockwise
    assert np.abs(turned.astype(int) - expected).max() <= 1  # the rotation's sine and cosine are rounded


def test_a_shift_moves_a_spot_by_its_share_of_the_side() -> None:
    spot = np.zeros((20, 48, 48), np.uint8)
    spot[:, 22:26, 22:26] = 240
    moved = degrade_faces(spot, BY_NAME["shift"], 25).astype(float)
    rows, columns = np.mgrid[0:48, 0:48]
    weights = moved.sum((1, 2))
    y, x = (moved * rows).sum((1, 2)) / weights, (moved * columns).sum((1, 2)) / weights
    distances = np.hypot(y - 23.5, x - 23.5)
    assert distances == pytest.approx(np.full(20, 12.0), abs=0.1)  # a quarter of 48
    assert len(set(np.round(x, 1))) > 10  # each face in a direction of its own


def test_a_wider_crop_shows_the_face_smaller() -> None:
    face = np.zeros((1, 48, 48), np.uint8)
    face[:, 12:36, 12:36] = 200
    # 25 % at each edge make 72 pixels of 48, so 24 pixels become 16.
    wider = degrade_faces(face, BY_NAME["crop_margin"], 25)[0]
    assert (wider > 100).sum() == 16 * 16
    # -25 % leave the inner 24 pixels.
    assert degrade_faces(face, BY_NAME["crop_margin"], -25)[0].min() == 200


def test_a_stop_doubles_the_light() -> None:
    gray = np.full((1, 48, 48), 100, np.uint8)
    # 100 * 2 ** (1 / 2.2) = 137.04 and 100 / 2 ** (2 / 2.2) = 53.25; 2 stops over 200 are clipped.
    assert degrade_faces(gray, BY_NAME["brightness"], 1).max() == 137
    assert degrade_faces(gray, BY_NAME["brightness"], -2).min() == 53
    assert degrade_faces(gray + 100, BY_NAME["brightness"], 2).min() == 255


def test_noise_has_the_deviation_that_is_asked_for() -> None:
    gray = np.full((40, 48, 48), 128, np.uint8)
    noise = degrade_faces(gray, BY_NAME["noise"], 20).astype(float) - 128
    assert noise.mean() == pytest.approx(0, abs=0.3)  # 4 standard errors of 92,160 pixels
    assert noise.std() == pytest.approx(20, abs=0.2)


def test_blur_has_the_deviation_that_is_asked_for() -> None:
    face = np.zeros((1, 48, 48), np.uint8)
    face[0, :, 24:] = 250  # an edge blurred by a Gaussian is its cumulative distribution
    row = degrade_faces(face, BY_NAME["blur"], 3)[0, 24].astype(float) / 250
    slope = np.diff(row)
    centre = (slope * np.arange(47)).sum() / slope.sum()
    assert np.sqrt((slope * (np.arange(47) - centre) ** 2).sum() / slope.sum()) == pytest.approx(3, abs=0.15)


def test_a_small_face_loses_what_its_pixels_cannot_hold() -> None:
    checks = (np.indices((48, 48)).sum(0) % 2 * 255).astype(np.uint8)[None]
    halved = degrade_faces(checks, BY_NAME["size"], 24)
    assert set(np.unique(halved)) <= {127, 128}


def test_lower_jpeg_quality_strays_further(faces: np.ndarray) -> None:
    levels = BY_NAME["jpeg_quality"].levels
    errors = [
        np.abs(degrade_faces(faces, BY_NAME["jpeg_quality"], level).astype(int) - faces).mean() for level in levels
    ]
    assert list(levels) == sorted(levels, reverse=True)
    assert errors == sorted(errors)


@pytest.mark.parametrize("name", ["shift", "noise"])
def test_a_seed_decides_every_random_number(name: str, faces: np.ndarray) -> None:
    level = BY_NAME[name].levels[-1]
    first, again, other = (degrade_faces(faces, BY_NAME[name], level, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_sample_keeps_the_shares_of_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    chosen = sample_indices(labels, 101)
    # 60.6, 30.3 and 10.1: the largest remainder takes the face that is left over.
    assert np.bincount(labels[chosen]).tolist() == [61, 30, 10]
    assert len(set(chosen)) == 101
    assert np.array_equal(chosen, sample_indices(labels, 101))
    assert not np.array_equal(chosen, sample_indices(labels, 101, seed=1))
    assert len(sample_indices(labels, 5000)) == 1000
    with pytest.raises(ValueError, match="0"):
        sample_indices(labels, 0)


def test_reach_lies_where_a_tenth_is_lost() -> None:
    # 0.9 * 0.6 = 0.54 lies halfway between 0.58 and 0.50, and halfway between 0.60 and 0.48.
    below, above = find_reach([-20, -10, 0, 10, 20], [0.3, 0.48, 0.6, 0.58, 0.5], neutral=0, reference=0.6)
    assert below == pytest.approx(-5)
    assert above == pytest.approx(15)
    assert find_reach([0, 10], [0.6, 0.59], neutral=0, reference=0.6) == (None, None)


def _rotated_band_points(tmp_path: Path) -> list[RobustnessPoint]:
    faces = np.stack([band_face(expression) for expression in range(7)])
    condition = replace(BY_NAME["rotation"], levels=(0, 180))
    with Recognizer(write_band_model(tmp_path / "bands.onnx")) as recognizer:
        return measure_robustness({("v0", "fp32"): recognizer.classify}, faces, np.arange(7), conditions=[condition])


def test_accuracy_is_that_of_the_degraded_faces(tmp_path: Path) -> None:
    points = _rotated_band_points(tmp_path)
    # Upside down the first band is the last one: only the middle one of seven stays where it was.
    assert [(point.level, point.accuracy) for point in points] == [(0, 1.0), (180, pytest.approx(1 / 7))]
    assert clean_accuracy(points) == 1.0
    (reach,) = find_reaches(points, reference=1.0)
    assert reach.below is None
    assert reach.above == pytest.approx(180 * 0.1 / (6 / 7))


def test_faces_and_labels_must_be_equally_many() -> None:
    with pytest.raises(ValueError, match="3 faces and 2 labels"):
        measure_robustness({}, np.zeros((3, 48, 48), np.uint8), np.zeros(2, np.int64))


def write_band_pictures(root: Path, *, each: int = 2) -> Path:
    """Pictures that the band model gets right, as a folder of class folders."""
    for index, name in enumerate(EXPRESSIONS):
        (root / name).mkdir(parents=True)
        for number in range(each):
            cv2.imwrite(str(root / name / f"{number}.png"), band_face(index))
    return root


def test_the_command_prints_and_writes_the_same_figures(tmp_path: Path) -> None:
    model, data = write_band_model(tmp_path / "bands.onnx"), write_band_pictures(tmp_path / "data")
    written = tmp_path / "r.json"
    arguments = ["robustness", "--model", str(model), "--data", str(data), "--condition", "rotation"]
    result = CliRunner().invoke(main, [*arguments, "--json", str(written)])
    assert result.exit_code == 0, result.output
    content = json.loads(written.read_text())
    assert content["faces"] == 14
    neutral = next(row for row in content["results"] if row["level"] == 0)
    assert neutral["accuracy"] == 1.0
    assert "Rotation (degrees clockwise)" in result.stdout
    assert "100.0" in result.stdout


def test_the_command_knows_every_condition() -> None:
    assert report_commands.CONDITION_NAMES == CONDITION_NAMES
    assert report_commands.DEFAULT_FACES == DEFAULT_FACES


def test_the_shipped_model_is_hurt_by_what_hides_a_face(real_data: Path) -> None:
    from fer_bench.report.measure import measure_robustness_of

    conditions = [replace(BY_NAME["blur"], levels=(0, 4)), replace(BY_NAME["shift"], levels=(0, 4))]
    measured = measure_robustness_of(real_data, models=["v0"], precisions=["fp32"], conditions=conditions, count=400)
    clean, blurred, unshifted, shifted = (point.accuracy for point in measured.points)
    assert clean == unshifted
    assert clean > 0.45  # far above guessing
    assert blurred < clean - 0.15
    assert abs(shifted - clean) < 0.06  # two pixels of 48
