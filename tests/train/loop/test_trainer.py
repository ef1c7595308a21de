"""Training on made-up images: it learns, keeps the best epoch, and survives being killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from tests.commands import TRAINING, python_started
from tests.processes import limited
from tests.train.devices import DEVICES
from tests.train.images import write_images

from fer_runtime.errors import CheckpointError, DataError
from fer_runtime.system import available_cpus
from fer_train.checkpoints import load_checkpoint, pack_state, unpack_state
from fer_train.cli import main
from fer_train.data.folders import load_faces
from fer_train.execution import Execution
from fer_train.loop.distributed import World
from fer_train.loop.trainer import DivergedError, Trainer, batch_sizes, learning_rate
from fer_train.networks.architectures import ARCHITECTURES
from fer_train.networks.registry import create_network, predict_logits
from fer_train.pipeline import train_model
from fer_train.recipes import Recipe
from fer_train.results import History

TINY = Recipe(epochs=3, batch_size=16, optimizer="adamw", lr=3e-3, schedule="one-cycle", augmentation="light")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), train=24, validation=6)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def test_it_learns_and_keeps_the_best_epoch(images: Path, tmp_path: Path) -> None:
    recipe = ARCHITECTURES["v0"].recipe("best").overridden(epochs=12, batch_size=16, ema_decay=0.9)
    trained = train_model("v0", images, recipe, recipe_name="best", models_dir=tmp_path)
    results = json.loads(trained.results_file.read_text())
    assert results["accuracy"] > 0.9
    assert results["accuracy"] == max(results["test_acc"]) == results["test_acc"][results["best_epoch"] - 1]
    assert len(results["train_loss"]) == len(results["test_loss"]) == len(results["train_acc"]) == 12
    assert np.trace(results["confusion"]) == round(results["accuracy"] * 42)
    # The checkpoint, read back without running code, is the epoch that the results name.
    content = torch.load(trained.checkpoint, weights_only=True)
    assert content["training"]["best_epoch"] == results["best_epoch"]
    validation = load_faces(images, "validation")
    network = load_checkpoint(trained.checkpoint, name="v0").network()
    logits = predict_logits(network, torch.from_numpy(validation.faces))
    assert (logits.argmax(1).numpy() == validation.labels).mean() == pytest.approx(results["accuracy"])
    assert not list(tmp_path.glob("*.resume.pth"))


@pytest.mark.skipif(sys.platform != "linux", reason="forks the process that it kills")
def test_killed_in_any_epoch_and_resumed_it_ends_with_the_same_bytes(images: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _trained(images, whole, "--safetensors").exit_code == 0
    # Killed for real, once a first epoch has left its state but before the last one.
    with python_started("-m", "fer_train", *_command(images, killed), libraries=TRAINING) as process, limited(process):
        assert any(line.startswith("epoch 2/") for line in process.says)
    assert process.returncode == -signal.SIGKILL
    assert (killed / "model_0.resume.pth").exists()
    assert not (killed / "model_0.pth").exists()
    resumed = _trained(images, killed, "--resume")
    assert "epoch 4/" in resumed.stderr
    assert "epoch 1/" not in resumed.stderr
    assert "no stopped run" not in resumed.stderr
    assert (whole / "model_0.pth").read_bytes() == (killed / "model_0.pth").read_bytes()
    with safe_open(whole / "model_0.safetensors", framework="pt") as file:
        weights = load_checkpoint(whole / "model_0.pth", name="v0").state_dict
        assert set(file.keys()) == set(weights)
        assert all(torch.equal(file.get_tensor(key), value) for key, value in weights.items())


def _command(images: Path, models_dir: Path, *options: str) -> list[str]:
    command = ["--model", "v0", "--data", str(images), "--epochs", "4", "--models-dir", str(models_dir)]
    return [*command, "--no-plots", "--threads", "1", "--device", "cpu", *options]


def _training(images: Path, models_dir: Path, *options: str) -> subprocess.Popen[str]:
    """fer-train in a process of its own, which a signal may end."""
    command = [sys.executable, "-m", "fer_train", *_command(images, models_dir, *options)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _trained(images: Path, models_dir: Path, *options: str) -> Result:
    """fer-train in this process, which has loaded PyTorch."""
    return CliRunner().invoke(main, _command(images, models_dir, *options))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no /dev/null/")
def test_it_trains_without_a_cache_folder_and_on_the_cpus_that_there_are(images: Path, tmp_path: Path) -> None:
    """PyTorch ended the command where it could not make its folder, and OpenMP where it could not start its threads."""
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    environment |= {"FER_EDGE_CACHE": "/dev/null/cache", "TMPDIR": str(tmp_path)}
    options = _command(images, tmp_path, "--epochs", "1", "--threads", "1000000")
    command = [sys.executable, "-m", "fer_train", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"warning: 1000000 threads are more than the {available_cpus()} CPUs")


def test_ctrl_c_says_how_to_go_on(images: Path, tmp_path: Path) -> None:
    process = _training(images, tmp_path, "--epochs", "500")
    assert process.stderr is not None
    with limited(process):
        assert process.stderr.readline().startswith("epoch 1/500")
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "--resume" in rest
    assert "Traceback" not in rest

    # The same options and --finish: the files of the best epoch so far, and no other one trained.
    finished = _trained(images, tmp_path, "--epochs", "500", "--finish")
    assert finished.exit_code == 0, finished.output
    assert "epoch" not in finished.stderr
    results = json.loads((tmp_path / "model_0_results.json").read_text())
    reached = len(results["test_acc"])
    assert 1 <= reached < 500
    assert f"epoch {results['best_epoch']} of {reached}" in finished.stdout
    network = load_checkpoint(tmp_path / "model_0.pth", name="v0").network()
    faces = load_faces(images, "validation")
    right = predict_logits(network, torch.from_numpy(faces.faces)).argmax(1).numpy() == faces.labels
    assert right.mean() == pytest.approx(max(results["test_acc"]))
    assert not list(tmp_path.glob("*.resume.pth"))

    again = _trained(images, tmp_path, "--epochs", "500", "--finish")
    assert again.exit_code == 1
    assert again.stderr.startswith("Error: no stopped run at")


_BEST: tuple[tuple[str, object], ...] = (
    ("best_state_dict", {}),
    ("best_state_dict", {"conv_block_1.0.weight": torch.zeros(3)}),
    ("best_state_dict", 1),
)


def test_a_state_of_other_settings_is_refused(images: Path, tmp_path: Path) -> None:
    faces = load_faces(images, "train"), load_faces(images, "validation")
    state = tmp_path / "state.resume.pth"
    cpu = torch.device("cpu")
    recipe = TINY.overridden(epochs=1)
    Trainer(create_network("v0"), *faces, recipe, device=cpu, seed=0, identity={"seed": 0}).run(resume_path=state)
    other = Trainer(create_network("v0"), *faces, recipe, device=cpu, seed=1, identity={"seed": 1})
    with pytest.raises(CheckpointError, match="another seed"):
        other.run(resume_path=state, resume=True)
    whole = state.read_bytes()
    # A changed byte anywhere, also of a weight, which PyTorch's own reader would train on.
    for damaged in (whole[:500], whole[:-1000] + b"x" + whole[-999:], whole[:90_000] + b"y" + whole[90_001:]):
        state.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="without --resume"):
            other.run(resume_path=state, resume=True)
    content = unpack_state(whole, source=state)
    for key, value in (("network", {}), ("history", {"epochs": [1]}), ("optimizer", 3), ("dropout", None), *_BEST):
        state.write_bytes(pack_state({**content, key: value}))
        same = Trainer(create_network("v0"), *faces, recipe, device=cpu, seed=0, identity={"seed": 0})
        with pytest.raises(CheckpointError, match="is not a state of this training"):
            same.run(resume_path=state, resume=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--epochs", "9", "--set", "lr=0.5"), "of a run with another recipe (epochs=4, lr=0.001); give the same"),
        (("--seed", "1"), "of a run with another seed; give the same"),
    ],
)
def test_a_state_of_other_settings_is_answered_with_the_settings(
    images: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    # Ctrl-C after the last epoch, before the checkpoint is written.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "finished", _interrupt)
        _trained(images, tmp_path)
    assert said in _trained(images, tmp_path, *options, "--resume").stderr
    write_images(tmp_path / "others", train=5)
    others = _trained(tmp_path / "others", tmp_path, "--resume").stderr
    assert "of a run with another set of images or votes; give the same" in others
    assert "start over with --replace instead of --resume" in others  # without both, it would be refused again


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class _Stopped(Exception):  # noqa: N818 - no error: what a test stops a training with
    pass


class _StopAfter:
    """Progress that ends the run after an epoch, when its state is written."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def batch(self, *_: object) -> None: ...

    def epoch(self, epoch: int, epochs: int, history: History) -> None:
        if epoch == self._epoch:
            raise _Stopped


