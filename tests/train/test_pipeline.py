"""What a training leaves on disk and what it leaves alone, with labels and with raters' votes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.train.images import write_images

from fer_runtime.errors import CheckpointError, DataError, OutputError
from fer_runtime.expressions import EXPRESSIONS
from fer_train import cli
from fer_train.checkpoints import load_checkpoint
from fer_train.data.folders import load_faces
from fer_train.execution import Execution
from fer_train.loop.trainer import Trainer
from fer_train.networks.registry import predict_logits
from fer_train.pipeline import ImageOptions, load_training_faces, sole_training, train_model
from fer_train.pretrain import pretrain
from fer_train.recipes import Recipe

TINY = Recipe(epochs=2, batch_size=16, optimizer="adamw", lr=3e-3, augmentation="none")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), train=12, validation=4)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def write_votes(data: Path, path: Path) -> Path:
    """Votes by which every image shows the class after that of its folder; the first sad ones are no faces."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *EXPRESSIONS, "not_a_face"])
        for image in sorted((data / "images").rglob("*.png")):
            seen = (EXPRESSIONS.index(image.parent.name) + 1) % 7
            counts = [0] * 7
            is_face = image.stem != "000" or image.parent.name != "sad"
            counts[seen] = 8 if is_face else 1
            counts[(seen + 1) % 7] = 2 if is_face else 0
            writer.writerow([image.relative_to(data / "images").as_posix(), *counts, 0 if is_face else 9])
    return path


def test_votes_are_what_the_network_learns(data: Path, tmp_path: Path) -> None:
    votes = write_votes(data, tmp_path / "votes.csv")
    found_faces = load_training_faces(data, (), ImageOptions(votes=votes))
    train, validation = found_faces.train, found_faces.validation
    assert (len(train), len(validation)) == (7 * 12 - 1, 7 * 4)  # one that is no face is left out of training only
    trained = train_model(
        "v0",
        data,
        TINY.overridden(epochs=14, ema_decay=0.9),
        name="mine",
        images=ImageOptions(votes=votes),
        models_dir=tmp_path,
    )
    results = json.loads((tmp_path / "mine_results.json").read_text())
    found = results["votes"]
    assert (found["images"], found["majority_images"]) == (27, 27)
    assert found["majority_accuracy"] > 0.8
    assert results["accuracy"] < 0.2  # of the folders' labels, which it has never seen
    assert results["best_epoch"] == int(np.argmin(results["test_loss"])) + 1
    assert results["test_acc"][results["best_epoch"] - 1] == pytest.approx(found["majority_accuracy"])
    assert results["settings"]["votes"] == "votes.csv"
    network = load_checkpoint(trained.checkpoint, name="v0").network()
    faces = load_faces(data, "validation")
    majority = (faces.labels + 1) % 7
    rated = np.array([path != "sad/000.png" for path in faces.paths])
    right = predict_logits(network, torch.from_numpy(faces.faces)).argmax(1).numpy() == majority
    assert right[rated].mean() == pytest.approx(found["majority_accuracy"])


def test_the_output_says_how_few_images_the_votes_file_has(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", train=2, validation=2)
    rows = [["image", *EXPRESSIONS]]
    for image in (data / "images").rglob("000.png"):
        votes = np.eye(7)[EXPRESSIONS.index(image.parent.name)] * 4
        if "validation" in image.parts:  # four raters each for two classes
            votes += np.roll(votes, 1)
        rows.append([image.relative_to(data / "images").as_posix(), *map(str, votes)])
    (tmp_path / "votes.csv").write_text("\n".join(map(",".join, rows)))
    options = f"--name few --model v0 --data {data} --votes {tmp_path}/votes.csv --epochs 1 --device cpu --no-plots"
    run = CliRunner().invoke(cli.main, [*options.split(), "--models-dir", str(tmp_path)])
    assert run.exit_code == 0, run.output
    assert "learned from 7 of 14 training images; the others have no usable votes" in run.stderr
    assert "of 14 validation images, 7 have usable votes and 0 a strict majority" in run.stderr
    assert "raters' majority on no image, labels accuracy" in run.stdout


def test_a_class_that_no_rater_names_is_named(data: Path, tmp_path: Path) -> None:
    rows = [path.relative_to(data / "images").as_posix() for path in (data / "images").rglob("*.png")]
    votes = "".join(f"{row},0,{','.join('2' * 6)}\n" for row in rows)
    (tmp_path / "votes.csv").write_text(f"image,{','.join(EXPRESSIONS)}\n{votes}")
    with pytest.raises(DataError, match=r"the votes teach no image to be angry; .*label_share"):
        train_model("v0", data, TINY, images=ImageOptions(votes=tmp_path / "votes.csv"), models_dir=tmp_path)


def test_the_logit_adjustment_is_in_the_last_biases(data: Path, tmp_path: Path) -> None:
    votes = write_votes(data, tmp_path / "votes.csv")
    states = []
    for adjustment in (0.0, -0.5):
        recipe = TINY.overridden(epochs=1, logit_adjustment=adjustment)
        images = ImageOptions(votes=votes)
        trained = train_model("v0", data, recipe, name=f"a{adjustment}", images=images, models_dir=tmp_path)
        states.append(load_checkpoint(trained.checkpoint, name="v0").state_dict)
    # By hand: every class has 12 images with 0.8 and 0.2 of their votes; one image whose votes are for surprise (0.8)
    # and angry (0.2) is missing.
    counts = np.full(7, 12.0)
    counts[EXPRESSIONS.index("surprise")] -= 0.8
    counts[EXPRESSIONS.index("angry")] -= 0.2
    expected = -0.5 * np.log(counts.sum() / (7 * counts))
    last = "fc_layer.4.bias"
    assert (states[1][last] - states[0][last]).numpy() == pytest.approx(expected, abs=1e-6)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0] if key != last)


