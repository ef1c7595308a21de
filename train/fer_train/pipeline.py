"""`train_model`, the work of `fer-train`: from a folder of images to a checkpoint with its results."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fer_runtime.errors import CheckpointError, DataError, OutputError
from fer_runtime.expressions import FACE_SIZE
from fer_runtime.files import lock_file, sha256_of
from fer_runtime.metrics import confusion_matrix
from fer_runtime.model.find import checkpoint_path, file_stem, results_path
from fer_train.checkpoints import Checkpoint, save_checkpoint
from fer_train.data.dataset import load_splits
from fer_train.data.deduplicate import training_indices_without
from fer_train.data.dropping import without_named
from fer_train.data.folders import Int64Array, LabelledFaces
from fer_train.data.votes import open_votes, usable
from fer_train.execution import ON_CPU, Execution
from fer_train.loop.distill import load_teachers
from fer_train.loop.distributed import from_writer, one_per_machine_first
from fer_train.loop.trainer import Evaluation, Trainer
from fer_train.networks.registry import NetworkShape, create_network
from fer_train.recipes import Recipe
from fer_train.results import History, TrainingResults, tool_versions, write_results
from fer_train.starting_weights import start_from, weights_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The files of a training, its results and its images."""

    checkpoint: Path
    results_file: Path
    results: TrainingResults
    train: LabelledFaces
    validation: LabelledFaces
    note: str = ""  # says so if validation was held out of train; "" otherwise

    def write(self, state_dict: dict[str, Tensor]) -> None:
        """Write the checkpoint of these weights, and the results."""
        checkpoint = Checkpoint(
            name=self.results.model,
            state_dict=state_dict,
            expressions=self.train.classes,
            size=self.train.size,
            color=self.train.color,
            training=self.results.summary(),
        )
        save_checkpoint(self.checkpoint, checkpoint)
        write_results(self.results_file, self.results)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """Which images a training learns from, and how it takes them."""

    votes: str | Path | None = None  # raters' votes (fer_train.data.votes), to learn from and to choose the epoch by
    drop_files: Sequence[Path] = ()  # csv files; their column `image` names training images to leave out
    size: int = FACE_SIZE  # pixels, side of the faces that the network takes
    color: str = "gray"  # or "rgb"
    skip_unreadable: bool = False  # leave out images that cannot be read


ALL_IMAGES = ImageOptions()


def train_model(
    network_name: str,
    data: Path,
    recipe: Recipe,
    *,
    name: str | None = None,
    recipe_name: str = "first",
    weights: str = "none",
    teachers: Sequence[Path] = (),
    images: ImageOptions = ALL_IMAGES,
    seed: int = 0,
    models_dir: Path = Path("models"),
    execution: Execution = ON_CPU,
) -> Trained:
    """Train a network on `data` and write its checkpoint and results.

    Args:
        network_name: "v0", "v1", "v3", "timm:NAME" or another that `find_architecture` takes.
        data: the dataset's root with `images/train` and `images/validation`, or a folder with `train` and `validation`.
            Without validation, a share of train is held out.
        recipe: the settings.
        name: stem of the file names, such as "mine"; the network's own by default.
        recipe_name: name of `recipe` in the results file.
        weights: what the network starts from: "none", "imagenet" (v1 and timm's networks), or the path of a weights
            file.
        teachers: checkpoints or exported models to distil from, of any network.
        images: votes, images to leave out, and size and colour of the faces.
        seed: of everything random.
        models_dir: folder of the checkpoint and the results.
        execution: where to train, and whether to continue or replace what is there.

    Raises:
        DataError: the images are missing or unreadable.
        CheckpointError: a weights, teacher or resume file cannot be used, or there is a checkpoint already.
        ModelFileError: an exported teacher cannot be used.
        DownloadError: the ImageNet weights are not there and cannot be fetched.
        DivergedError: the loss is not a finite number.
        OutputError: a file cannot be written.
        ValueError: there is no network of that name.
    """
    start = weights_file(weights)
    for path in [*teachers, *([] if start is None else [start])]:
        if not path.is_file():  # said before the images are decoded
            raise CheckpointError(f"no file at {path}; train one, or give another")
    file_name = name or network_name
    checkpoint = checkpoint_path(models_dir, file_name)
    resume_path = models_dir / f"{file_stem(file_name)}.resume.pth"
    device, world = execution.device, execution.world
    from_writer(lambda: refuse_to_replace(checkpoint, resume_path, execution), world)
    faces = load_training_faces(data, recipe.drop, images, seed=seed)
    train, validation = faces.train, faces.validation
    torch.manual_seed(seed)  # the fresh weights
    shape = NetworkShape(classes=len(train.classes), size=images.size, color=images.color)
    network = create_network(network_name, shape, dropout=recipe.dropout)
    one_per_machine_first(lambda: start_from(network, network_name, weights, train.classes, shape), world)
    trainer = Trainer(
        network,
        train,
        validation,
        recipe,
        device=device,
        seed=seed,
        teachers=load_teachers(teachers, train, device, views=recipe.teacher_views) if teachers else None,
        world=world,
        identity=_identity(network_name, recipe, faces, weights=weights, teachers=teachers, seed=seed),
        starts_trained=start is not None,
    )
    with sole_training(checkpoint, resume_path, execution):
        trainer.run(
            resume_path=resume_path, resume=execution.resume, finish=execution.finish, progress=execution.progress
        )

        state_dict, reached = trainer.finished()
        settings = {
            **recipe.to_dict(),
            **_settings_from_files(weights, teachers, images),
            "device": device.type,
            "threads": torch.get_num_threads(),
            "processes": world.size,
        }
        trained = Trained(
            checkpoint=checkpoint,
            results_file=results_path(models_dir, file_name),
            results=_results(network_name, recipe_name, settings, seed, trainer.history, faces, reached),
            train=train,
            validation=validation,
            note=faces.note,
        )
        if world.is_writer:
            trained.write(state_dict)
            # Last: a run killed before this line finishes its files with --resume.
            resume_path.unlink(missing_ok=True)
        return trained


