"""Accuracy against raters' votes, with values worked by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tests.benchmarks.test_robustness import write_band_pictures
from tests.runtime.tiny_models import write_band_model

from fer_bench.cli import main
from fer_bench.raters import measure_raters
from fer_runtime.expressions import EXPRESSIONS

# Columns: the seven expressions, then votes for none of them.
VOTES = np.array(
    [
        [10, 0, 0, 0, 0, 0, 0, 0],  # all say angry
        [0, 0, 0, 6, 4, 0, 0, 0],  # a majority says happy
        [0, 0, 0, 0, 5, 5, 0, 0],  # no majority: neutral and sad have as many votes
        [0, 0, 0, 0, 2, 0, 0, 8],  # most see none of the seven
    ],
    np.float32,
)


def _probabilities(*classes: str) -> np.ndarray:
    """0.7 for each image's class and 0.05 for the others."""
    found = np.full((len(classes), 7), 0.05, np.float32)
    for row, name in enumerate(classes):
        found[row, EXPRESSIONS.index(name)] = 0.7
    return found


def test_figures_are_those_worked_by_hand() -> None:
    found = measure_raters(_probabilities("angry", "neutral", "sad", "fear"), VOTES, EXPRESSIONS, resamples=20)
    assert (found.images, found.majority_images) == (3, 2)  # the last image's votes name no class
    assert found.majority_accuracy.value == pytest.approx(1 / 2)  # angry is right, happy is missed
    assert found.plurality_accuracy.value == pytest.approx(2 / 3)  # sad is as good as neutral
    assert found.agreement.value == pytest.approx((1.0 + 0.4 + 0.5) / 3)
    assert found.best_agreement == pytest.approx((1.0 + 0.6 + 0.5) / 3)
    high, low = -math.log(0.7), -math.log(0.05)
    by_hand = (high + (0.6 * low + 0.4 * high) + (0.5 * low + 0.5 * high)) / 3
    assert found.cross_entropy.value == pytest.approx(by_hand, rel=1e-5)  # float32 probabilities
    assert found.per_class_recall["angry"].value == 1
    assert found.per_class_recall["happy"].value == 0
    for interval in (found.majority_accuracy, found.agreement, found.cross_entropy):
        assert interval.low <= interval.value <= interval.high


def test_few_images_that_are_all_right_prove_little() -> None:
    found = measure_raters(_probabilities("angry", "happy"), VOTES[:2], EXPRESSIONS, resamples=20)
    low = 2 / (2 + 1.959964**2)  # of Wilson's interval
    for share in (found.majority_accuracy, found.plurality_accuracy):
        assert (share.value, share.low, share.high) == pytest.approx((1, low, 1))
    wrong = measure_raters(_probabilities("sad", "sad"), VOTES[:2], EXPRESSIONS, resamples=20)
    assert wrong.majority_accuracy.to_list() == pytest.approx([0, 1 - low])
    # Angry and happy have one image each, and are the only classes that it is the mean of.
    assert wrong.mean_recall.to_list() == pytest.approx([0, 1 - 1 / (1 + 1.959964**2)])


def test_the_command_prints_and_stores_both_yardsticks(tmp_path: Path) -> None:
    model, data = write_band_model(tmp_path / "bands.onnx"), write_band_pictures(tmp_path / "data")
    votes, output = tmp_path / "votes.csv", tmp_path / "accuracy.json"
    root = next(path for path in (data / "images" / "validation", data / "validation", data) if path.is_dir())
    rows = []
    for path in sorted(root.rglob("*.png")):
        # Raters see happy wherever the label is sad.
        seen = "happy" if path.parent.name == "sad" else path.parent.name
        counts = ["10" if name == seen else "0" for name in EXPRESSIONS]
        rows.append(",".join([f"{root.name}/{path.relative_to(root).as_posix()}", *counts]))
    votes.write_text("\n".join([",".join(["image", *EXPRESSIONS]), *rows]))
    arguments = ["accuracy", "--model", str(model), "--data", str(data), "--votes", str(votes), "--json", str(output)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "14 images, 14 of them with a strict majority" in result.stdout
    (row,) = json.loads(output.read_text())["results"]
    assert row["accuracy"] == 1
    assert row["votes"]["majority_accuracy"] == pytest.approx(12 / 14)
    assert row["votes"]["per_class_recall"]["happy"] == pytest.approx(1 / 2)


def test_votes_for_other_images_are_an_error(tmp_path: Path) -> None:
    model, data = write_band_model(tmp_path / "bands.onnx"), write_band_pictures(tmp_path / "data")
    votes = tmp_path / "votes.csv"
    votes.write_text(",".join(["image", *EXPRESSIONS]) + "\nvalidation/x/y.png,1,0,0,0,0,0,0\n")
    result = CliRunner().invoke(main, ["accuracy", "--model", str(model), "--data", str(data), "--votes", str(votes)])
    assert result.exit_code == 1
    assert "has no row for any" in result.stderr


def test_votes_without_a_majority_are_an_error_of_one_line(tmp_path: Path) -> None:
    model, root = write_band_model(tmp_path / "bands.onnx"), write_band_pictures(tmp_path / "validation")
    path = next(root.rglob("*.png")).relative_to(root).as_posix()
    votes = tmp_path / "votes.csv"
    votes.write_text(",".join(["image", *EXPRESSIONS]) + f"\nvalidation/{path},5,5,0,0,0,0,0\n")
    result = CliRunner().invoke(main, ["reasons", "--model", str(model), "--data", str(root), "--votes", str(votes)])
    assert result.exit_code == 1
    assert "Error: no image of" in result.stderr
    assert "has a strict majority of the votes in" in result.stderr


def test_robustness_takes_the_raters_majorities_as_labels(tmp_path: Path) -> None:
    # The model gets every folder's label right. Raters see happy in "sad", and do not agree on "fear".
    model, root = write_band_model(tmp_path / "bands.onnx"), write_band_pictures(tmp_path / "validation")
    votes, output = tmp_path / "votes.csv", tmp_path / "r.json"
    rows = []
    for path in sorted(root.rglob("*.png")):
        seen = {"sad": ("happy", 10), "fear": ("fear", 5)}.get(path.parent.name, (path.parent.name, 6))
        other = "neutral" if seen[0] != "neutral" else "angry"
        counts = dict.fromkeys(EXPRESSIONS, 0) | {seen[0]: seen[1], other: 10 - seen[1]}
        rows.append(",".join([f"validation/{path.relative_to(root).as_posix()}", *map(str, counts.values())]))
    votes.write_text("\n".join([",".join(["image", *EXPRESSIONS]), *rows]))
    arguments = ["robustness", "--model", str(model), "--data", str(root), "--condition", "rotation"]
    result = CliRunner().invoke(main, [*arguments, "--votes", str(votes), "--json", str(output)])
    assert result.exit_code == 0, result.output
    assert "12 of 12 images" in result.stdout
    content = json.loads(output.read_text())
    assert (content["faces"], content["votes"]) == (12, str(votes))
    neutral = next(row for row in content["results"] if row["level"] == 0)
    assert neutral["accuracy"] == pytest.approx(10 / 12)
