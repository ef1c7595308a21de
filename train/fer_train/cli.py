"""The command `fer-train`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fer_runtime.command import FerCommand, RegistryChoice, needs_extra
from fer_runtime.errors import FerError
from fer_runtime.model.find import DEFAULT_MODELS_DIR, FILE_STEMS
from fer_train.networks.architectures import ARCHITECTURES
from fer_train.recipes import RECIPES

if TYPE_CHECKING:
    from fer_train.pipeline import Trained

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)

# The modes that do not train on faces, with the options that each takes beside its own.
_MODES = {
    "audit": ("data", "skip_unreadable"),
    "pretrain_dir": (
        *("model", "epochs", "batch_size", "lr", "given_settings", "device", "threads", "seed"),
        *("models_dir", "resume", "finish", "replace"),
    ),
}


@click.command(cls=FerCommand, context_settings={"max_content_width": 100})
@click.option(
    "--model",
    type=RegistryChoice(ARCHITECTURES),
    help="Network to train.",
)
@click.option(
    "--name",
    metavar="NAME",
    help="What to call the result: NAME.pth, NAME_results.json. [default: as the network's files, model_v3.pth]",
)
@click.option(
    "--data",
    type=_FOLDER,
    help="Folder with images/train/<class> and images/validation/<class>, or with train and validation. "
    "[default: the Kaggle dataset, downloaded on first use]",
)
@click.option(
    "--recipe",
    "recipe_name",
    type=click.Choice(tuple(RECIPES)),
    default="first",
    show_default=True,
    help="Settings: first, those of the project's first version; best, those of the shipped models.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the images, instead of the recipe's.")
@click.option("--batch-size", type=click.IntRange(min=2), help="Faces per step, instead of the recipe's.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Learning rate, instead of the recipe's.")
@click.option(
    "--drop",
    help="Training images to leave out, instead of the recipe's: duplicates, conflicts and near, with commas, "
    "or none. Nothing is deleted.",
)
@click.option(
    "--set",
    "given_settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other setting of the recipe, such as augmentation=light or ema_decay=0; docs/training.md lists them.",
)
@click.option(
    "--weights",
    help="What the network starts from: imagenet (v1, downloaded by torchvision), none, or a file of weights. "
    "[default: imagenet for v1, none for the others]",
)
@click.option(
    "--pretrain",
    "pretrain_dir",
    type=_FOLDER,
    help="Do not train on faces: pretrain v1 on any folder of class folders and write weights for --weights.",
)
@click.option(
    "--audit",
    type=_FOLDER,
    is_flag=False,
    flag_value=Path("audit"),
    metavar="[DIR]",
    help="Do not train: look for copies, contradictions and non-faces in --data. Writes to DIR, or to audit/.",
)
@click.option(
    "--teacher",
    "teachers",
    type=_FILE,
    multiple=True,
    help="Checkpoint or exported model to distil from, such as models/model_v3.int8.onnx. Repeatable.",
)
@click.option(
    "--votes",
    metavar="FILE",
    help="Raters' votes to learn from: a .csv or .csv.gz with each image's path and a column per class, or ferplus for "
    "FER+'s votes on FER2013.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "mps", "cuda", "cpu"]),
    default="auto",
    show_default=True,
    help="Where to train. auto takes MPS, else CUDA, else the CPU.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: PyTorch's choice]")
@click.option(
    "--seed", default=0, show_default=True, help="Seed of the first weights, order, augmentation and dropout."
)
@click.option(
    "--models-dir",
    type=_FOLDER,
    default=DEFAULT_MODELS_DIR,
    show_default=True,
    help="Where the checkpoint, the results and the plots go.",
)
@click.option("--resume", is_flag=True, help="Continue a stopped run from its last finished epoch.")
@click.option("--finish", is_flag=True, help="Stop here: write the best epoch so far of a stopped run.")
@click.option(
    "--replace", is_flag=True, help="Overwrite a finished checkpoint of the same name, and drop a stopped run."
)
@click.option(
    "--skip-unreadable", is_flag=True, help="Leave out images that cannot be read instead of stopping, and count them."
)
@click.option("--no-plots", is_flag=True, help="Do not draw the curves and the confusion matrix.")
def main(
    model: str | None,
    name: str | None,
    data: Path | None,
    recipe_name: str,
    drop: str | None,
    given_settings: tuple[str, ...],
    weights: str | None,
    pretrain_dir: Path | None,
    audit: Path | None,
    teachers: tuple[Path, ...],
    votes: str | None,
    device: str,
    threads: int | None,
    seed: int,
    models_dir: Path,
    resume: bool,
    finish: bool,
    replace: bool,
    skip_unreadable: bool,
    no_plots: bool,
    **settings: Any,
) -> None:
    """Train a facial-expression network and keep its best epoch.

    \b
    fer-train --name mine --model v3 --data data --recipe best
    fer-train --name mine --model v3 --data data --recipe best --votes ferplus
    fer-train --name mine --model v3 --data data --weights models/model_v3.pth --epochs 10
    torchrun --nproc-per-node 2 -m fer_train ...     several processes or GPUs, the same result
    fer-train --audit --data data                    copies and contradictions among the images

    Writes the checkpoint, the results as JSON and two plots to --models-dir. Continue a stopped run
    with --resume, which ends with the same weights as an uninterrupted one, or end it with --finish.
    """
    _refuse_unused_options(given_settings)
    if audit is not None:
        _audit(_data_root(data), audit, skip_unreadable=skip_unreadable)
        return
    if model is None:
        raise click.UsageError(f"Missing option '--model'. Choose from: {', '.join(ARCHITECTURES)}.")
    _check_name(name, model)
    with needs_extra("train"):  # PyTorch loads slowly and edge devices lack it; --help needs neither
        import torch

        from fer_train.loop.devices import choose_device
        from fer_train.loop.distributed import joined_world, one_per_machine_first
        from fer_train.pipeline import train_model
        from fer_train.pretrain import pretrain
        from fer_train.progress import EpochBars
        from fer_train.recipes import PRETRAIN

    if threads:
        torch.set_num_threads(threads)
    where = choose_device(device)
    recipe = PRETRAIN if pretrain_dir else ARCHITECTURES[model].recipe(recipe_name)
    try:
        for text in given_settings:
            recipe = recipe.with_setting(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--set") from None
    recipe = recipe.overridden(**settings, drop=_drop(drop))
    progress = EpochBars()
    try:
        with joined_world(where) as (world, where):
            how: dict[str, Any] = {
                "device": where,
                "seed": seed,
                "models_dir": models_dir,
                "resume": resume,
                "finish": finish,
                "replace": replace,
                "world": world,
                "progress": progress,
            }
            if pretrain_dir is not None:
                learned = pretrain(model, pretrain_dir, recipe, **how)
                if world.is_writer:
                    click.echo(
                        f"{learned.path}  {learned.classes} classes, {learned.images} images, "
                        f"accuracy {learned.accuracy:.1%} on held-out ones"
                    )
                return
            trained = train_model(
                model,
                one_per_machine_first(lambda: _data_root(data), world),
                recipe,
                name=name,
                recipe_name=recipe_name,
                weights=weights or ARCHITECTURES[model].weights,
                teachers=teachers,
                votes=votes,
                skip_unreadable=skip_unreadable,
                **how,
            )
            if world.is_writer:
                _report(trained, plots=not no_plots)
    except KeyboardInterrupt:
        progress.close()
        raise InterruptedTrainingError from None


def _check_name(name: str | None, model: str) -> None:
    """Raise a BadParameter for a name that is no file name, or that belongs to another network."""
    if name is None or name == model:
        return
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise click.BadParameter(f"{name!r} is no file name; use letters, digits, -, _ and .", param_hint="--name")
    if name in FILE_STEMS or name in FILE_STEMS.values():
        raise click.BadParameter(f"{name} is the name of a network that ships; choose another", param_hint="--name")


def _refuse_unused_options(settings: tuple[str, ...]) -> None:
    """Raise a UsageError for options that would change nothing, and for copies of work that is not shared out."""
    context = click.get_current_context()
    names = {parameter.name: max(parameter.opts, key=len) for parameter in context.command.params}
    given = [name for name in names if context.get_parameter_source(str(name)) is ParameterSource.COMMANDLINE]
    for mode, taken in _MODES.items():
        if mode not in given:
            continue
        if unused := [names[name] for name in given if name not in (mode, *taken)]:
            raise click.UsageError(f"{names[mode]} does not use {', '.join(unused)}; start it without")
        if mode != "pretrain_dir" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise click.UsageError(f"{names[mode]} runs in one process; start it without torchrun")
    for text in settings:
        if text.startswith("teacher_") and "teachers" not in given:
            raise click.UsageError(f"--set {text} changes nothing without --teacher")
        if text.startswith(("vote_", "least_votes=", "label_share=")) and "votes" not in given:
            raise click.UsageError(f"--set {text} changes nothing without --votes")
        if text.startswith("drop=") and "pretrain_dir" in given:
            raise click.UsageError("--pretrain learns from all images; start it without --set drop")


def _report(trained: Trained, *, plots: bool) -> None:
    """Print what was written, and draw the two plots."""
    for split in (trained.train, trained.validation):
        if split.skipped:
            click.echo(f"skipped {split.skipped} images in {split.folder} that cannot be read", err=True)
        if split.resized:
            click.echo(f"resized {split.resized} images in {split.folder} to 48 x 48", err=True)
    results, history = trained.results, trained.results.history
    if history.best_epoch == 0:
        click.echo(f"no epoch was better than the start ({history.start_acc:.1%}); the start is kept", err=True)
    against_votes = ""
    if votes := results.votes:
        against_votes = f"raters' majority {votes.majority_accuracy:.1%}, mean recall {votes.mean_recall:.1%}, labels "
    click.echo(
        f"{trained.checkpoint}  validation: {against_votes}accuracy {results.accuracy:.1%}, "
        f"macro-F1 {results.to_dict()['macro_f1']:.1%}, epoch {history.best_epoch} of {history.epochs}"
    )
    click.echo(trained.results_file)
    if not plots:
        return
    from fer_train.plots import write_plots

    for path in write_plots(results.to_dict(), trained.checkpoint.with_suffix("")):
        click.echo(path)


def _audit(data: Path, folder: Path, *, skip_unreadable: bool) -> None:
    with needs_extra("train"):
        from fer_train.data.audit import audit_faces, write_audit
        from fer_train.data.folders import load_faces

    train, validation = (load_faces(data, split, skip_unreadable=skip_unreadable) for split in ("train", "validation"))
    found = audit_faces(train, validation)
    click.echo(found.to_text())
    for path in write_audit(found, folder, train, validation):
        click.echo(path)


class InterruptedTrainingError(FerError):
    """Ctrl-C during training."""

    def __init__(self) -> None:
        super().__init__(
            "interrupted; every finished epoch is saved: repeat the command with --resume to continue, or with "
            "--finish to keep the best epoch so far"
        )


def _drop(given: str | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    from fer_train.data.deduplicate import KINDS

    kinds = tuple(kind.strip() for kind in given.split(",") if kind.strip() not in ("", "none"))
    if unknown := set(kinds) - set(KINDS):
        raise click.BadParameter(
            f"{', '.join(sorted(unknown))} is none of: {', '.join(KINDS)}, none", param_hint="--drop"
        )
    return kinds


def _data_root(data: Path | None) -> Path:
    if data is not None:
        return data
    from fer_train.data.kaggle import download_dataset

    return download_dataset()
