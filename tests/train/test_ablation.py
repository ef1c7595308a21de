"""The study of the recipe's ingredients, on made-up pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.train.pictures import write_pictures

from fer_train import ablation
from fer_train.recipes import RECIPES


def test_every_row_changes_something_of_the_best_recipe() -> None:
    best = RECIPES["best"]["v0"]
    seen = []
    for _, settings in ablation.ROWS:
        recipe = best
        for setting in settings:
            recipe = recipe.with_setting(setting)
        seen.append(recipe)
    assert seen[0] == best
    assert len(set(seen)) == len(seen)


def test_rows_are_trained_once_and_read_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    write_pictures(data)
    monkeypatch.setattr(ablation, "ROWS", ablation.ROWS[:2])
    output = tmp_path / "runs"
    arguments = ["--data", str(data), "--epochs", "1", "--output", str(output)]
    first = CliRunner().invoke(ablation.main, arguments)
    assert first.exit_code == 0, first.output
    # The table's figures are those of the results files that the trainings left.
    for line, name in zip(first.stdout.splitlines()[2:], ("best", "augmentation-none"), strict=True):
        results = json.loads((output / name / "model_0_results.json").read_text())
        assert f"| {results['accuracy']:.1%} |" in line
        assert results["settings"]["augmentation"] == ("light" if name == "best" else "none")
    written = (output / "best" / "model_0.pth").stat().st_mtime_ns
    again = CliRunner().invoke(ablation.main, arguments)
    assert again.stdout == first.stdout
    assert (output / "best" / "model_0.pth").stat().st_mtime_ns == written
