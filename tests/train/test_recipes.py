"""Recipes: single settings given as text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from fer_train.cli import main
from fer_train.data.augmentations import AUGMENTATIONS
from fer_train.networks.architectures import ARCHITECTURES
from fer_train.networks.registry import create_network
from fer_train.recipes import Recipe

BEST = ARCHITECTURES["v0"].recipe("best")


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("epochs=3", "epochs", 3),
        ("ema_decay=0", "ema_decay", 0.0),
        ("augmentation=none", "augmentation", "none"),
        ("drop=duplicates,conflicts", "drop", ("duplicates", "conflicts")),
        ("drop=none", "drop", ()),
    ],
)
def test_a_setting_is_read_by_its_type(text: str, name: str, value: object) -> None:
    changed = BEST.with_settings(text)
    assert getattr(changed, name) == value
    assert type(getattr(changed, name)) is type(value)
    others = {key: value for key, value in BEST.to_dict().items() if key != name}
    assert {key: value for key, value in changed.to_dict().items() if key != name} == others


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch=3", "unknown setting 'epoch'; expected NAME=VALUE with NAME one of: epochs, "),
        ("epochs", "setting epochs has no value; expected epochs=VALUE"),
        ("epochs=many", "epochs must be of type int, such as 60, not many"),
        ("augmentation=heavy", "augmentation must be one of none, light, faces, autoaugment, not heavy"),
        ("mixup=-1", "mixup must be from 0 to 1000, not -1.0"),
        ("mixup=inf", "mixup must be from 0 to 1000, not inf"),
        ("dropout=1", "dropout must be at least 0 and below 1, not 1.0"),
        ("dropout=-0.1", "dropout must be at least 0 and below 1, not -0.1"),
        ("cutmix=nan", "cutmix must be from 0 to 1000, not nan"),
        ("epochs=0", "epochs must be 1 or more, not 0"),
        ("lr=1e300", r"lr must be above 0, at most 1000, not 1e\+300"),
        ("weight_decay=1e300", "weight_decay must be from 0 to 1000, not"),
        ("lr=nan", "lr must be above 0, at most 1000, not nan"),
        ("teacher_temperature=0", "teacher_temperature must be above 0, at most 1000, not 0.0"),
        ("teacher_weight=1.5", "teacher_weight must be from 0 to 1, not 1.5"),
        ("drop=blurred", "drop must be one of duplicates, conflicts, near, not blurred"),
        ("optimizer=lion", "optimizer must be one of adam, adamw, sgd"),
    ],
)
def test_a_setting_that_is_none_is_named_with_those_that_are(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BEST.with_settings(text)


def test_settings_that_need_each_other_may_come_in_any_order() -> None:
    best = ARCHITECTURES["v1"].recipe("best")  # with smaller images at first, which teachers of images cannot take
    settings = ("teacher_views=images", "small_until=0")
    assert best.with_settings(*settings) == best.with_settings(*reversed(settings))
    with pytest.raises(ValueError, match="set small_until=0"):
        best.with_settings("teacher_views=images")


def test_every_registered_augmentation_can_be_chosen() -> None:
    for name in AUGMENTATIONS:
        assert Recipe(epochs=1, batch_size=2, optimizer="sgd", lr=1.0, augmentation=name).augmentation == name


def test_the_command_refuses_an_unknown_setting_before_it_reads_a_image(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--model", "v0", "--data", str(tmp_path), "--set", "mixing=1"])
    assert done.exit_code == 2
    assert "unknown setting 'mixing'" in done.output


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_recipes_dropout_is_the_networks(name: str) -> None:
    faces = torch.rand(4, 3, 48, 48)
    for dropout, equal in ((0.0, True), (0.5, False)):
        network = create_network(name, dropout=dropout).train()
        assert torch.equal(network(faces), network(faces)) is equal
