"""What fer-train refuses before it does anything: options that would change nothing."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fer_runtime.errors import DataError
from fer_train import cli
from fer_train.recipes import Recipe


def _refusal(monkeypatch: pytest.MonkeyPatch, *options: str) -> str:
    def not_reached(*_: object, **__: object) -> None:
        pytest.fail("the work has begun")

    for work in ("_train", "_pretrain", "_data_root"):
        monkeypatch.setattr(cli, work, not_reached)
    run = CliRunner().invoke(cli.main, options)
    assert run.exit_code == 2, run.output
    return run.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--pretrain", "images", "--teacher", "a.pth", "--weights", "none", "--recipe", "first"),
        ("--pretrain", "images", "--drop", "none", "--data", "data"),
    ],
)
def test_options_that_a_mode_does_not_use_are_named(monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]) -> None:
    message = _refusal(monkeypatch, "--model", "v1", *options)
    # One that stands at its default is given all the same, such as --seed 0.
    mode, *unused = [option for option in options if option.startswith("--")]
    named = message.partition(f"{mode} does not use ")[2].partition("; leave ")[0]
    assert sorted(named.split(", ")) == sorted(unused)


def test_settings_that_change_nothing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said = _refusal(monkeypatch, "--model", "v0", "--set", "dropout=0", "--set", "teacher_weight=0.5")
    assert "--set: settings teacher_... only with --teacher" in said
    said = _refusal(monkeypatch, "--model", "v1", "--pretrain", "images", "--set", "drop=near")
    assert "--pretrain, which learns from all images" in said


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        (("--epochs", "1"), "epochs=2"),
        (("--batch-size", "8"), "batch_size=16"),
        (("--lr", "0.1"), "lr=0.01"),
        (("--drop", "none"), "drop=near"),
        (("--drop", "none,a.csv"), "drop=near"),
        (("--set", "dropout=0"), "dropout=0.5"),
    ],
)
def test_a_setting_that_is_given_twice_is_an_error(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, str], setting: str
) -> None:
    monkeypatch.setattr("fer_train.pipeline.train_model", lambda *_, **__: pytest.fail("the work has begun"))
    run = CliRunner().invoke(cli.main, ["--model", "v0", "--data", "data", "--set", setting, *options])
    assert run.exit_code == 2, run.output
    both = ("--set dropout=0.5", "--set dropout=0") if options[0] == "--set" else (options[0], f"--set {setting}")
    assert "{} and {} are the same setting".format(*both) in " ".join(run.stderr.split())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--set", "warmup=0.3"), "--set warmup=0.3 is of no use without schedule=one-cycle"),
        (("--set", "mix_until=0.8"), "--set mix_until=0.8 is of no use without mixup or cutmix above 0"),
        (("--set", "small_size=36"), "--set small_size=36 is of no use without small_until above 0"),
        (("--set", "repeat_images=4"), "--set repeat_images=4 is of no use without teacher_views=images"),
        (("--set", "repeat_images=4", "--set", "teacher_views=images", "--teacher", "models/model_0.pth"), ""),
        (("--recipe", "finetune"), "--recipe finetune starts from a trained model; give it: --weights FILE"),
        (("--weights", "none", "--set", "last_layer=probe"), "--set last_layer=probe starts from a trained model"),
        (("--set", "mix_until=0.8", "--set", "cutmix=1"), ""),
        (("--recipe", "best", "--set", "warmup=0.3"), ""),
        (("--recipe", "finetune", "--set", "last_layer=kept"), ""),
    ],
)
def test_a_setting_that_does_nothing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], told: str
) -> None:
    def ended(*_: object, **__: object) -> None:
        raise DataError("the work has begun")

    monkeypatch.setattr("fer_train.pipeline.train_model", ended)
    run = CliRunner().invoke(cli.main, ["--model", "v0", "--data", "data", "--device", "cpu", *options])
    assert (run.exit_code, "the work has begun" in run.stderr) == ((2, False) if told else (1, True)), run.output
    assert told in " ".join(run.stderr.split())


def test_dropped_files_and_kinds_are_two_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes: list[Recipe] = []

    def ended(_model: str, _data: object, recipe: Recipe, **_: object) -> None:
        recipes.append(recipe)
        raise DataError("ended")

    monkeypatch.setattr("fer_train.pipeline.train_model", ended)
    given = ["--model", "v0", "--data", "data", "--drop", "a.csv", "--set", "drop=near", "--device", "cpu"]
    CliRunner().invoke(cli.main, given)
    assert [recipe.drop for recipe in recipes] == [("near",)]


def test_options_that_are_not_given_count_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[tuple[object, ...]] = []
    monkeypatch.setattr(cli, "_pretrain", lambda *given: reached.append(given))
    run = CliRunner().invoke(cli.main, ["--model", "v1", "--pretrain", "images"])
    assert run.exit_code == 0, run.output
    assert len(reached) == 1


@pytest.mark.parametrize(
    ("given", "kinds", "files"),
    [
        (None, None, ()),
        ("none", (), ()),
        ("duplicates, near", ("duplicates", "near"), ()),
        ("found.csv", None, ("found.csv",)),  # the recipe's kinds stay
        ("none,found.csv", (), ("found.csv",)),
        ("conflicts,a.csv,b.csv", ("conflicts",), ("a.csv", "b.csv")),
    ],
)
def test_drop_takes_kinds_and_files(given: str | None, kinds: tuple[str, ...] | None, files: tuple[str, ...]) -> None:
    assert cli._drop(given) == (kinds, tuple(map(Path, files)))


def test_an_unknown_kind_to_drop_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(click.BadParameter, match=r"blurred is neither one of .* nor a .csv file"):
        cli._drop("duplicates,blurred")


def test_resume_says_that_there_is_nothing_to_continue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def ended(*_: object, **__: object) -> None:
        raise DataError("ended")

    for work in ("fer_train.pipeline.train_model", "fer_train.pretrain.pretrain"):
        monkeypatch.setattr(work, ended)

    def said(*options: str) -> str:
        given = ("--models-dir", str(tmp_path), "--device", "cpu")
        return CliRunner().invoke(cli.main, [*options, *given]).stderr

    for options, file in (
        (("--model", "v0", "--data", str(tmp_path)), "model_0"),
        (("--model", "v0", "--data", str(tmp_path), "--name", "mine"), "mine"),
        (("--model", "v1", "--pretrain", str(tmp_path)), "model_v1_pretrained"),
    ):
        nothing = f"no stopped run at {tmp_path / file}.resume.pth: training from the first epoch\n"
        assert said(*options, "--resume") == f"{nothing}Error: ended\n"
        assert said(*options) == "Error: ended\n"
        (tmp_path / f"{file}.resume.pth").touch()
        assert said(*options, "--resume") == "Error: ended\n"


def test_safetensors_that_are_there_are_not_replaced_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("fer_train.pipeline.train_model", lambda *_, **__: pytest.fail("the work has begun"))
    (tmp_path / "mine.safetensors").write_bytes(b"of another program")
    options = ["--name", "mine", "--model", "v0", "--data", str(tmp_path), "--models-dir", str(tmp_path)]
    run = CliRunner().invoke(cli.main, [*options, "--safetensors"])
    assert run.exit_code == 1
    assert "mine.safetensors exists; " in run.stderr
    assert "--replace" in run.stderr
