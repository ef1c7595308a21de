"""The work of `fer-train --pretrain`: learn starting weights from any labelled images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fer_runtime.errors import DataError
from fer_runtime.model.find import file_stem
from fer_train.data.folders import LabelledFaces, load_class_folders
from fer_train.execution import ON_CPU, Execution
from fer_train.loop.distributed import from_writer
from fer_train.loop.trainer import Trainer
from fer_train.networks.architectures import find_architecture
from fer_train.networks.pretrained import save_weights
from fer_train.networks.registry import create_network
from fer_train.pipeline import refuse_to_replace, sole_training
from fer_train.recipes import Recipe

# Images of a class folder that are not trained on but choose the epoch.
_HELD_OUT = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """Weights learned from other images."""

    path: Path
    classes: int
    images: int
    accuracy: float  # fraction of the held-out images that the best epoch gets right


def pretrained_path(models_dir: Path, name: str) -> Path:
    """Where the weights of a pretrained network go, `model_v1_pretrained.pth`."""
    return models_dir / f"{file_stem(name)}_pretrained.pth"


def pretrain(
    name: str,
    images: Path,
    recipe: Recipe,
    *,
    seed: int = 0,
    models_dir: Path = Path("models"),
    execution: Execution = ON_CPU,
) -> Pretrained:
    """Train a network on any folder of class folders, for `--weights FILE` to start from.

    The last images of every class are held out and choose the epoch.

    Args:
        images: one folder per class, or a folder whose `train` holds them; read as grayscale, 48 x 48.
        seed: of everything random.
        models_dir: where the file goes.
        execution: where to train, and whether to continue or replace what is there.

    Raises:
        CheckpointError: the weights or a stopped training are there already, or cannot be read.
        DataError: fewer than two classes, an empty one, or an image that cannot be decoded.
    """
    if find_architecture(name).weights == "none":
        raise DataError(f"--pretrain makes weights only for v1, not for {name}")
    path = pretrained_path(models_dir, name)
    resume_path = path.with_suffix(".resume.pth")
    device, world = execution.device, execution.world
    from_writer(lambda: refuse_to_replace(path, resume_path, execution), world)
    folder = images / "train" if (images / "train").is_dir() else images
    whole = load_class_folders(folder)
    if few := [f"{name} has {count}" for name, count in whole.counts.items() if count < 2]:
        raise DataError(
            f"every class needs 2 images, one to learn and one to choose by; in {folder} {', '.join(few)}: add some, "
            "or remove the folder"
        )
    held_out = _last_of_each_class(whole)
    train, validation = whole.subset(np.flatnonzero(~held_out)), whole.subset(np.flatnonzero(held_out))
    torch.manual_seed(seed)
    network = create_network(name, dropout=recipe.dropout)
    _replace_last_layer(network, len(whole.classes))
    identity = {
        "model": name,
        "recipe": json.dumps(recipe.to_dict(), sort_keys=True),
        "seed": seed,
        "data": whole.fingerprint,
    }
    trainer = Trainer(network, train, validation, recipe, device=device, seed=seed, world=world, identity=identity)
    with sole_training(path, resume_path, execution):
        trainer.run(
            resume_path=resume_path, resume=execution.resume, finish=execution.finish, progress=execution.progress
        )
        state_dict, reached = trainer.finished()
        if world.is_writer:
            save_weights(path, state_dict)
            resume_path.unlink(missing_ok=True)
    return Pretrained(path=path, classes=len(whole.classes), images=len(whole), accuracy=reached.accuracy)


def _replace_last_layer(network: nn.Module, classes: int) -> None:
    last: Any = network.fc
    last[-1] = nn.Linear(last[-1].in_features, classes)


def _last_of_each_class(faces: LabelledFaces) -> Any:
    """Mask (images,) of the last 50 images of every class, or of its last fifth where it has fewer than 250."""
    mask = np.zeros(len(faces), dtype=bool)
    for label in range(len(faces.classes)):
        members = np.flatnonzero(faces.labels == label)
        mask[members[-max(1, min(_HELD_OUT, len(members) // 5)) :]] = True
    return mask
