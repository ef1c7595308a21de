"""Training on made-up pictures: it learns, keeps the best epoch, and survives being killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.train.pictures import write_pictures

from fer_runtime.errors import CheckpointError
from fer_train import trainer
from fer_train.checkpoints import load_checkpoint
from fer_train.data import load_faces
from fer_train.networks import create_network, predict_logits
from fer_train.pipeline import train_model
from fer_train.recipes import RECIPES, Recipe
from fer_train.trainer import Trainer, learning_rate

TINY = Recipe(epochs=3, batch_size=16, optimizer="adamw", lr=3e-3, schedule="one-cycle", augmentation="light")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data"), train=24, validation=6)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def test_it_learns_and_keeps_the_best_epoch(pictures: Path, tmp_path: Path) -> None:
    recipe = RECIPES["best"]["v0"].overridden(epochs=12, batch_size=16, ema_decay=0.9)
    trained = train_model("v0", pictures, recipe, recipe_name="best", models_dir=tmp_path)
    results = json.loads(trained.results_file.read_text())
    assert results["accuracy"] > 0.9
    assert results["accuracy"] == max(results["test_acc"]) == results["test_acc"][results["best_epoch"] - 1]
    assert len(results["train_loss"]) == len(results["test_loss"]) == len(results["train_acc"]) == 12
    assert np.trace(results["confusion"]) == round(results["accuracy"] * 42)
    # The checkpoint, read back without running code, is the epoch that the results name.
    content = torch.load(trained.checkpoint, weights_only=True)
    assert content["training"]["best_epoch"] == results["best_epoch"]
    validation = load_faces(pictures, "validation")
    network = load_checkpoint(trained.checkpoint, name="v0").network()
    logits = predict_logits(network, torch.from_numpy(validation.faces))
    assert (logits.argmax(1).numpy() == validation.labels).mean() == pytest.approx(results["accuracy"])
    assert not list(tmp_path.glob("*.resume.pth"))


def test_killed_in_any_epoch_and_resumed_it_ends_with_the_same_bytes(pictures: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _train(pictures, whole).wait(120)
    process = _train(pictures, killed)
    # Killed for real, once a first epoch has left its state but before the last one.
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 2/"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert (killed / "model_0.resume.pth").exists()
    assert not (killed / "model_0.pth").exists()
    resumed = _train(pictures, killed, "--resume")
    _, progress = resumed.communicate(timeout=120)
    assert "epoch 1/" not in progress
    assert (whole / "model_0.pth").read_bytes() == (killed / "model_0.pth").read_bytes()


def _train(pictures: Path, models_dir: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fer_train", "--model", "v0", "--data", str(pictures), "--epochs", "4"]
    command += ["--models-dir", str(models_dir), "--no-plots", "--threads", "1", "--device", "cpu", *options]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=_listen_to_ctrl_c
    )


def _listen_to_ctrl_c() -> None:
    # Tests that a script started in the background inherit a SIGINT that is ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_says_how_to_go_on(pictures: Path, tmp_path: Path) -> None:
    process = _train(pictures, tmp_path, "--epochs", "500")
    assert process.stderr is not None
    assert process.stderr.readline().startswith("epoch 1/500")
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "--resume" in rest
    assert "Traceback" not in rest

    # The same options and --finish: the files of the best epoch so far, and no other one trained.
    finished = _train(pictures, tmp_path, "--epochs", "500", "--finish")
    stdout, stderr = finished.communicate(timeout=60)
    assert finished.returncode == 0
    assert "epoch" not in stderr
    results = json.loads((tmp_path / "model_0_results.json").read_text())
    reached = len(results["test_acc"])
    assert 1 <= reached < 500
    assert f"epoch {results['best_epoch']} of {reached}" in stdout
    network = load_checkpoint(tmp_path / "model_0.pth", name="v0").network()
    faces = load_faces(pictures, "validation")
    right = predict_logits(network, torch.from_numpy(faces.faces)).argmax(1).numpy() == faces.labels
    assert right.mean() == pytest.approx(max(results["test_acc"]))
    assert not list(tmp_path.glob("*.resume.pth"))

    again = _train(pictures, tmp_path, "--epochs", "500", "--finish")
    _, stderr = again.communicate(timeout=60)
    assert again.returncode == 1
    assert "no stopped run at" in stderr
    assert "Traceback" not in stderr


def test_a_state_of_other_settings_is_refused(pictures: Path, tmp_path: Path) -> None:
    faces = load_faces(pictures, "train"), load_faces(pictures, "validation")
    state = tmp_path / "state.resume.pth"
    cpu = torch.device("cpu")
    one = TINY.overridden(epochs=1)
    Trainer(create_network("v0"), *faces, one, device=cpu, seed=0, identity={"seed": 0}).run(resume_path=state)
    other = Trainer(create_network("v0"), *faces, one, device=cpu, seed=1, identity={"seed": 1})
    with pytest.raises(CheckpointError, match="another seed"):
        other.run(resume_path=state, resume=True)
    state.write_bytes(state.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="without --resume"):
        other.run(resume_path=state, resume=True)


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(pictures: Path) -> None:
    faces = load_faces(pictures, "train"), load_faces(pictures, "validation")

    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        run = Trainer(create_network("v0"), *faces, TINY.overridden(epochs=1), device=torch.device("cpu"), seed=seed)
        run.run()
        return run.best.state_dict["fc_layer.1.weight"]

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_one_cycle_rises_and_falls_to_zero_as_worked_by_hand() -> None:
    recipe = TINY.overridden(lr=1.0, warmup=0.2)
    rates = [learning_rate(recipe, step, 10) for step in range(10)]
    assert rates[:2] == [0.5, 1.0]
    # Half a cosine over the eight steps that are left: its middle is half of the peak, its end zero.
    assert rates[5] == pytest.approx(0.5)
    assert rates[9] == pytest.approx(0.0, abs=1e-12)


def test_the_moving_average_is_the_formula(pictures: Path) -> None:
    update = trainer._moving_average(0.9)
    average, value = [torch.zeros(1)], [torch.ones(1)]
    update(average, value, torch.tensor(0))  # decay min(0.9, 1/10)
    assert average[0].item() == pytest.approx(0.9)
    update(average, value, torch.tensor(1000))  # decay 0.9
    assert average[0].item() == pytest.approx(0.9 * 0.9 + 0.1)


def test_an_epoch_trains_on_every_face_once(pictures: Path) -> None:
    faces = load_faces(pictures, "train"), load_faces(pictures, "validation")
    run = Trainer(create_network("v0"), *faces, TINY, device=torch.device("cpu"), seed=0)
    seen = torch.cat([batch.indices for batch in run._batches(None)])
    assert sorted(seen.tolist()) == list(range(len(faces[0])))
    again = torch.cat([batch.indices for batch in run._batches(None)])
    assert not torch.equal(seen, again)
