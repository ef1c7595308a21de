"""Trainings of one's own: any class folders, faces of any size and colour, networks of others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.train.images import write_images
from tests.train.own_images import write_own_images
from torch import nn

from fer_runtime.errors import CheckpointError, DataError
from fer_runtime.expressions import EXPRESSIONS
from fer_train.checkpoints import Checkpoint, in_label_order, load_checkpoint, save_checkpoint, stated_network
from fer_train.cli import main
from fer_train.data.dataset import load_splits, load_validation
from fer_train.data.folders import load_class_folders
from fer_train.networks.registry import NetworkShape, create_network, last_layer, predict_logits
from fer_train.pipeline import ImageOptions, train_model
from fer_train.recipes import FIRST, RECIPES
from fer_train.starting_weights import start_from

TWO, EIGHT = ("bored", "müde, sehr"), (*EXPRESSIONS, "contempt")
QUICK = FIRST.overridden(epochs=1, batch_size=8, augmentation="light", drop=())


@pytest.mark.parametrize("name", ["validation", "val", "Valid"])
def test_the_folder_to_choose_by_has_several_names(name: str, tmp_path: Path) -> None:
    write_own_images(tmp_path / "train", TWO, 3)
    write_own_images(tmp_path / name, TWO, 2, seed=1)
    write_own_images(tmp_path / "test", TWO, 1, seed=2)
    splits = load_splits(tmp_path)
    assert (splits.train.classes, splits.validation.classes, splits.note) == (TWO, TWO, "")
    assert (len(splits.train), len(splits.validation)) == (6, 4)


@pytest.mark.parametrize("root", ["train", "."])
def test_without_such_a_folder_a_share_of_every_class_is_held_out_by_the_seed(root: str, tmp_path: Path) -> None:
    write_own_images(tmp_path / root, TWO, 20)
    first, again, other = (load_splits(tmp_path, seed=seed) for seed in (1, 1, 2))
    assert first.validation.counts == dict.fromkeys(TWO, 3)
    assert first.train.counts == dict.fromkeys(TWO, 17)
    assert not set(first.train.paths) & set(first.validation.paths)
    assert first.validation.paths == again.validation.paths != other.validation.paths
    assert load_validation(tmp_path, seed=1).paths == first.validation.paths  # what an export judges by
    assert "6 of 40 images" in first.note
    assert "seed 1" in first.note


def test_a_test_folder_chooses_no_epoch(tmp_path: Path) -> None:
    write_own_images(tmp_path / "train", TWO, 10)
    write_own_images(tmp_path / "test", TWO, 5, seed=1)
    splits = load_splits(tmp_path)
    assert splits.validation.folder == tmp_path / "train"
    assert "test is not read" in splits.note


def test_folders_that_are_no_labels_are_refused(tmp_path: Path) -> None:
    write_own_images(tmp_path / "one" / "train", ("only",), 3)
    with pytest.raises(DataError, match=r"train holds one class folder, .*; at least two are needed"):
        load_splits(tmp_path / "one")
    write_own_images(tmp_path / "bare", ("only",), 3)
    with pytest.raises(DataError, match=r"bare holds one class folder, only; at least two are needed, each .* class$"):
        load_splits(tmp_path / "bare")
    write_own_images(tmp_path / "above" / "set", TWO, 3)
    write_own_images(tmp_path / "over" / "set" / "train", TWO, 3)
    for name in ("above", "over"):
        with pytest.raises(DataError, match=rf"{name} holds one class folder, set; .*give --data .*{name}.set$"):
            load_splits(tmp_path / name)
    write_own_images(tmp_path / "odd" / "train", ("a", "b\u202egnp"), 3)
    with pytest.raises(DataError, match=r"cannot be labels: a label must be a printable text, got 'b\\\\u202egnp'"):
        load_splits(tmp_path / "odd")
    write_own_images(tmp_path / "long" / "train", ("a", "b" * 101), 3)
    with pytest.raises(DataError, match=r"of 1 to 100 characters, got 'b{30,40}…?'; rename the folder$"):
        load_splits(tmp_path / "long")
    write_own_images(tmp_path / "few" / "train", TWO, 1)
    with pytest.raises(DataError, match="one to learn from and one to choose by"):
        load_splits(tmp_path / "few")


def test_accents_apart_or_not_are_one_label(tmp_path: Path) -> None:
    write_own_images(tmp_path / "train", ("gut", "mu\u0308de"), 2)
    write_own_images(tmp_path / "val", ("gut", "m\u00fcde"), 2, seed=1)
    splits = load_splits(tmp_path)
    assert splits.train.classes == splits.validation.classes == ("gut", "m\u00fcde")


def test_faces_are_read_in_the_size_and_colour_that_is_asked_for(tmp_path: Path) -> None:
    write_own_images(tmp_path / "train", TWO, 2, size=100)
    gray = load_class_folders(tmp_path / "train")
    color = load_class_folders(tmp_path / "train", size=96, color="rgb")
    assert (gray.size, gray.color, color.size, color.color) == (48, "gray", 96, "rgb")
    assert gray.fingerprint != color.fingerprint
    assert np.array_equal(load_class_folders(tmp_path / "train", size=96, color="rgb").faces, color.faces)  # cached
    # The square of the first label is blue in the file, of the second green: in RGB the last and the middle channel.
    means = color.faces.mean((1, 2))
    assert means[:2].argmax(1).tolist() == [2, 2]
    assert means[2:].argmax(1).tolist() == [1, 1]
    assert color.small_gray().shape == (4, 48, 48)


@pytest.mark.parametrize(
    ("labels", "network", "size", "color"),
    [(TWO, "v0", 48, "gray"), (("a", "b", "c"), "v2", 64, "rgb"), (EIGHT, "v0", 96, "rgb")],
)
def test_labels_size_and_colour_travel_into_the_checkpoint(
    labels: tuple[str, ...], network: str, size: int, color: str, tmp_path: Path
) -> None:
    write_own_images(tmp_path / "data" / "train", labels, 6)
    images = ImageOptions(size=size, color=color)
    trained = train_model(network, tmp_path / "data", QUICK, name="mine", images=images, seed=3, models_dir=tmp_path)
    read = load_checkpoint(tmp_path / "mine.pth", name=network)
    assert (read.expressions, read.size, read.color) == (tuple(sorted(labels)), size, color)
    assert stated_network(tmp_path / "mine.pth") == network
    logits = predict_logits(read.network(), torch.from_numpy(trained.validation.faces))
    assert logits.shape == (len(labels), len(labels))
    results = json.loads((tmp_path / "mine_results.json").read_text())
    assert results["expressions"] == sorted(labels)
    assert results["accuracy"] == float((logits.argmax(1).numpy() == trained.validation.labels).mean())


def test_planes_of_a_face_in_colour_are_changed_alike(tmp_path: Path) -> None:
    """Three equal planes stay equal through every augmentation and mixup."""
    from fer_train.data.augmentations import AUGMENTATIONS
    from fer_train.loop.trainer import Trainer

    write_own_images(tmp_path / "train", TWO, 8)
    splits = load_splits(tmp_path, color="rgb")
    gray = np.repeat(load_splits(tmp_path).train.faces[..., None], 3, 3)
    import dataclasses

    train = dataclasses.replace(splits.train, faces=gray)
    for name in AUGMENTATIONS:
        recipe = QUICK.overridden(augmentation=name, mixup=0.2, cutmix=0.5)
        network = create_network("v0", NetworkShape(classes=2, color="rgb"))
        run = Trainer(network, train, splits.validation, recipe, device=torch.device("cpu"), seed=0)
        images = torch.cat([batch.images for batch in run._batches(mixed=True)])
        assert torch.equal(images[:, 0], images[:, 1])
        assert torch.equal(images[:, 0], images[:, 2])


def test_the_last_layer_of_other_labels_is_fresh_and_that_of_the_same_names_is_kept(tmp_path: Path) -> None:
    torch.manual_seed(5)
    start = create_network("v0").state_dict()
    save_checkpoint(tmp_path / "seven.pth", Checkpoint(name="v0", state_dict=start))
    standing = QUICK.overridden(optimizer="sgd", lr=1e-12)
    eight = write_own_images(tmp_path / "eight", EIGHT, 4)
    state = load_checkpoint(
        train_model(
            "v0", eight, standing, weights=str(tmp_path / "seven.pth"), name="a", models_dir=tmp_path
        ).checkpoint,
        name="v0",
    ).state_dict
    rows = [sorted(EIGHT).index(label) for label in EXPRESSIONS]
    assert torch.allclose(state["fc_layer.4.weight"][rows], start["fc_layer.4.weight"], rtol=0, atol=1e-9)
    assert torch.allclose(state["conv_block_1.0.weight"], start["conv_block_1.0.weight"], rtol=0, atol=1e-9)
    # As many labels, and none of these names: nothing of the last layer is kept.
    other = write_own_images(tmp_path / "other", [f"person {number}" for number in range(7)], 4)
    state = load_checkpoint(
        train_model(
            "v0", other, standing, weights=str(tmp_path / "seven.pth"), name="b", models_dir=tmp_path
        ).checkpoint,
        name="v0",
    ).state_dict
    assert not torch.allclose(state["fc_layer.4.weight"], start["fc_layer.4.weight"], atol=1e-3)
    assert torch.allclose(state["fc_layer.1.weight"], start["fc_layer.1.weight"], rtol=0, atol=1e-9)  # a hidden layer


@pytest.mark.parametrize("name", ["v0", "v1", "v3"])
def test_the_last_layer_is_told_by_what_changes_with_the_number_of_labels(name: str) -> None:
    kind = {"v0": "fc_layer.4", "v1": "fc.3", "v3": "fc.3"}[name]
    assert last_layer(name) == (f"{kind}.weight", f"{kind}.bias")


def test_labels_are_exchanged_by_name_or_refused() -> None:
    state = create_network("v0", NetworkShape(classes=2)).state_dict()
    turned = in_label_order(Checkpoint(name="v0", state_dict=state, expressions=("b", "a")), ("a", "b"))
    assert torch.equal(turned.state_dict["fc_layer.4.bias"], state["fc_layer.4.bias"][[1, 0]])
    with pytest.raises(CheckpointError, match="it lacks c, and it also has b"):
        in_label_order(turned, ("a", "c"))


def test_votes_for_ones_own_labels_are_learned(tmp_path: Path) -> None:
    labels = ("bored", "engaged", "tired")
    write_own_images(tmp_path / "data" / "train", labels, 12)
    write_own_images(tmp_path / "data" / "val", labels, 4, seed=1)
    lines = ["path,tired,bored,engaged,none"]
    for file in sorted((tmp_path / "data").rglob("*.png")):
        share = {label: 0.8 if label == file.parent.name else 0.1 for label in labels}
        values = ",".join(f"{share[label]}" for label in ("tired", "bored", "engaged"))
        lines.append(f"{file.relative_to(tmp_path / 'data').as_posix()},{values},0")
    (tmp_path / "shares.csv").write_text("\n".join(lines))
    trained = train_model(
        "v0",
        tmp_path / "data",
        QUICK.overridden(least_votes=0.0),
        name="mine",
        images=ImageOptions(votes=tmp_path / "shares.csv"),
        models_dir=tmp_path,
    )
    assert trained.train.votes is not None
    assert np.allclose(trained.train.votes[0], [0.8, 0.1, 0.1, 0])  # in the order of the class folders
    assert trained.results.votes is not None
    # -sum(p log p) of 0.8, 0.1, 0.1
    assert trained.results.votes.entropy == pytest.approx(0.6390, abs=1e-4)


def test_finetuning_starts_from_a_linear_probe_and_says_what_it_gained(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", train=6, validation=3)
    options = f"--name base --model v0 --data {data} --epochs 3 --set augmentation=light --device cpu --no-plots"
    first = CliRunner().invoke(main, [*options.split(), "--models-dir", str(tmp_path)])
    assert first.exit_code == 0, first.output
    own = write_own_images(tmp_path / "own", TWO, 14)
    options = f"--name mine --data {own} --weights {tmp_path}/base.pth --recipe finetune --epochs 2 --device cpu"
    done = CliRunner().invoke(main, [*options.split(), "--models-dir", str(tmp_path), "--no-plots"])
    assert done.exit_code == 0, done.output
    assert "4 of 28 images of own are held out" in done.stderr
    assert "linear probe of the start" in done.stderr
    results = json.loads((tmp_path / "mine_results.json").read_text())
    assert results["probe_acc"] == results["start_acc"] == 1.0  # features of v0 tell a square above from one below
    assert results["best_epoch"] == 0
    assert "the start is kept" in done.stderr
    checkpoint = load_checkpoint(tmp_path / "mine.pth", name="v0")
    splits = load_splits(own)
    logits = predict_logits(checkpoint.network(), torch.from_numpy(splits.validation.faces))
    assert (logits.argmax(1).numpy() == splits.validation.labels).all()
    # The features are those of the start.
    base = load_checkpoint(tmp_path / "base.pth", name="v0").state_dict
    assert torch.equal(checkpoint.state_dict["fc_layer.1.weight"], base["fc_layer.1.weight"])


def test_a_network_of_ones_own_is_trained_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def tiny(classes):\n"
        "    network = nn.Sequential(nn.Conv2d(1, 4, 5, 4), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, classes))\n"
        "    network.mean, network.std = [0.4], [0.2]\n"
        "    return network\n"
        "def wrong(classes):\n"
        "    return nn.Flatten()\n"
        "def wide(classes, width):\n"
        "    return nn.Flatten()\n"
    )
    (tmp_path / "my_slip.py").write_text("from torch import nn\nnn.Convolution\n")
    monkeypatch.chdir(tmp_path)
    data = write_own_images(tmp_path / "data", TWO, 8)
    options = f"--name mine --model my_networks:tiny --data {data} --epochs 1 --size 64 --device cpu --no-plots"
    done = CliRunner().invoke(main, options.split())
    assert done.exit_code == 0, done.output
    checkpoint = load_checkpoint(Path("models/mine.pth"), name="my_networks:tiny")
    network = checkpoint.network()
    assert list(checkpoint.state_dict) == ["0.weight", "0.bias", "4.weight", "4.bias"]
    faces = torch.from_numpy(load_splits(data, size=64).validation.faces)
    plain = nn.Sequential(*network.children()).eval()
    expected = plain((faces[:, None] / 255 - 0.4) / 0.2)
    # float32 additions in another order
    assert torch.allclose(predict_logits(network, faces), expected, atol=1e-5)
    # A file may not say what code is run.
    with pytest.raises(CheckpointError, match="if you trust its code, give --model my_networks:tiny"):
        stated_network(Path("models/mine.pth"))
    for model, told in (
        ("my_networks:wrong", "not logits of shape"),
        ("my_networks:none", "has no none"),
        ("none:at", "cannot be imported"),
        (".my_networks:tiny", "cannot be imported (a name cannot begin with a point)"),
        ("my_slip:tiny", "cannot be imported (AttributeError: module 'torch.nn' has no attribute 'Convolution')"),
        ("my_networks:wide", "cannot be called with classes (missing a required argument: 'width')"),
    ):
        refused = CliRunner().invoke(main, ["--name", "b", "--model", model, "--data", str(data), "--device", "cpu"])
        assert refused.exit_code == 1
        assert told in refused.output
    for unused, told in (
        (("--set", "dropout=0.5"), "--set dropout does nothing: the function of my_networks:tiny takes no argument"),
        (("--finish", "--resume"), "--resume: not beside --finish"),
    ):
        given = ["--name", "b", "--model", "my_networks:tiny", "--data", str(data), *unused]
        refused = CliRunner().invoke(main, given)
        assert refused.exit_code == 2
        assert told in " ".join(refused.output.split())
    unnamed = CliRunner().invoke(main, ["--model", "my_networks:tiny", "--data", str(data)])
    assert "name yours: --name mine" in unnamed.output


class _Turned(nn.Module):
    """Its last weights have the labels as columns."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 24, 24)
        self.last = nn.Parameter(torch.randn(8, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.first(images).flatten(1) @ self.last  # type: ignore[no-any-return]


def test_labels_that_are_columns_are_not_exchanged_as_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fer_train.networks.foreign.load_function", lambda _: _Turned)
    labels = tuple("abcdefgh")  # as many as the features: a wrong exchange would fit
    shape = NetworkShape(classes=8)
    start = create_network("own:turned", shape)
    checkpoint = Checkpoint(name="own:turned", state_dict=start.state_dict(), expressions=labels)
    with pytest.raises(CheckpointError, match=r"cannot be put in the order h, g.* have no row for each"):
        in_label_order(checkpoint, labels[::-1])
    save_checkpoint(tmp_path / "start.pth", checkpoint)
    for classes, is_kept in ((labels, True), ((*labels[:-1], "i"), False)):
        network = create_network("own:turned", shape)
        fresh = network.state_dict()["last"].clone()
        start_from(network, "own:turned", str(tmp_path / "start.pth"), classes, shape)
        assert torch.equal(network.state_dict()["last"], start.state_dict()["last"] if is_kept else fresh)
        assert torch.equal(network.state_dict()["first.weight"], start.state_dict()["first.weight"])


def test_every_recipe_has_a_name_that_the_command_takes() -> None:
    assert set(RECIPES) == {"first", "best", "finetune"}
    # Files of earlier trainings stay the same.
    assert not {"last_layer", "repeat_images"} & set(RECIPES["best"].to_dict())
