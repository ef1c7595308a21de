"""The study of the recipe's ingredients, on made-up images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tests.train.images import write_images

from fer_train.checkpoints import Checkpoint, save_checkpoint
from fer_train.networks.architectures import ARCHITECTURES
from fer_train.networks.registry import create_network
from studies import ablation


def test_every_row_changes_something_of_the_best_recipe() -> None:
    best = ARCHITECTURES["v0"].recipe("best")
    seen = [best.with_settings(*settings) for _, settings in ablation.ROWS]
    assert seen[0] == best
    assert len(set(seen)) == len(seen)


def test_rows_are_trained_once_and_read_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    write_images(data)
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

    # Other settings are no reason to show these rows, nor to overwrite them.
    for options, difference in (
        (["--epochs", "2"], "(epochs);"),
        (["--seed", "1"], "(seed);"),
        (
            ["--data", str(write_images(tmp_path / "other", seed=1))],
            "(images of train, images of validation);",
        ),
    ):
        refused = CliRunner().invoke(ablation.main, [*arguments, *options])
        assert refused.exit_code == 1
        assert f"{output / 'best' / 'model_0_results.json'} has other settings {difference}" in refused.stderr
    assert (output / "best" / "model_0.pth").stat().st_mtime_ns == written


def test_teachers_of_one_name_and_other_weights_are_another_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "cache"))
    write_images(tmp_path / "data", train=2, validation=1)
    monkeypatch.setattr(ablation, "ROWS", ())
    files = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        files.append(tmp_path / str(seed) / "model_0.pth")
        files[-1].parent.mkdir()
        save_checkpoint(files[-1], Checkpoint(name="v0", state_dict=create_network("v0").state_dict()))
    for file in (*files, files[0]):
        (row,) = ablation.run_ablation(tmp_path / "data", tmp_path / "runs", epochs=1, teachers=[file])
        assert (row.name, row.epochs) == ("distilled from model_0.pth", 1)
    assert len(list((tmp_path / "runs").iterdir())) == 2