def _results(
    network_name: str,
    recipe_name: str,
    settings: dict[str, Any],
    seed: int,
    history: History,
    faces: TrainingFaces,
    reached: Evaluation,
) -> TrainingResults:
    """The contents of the results file; `reached` is the best epoch on validation."""
    train, validation = faces.train, faces.validation
    predictions = reached.probabilities.argmax(1).numpy()
    return TrainingResults(
        model=network_name,
        recipe=recipe_name,
        settings=settings,
        seed=seed,
        history=history,
        expressions=train.classes,
        confusion=confusion_matrix(validation.labels, predictions, classes=len(validation.classes)),
        accuracy_without_duplicates=accuracy_of_unseen(faces.whole, validation, predictions),
        votes=reached.votes,
        data=data_summary(faces.whole, train, validation),
        versions=tool_versions(),
    )


def _identity(
    network_name: str,
    recipe: Recipe,
    faces: TrainingFaces,
    *,
    weights: str,
    teachers: Sequence[Path],
    seed: int,
) -> dict[str, Any]:
    """What a run must have in common with the killed run that it continues; stored in the resume file."""
    start = weights_file(weights)
    return {
        "model": network_name,
        "recipe": json.dumps(trained_with(recipe), sort_keys=True),
        "seed": seed,
        "data": faces.train.fingerprint + faces.validation.fingerprint,  # which covers size and colour
        "starting weights": weights if start is None else sha256_of(start),
        "teachers": json.dumps([sha256_of(path) for path in teachers]),
    }


def _settings_from_files(weights: str, teachers: Sequence[Path], images: ImageOptions) -> dict[str, Any]:
    """The files of a run as its results name them: without their folders, and by checksum where the content counts."""
    start = weights_file(weights)
    return {
        "weights": weights if start is None else start.name,
        "teachers": [path.name for path in teachers],
        **({"teachers_sha256": [sha256_of(path) for path in teachers]} if teachers else {}),
        "votes": None if images.votes is None else Path(images.votes).name,
        **({"drop_files_sha256": [sha256_of(path) for path in images.drop_files]} if images.drop_files else {}),
    }


def trained_with(recipe: Recipe) -> dict[str, Any]:
    """The settings that a stopped run must have in common with the one that continues it."""
    settings = recipe.to_dict()
    del settings["logit_adjustment"]  # it changes the finished weights alone
    return settings


def refuse_to_replace(checkpoint: Path, resume_path: Path, execution: Execution) -> None:
    """Raise a CheckpointError where a new training would overwrite a finished or a stopped one unasked.

    With --replace the first epoch replaces a stopped one: a wrong --data must not cost its state. With --finish there
    must be a stopped one.
    """
    if execution.finish:
        if not os.path.lexists(resume_path):
            raise CheckpointError(
                f"no stopped run at {resume_path}; give the --name and --models-dir of the stopped run, or start one "
                "without --finish"
            )
        return
    if execution.replace or (execution.resume and resume_path.is_file()):
        return
    if resume_path.is_file():
        raise CheckpointError(
            f"a stopped training is saved at {resume_path}; continue it with --resume, or start over with --replace"
        )
    if checkpoint.is_file():
        raise CheckpointError(
            f"{checkpoint} exists; give your training a name of its own (--name mine) or another --models-dir, or "
            "overwrite it with --replace"
        )


