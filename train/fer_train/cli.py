"""The command `fer-train`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from fer_runtime.collector import collector_stopped
from fer_runtime.command import (
    NumberRange,
    PathlibPath,
    Rule,
    RunOptions,
    ShortCommand,
    option_group,
    own_name,
    say,
    take_options,
)
from fer_runtime.errors import FerError, OutputError
from fer_runtime.expressions import FACE_SIZE
from fer_runtime.extras import needs_extra
from fer_runtime.model.find import DEFAULT_MODELS_DIR, check_models_dir, checkpoint_path
from fer_runtime.model.metadata import COLORS, MAX_SIZE, MIN_SIZE
from fer_runtime.shared_options import ModelsFolder, capped_threads, seed_option
from fer_runtime.text import counted, printable
from fer_train.networks.architectures import ARCHITECTURES, find_architecture
from fer_train.networks.choice import NetworkChoice
from fer_train.recipes import NEEDS, PRETRAIN, RECIPES, Recipe

if TYPE_CHECKING:
    from fer_train.execution import Execution
    from fer_train.pipeline import Trained
    from fer_train.results import TrainingResults

_FOLDER = PathlibPath(file_okay=False)
_FILE = PathlibPath(dir_okay=False)


class _NetworkOptions(RunOptions):
    """Options of both kinds of training."""

    model: str | None
    epochs: int | None
    batch_size: int | None
    lr: float | None
    given_settings: tuple[str, ...]  # NAME=VALUE
    device: str
    threads: int | None
    seed: int
    models_dir: Path
    resume: bool
    finish: bool
    replace: bool


class TrainRun(_NetworkOptions):
    """Train a network on faces."""

    title: ClassVar[str] = "a training"

    name: str | None
    data: Path | None
    recipe_name: str
    drop: str | None
    weights: str | None
    teachers: tuple[Path, ...]
    votes: str | None
    size: int | None  # None: that of the weights
    color: str | None
    skip_unreadable: bool
    no_plots: bool
    safetensors: bool


class PretrainRun(_NetworkOptions):
    """Make weights to start from, out of any folder of class folders."""

    title: ClassVar[str] = "--pretrain"

    pretrain_dir: Path


def _settings_start_with(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda given: any(text.startswith(names) for text in given["given_settings"])


_RULES = (
    Rule("resume", when=lambda given: bool(given["finish"]), because="not beside --finish, which trains no further"),
    Rule(
        "given_settings",
        when=lambda given: not given["teachers"] and _settings_start_with("teacher_")(given),
        because="settings teacher_... only with --teacher",
    ),
    Rule(
        "given_settings",
        when=lambda given: not given["votes"] and _settings_start_with("vote_", "least_votes=", "label_share=")(given),
        because="settings vote_..., least_votes and label_share only with --votes",
    ),
    Rule(
        "given_settings",
        when=lambda given: given["pretrain_dir"] is not None and _settings_start_with("drop=")(given),
        because="no setting drop with --pretrain, which learns from all images",
    ),
)


# Short, because gloo's threads abort a Python that tidies up while a collective is being released (pytorch #190489).
@click.command("fer-train", cls=ShortCommand, runs=(TrainRun, PretrainRun), rules=_RULES)
@option_group(
    "Network and data",
    click.option(
        "--model",
        type=NetworkChoice(),
        help="Network to train. {entries} timm:NAME: a network of timm (extra `timm`). MODULE:FUNCTION: a function of "
        "yours that takes `classes` and returns a torch.nn.Module. [default: that of the checkpoint of --weights]",
    ),
    click.option(
        "--name",
        callback=own_name,
        metavar="NAME",
        help="Name of the result: NAME.pth, NAME_results.json. [default: that of the network's files, model_v3.pth]",
    ),
    click.option(
        "--data",
        type=_FOLDER,
        help="Folder with images/train/<class> and images/validation/<class>, or with train and validation (or val). "
        "The class folders are the labels. Without validation, a share of train is held out. [default: the Kaggle "
        "dataset, downloaded on first use]",
    ),
    click.option(
        "--size",
        type=click.IntRange(min=MIN_SIZE, max=MAX_SIZE),
        help="Side of the faces in pixels, such as 64, 96 or 112. [default: that of --weights, or 48]",
    ),
    click.option(
        "--color", type=click.Choice(COLORS), help="Colour of the faces. [default: that of --weights, or gray]"
    ),
    click.option(
        "--skip-unreadable",
        is_flag=True,
        help="Leave out images that cannot be read instead of stopping, and count them.",
    ),
    click.option(
        "--votes",
        metavar="FILE",
        help="Raters' votes to learn from: a .csv or .csv.gz with each image's path and a column per class, or ferplus "
        "for FER+'s votes on FER2013.",
    ),
    click.option(
        "--teacher",
        "teachers",
        type=_FILE,
        multiple=True,
        help="Checkpoint or exported model to distil from, such as models/model_v3.int8.onnx. May be repeated.",
    ),
    click.option(
        "--weights",
        help="What the network starts from: imagenet (v1 and timm's, downloaded on first use), none, or a file of "
        "weights. [default: imagenet for v1, none for the others]",
    ),
)
@option_group(
    "Recipe",
    click.option(
        "--recipe",
        "recipe_name",
        type=click.Choice(tuple(RECIPES)),
        default="first",
        show_default=True,
        help="Set of settings. first: those of the project's first version; best: those of the shipped models; "
        "finetune: for few images of your own, with --weights of a trained model.",
    ),
    click.option("--epochs", type=click.IntRange(min=1), help="Number of epochs. [default: the recipe's]"),
    click.option("--batch-size", type=click.IntRange(min=2), help="Faces per step. [default: the recipe's]"),
    click.option("--lr", type=NumberRange(0, 1000, min_open=True), help="Learning rate. [default: the recipe's]"),
    click.option(
        "--drop",
        help="Training images to leave out, separated by commas: duplicates (copies), conflicts (copies under two "
        "labels), near (near-duplicates), none, or a csv with a column image, such as label_errors.csv of fer-data "
        "audit. Nothing is deleted. [default: the recipe's]",
    ),
    click.option(
        "--set",
        "given_settings",
        multiple=True,
        metavar="NAME=VALUE",
        help="Any other setting of the recipe, such as augmentation=light or ema_decay=0. An unknown NAME lists all.",
    ),
    seed_option("Seed of the initial weights, order, augmentation and dropout."),
)
@option_group(
    "Machine",
    click.option(
        "--device",
        type=click.Choice(["auto", "mps", "cuda", "cpu"]),
        default="auto",
        show_default=True,
        help="Where to train. auto takes MPS, else CUDA, else the CPU.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        help="CPU threads, capped at the available CPUs. [default: PyTorch's choice]",
    ),
)
@option_group(
    "Output",
    click.option(
        "--models-dir",
        type=ModelsFolder(),
        default=DEFAULT_MODELS_DIR,
        show_default=True,
        help="Folder for the checkpoint, the results and the plots.",
    ),
    click.option("--resume", is_flag=True, help="Continue a stopped run from its last finished epoch."),
    click.option("--finish", is_flag=True, help="Train no further: make the best epoch of a stopped run the result."),
    click.option(
        "--replace", is_flag=True, help="Overwrite a finished checkpoint of the same name, and drop a stopped run."
    ),
    click.option("--no-plots", is_flag=True, help="Do not draw the curves and the confusion matrix."),
    click.option("--safetensors", is_flag=True, help="Also write the weights as NAME.safetensors."),
)
@option_group(
    "Pretraining",
    click.option(
        "--pretrain",
        "pretrain_dir",
        type=_FOLDER,
        metavar="DIR",
        help="Pretrain v1 on any folder of class folders and write weights for --weights.",
    ),
)
def main(**given: Any) -> None:
    """Train a facial-expression network and keep its best epoch.

    \b
    fer-train --name mine --model v3 --data data --recipe best
    fer-train --name mine --model v3 --data data --recipe best --votes ferplus
    fer-train --name mine --data data --weights models/model_v3.pth --recipe finetune
    fer-train --name mine --model timm:mobilenetv4_conv_small --size 96 --color rgb --data data
    torchrun --nproc-per-node 2 -m fer_train ...     several processes or GPUs, the same result
    fer-train ... --drop audit/label_errors.csv      without what fer-data audit suspects

    Writes the checkpoint, the results as JSON and two plots to --models-dir. Continue a stopped run
    with --resume, which ends with the same weights as an uninterrupted one, or end it with --finish.
    """
    if given["pretrain_dir"] is not None:
        _pretrain(take_options(PretrainRun))
    else:
        _train(take_options(TrainRun))


def _train(options: TrainRun) -> None:
    # PyTorch loads slowly and edge devices lack it; --help needs neither.
    with needs_extra("train"), collector_stopped():
        from fer_train.checkpoints import find_weights, stated_faces
        from fer_train.loop.distributed import one_per_machine_first
        from fer_train.networks.registry import takes_dropout
        from fer_train.pipeline import ImageOptions, train_model

    weights, start = options.weights, None
    if weights not in (None, "none", "imagenet"):
        weights = find_weights(weights)
        if weights != options.weights:
            say(printable(f"{options.weights} not found; using {weights}"), err=True)
        start = stated_faces(weights)
    model = options.model or (start.network if start is not None else None)
    if model is None:
        raise click.UsageError(f"Missing option '--model'. Choose from: {', '.join(ARCHITECTURES)}.")
    architecture = find_architecture(model)
    if architecture.is_foreign and options.name is None:
        raise click.UsageError(f"{model} has no files of its own; name yours: --name mine")
    kinds, drop_files = _drop(options.drop)
    recipe = _recipe(options, architecture.recipe(options.recipe_name), drop=kinds)
    if recipe.last_layer == "probe" and start is None:
        raise click.UsageError(
            f"{'--recipe finetune' if options.recipe_name == 'finetune' else '--set last_layer=probe'} starts from a "
            "trained model; give it: --weights FILE. Without one, leave this out, or add --set last_layer=kept"
        )
    if any(text.startswith("dropout=") for text in options.given_settings) and not takes_dropout(model):
        raise click.UsageError(
            f"--set dropout does nothing: the function of {model} takes no argument `dropout`; add it, or leave it out"
        )
    images = ImageOptions(
        votes=options.votes,
        drop_files=drop_files,
        size=options.size or (FACE_SIZE if start is None else start.size),
        color=options.color or ("gray" if start is None else start.color),
        skip_unreadable=options.skip_unreadable,
    )
    checkpoint = checkpoint_path(options.models_dir, options.name or model)
    if options.safetensors and not options.replace:
        _refuse_to_replace_safetensors(checkpoint)
    with _together(options) as execution:
        _say_if_none_is_stopped(options, execution, checkpoint)
        trained = train_model(
            model,
            one_per_machine_first(lambda: _data_root(options.data), execution.world),
            recipe,
            name=options.name,
            recipe_name=options.recipe_name,
            weights=weights or architecture.weights,
            teachers=options.teachers,
            images=images,
            seed=options.seed,
            models_dir=options.models_dir,
            execution=execution,
        )
        if execution.world.is_writer:
            _report(trained, plots=not options.no_plots)
            if options.safetensors:
                say(_write_safetensors(trained))


def _pretrain(options: PretrainRun) -> None:
    model = _network_name(options)
    recipe = _recipe(options, PRETRAIN)
    with needs_extra("train"), collector_stopped():
        from fer_train.pretrain import pretrain, pretrained_path

    with _together(options) as execution:
        _say_if_none_is_stopped(options, execution, pretrained_path(options.models_dir, model))
        learned = pretrain(
            model,
            options.pretrain_dir,
            recipe,
            seed=options.seed,
            models_dir=options.models_dir,
            execution=execution,
        )
        if execution.world.is_writer:
            say(
                f"{learned.path}  {learned.classes} classes, {learned.images} images, "
                f"accuracy {learned.accuracy:.1%} on held-out ones"
            )


def _network_name(options: _NetworkOptions) -> str:
    if options.model is None:
        raise click.UsageError(f"Missing option '--model'. Choose from: {', '.join(ARCHITECTURES)}.")
    return options.model


def _recipe(options: _NetworkOptions, recipe: Recipe, *, drop: tuple[str, ...] | None = None) -> Recipe:
    """`recipe` with the settings of the command line."""
    short = {"epochs": options.epochs, "batch_size": options.batch_size, "lr": options.lr, "drop": drop}
    given = {name: f"--{name.replace('_', '-')}" for name, value in short.items() if value is not None}
    for text in options.given_settings:
        name = text.partition("=")[0]
        if name in given:
            raise click.UsageError(f"{given[name]} and --set {text} are the same setting; give one")
        given[name] = f"--set {text}"
    try:
        recipe = recipe.with_settings(*options.given_settings)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--set") from None
    recipe = recipe.overridden(**short)
    for name, (needed, has_it) in NEEDS.items():
        if name in given and not has_it(recipe):
            raise click.UsageError(f"{given[name]} is of no use without {needed}; set that, too, or leave it out")
    return recipe


@contextmanager
def _together(options: _NetworkOptions) -> Iterator[Execution]:
    """Join the processes that train together, and say what both kinds of training do alike."""
    with needs_extra("train"), collector_stopped():
        import torch

        from fer_train.execution import Execution
        from fer_train.loop.devices import choose_device
        from fer_train.loop.distributed import joined_world
        from fer_train.progress import EpochBars

    check_models_dir(options.models_dir)
    if options.threads:
        torch.set_num_threads(capped_threads(options.threads))
    progress = EpochBars()
    try:
        with joined_world(choose_device(options.device)) as (world, device):
            yield Execution(
                device=device,
                world=world,
                resume=options.resume,
                finish=options.finish,
                replace=options.replace,
                progress=progress,
            )
    except KeyboardInterrupt:
        progress.close()
        raise InterruptedTrainingError from None


def _say_if_none_is_stopped(options: _NetworkOptions, execution: Execution, checkpoint: Path) -> None:
    """Say that --resume has nothing to continue: --name or --models-dir may be another than that of the stopped run."""
    stopped = checkpoint.with_suffix(".resume.pth")
    if options.resume and execution.world.is_writer and not stopped.is_file():
        say(f"no stopped run at {stopped}: training from the first epoch", err=True)


def _report(trained: Trained, *, plots: bool) -> None:
    """Print what was written, and draw the two plots."""
    # Of a share that was held out, the folder is that of the training images.
    for split in {split.folder: split for split in (trained.validation, trained.train)}.values():
        if split.skipped:
            say(printable(f"skipped {counted(split.skipped, 'image')} in {split.folder} that cannot be read"), err=True)
        if split.resized:
            side = f"{split.size} x {split.size}"
            say(printable(f"resized {split.resized} images in {split.folder} to {side}"), err=True)
    if trained.note:
        say(trained.note, err=True)
    results, history = trained.results, trained.results.history
    for text in _left_out(trained):
        say(text, err=True)
    if history.probe_acc is not None:
        say(_gain(results), err=True)
    elif history.best_epoch == 0:
        say(f"no epoch was better than the start ({history.start_acc:.1%}); the start is kept", err=True)
    against_votes = ""
    if votes := results.votes:
        majority = f"{votes.majority_accuracy:.1%}, mean recall {votes.mean_recall:.1%}"
        against_votes = f"raters' majority {majority if votes.majority_images else 'on no image'}, labels "
    say(
        f"{trained.checkpoint}  validation: {against_votes}accuracy {results.accuracy:.1%}, "
        f"macro-F1 {results.to_dict()['macro_f1']:.1%}, epoch {history.best_epoch} of {history.epochs}"
    )
    say(trained.results_file)
    if not plots:
        return
    from fer_train.plots import write_plots

    for path in write_plots(results.to_dict(), trained.checkpoint.with_suffix("")):
        say(path)


def _left_out(trained: Trained) -> Iterator[str]:
    """Say of how many images a training knows nothing: a votes file may name other images than meant."""
    results = trained.results
    used, there = len(trained.train), sum(results.data["train"]["counts"].values())
    if used < there:
        why = "have no usable votes, or are left out by drop" if results.votes else "are left out by drop"
        yield f"learned from {used:,} of {there:,} training images; the others {why}"
    if (votes := results.votes) and votes.majority_images < len(trained.validation):
        yield (
            f"of {len(trained.validation):,} validation images, {votes.images:,} have usable votes and "
            f"{votes.majority_images:,} a strict majority"
        )


def _gain(results: TrainingResults) -> str:
    """What fine-tuning gained over a linear probe, which leaves the features as they are."""
    history = results.history
    probe, reached = history.probe_acc or 0.0, results.accuracy if results.votes is None else max(history.test_acc)
    text = f"linear probe of the start {probe:.1%}"
    if history.start_acc is not None and history.start_acc > probe:
        text += f", its own last layer {history.start_acc:.1%}"
    if history.best_epoch == 0:
        return f"{text}; no epoch of fine-tuning was better, so the start is kept"
    return f"{text}; fine-tuned {reached:.1%}: {100 * (reached - max(probe, history.start_acc or 0)):+.1f} points"


def _refuse_to_replace_safetensors(checkpoint: Path) -> None:
    from fer_train.checkpoints import SAFETENSORS_SUFFIX

    path = checkpoint.with_suffix(SAFETENSORS_SUFFIX)
    if os.path.lexists(path):
        raise OutputError(f"{path} exists; give your training another --name, or overwrite it with --replace")


def _write_safetensors(trained: Trained) -> Path:
    from fer_train.checkpoints import SAFETENSORS_SUFFIX, load_checkpoint, save_checkpoint

    path = trained.checkpoint.with_suffix(SAFETENSORS_SUFFIX)
    save_checkpoint(path, load_checkpoint(trained.checkpoint, name=trained.results.model))
    return path


class InterruptedTrainingError(FerError):
    """Ctrl-C during training."""

    def __init__(self) -> None:
        super().__init__(
            "interrupted; every finished epoch is saved: repeat the command with --resume to continue, or with "
            "--finish to keep the best epoch so far"
        )


def _drop(given: str | None) -> tuple[tuple[str, ...] | None, tuple[Path, ...]]:
    """Kinds of images to leave out, None for the recipe's, and files that name images."""
    if given is None:
        return None, ()
    from fer_train.data.deduplicate import KINDS

    parts = [part.strip() for part in given.split(",") if part.strip() not in ("", "none")]
    files = tuple(Path(part) for part in parts if part.endswith(".csv"))
    kinds = tuple(part for part in parts if not part.endswith(".csv"))
    if unknown := set(kinds) - set(KINDS):
        raise click.BadParameter(
            f"{', '.join(sorted(unknown))} is neither one of {', '.join(KINDS)}, none nor a .csv file",
            param_hint="--drop",
        )
    only_files = files and not kinds and len(parts) == len(given.split(","))
    return (None if only_files else kinds), files


def _data_root(data: Path | None) -> Path:
    if data is not None:
        return data
    from fer_train.data.kaggle import download_dataset

    return download_dataset()