@pytest.mark.parametrize("device", DEVICES)
def test_every_ingredient_is_gone_on_with(tmp_path: Path, device: str) -> None:
    images = write_images(tmp_path / "data", train=8, validation=6)
    # What a resumed run must restore beyond the weights: the average and its steps, the optimizer's moments, the
    # place in the learning rate's cycle, the order, the augmentation, the pairs, the dropout, the best epoch.
    recipe = TINY.overridden(
        epochs=4, optimizer="adamw", ema_decay=0.9, mixup=0.4, cutmix=1.0, mix_until=0.8, small_until=0.3,
        label_smoothing=0.05, augmentation="faces",
    )  # fmt: skip

    def train(folder: Path, progress: _StopAfter | None = None, *, resume: bool = False) -> tuple[Path, list[float]]:
        execution = Execution(device=torch.device(device), resume=resume, progress=progress)
        done = train_model("v2", images, recipe, models_dir=folder, execution=execution)
        history = done.results.history
        return done.checkpoint, [*history.train_loss, *history.test_loss]

    whole, losses = train(tmp_path / "whole")
    with pytest.raises(_Stopped):
        train(tmp_path / "stopped", _StopAfter(2))
    resumed, losses_resumed = train(tmp_path / "stopped", resume=True)
    if device == "cpu":
        # The losses, too: the best epoch, which is kept, may be one before the stop.
        assert losses_resumed == losses
        assert resumed.read_bytes() == whole.read_bytes()
    else:
        # cuDNN adds up in no fixed order, and such differences grow.
        assert losses_resumed == pytest.approx(losses, rel=0.05)


