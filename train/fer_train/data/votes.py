"""Raters' votes: which expression several people see in an image. Imports no PyTorch.

A votes file is a CSV, plain or gzipped, with one row per image: its path below the dataset's root (or below `images/`),
then one column per class, then any further columns for what is none of the classes (FER+ has contempt, unknown and
not_a_face). FER+'s own fer2013new.csv is read, too: its rows are those of fer2013.csv.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fer_runtime.errors import DataError
from fer_runtime.metrics import ConfusionMatrix, accuracy, confusion_matrix, per_class_recall
from fer_runtime.text import printable
from fer_train.data.label_names import name_of
from fer_train.data.source_folders import split_named

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

Uint8Array = npt.NDArray[np.uint8]

# What `--votes` takes instead of a file.
FERPLUS = "ferplus"
_PATH_COLUMNS = ("image", "picture", "path")
_FERPLUS_NAME, _FERPLUS_USAGE = "Image name", "Usage"


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes:
    """The votes of one file."""

    classes: tuple[str, ...]
    by_path: Mapping[str, Float32Array]  # (classes + 1,) each; the last value counts votes for none of the classes
    sha256: str  # of the file
    by_stem: Mapping[str, Float32Array] = field(default_factory=dict)  # the same by the file's name without suffix

    def of(self, paths: Sequence[str], faces: Uint8Array, *, split: str) -> Float32Array:
        """Votes for the images at `paths` of a split, float32 (images, classes + 1); zeros for an image without a row.

        Raises:
            DataError: no image has a row.
        """
        # Class folders without folders for the splits are the dataset's root themselves.
        beginnings = (f"{split}/",) if split_named(split) else (f"{split}/", "")
        found = np.zeros((len(paths), len(self.classes) + 1), np.float32)
        for votes, path in zip(found, paths, strict=True):
            votes[:] = self._of_one(path, beginnings)
        if len(paths) and not found.any():
            kind = f"{split} image" if split_named(split) else "image"
            raise DataError(
                f"the votes file has no row for any {kind}, such as {beginnings[-1]}{paths[0]}; its column image must "
                "hold paths below the dataset's root, with /"
            )
        return found

    def _of_one(self, path: str, beginnings: Sequence[str]) -> Float32Array | float:
        for beginning in beginnings:
            found = self.by_path.get(unicodedata.normalize("NFC", f"{beginning}{path}"))
            if found is not None:
                return found
        return self.by_stem.get(PurePosixPath(path).stem, 0.0)


class VoteSource(Protocol):
    """A source of votes for images."""

    def of(self, paths: Sequence[str], faces: Uint8Array, *, split: str) -> Float32Array:
        """Votes for images, by their paths below the split's folder or by their pixels (images, 48, 48)."""
        ...


def open_votes(source: str | Path, classes: Sequence[str]) -> VoteSource:
    """The votes in a file, or those of FER+ that ship with the package for "ferplus".

    Raises:
        DataError: the file cannot be used, or FER+ does not have these classes.
    """
    if str(source) == FERPLUS:
        from fer_train.data.ferplus import FerPlusVotes

        return FerPlusVotes(classes)
    return read_votes(Path(source), classes)


def read_votes(path: Path, classes: Sequence[str]) -> Votes:
    """Read a votes file.

    Args:
        path: a .csv or .csv.gz file.
        classes: columns that must be there.

    Raises:
        DataError: the file is missing, damaged or lacks a column, or a vote is no number.
    """
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content).decode("utf-8-sig")
    except OSError as error:
        raise DataError(
            f"cannot read the votes file {path}: {error.strerror or error}; give a csv of the images' votes, or ferplus"
        ) from error
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"the votes file {path} is damaged or no text ({error}); copy it again") from error
    try:
        reader = csv.DictReader(io.StringIO(text))
        # As labels: Macs store letters and accents apart.
        reader.fieldnames = columns = [unicodedata.normalize("NFC", name) for name in reader.fieldnames or ()]
        rows = list(reader)
    except csv.Error as error:
        raise DataError(f"the votes file {path} is damaged ({error}); copy it again") from error
    if _FERPLUS_NAME in columns:
        return _read_ferplus(path, columns, rows, classes, hashlib.sha256(content).hexdigest())
    if twice := [name for name in dict.fromkeys(columns) if columns.count(name) > 1]:
        raise DataError(f"the votes file {path} has two columns {twice[0]!r}; leave one out")
    key = next((name for name in _PATH_COLUMNS if name in columns), None)
    if key is None or (missing := [name for name in classes if name not in columns]):
        lacking = "a column image" if key is None else f"a column for {', '.join(missing)}"
        raise DataError(f"the votes file {path} lacks {lacking}; its columns are: {', '.join(columns) or 'none'}")
    others = [name for name in columns if name not in classes and name != key]
    by_path: dict[str, Float32Array] = {}
    for line, row in enumerate(rows, start=2):
        try:
            values = [float(row[name]) for name in classes]
            other = sum(float(row[name]) for name in others)
        except (TypeError, ValueError):
            raise DataError(f"line {line} of the votes file {path} holds something other than numbers") from None
        if not min((*values, other)) >= 0 or not np.isfinite(sum(values) + other):
            raise DataError(f"line {line} of the votes file {path} holds a vote that is negative or not finite")
        image = unicodedata.normalize("NFC", str(row[key]).removeprefix("images/"))
        if image and image in by_path:
            raise DataError(
                f"line {line} of the votes file {path} has {printable(image)} a second time; give one row per image, "
                "with the votes of all raters added up"
            )
        by_path[image] = np.array([*values, other], np.float32)
    return Votes(classes=tuple(classes), by_path=by_path, sha256=hashlib.sha256(content).hexdigest())


