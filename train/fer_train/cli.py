"""The command `fer-train`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fer_runtime.command import FerCommand, needs_extra
from fer_runtime.errors import FerError
from fer_runtime.model.find import DEFAULT_MODELS_DIR, MODEL_NAMES

if TYPE_CHECKING:
    from fer_train.pipeline import Trained
    from fer_train.results import History

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)

# What does something else than train a network on faces, and the options that it takes beside its own.
_MODES = {
    "audit": ("data",),
    "pretrain_dir": (
        *("model", "epochs", "batch_size", "lr", "given_settings", "device", "threads", "seed"),
        *("models_dir", "resume", "finish", "no_plots"),
    ),
}


@click.command(cls=FerCommand, context_settings={"max_content_width": 100})
@click.option(
    "--model",
    type=click.Choice(MODEL_NAMES),
    help="Network to train: v0, a small CNN; v1, a ResNet18; v2 and v3, ResNets for small faces.",
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
    type=click.Choice(["first", "best"]),
    default="first",
    show_default=True,
    help="Settings: first, those of the project's first version; best, those of the shipped models.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the pictures, instead of the recipe's.")
@click.option("--batch-size", type=click.IntRange(min=2), help="Faces per step, instead of the recipe's.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Learning rate, instead of the recipe's.")
@click.option(
    "--drop",
    help="Training pictures to leave out, instead of the recipe's: duplicates, conflicts and near, with commas, "
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
    help="Do not train on faces: learn from any folder of class folders, and write weights for --weights.",
)
@click.option(
    "--audit",
    type=_FOLDER,
    is_flag=False,
    flag_value=Path("audit"),
    metavar="[DIR]",
    help="Do not train: look for copies, contradictions and what is no face in --data; writes to DIR, or to audit/.",
)
@click.option(
    "--teacher",
    "teachers",
    type=_FILE,
    multiple=True,
    help="Checkpoint or exported model to distil from, such as models/model_v3.int8.onnx. May be given several times.",
)
@click.option(
    "--votes",
    type=_FILE,
    help="Raters' votes to learn from: a .csv or .csv.gz with each image's path and a column per class.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "mps", "cuda", "cpu"]),
    default="auto",
    show_default=True,
    help="Where to train. auto takes MPS, else CUDA, else the CPU.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: PyTorch's choice]")
@click.option("--seed", default=0, show_default=True, help="Of the first weights, order, augmentation and dropout.")
@click.option(
    "--models-dir",
    type=_FOLDER,
    default=DEFAULT_MODELS_DIR,
    show_default=True,
    help="Where the checkpoint, the results and the plots go.",
)
@click.option("--resume", is_flag=True, help="Continue a run that was stopped, from its last whole epoch.")
@click.option(
    "--finish", is_flag=True, help="Train no further: write the best epoch of a run that was stopped, as it stands."
)
@click.option("--no-plots", is_flag=True, help="Write no pictures of the curves and the confusion matrix.")
def main(
    model: str | None,
    data: Path | None,
    recipe_name: str,
    drop: str | None,
    given_settings: tuple[str, ...],
    weights: str | None,
    pretrain_dir: Path | None,
    audit: Path | None,
    teachers: tuple[Path, ...],
    votes: Path | None,
    device: str,
    threads: int | None,
    seed: int,
    models_dir: Path,
    resume: bool,
    finish: bool,
    no_plots: bool,
    **settings: Any,
) -> None:
    """Train a facial-expression network and keep its best epoch.

    \b
    fer-train --model v0 --data data                 the first version's settings, a minute or two
    fer-train --model v0 --data data --recipe best   what ships
    fer-train --model v1 --data data --recipe best --weights models/model_v1_pretrained.pth
    torchrun --nproc-per-node 2 -m fer_train --model v1 ...   several processes or GPUs, the same result
    fer-train --audit --data data                    copies and contradictions among the pictures

    Writes the checkpoint, the results as JSON and two pictures to --models-dir. A run that was
    stopped goes on with --resume and ends with the same weights, or stays as it is with --finish.
    """
    _refuse_what_is_not_used(given_settings)
    if audit is not None:
        _audit(_data_root(data), audit)
        return
    if model is None:
        raise click.UsageError(f"Missing option '--model'. Choose from: {', '.join(MODEL_NAMES)}.")
    with needs_extra("train"):  # PyTorch loads slowly and edge devices lack it; --help needs neither
        import torch

        from fer_train import pipeline
        from fer_train.loop.devices import choose_device
        from fer_train.loop.distributed import joined_world, one_per_machine_first
        from fer_train.recipes import PRETRAIN, RECIPES

    if threads:
        torch.set_num_threads(threads)
    where = choose_device(device)
    recipe = PRETRAIN if pretrain_dir else RECIPES[recipe_name][model]
    try:
        for text in given_settings:
            recipe = recipe.with_setting(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--set") from None
    recipe = recipe.overridden(**settings, drop=_drop(drop))
    progress = _Progress()
    try:
        with joined_world(where) as (world, where):
            how: dict[str, Any] = {
                "device": where,
                "seed": seed,
                "models_dir": models_dir,
                "resume": resume,
                "finish": finish,
                "world": world,
                "progress": progress,
            }
            if pretrain_dir is not None:
                learned = pipeline.pretrain(model, pretrain_dir, recipe, **how)
                if world.is_writer:
                    click.echo(
                        f"{learned.path}  {learned.classes} classes, {learned.pictures} pictures, "
                        f"accuracy {learned.accuracy:.1%} on held-out ones"
                    )
                return
            trained = pipeline.train_model(
                model,
                one_per_machine_first(lambda: _data_root(data), world),
                recipe,
                recipe_name=recipe_name,
                weights=weights or ("imagenet" if model == "v1" else "none"),
                teachers=teachers,
                votes=votes,
                **how,
            )
            if world.is_writer:
                _say(trained, models_dir, plots=not no_plots)
    except KeyboardInterrupt:
        progress.close()
        raise InterruptedTrainingError from None


def _refuse_what_is_not_used(settings: tuple[str, ...]) -> None:
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
        if text.startswith("drop=") and "pretrain_dir" in given:
            raise click.UsageError("--pretrain learns from all pictures; start it without --set drop")


def _say(trained: Trained, models_dir: Path, *, plots: bool) -> None:
    """Name what was written, and draw the two pictures."""
    for split in (trained.train, trained.validation):
        if split.resized:
            click.echo(f"{split.resized} pictures in {split.folder} had another size and were resized", err=True)
    results = trained.results
    click.echo(
        f"{trained.checkpoint}  validation accuracy {results.accuracy:.1%}, "
        f"macro-F1 {results.to_dict()['macro_f1']:.1%}, epoch {results.history.best_epoch} of {results.history.epochs}"
    )
    click.echo(trained.results_file)
    if not plots:
        return
    from fer_train.plots import confusion_plot_path, curves_plot_path, plot_confusion, plot_curves

    for plot, path in (
        (plot_curves, curves_plot_path(models_dir, results.model)),
        (plot_confusion, confusion_plot_path(models_dir, results.model)),
    ):
        plot(results.to_dict(), path)
        click.echo(path)


def _audit(data: Path, folder: Path) -> None:
    with needs_extra("train"):
        from fer_train.data.audit import audit_faces, write_audit
        from fer_train.data.folders import load_faces

    train, validation = load_faces(data, "train"), load_faces(data, "validation")
    found = audit_faces(train, validation)
    click.echo(found.to_text())
    for path in write_audit(found, folder, train, validation):
        click.echo(path)


class InterruptedTrainingError(FerError):
    """Ctrl-C during training."""

    def __init__(self) -> None:
        super().__init__(
            "interrupted; every whole epoch is saved: give the same command with --resume to go on, "
            "or with --finish to keep the best one so far"
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


class _Progress:
    """A bar per epoch on a terminal, a line per epoch elsewhere; both on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None

    def batch(self, epoch: int, epochs: int, faces: int, of: int, loss: float, accuracy: float) -> None:
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=of, desc=f"epoch {epoch}/{epochs}", unit="face", leave=False, dynamic_ncols=True)
        self._bar.set_postfix_str(f"loss {loss:.3f} accuracy {accuracy:.1%}", refresh=False)
        self._bar.update(faces - self._bar.n)

    def epoch(self, epoch: int, epochs: int, history: History) -> None:
        self.close()
        left = (epochs - epoch) * history.seconds[-1]
        click.echo(
            f"epoch {epoch}/{epochs}  loss {history.train_loss[-1]:.3f}  accuracy {history.train_acc[-1]:.1%}  "
            f"validation {history.test_loss[-1]:.3f}  {history.test_acc[-1]:.1%}"
            + (f"  mean recall {history.mean_recall[-1]:.1%}" if history.mean_recall else "")
            + f"{' *' if history.best_epoch == epoch else '  '}  {history.seconds[-1]:.0f} s"
            + (f", {left / 60:.0f} min left" if epoch < epochs else ""),
            err=True,
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