def test_images_that_a_file_names_do_not_train(data: Path, tmp_path: Path) -> None:
    whole = load_faces(data, "train")
    (tmp_path / "drop.csv").write_text(f"image\ntrain/{whole.paths[0]}\ntrain/{whole.paths[5]}\n")
    found = load_training_faces(data, (), ImageOptions(drop_files=[tmp_path / "drop.csv"]))
    assert set(whole.paths) - set(found.train.paths) == {whole.paths[0], whole.paths[5]}
    assert len(found.whole) == len(whole)
    # A stopped run does not continue with another list.
    assert found.train.fingerprint != whole.fingerprint


def test_a_finished_and_a_stopped_training_are_not_replaced_unasked(data: Path, tmp_path: Path) -> None:
    recipe = TINY.overridden(epochs=1)
    first = train_model("v0", data, recipe, models_dir=tmp_path).checkpoint.read_bytes()
    for execution in (Execution(), Execution(resume=True)):
        with pytest.raises(CheckpointError, match=r"model_0\.pth exists; .*--name mine.*--replace"):
            train_model("v0", data, recipe, models_dir=tmp_path, seed=1, execution=execution)
    assert (tmp_path / "model_0.pth").read_bytes() == first
    train_model("v0", data, recipe, models_dir=tmp_path, seed=1, execution=Execution(replace=True))
    assert (tmp_path / "model_0.pth").read_bytes() != first
    stopped = tmp_path / "mine.resume.pth"
    stopped.write_bytes(b"hours of work")
    with pytest.raises(CheckpointError, match=r"mine\.resume\.pth; continue it with --resume"):
        train_model("v0", data, recipe, name="mine", models_dir=tmp_path)
    # --replace with a wrong --data trains nothing, and keeps it, too.
    with pytest.raises(DataError):
        train_model("v0", tmp_path, recipe, name="mine", models_dir=tmp_path, execution=Execution(replace=True))
    assert stopped.read_bytes() == b"hours of work"
    train_model("v0", data, recipe, name="mine", models_dir=tmp_path, execution=Execution(replace=True))
    assert not stopped.exists()
    assert (tmp_path / "mine.pth").is_file()


def test_two_trainings_of_one_name_at_a_time_refuse_each_other(tmp_path: Path) -> None:
    checkpoint, state = tmp_path / "models" / "mine.pth", tmp_path / "models" / "mine.resume.pth"
    first, second = Execution(), Execution(resume=True)
    with sole_training(checkpoint, state, first):
        state.write_bytes(b"of the first")
        with pytest.raises(CheckpointError, match=r"another fer-train is training .*mine\.pth; wait"):
            sole_training(checkpoint, state, second).__enter__()
        with sole_training(checkpoint.with_name("other.pth"), checkpoint.with_name("other.resume.pth"), first):
            pass
    with sole_training(checkpoint, state, second):  # the first one was stopped
        state.unlink()
        checkpoint.write_bytes(b"a finished one")
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["mine.pth"]
    # One that was started before that, and has decoded its images since.
    with pytest.raises(CheckpointError, match=r"mine\.pth exists"):
        sole_training(checkpoint, state, first).__enter__()


def test_nothing_to_finish_is_said_at_once_and_leaves_no_folder(data: Path, tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, batch_size=8, optimizer="sgd", lr=0.05)
    elsewhere, execution = tmp_path / "modles", Execution(finish=True)
    with pytest.raises(CheckpointError, match=r"no stopped run at .*modles/mine\.resume\.pth; give the --name and"):
        train_model("v0", data, recipe, name="mine", models_dir=elsewhere, execution=execution)
    with pytest.raises(CheckpointError, match=r"no stopped run at .*model_v1_pretrained\.resume\.pth"):
        pretrain("v1", data, recipe, seed=0, models_dir=elsewhere, execution=execution)
    assert not elsewhere.exists()


def test_a_folder_that_cannot_be_written_is_said_before_the_first_epoch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "_train_epoch", lambda *_: pytest.fail("an epoch has begun"))
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*model_0\.resume\.pth"):
        train_model("v0", data, TINY, models_dir=tmp_path / "file" / "models")


def test_a_fine_tuning_that_is_never_better_keeps_its_start_and_says_so(data: Path, tmp_path: Path) -> None:
    good = train_model("v0", data, TINY.overridden(epochs=12), name="good", models_dir=tmp_path)
    options = ["--model", "v0", "--data", str(data), "--models-dir", str(tmp_path), "--device", "cpu", "--no-plots"]
    run = CliRunner().invoke(
        cli.main,
        [*options, "--name", "worse", "--weights", str(good.checkpoint), "--lr", "0.5", "--epochs", "1"],
    )
    assert run.exit_code == 0, run.output
    assert f"no epoch was better than the start ({good.results.accuracy:.1%}); the start is kept" in run.stderr
    start, kept = (load_checkpoint(tmp_path / f"{name}.pth", name="v0").state_dict for name in ("good", "worse"))
    assert all(torch.equal(start[key], kept[key]) for key in start)
    results = json.loads((tmp_path / "worse_results.json").read_text())
    assert (results["best_epoch"], results["accuracy"]) == (0, good.results.accuracy)


@pytest.mark.parametrize("name", ["v3", "model_0", "../mine", "a b", "", "mine.resume", "mine.int8", "a.FP16"])
def test_names_of_shipped_models_and_paths_are_refused(name: str) -> None:
    run = CliRunner().invoke(cli.main, ["--model", "v0", "--data", "missing", "--name", name])
    assert run.exit_code == 2
    assert "--name" in run.stderr
