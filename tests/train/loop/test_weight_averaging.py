"""The mean of several trainings, held to hand-worked means and to PyTorch's own convolution."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from click.testing import CliRunner
from tests.train.pictures import write_pictures

from fer_runtime.expressions import EXPRESSIONS
from fer_train import cli
from fer_train.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from fer_train.data.folders import load_faces
from fer_train.loop.weight_averaging import average_models, balancing_biases, mean_of, renew_statistics
from fer_train.networks.registry import create_network


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data"), train=16, validation=6)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def test_the_mean_as_worked_by_hand() -> None:
    states = [
        {"weight": torch.tensor([1.0, -2.0]), "num_batches_tracked": torch.tensor(5)},
        {"weight": torch.tensor([2.0, 4.0]), "num_batches_tracked": torch.tensor(9)},
        {"weight": torch.tensor([6.0, 1.0]), "num_batches_tracked": torch.tensor(7)},
    ]
    mean = mean_of(states)
    assert mean["weight"].tolist() == [3.0, 1.0]
    assert mean["num_batches_tracked"] == 5


def test_the_statistics_are_those_of_the_faces_and_their_mirror_images() -> None:
    faces = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 48, 48), np.uint8))
    torch.manual_seed(0)
    network = create_network("v0")
    weight, bias = (network.state_dict()[f"conv_block_1.0.{name}"].double() for name in ("weight", "bias"))
    renew_statistics(network, faces)
    planes = (torch.cat([faces, faces.flip(-1)]).double() / 255)[:, None].expand(-1, 3, -1, -1)
    maps = F.conv2d(planes, weight, bias, padding=1)
    state = network.state_dict()
    assert torch.allclose(state["conv_block_1.1.running_mean"].double(), maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert torch.allclose(state["conv_block_1.1.running_var"].double(), maps.var((0, 2, 3)), rtol=1e-3)
    assert not network.training


def test_the_statistics_see_the_classes_together_however_the_faces_lie() -> None:
    # Two classes of 512 faces, dark ones first: a batch of one class alone has hardly any variance.
    random = np.random.default_rng(0)
    faces = np.concatenate([random.integers(low, low + 16, (512, 48, 48), np.uint8) for low in (20, 220)])
    torch.manual_seed(0)
    network = create_network("v0")
    weight, bias = (network.state_dict()[f"conv_block_1.0.{name}"].double() for name in ("weight", "bias"))
    renew_statistics(network, torch.from_numpy(faces))
    sample = torch.from_numpy(faces[::8])
    planes = (torch.cat([sample, sample.flip(-1)]).double() / 255)[:, None].expand(-1, 3, -1, -1)
    variance = F.conv2d(planes, weight, bias, padding=1).var((0, 2, 3))
    assert torch.allclose(network.state_dict()["conv_block_1.1.running_var"].double(), variance, rtol=0.02)


def test_the_command_averages_and_says_what_of(pictures: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    _train(pictures, first, "--epochs", "3")
    parts = [tmp_path / "a", tmp_path / "b"]
    for seed, part in enumerate(parts, 1):
        _train(pictures, part, "--epochs", "2", "--weights", str(first / "model_0.pth"), "--seed", str(seed))
    files = [part / "model_0.pth" for part in parts]
    output = tmp_path / "mean"
    options = ["--model", "v0", "--data", str(pictures), "--models-dir", str(output), "--device", "cpu"]
    given = [text for path in files for text in ("--average", str(path))]
    done = CliRunner().invoke(cli.main, [*options, *given])
    assert done.exit_code == 0, done.output
    assert "the mean of 2" in done.stdout
    assert str(files[1]) in done.stderr

    results = json.loads((output / "model_0_results.json").read_text())
    for part, path, said in zip(parts, files, results["averaged"], strict=True):
        own = json.loads((part / "model_0_results.json").read_text())
        assert said["test_acc"] == pytest.approx(own["accuracy"])
        assert said["accuracies"] == own["test_acc"]  # two epochs: what its picture draws
        assert (said["training"]["seed"], said["training"]["settings"]["weights"]) == (own["seed"], "model_0.pth")
        assert said["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    contents = [torch.load(path, weights_only=True)["state_dict"] for path in files]
    content = torch.load(output / "model_0.pth", weights_only=True)
    assert [one["sha256"] for one in content["training"]["averaged"]] == [one["sha256"] for one in results["averaged"]]
    for key, value in content["state_dict"].items():
        if "running" in key or "num_batches" in key:
            continue
        assert torch.allclose(value, (contents[0][key] + contents[1][key]) / 2, atol=1e-7), key
    # Its figures are those of its weights.
    validation = load_faces(pictures, "validation")
    network = create_network("v0")
    network.load_state_dict(content["state_dict"])
    planes = torch.from_numpy(validation.faces)[:, None].expand(-1, 3, -1, -1) / 255
    predictions = network.eval()(planes).argmax(1).numpy()
    assert results["accuracy"] == pytest.approx((predictions == validation.labels).mean())
    assert results["test_acc"] == [pytest.approx(results["accuracy"])]
    assert (output / "model_0_curves.png").read_bytes().startswith(b"\x89PNG")


def test_balanced_each_class_is_named_as_often_as_it_occurs() -> None:
    random = np.random.default_rng(0)
    labels = random.choice(3, 6000, p=(0.2, 0.3, 0.5))
    # Logits that favour the last class: it is named for most of the others.
    logits = (random.normal(size=(6000, 3)) + 1.5 * np.eye(3)[labels] + (0, 0, 1.5)).astype(np.float32)
    biases = balancing_biases(torch.from_numpy(logits), torch.from_numpy(labels)).numpy()
    true = np.bincount(labels) / 6000
    before, after = (np.bincount(values.argmax(1), minlength=3) / 6000 for values in (logits, logits + biases))
    assert abs(before - true).max() > 0.2
    assert abs(after - true).max() < 0.002
    assert biases.mean() == pytest.approx(0, abs=1e-6)
    # As many of the middle class as there are, whichever they were: it was the favour that had to go.
    assert biases[2] - biases[:2].mean() == pytest.approx(-1.5, abs=0.35)


def test_half_a_balance_adds_half_of_the_biases(pictures: Path, tmp_path: Path) -> None:
    _train(pictures, tmp_path, "--epochs", "1", "--lr", "1e-5")  # it has hardly learned, and names few classes
    states = []
    for balance in ("0", "0.5", "1"):
        output = tmp_path / balance
        given = ["--average", str(tmp_path / "model_0.pth"), "--balance", balance, "--models-dir", str(output)]
        done = CliRunner().invoke(cli.main, ["--model", "v0", "--data", str(pictures), "--no-plots", *given])
        assert done.exit_code == 0, done.output
        states.append(torch.load(output / "model_0.pth", weights_only=True)["state_dict"])
        results = json.loads((output / "model_0_results.json").read_text())
        assert results["settings"]["balance"] == float(balance)
    none, half, whole = (state.pop("fc_layer.4.bias") for state in states)
    assert torch.allclose(half, (none + whole) / 2, atol=1e-6)
    assert not torch.allclose(half, none)
    assert all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_a_part_whose_results_are_of_another_training_has_no_curves(pictures: Path, tmp_path: Path) -> None:
    _train(pictures, tmp_path / "a", "--epochs", "2")
    _train(pictures, tmp_path / "b", "--epochs", "2", "--seed", "1")
    (tmp_path / "b" / "model_0_results.json").write_bytes((tmp_path / "a" / "model_0_results.json").read_bytes())
    parts = [average_models("v0", [tmp_path / one / "model_0.pth"], pictures, models_dir=tmp_path) for one in "ab"]
    assert [len(part.results.averaged[0].accuracies) for part in parts] == [2, 0]


def test_parts_with_other_orders_of_the_classes_are_averaged_class_by_class(pictures: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    states = [create_network("v0").state_dict() for _ in range(2)]
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    moved = dict(states[1])
    for key in ("fc_layer.4.weight", "fc_layer.4.bias"):
        moved[key] = moved[key][order]
    expressions = tuple(EXPRESSIONS[index] for index in order)
    save_checkpoint(tmp_path / "a.pth", Checkpoint(name="v0", state_dict=states[0]))
    save_checkpoint(tmp_path / "b.pth", Checkpoint(name="v0", state_dict=moved, expressions=expressions))
    done = average_models("v0", [tmp_path / "a.pth", tmp_path / "b.pth"], pictures, models_dir=tmp_path)
    found = load_checkpoint(done.checkpoint, name="v0")
    assert found.expressions == EXPRESSIONS
    for key in ("fc_layer.4.weight", "fc_layer.4.bias"):
        assert torch.allclose(found.state_dict[key], (states[0][key] + states[1][key]) / 2, atol=1e-7)


@pytest.mark.parametrize(("files", "reason"), [(("model_0.pth", "nothing.pth"), "nothing.pth")])
def test_what_cannot_be_averaged_is_refused(
    pictures: Path, tmp_path: Path, files: tuple[str, ...], reason: str
) -> None:
    _train(pictures, tmp_path, "--epochs", "1")
    output = tmp_path / "mean"
    given = [text for name in files for text in ("--average", str(tmp_path / name))]
    done = CliRunner().invoke(cli.main, ["--model", "v0", "--data", str(pictures), "--models-dir", str(output), *given])
    assert done.exit_code == 1
    assert reason in done.stderr
    assert not output.exists()


def _train(pictures: Path, models_dir: Path, *options: str) -> None:
    command = ["--model", "v0", "--data", str(pictures), "--models-dir", str(models_dir), "--no-plots"]
    done = CliRunner().invoke(cli.main, [*command, "--device", "cpu", "--recipe", "first", *options])
    assert done.exit_code == 0, done.output