@contextmanager
def sole_training(checkpoint: Path, resume_path: Path, execution: Execution) -> Iterator[None]:
    """Keep other trainings away from `checkpoint`: of two at a time, one would overwrite the other's state and result.

    Raises:
        CheckpointError: another one is at work, or has finished since this one was started.
        OutputError: the folder cannot be written.
    """
    descriptor = from_writer(lambda: _lock(checkpoint), execution.world)
    try:
        from_writer(lambda: refuse_to_replace(checkpoint, resume_path, execution), execution.world)
        yield
    finally:
        if execution.world.is_writer:
            _unlock(checkpoint, descriptor)


def _lock_path(checkpoint: Path) -> Path:
    # Named as the temporary files of `replaced_atomically` are: what a killed training leaves is removed as they are.
    return checkpoint.with_name(f".{checkpoint.name}.training.partial")


def _lock(checkpoint: Path) -> int:
    """An open file that locks the training of `checkpoint`."""
    path = _lock_path(checkpoint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        state = checkpoint.with_suffix(".resume.pth")
        raise OutputError(f"cannot write {state}: {error.strerror}; choose another --models-dir") from error
    # One that has just ended removes its file, whose lock keeps nobody away.
    is_free = lock_file(descriptor) and os.path.exists(path) and os.path.samestat(os.fstat(descriptor), path.stat())
    if not is_free:
        os.close(descriptor)
        raise CheckpointError(
            f"another fer-train is training {checkpoint}; wait for it, or give this one another --name or --models-dir"
        )
    return descriptor


def _unlock(checkpoint: Path, descriptor: int) -> None:
    if os.name == "nt":  # which removes no open file
        os.close(descriptor)
    with suppress(OSError):
        _lock_path(checkpoint).unlink()
    if os.name != "nt":
        os.close(descriptor)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFaces:
    """The images of a training."""

    whole: LabelledFaces  # all training images
    train: LabelledFaces  # those that are used
    validation: LabelledFaces
    note: str  # says so if validation was held out of train; "" otherwise


def load_training_faces(
    data: Path, drop: Collection[str], options: ImageOptions = ALL_IMAGES, *, seed: int = 0
) -> TrainingFaces:
    """Load the images of `load_splits`, without the kinds in `drop` and those that `options.drop_files` name.

    With votes, training images without usable ones are left out, too.

    Raises:
        DataError: the images are missing or unreadable, or none of a class is left.
    """
    splits = load_splits(
        data, seed=seed, size=options.size, color=options.color, skip_unreadable=options.skip_unreadable
    )
    whole, validation = splits.train, splits.validation
    if options.votes is not None:
        source = open_votes(options.votes, whole.classes)
        # By the folders' own names, as the votes file has them.
        whole, validation = (part.with_votes(source, part.folder.name) for part in (whole, validation))
    kept = training_indices_without(whole, validation, drop) if drop else np.arange(len(whole))
    if whole.votes is not None:
        kept = kept[usable(whole.votes[kept])]
    if options.drop_files:
        kept = without_named(whole, kept, options.drop_files)
    train = whole.subset(kept) if len(kept) < len(whole) else whole
    if gone := [expression for expression, count in train.counts.items() if not count]:
        raise DataError(
            f"{data} has no training image of {', '.join(gone)} left (left out: "
            f"{', '.join([*drop, *map(str, options.drop_files)]) or 'none'}); add some, or leave out fewer with --drop"
        )
    return TrainingFaces(whole=whole, train=train, validation=validation, note=splits.note)


def data_summary(whole: LabelledFaces, train: LabelledFaces, validation: LabelledFaces) -> dict[str, Any]:
    """Counts and fingerprints as results files hold them; `train` is what is used of `whole`."""
    return {
        "train": {"counts": whole.counts, "used": len(train), "fingerprint": whole.fingerprint},
        "validation": {"counts": validation.counts, "fingerprint": validation.fingerprint},
    }


def accuracy_of_unseen(train: LabelledFaces, validation: LabelledFaces, predictions: Int64Array) -> float | None:
    """Accuracy without the validation images of which train has a byte-identical copy; None if it has all."""
    seen = set(train.file_sha256)
    unseen = np.array([digest not in seen for digest in validation.file_sha256])
    if not unseen.any():
        return None
    return float((predictions == validation.labels)[unseen].mean())
