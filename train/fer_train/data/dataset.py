"""Load the training and validation images of a data set, or hold out validation images from train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fer_runtime.errors import DataError
from fer_runtime.expressions import EXPRESSIONS, FACE_SIZE
from fer_train.data.folders import LabelledFaces, UnreadableError, load_class_folders, too_few_classes
from fer_train.data.source_folders import class_folders

TRAIN = ("train", "training")
VALIDATION = ("validation", "val", "valid")
TEST = ("test", "testing")
_HELD_OUT = 0.15  # of each class, where there is no folder for validation


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """The training and validation images of a data set."""

    train: LabelledFaces
    validation: LabelledFaces
    note: str = ""  # says so if validation was held out of train; "" otherwise


def find_split(root: Path, names: Sequence[str]) -> Path | None:
    """The folder with one of these names in `root/images` or in `root`; upper and lower case are the same."""
    for parent in (root / "images", root):
        folders = {path.name.lower(): path for path in sorted(parent.iterdir())} if parent.is_dir() else {}
        for name in names:
            if name in folders and folders[name].is_dir():
                return folders[name]
    return None


def load_splits(
    root: Path,
    *,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    size: int = FACE_SIZE,
    color: str = "gray",
    skip_unreadable: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Splits:
    """Load the images to learn from, and those that choose the epoch.

    The labels are the class folders of `train`, sorted. A folder for validation may be called validation, val or valid.
    Without one, a share of every class is held out of `train`, by the seed. A test folder is never read: images that
    choose the epoch do not measure the result on new ones.

    Args:
        root: with `images/train` or `train`, or with the class folders themselves.
        seed: of the held-out share.
        classes: the labels that the folders must have; None takes those of the folders.
        size: side of the faces in pixels; other images are resized.
        color: "gray" or "rgb".
        skip_unreadable: leave out images that cannot be read, instead of raising an error.
        progress: called with the number of images done and in total.

    Raises:
        DataError: a folder is missing, the folders of the two splits differ, or images cannot be read.
    """
    how = {"size": size, "color": color, "skip_unreadable": skip_unreadable, "progress": progress}
    folder, chosen_by = find_split(root, TRAIN), find_split(root, VALIDATION)
    if folder is None:
        folder = _class_folders_themselves(root)
    try:
        train = load_class_folders(folder, classes=None if classes is None else tuple(classes), **how)  # type: ignore[arg-type]
    except UnreadableError as error:
        raise UnreadableError(error.reasons | _unreadable_in(chosen_by, how)) from error
    if chosen_by is not None:
        return Splits(train=train, validation=load_class_folders(chosen_by, classes=train.classes, **how))  # type: ignore[arg-type]
    held_out = _held_out(train, seed)
    test = find_split(root, TEST)
    note = (
        f"{root} has no folder validation: {held_out.sum()} of {len(train)} images of {folder.name} are held out to "
        f"choose the epoch by (seed {seed}), {_HELD_OUT:.0%} of each class"
    )
    if test is not None:
        note += f"; {test} is not read, so that it can tell how good the result is on new images"
    return Splits(
        train=train.subset(np.flatnonzero(~held_out)), validation=train.subset(np.flatnonzero(held_out)), note=note
    )


def _unreadable_in(folder: Path | None, how: dict[str, Any]) -> dict[str, str]:
    """The images of another split that cannot be read either, so that all of them are named at once."""
    try:
        if folder is not None:
            load_class_folders(folder, **how)
    except UnreadableError as error:
        return error.reasons
    except DataError:  # for the next run, when these are repaired
        pass
    return {}


def load_validation(
    root: Path,
    *,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    size: int = FACE_SIZE,
    color: str = "gray",
) -> LabelledFaces:
    """Load the validation images of `load_splits`; train is read only if they are held out of it."""
    folder = find_split(root, VALIDATION)
    if folder is not None:
        return load_class_folders(folder, classes=None if classes is None else tuple(classes), size=size, color=color)
    return load_splits(root, seed=seed, classes=classes, size=size, color=color).validation


def seed_of_training(training: Mapping[str, object]) -> int:
    """The seed for `load_splits` that holds out the share of train which a training held out.

    Args:
        training: the summary in its checkpoint, or in a model file made from it.
    """
    seed = training.get("seed")
    return seed if isinstance(seed, int) else 0


def _class_folders_themselves(root: Path) -> Path:
    """`root`, where it holds class folders and no folder of a split.

    Raises:
        DataError: it does not.
    """
    if root.is_dir() and find_split(root, (*VALIDATION, *TEST)) is None and not (root / "images").is_dir():
        filled = [name for name, images in class_folders(root).items() if images]
        if len(filled) >= 2:
            return root
        if filled:
            below = root / filled[0]
            has_classes = find_split(below, TRAIN) is not None or sum(map(bool, class_folders(below).values())) >= 2
            hint = f"; if {below} is the data set, give --data {below}" if has_classes else ""
            raise DataError(too_few_classes(root, filled) + hint)
    raise DataError(
        f"no folder {root / 'images' / 'train'} nor {root / 'train'}; --data takes the dataset's root (with "
        "images/train and images/validation), a folder that holds train and validation (or val, valid), each with a "
        "folder for every class, or a folder of class folders; without --data, FER2013 is fetched from Kaggle, with "
        f"{', '.join(EXPRESSIONS)}"
    )


def _held_out(faces: LabelledFaces, seed: int) -> np.ndarray:
    """Mask (images,) of the share of every class that is not learned from, at least one image.

    Raises:
        DataError: a class has one image alone.
    """
    random = np.random.default_rng(seed)
    mask = np.zeros(len(faces), dtype=bool)
    for label, name in enumerate(faces.classes):
        members = np.flatnonzero(faces.labels == label)
        if len(members) < 2:
            raise DataError(
                f"{faces.folder / name} holds {len(members)} image, and one to learn from and one to choose by are "
                "needed; add images, or a folder validation"
            )
        mask[random.permutation(members)[: max(1, round(_HELD_OUT * len(members)))]] = True
    return mask
