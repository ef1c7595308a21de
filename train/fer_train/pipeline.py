"""From a folder of images to a checkpoint with its results: what `fer-train` does."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fer_runtime.errors import CheckpointError, DataError
from fer_runtime.expressions import FACE_SIZE
from fer_runtime.files import sha256_of
from fer_runtime.metrics import confusion_matrix
from fer_runtime.model.find import checkpoint_path, file_stem, results_path
from fer_train.checkpoints import Checkpoint, load_start, save_checkpoint
from fer_train.data.dataset import load_splits
from fer_train.data.deduplicate import training_indices_without
from fer_train.data.dropping import without_named
from fer_train.data.folders import Int64Array, LabelledFaces
from fer_train.data.votes import open_votes, usable
from fer_train.loop.distill import load_teachers
from fer_train.loop.distributed import ALONE, World, from_writer, one_per_machine_first
from fer_train.loop.trainer import Progress, Trainer
from fer_train.networks.architectures import find_architecture, is_timm
from fer_train.networks.pretrained import imagenet_weights
from fer_train.networks.registry import NetworkShape, create_network, last_layer
from fer_train.recipes import Recipe
from fer_train.results import TrainingResults, tool_versions, write_results

# How the names of the layers behind the features begin, in every network of ours.
_LAST_LAYERS = ("fc.", "fc_layer.4.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training leaves on disk."""

    checkpoint: Path
    results_file: Path
    results: TrainingResults
    train: LabelledFaces
    validation: LabelledFaces
    note: str = ""  # what the user should know about where validation comes from

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


def train_model(
    network_name: str,
    data: Path,
    recipe: Recipe,
    *,
    name: str | None = None,
    recipe_name: str = "first",
    weights: str = "none",
    teachers: Sequence[Path] = (),
    votes: str | Path | None = None,
    drop_files: Sequence[Path] = (),
    size: int = FACE_SIZE,
    color: str = "gray",
    device: torch.device | None = None,
    seed: int = 0,
    models_dir: Path = Path("models"),
    resume: bool = False,
    finish: bool = False,
    replace: bool = False,
    skip_unreadable: bool = False,
    world: World = ALONE,
    progress: Progress | None = None,
) -> Trained:
    """Train a network on `data` and write its checkpoint and results.

    Args:
        network_name: as `find_architecture` takes it.
        data: the dataset's root, or a folder that holds `train` and `validation`.
        recipe: the settings.
        name: what the files are called, such as "mine"; the network's own name by default.
        recipe_name: name of the recipe for the results file.
        weights: what the network starts from: "none", "imagenet" (v1 only), or the path of a weights file.
        teachers: checkpoints or exported models to distil from, of any network.
        votes: raters' votes for the images (fer_train.data.votes), to learn from and to choose the epoch by.
        drop_files: csv files whose column `image` names training images to leave out, "train/happy/1.png".
        size: pixels, side of the faces that the network takes.
        color: "gray" or "rgb".
        device: where to train, the CPU by default.
        seed: of everything random.
        models_dir: where the files go.
        resume: continue a killed run of the same settings.
        finish: write what a killed run of the same settings has reached, without training on.
        replace: overwrite a finished checkpoint, and drop a stopped run.
        skip_unreadable: leave out images that cannot be read.
        world: this process among those that train together; only the writer leaves files.

    Raises:
        DataError: the images are missing or unreadable.
        CheckpointError: a weights, teacher or resume file cannot be used, or there is a checkpoint already.
        ModelFileError: an exported teacher cannot be used.
        DownloadError: the ImageNet weights are not there and cannot be fetched.
    """
    device = device or torch.device("cpu")
    for path in [*teachers, *([] if weights in ("none", "imagenet") else [Path(weights)])]:
        if not path.is_file():  # said before the images are decoded
            raise CheckpointError(f"no file at {path}; train one, or give another")
    file_name = name or network_name
    checkpoint = checkpoint_path(models_dir, file_name)
    resume_path = models_dir / f"{file_stem(file_name)}.resume.pth"
    if not finish:
        from_writer(lambda: refuse_to_replace(checkpoint, resume_path, resume=resume, replace=replace), world)
    faces = load_training_faces(
        data,
        recipe.drop,
        votes=votes,
        skip_unreadable=skip_unreadable,
        drop_files=drop_files,
        size=size,
        color=color,
        seed=seed,
    )
    whole, train, validation = faces.whole, faces.train, faces.validation
    torch.manual_seed(seed)  # the fresh weights
    shape = NetworkShape(classes=len(train.classes), size=size, color=color)
    network = create_network(network_name, shape, dropout=recipe.dropout)
    one_per_machine_first(lambda: _start_from(network, network_name, weights, train.classes, shape), world)
    identity = {
        "model": network_name,
        "recipe": json.dumps(trained_with(recipe), sort_keys=True),
        "seed": seed,
        "data": train.fingerprint + validation.fingerprint,  # which covers size and colour
        "starting weights": weights if weights in ("none", "imagenet") else sha256_of(Path(weights)),
        "teachers": json.dumps([sha256_of(path) for path in teachers]),
    }
    trainer = Trainer(
        network,
        train,
        validation,
        recipe,
        device=device,
        seed=seed,
        teachers=load_teachers(teachers, train, device, views=recipe.teacher_views) if teachers else None,
        world=world,
        identity=identity,
        starts_trained=weights not in ("none", "imagenet"),
    )
    trainer.run(resume_path=resume_path, resume=resume, finish=finish, progress=progress)

    state_dict, reached = trainer.finished()
    predictions = reached.probabilities.argmax(1).numpy()
    results = TrainingResults(
        model=network_name,
        recipe=recipe_name,
        settings={
            **recipe.to_dict(),
            "weights": weights if weights in ("none", "imagenet") else Path(weights).name,
            "teachers": [path.name for path in teachers],
            **({"teachers_sha256": [sha256_of(path) for path in teachers]} if teachers else {}),
            "votes": None if votes is None else Path(votes).name,
            **({"drop_files_sha256": [sha256_of(path) for path in drop_files]} if drop_files else {}),
            "device": device.type,
            "threads": torch.get_num_threads(),
            "processes": world.size,
        },
        seed=seed,
        history=trainer.history,
        expressions=train.classes,
        confusion=confusion_matrix(validation.labels, predictions, classes=len(validation.classes)),
        accuracy_without_duplicates=accuracy_of_unseen(whole, validation, predictions),
        votes=reached.votes,
        data=data_summary(whole, train, validation),
        versions=tool_versions(),
    )
    trained = Trained(
        checkpoint=checkpoint,
        results_file=results_path(models_dir, file_name),
        results=results,
        train=train,
        validation=validation,
        note=faces.note,
    )
    if world.is_writer:
        trained.write(state_dict)
        # Last: a run killed before this line finishes its files with --resume.
        resume_path.unlink(missing_ok=True)
    return trained


