"""Both trainings side by side, from results files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from fer_bench.cli import main
from fer_bench.report.show import draw_trainings, read_trainings
from fer_runtime.errors import DataError, OutputError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.model.find import results_path


def write_results(folder: Path, model: str, **changes: Any) -> Path:
    """A results file as fer-train writes it: fear is found 2 times in 10, everything else 8 times."""
    confusion = np.full((7, 7), 0)
    np.fill_diagonal(confusion, 8)
    confusion[:, 0] += 2
    confusion[2] = [8, 0, 2, 0, 0, 0, 0]
    content = {
        "model": model,
        "recipe": "first",
        "best_epoch": 3,
        "accuracy": 0.714,
        "macro_f1": 0.7,
        "train_loss": [1.9, 1.5, 1.2, 1.1],
        "test_loss": [1.8, 1.4, 1.3, 1.35],
        "train_acc": [0.2, 0.4, 0.6, 0.65],
        "test_acc": [0.25, 0.5, 0.714, 0.7],
        "expressions": list(EXPRESSIONS),
        "confusion": confusion.tolist(),
        "per_class_recall": {name: 0.2 if name == "fear" else 0.8 for name in EXPRESSIONS},
    } | changes
    path = results_path(folder, model)
    path.write_text(json.dumps(content))
    return path


def test_both_models_stand_side_by_side(tmp_path: Path) -> None:
    write_results(tmp_path, "v0")
    draw_trainings(read_trainings(tmp_path), tmp_path / "one.png")
    write_results(tmp_path, "v1")
    trainings = read_trainings(tmp_path)
    assert [one.model for one in trainings] == ["v0", "v1"]
    draw_trainings(trainings, tmp_path / "two.png")
    one, two = (cv2.imread(str(tmp_path / name)) for name in ("one.png", "two.png"))
    assert one is not None
    assert two is not None
    assert two.shape[1] == pytest.approx(2 * one.shape[1], abs=2)
    assert two.shape[0] == one.shape[0]
    # v0 is drawn in blue and v1 in orange: the halves are not the same picture.
    assert not np.array_equal(two[:, : one.shape[1] - 10], two[:, -one.shape[1] + 10 :])


def test_the_picture_says_what_the_file_says(tmp_path: Path) -> None:
    write_results(tmp_path, "v0")
    draw_trainings(read_trainings(tmp_path), tmp_path / "t.svg")
    text = (tmp_path / "t.svg").read_text()
    for words in ("v0: 71.4% accuracy", "kept: epoch 3, 71.4%", "kept: epoch 3, 1.300", "surprise"):
        assert words in text


def test_the_command_prints_the_hardest_expression(tmp_path: Path) -> None:
    write_results(tmp_path, "v0")
    result = CliRunner().invoke(main, ["show", str(tmp_path), "--output", str(tmp_path / "t.png")])
    assert result.exit_code == 0, result.output
    assert "3 of 4" in result.stdout
    assert "fear (20% found)" in result.stdout
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_results_names_the_files_and_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model_0_results.json nor .*model_v3_results.json; .*fer-train --model v0"):
        read_trainings(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"test_acc": [0.5]}, "not equally many"),
        ({"confusion": [[1, 2], [3, 4]]}, r"\(2, 2\)"),
        ({"best_epoch": None}, "NoneType"),
    ],
)
def test_a_file_that_is_no_results_file_is_named(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = write_results(tmp_path, "v1", **changes)
    with pytest.raises(DataError, match=reason) as raised:
        read_trainings(tmp_path)
    assert str(path) in str(raised.value)


def test_broken_json_is_named(tmp_path: Path) -> None:
    results_path(tmp_path, "v0").write_text("{")
    with pytest.raises(DataError, match=r"model_0_results.json is no results file"):
        read_trainings(tmp_path)


def test_a_suffix_that_is_no_picture_is_an_error(tmp_path: Path) -> None:
    write_results(tmp_path, "v0")
    with pytest.raises(OutputError, match=r"\.png, \.svg, \.pdf"):
        draw_trainings(read_trainings(tmp_path), tmp_path / "t.docx")