def test_a_single_face_is_no_batch() -> None:
    assert batch_sizes(28, 9) == [9, 9, 10]
    assert batch_sizes(29, 9) == [9, 9, 9, 2]
    assert batch_sizes(27, 9) == [9, 9, 9]
    assert batch_sizes(5, 9) == [5]
    assert batch_sizes(1, 9) == [1]


def test_maps_of_one_pixel_do_not_meet_a_single_face(tmp_path: Path) -> None:
    root = write_images(tmp_path, train=4, validation=1)  # 28 faces, of which batches of 9 leave one
    faces = load_faces(root, "train"), load_faces(root, "validation")
    recipe = TINY.overridden(epochs=1, batch_size=9, small_size=32, small_until=1.0)
    run = Trainer(create_network("v1"), *faces, recipe, device=torch.device("cpu"), seed=0)
    run.run()
    assert run.history.epochs == 1


def test_the_last_face_is_trained_on_beyond_a_chunk(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 168 faces in batches of 167, a chunk each: the one that is left belongs to the chunk before it.
    monkeypatch.setattr("fer_train.loop.trainer._CHUNK", 167)
    faces = load_faces(images, "train"), load_faces(images, "validation")
    run = Trainer(create_network("v0"), *faces, TINY.overridden(batch_size=167), device=torch.device("cpu"), seed=0)
    (batch,) = run._batches(None)
    assert sorted(batch.indices.tolist()) == list(range(168))


def test_too_little_for_the_processes_is_said(images: Path) -> None:
    faces = load_faces(images, "train"), load_faces(images, "validation")
    world = World(rank=1, size=17)
    with pytest.raises(DataError, match=r"16 faces is too small for 17 processes.*--batch-size 17"):
        Trainer(create_network("v0"), *faces, TINY, device=torch.device("cpu"), seed=0, world=world)
    few = faces[0].subset(range(0, 168, 24))
    with pytest.raises(DataError, match=r"7 faces is too small for 17 processes.*more images"):
        Trainer(create_network("v0"), few, faces[1], TINY, device=torch.device("cpu"), seed=0, world=world)
    with pytest.raises(DataError, match="no training image of angry is left"):
        Trainer(
            create_network("v0"), faces[0].subset(range(24, 168)), faces[1], TINY, device=torch.device("cpu"), seed=0
        )


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(images: Path) -> None:
    faces = load_faces(images, "train"), load_faces(images, "validation")

    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        run = Trainer(create_network("v0"), *faces, TINY.overridden(epochs=1), device=torch.device("cpu"), seed=seed)
        run.run()
        return run.best_state["fc_layer.1.weight"]

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_one_cycle_rises_and_falls_to_zero_as_worked_by_hand() -> None:
    recipe = TINY.overridden(lr=1.0, warmup=0.2)
    rates = [learning_rate(recipe, step, 10) for step in range(10)]
    assert rates[:2] == [0.5, 1.0]
    # Half a cosine over the eight steps that are left: its middle is half of the peak, its end zero.
    assert rates[5] == pytest.approx(0.5)
    assert rates[9] == pytest.approx(0.0, abs=1e-12)


def test_an_epoch_trains_on_every_face_once(images: Path) -> None:
    faces = load_faces(images, "train"), load_faces(images, "validation")
    run = Trainer(create_network("v0"), *faces, TINY, device=torch.device("cpu"), seed=0)
    seen = torch.cat([batch.indices for batch in run._batches(None)])
    assert sorted(seen.tolist()) == list(range(len(faces[0])))
    again = torch.cat([batch.indices for batch in run._batches(None)])
    assert not torch.equal(seen, again)


def test_a_training_without_a_finite_loss_stops_and_writes_no_model(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", train=8, validation=2)
    recipe = Recipe(epochs=3, batch_size=8, optimizer="sgd", lr=1000, augmentation="none")
    with pytest.raises(DivergedError, match=r"the loss of epoch \d is (nan|inf).*lower --lr than 1000"):
        train_model("v0", data, recipe, models_dir=tmp_path / "models")
    assert not (tmp_path / "models" / "model_0.pth").exists()


def test_a_last_step_that_breaks_the_weights_writes_no_model(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", train=2, validation=1)
    # One step an epoch: its loss is that of the first weights, and its decay multiplies them by a million.
    recipe = Recipe(epochs=1, batch_size=64, optimizer="adamw", lr=1000, weight_decay=1000, augmentation="none")
    with pytest.raises(DivergedError, match=r"validation loss of epoch 1 is (nan|inf).*lower --lr than 1000"):
        train_model("v1", data, recipe, models_dir=tmp_path / "models")
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").glob("*.pth"))