def trained_with(recipe: Recipe) -> dict[str, Any]:
    """The settings that a stopped run must have in common with the one that continues it."""
    settings = recipe.to_dict()
    del settings["logit_adjustment"]  # it changes the finished weights alone
    return settings


def refuse_to_replace(checkpoint: Path, resume_path: Path, *, resume: bool, replace: bool) -> None:
    """Raise a CheckpointError where a new training would overwrite a finished or a stopped one unasked."""
    if resume and resume_path.is_file():
        return
    if replace:
        resume_path.unlink(missing_ok=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFaces:
    """The images of a training."""

    whole: LabelledFaces  # all that could be learned from
    train: LabelledFaces  # those that are
    validation: LabelledFaces
    note: str  # what the user should know about where validation comes from


def load_training_faces(
    data: Path,
    drop: Collection[str],
    *,
    votes: str | Path | None = None,
    skip_unreadable: bool = False,
    drop_files: Sequence[Path] = (),
    size: int = FACE_SIZE,
    color: str = "gray",
    seed: int = 0,
) -> TrainingFaces:
    """The images of `load_splits`, without the kinds in `drop` and those that `drop_files` name.

    With votes, training images without usable ones are left out, too.

    Raises:
        DataError: the images are missing or unreadable, or none of a class is left.
    """
    splits = load_splits(data, seed=seed, size=size, color=color, skip_unreadable=skip_unreadable)
    whole, validation = splits.train, splits.validation
    if votes is not None:
        source = open_votes(votes, whole.classes)
        # By the folders' own names, as the votes file has them.
        whole, validation = (part.with_votes(source, part.folder.name) for part in (whole, validation))
    kept = training_indices_without(whole, validation, drop) if drop else np.arange(len(whole))
    if whole.votes is not None:
        kept = kept[usable(whole.votes[kept])]
    if drop_files:
        kept = without_named(whole, kept, drop_files)
    train = whole.subset(kept) if len(kept) < len(whole) else whole
    if gone := [expression for expression, count in train.counts.items() if not count]:
        raise DataError(
            f"{data} has no training image of {', '.join(gone)} left (left out: "
            f"{', '.join([*drop, *map(str, drop_files)]) or 'none'}); add some, or leave out fewer with --drop"
        )
    return TrainingFaces(whole=whole, train=train, validation=validation, note=splits.note)


def _start_from(network: nn.Module, name: str, weights: str, classes: Sequence[str], shape: NetworkShape) -> None:
    """Load the weights that the training starts from.

    Every layer but the last must fit. Of the last one, the rows of labels that the file has, too, are kept by name.
    """
    if weights == "none":
        return
    labels: tuple[str, ...] = ()
    if weights == "imagenet":
        state = _imagenet_weights(name, shape)
    else:
        start = load_start(Path(weights), name=name)
        state, labels = (start.state_dict, start.expressions) if isinstance(start, Checkpoint) else (start, ())
    own = network.state_dict()
    last = last_layer(name, shape)
    known = [label for label in classes if label in labels]
    fresh: set[str] = set()  # of the layers behind the features
    if known and all(key in state and state[key].shape[1:] == own[key].shape[1:] for key in last):
        for key in last:
            rows = own[key].clone()
            rows[[classes.index(label) for label in known]] = state[key][[labels.index(label) for label in known]]
            state = {**state, key: rows}
    elif labels:
        fresh = set(last)
    elif any(key not in state or state[key].shape != own[key].shape for key in last):
        # Weights that do not say of what their classes are: all layers behind the features are of no use.
        fresh = {*last, *(key for key in (*state, *own) if key.startswith(_LAST_LAYERS))}
    state = {key: value for key, value in state.items() if key not in fresh}
    state = {key: _in_gray(value, own[key]) if key in own else value for key, value in state.items()}
    unfit = [key for key, value in state.items() if key not in own or own[key].shape != value.shape]
    # Counters of BatchNorm came later than some files that are about.
    missing = [key for key in own if key not in state and key not in fresh and "num_batches" not in key]
    if unfit or missing:
        fault = f"{unfit[0]} is unknown or has another shape" if unfit else f"{missing[0]} is missing"
        raise CheckpointError(
            f"the weights in {weights} do not fit {name}: {fault}; every layer but the last must be there, for "
            f"{shape.color} faces of {shape.size} x {shape.size}"
        )
    network.load_state_dict(state, strict=False)


def _imagenet_weights(name: str, shape: NetworkShape) -> dict[str, Tensor]:
    if is_timm(name):
        from fer_train.networks.foreign import timm_pretrained

        return timm_pretrained(name.partition(":")[2], classes=shape.classes, size=shape.size, color=shape.color)
    if find_architecture(name).weights != "imagenet":
        raise CheckpointError(f"there are no ImageNet weights for {name}; give --weights none or a file")
    return imagenet_weights()


def _in_gray(weights: Tensor, own: Tensor) -> Tensor:
    """Weights of a first layer over three colours, summed for one that takes gray faces alone."""
    if weights.ndim == 4 and (weights.shape[1], own.shape[1:2]) == (3, (1,)) and weights.shape[2:] == own.shape[2:]:
        return weights.sum(1, keepdim=True)
    return weights


def data_summary(whole: LabelledFaces, train: LabelledFaces, validation: LabelledFaces) -> dict[str, Any]:
    """Counts and fingerprints as results files hold them; `train` is what is used of `whole`."""
    return {
        "train": {"counts": whole.counts, "used": len(train), "fingerprint": whole.fingerprint},
        "validation": {"counts": validation.counts, "fingerprint": validation.fingerprint},
    }


def accuracy_of_unseen(train: LabelledFaces, validation: LabelledFaces, predictions: Int64Array) -> float | None:
    """Accuracy without the validation images whose very file also stands in train."""
    seen = set(train.file_sha256)
    unseen = np.array([digest not in seen for digest in validation.file_sha256])
    if not unseen.any():
        return None
    return float((predictions == validation.labels)[unseen].mean())