def _read_ferplus(
    path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]], classes: Sequence[str], sha256: str
) -> Votes:
    """FER+'s fer2013new.csv: images are known by FER+'s names, and by those that `fer-data import` gives their rows."""
    column_of = {name_of(column): column for column in columns}
    if missing := [name for name in classes if name not in column_of]:
        raise DataError(
            f"FER+'s votes in {path} have no column for {', '.join(missing)}; they are: {', '.join(columns)}"
        )
    named = [column_of[name] for name in classes]
    others = [name for name in columns if name not in (*named, _FERPLUS_NAME, _FERPLUS_USAGE)]
    by_stem: dict[str, Float32Array] = {}
    for index, row in enumerate(rows):
        try:
            votes = np.array(
                [*(float(row[name]) for name in named), sum(float(row[name]) for name in others)], np.float32
            )
        except (TypeError, ValueError):
            raise DataError(f"line {index + 2} of the votes file {path} holds something other than numbers") from None
        if not votes.min() >= 0 or not np.isfinite(votes).all():
            raise DataError(f"line {index + 2} of the votes file {path} holds a vote that is negative or not finite")
        by_stem[pixels_name(index)] = votes
        if given := (row[_FERPLUS_NAME] or "").strip():  # none where FER+ leaves an image out
            by_stem[PurePosixPath(given).stem] = votes
    return Votes(classes=tuple(classes), by_path={}, sha256=sha256, by_stem=by_stem)


def pixels_name(index: int) -> str:
    """The name, without suffix, of the image that `fer-data import` makes of a row of fer2013.csv; 0 is the first."""
    return f"fer2013_{index:05}"


def usable(votes: Float32Array) -> npt.NDArray[np.bool_]:
    """Images with votes of which more than half name one of the classes; (images,).

    The others are no faces, or faces of which the raters say that they show none of the classes.
    """
    named: npt.NDArray[np.bool_] = votes[:, :-1].sum(1) > votes[:, -1]
    return named


def distributions(votes: Float32Array, *, least_votes: float = 0.0) -> Float32Array:
    """Votes for the classes as a distribution, float32 (images, classes).

    Args:
        least_votes: a class with fewer votes counts as having none, unless no class has as many.
    """
    named = votes[:, :-1]
    kept = np.where(named >= least_votes, named, 0)
    kept = np.where(kept.sum(1, keepdims=True) > 0, kept, named)
    shares: Float32Array = (kept / np.maximum(kept.sum(1, keepdims=True), 1)).astype(np.float32)
    return shares


def strict_majority(votes: Float32Array) -> Int64Array:
    """The class that more than half of all raters name, int64 (images,); -1 where there is none."""
    named = votes[:, :-1]
    has_one = named.max(1) > votes.sum(1) / 2
    majority: Int64Array = np.where(has_one, named.argmax(1), -1).astype(np.int64)
    return majority


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteReport:
    """A model's probabilities against what raters see, over the usable images."""

    images: int  # usable ones
    majority_images: int  # those with a strict majority
    confusion: ConfusionMatrix  # rows: the strict majority's class
    plurality_accuracy: float  # the class with most votes; of equal ones, any counts as right
    cross_entropy: float  # mean over images, in nats, to the distribution of the votes
    entropy: float  # of the votes themselves: the least that the cross-entropy can be
    rater_agreement: float  # mean share of the raters that name the predicted class
    rater_ceiling: float  # the same of the class with most votes

    @property
    def majority_accuracy(self) -> float:
        return accuracy(self.confusion)

    @property
    def mean_recall(self) -> float:
        """Mean over the classes that are the strict majority of some image."""
        support = self.confusion.sum(1)
        recalls = np.diag(self.confusion)[support > 0] / support[support > 0]
        return float(recalls.mean()) if len(recalls) else 0.0

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        return {
            "images": self.images,
            "majority_images": self.majority_images,
            "majority_accuracy": self.majority_accuracy,
            "mean_recall": self.mean_recall,
            "per_class_recall": per_class_recall(self.confusion, classes),
            "confusion": self.confusion.tolist(),
            "plurality_accuracy": self.plurality_accuracy,
            "cross_entropy": self.cross_entropy,
            "entropy": self.entropy,
            "rater_agreement": self.rater_agreement,
            "rater_ceiling": self.rater_ceiling,
        }


def measure_votes(probabilities: npt.NDArray[np.floating], votes: Float32Array) -> VoteReport:
    """Compare probabilities (images, classes) with votes (images, classes + 1).

    Raises:
        DataError: no image has usable votes.
    """
    rated = usable(votes)
    if not rated.any():
        raise DataError("no image has votes for one of the classes")
    votes, chances = votes[rated], probabilities[rated].astype(np.float64)
    shares = distributions(votes).astype(np.float64)
    predictions, majority = chances.argmax(1), strict_majority(votes)
    strict = majority >= 0
    rows, tiny = np.arange(len(votes)), np.finfo(np.float64).tiny
    of_all = votes[:, :-1] / votes.sum(1, keepdims=True)
    return VoteReport(
        images=len(votes),
        majority_images=int(strict.sum()),
        confusion=confusion_matrix(majority[strict], predictions[strict], classes=chances.shape[1]),
        plurality_accuracy=float((votes[rows, predictions] == votes[:, :-1].max(1)).mean()),
        cross_entropy=float(-(shares * np.log(np.maximum(chances, tiny))).sum(1).mean()),
        entropy=float(-(shares * np.log(np.maximum(shares, tiny))).sum(1).mean()),
        rater_agreement=float(of_all[rows, predictions].mean()),
        rater_ceiling=float(of_all.max(1).mean()),
    )
