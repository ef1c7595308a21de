"""Probable label errors, by confident learning (Northcutt, Jiang and Chuang, arXiv 1911.00068).

Each image gets probabilities from a classifier that has not seen it: five times, a linear discriminant is fitted to the
features that a model finds in four fifths of the images, and asked about the last fifth. Where the probability of
another class is as high as is usual for images of that class, the label is probably wrong.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fer_runtime.errors import DataError
from fer_runtime.text import csv_text
from fer_train.data.split import stratified

FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

FOLDS = 5
# Share of the identity in the covariance: of 0.01, 0.1, 0.3 and 0.6, the one that ranks planted errors best with 20 to
# 400 images a class and no worse with more (studies.label_errors).
_SHRINKAGE = 0.3
_TOLERANCE = 1e-6  # cleanlab's: a probability that equals the threshold counts
COLUMNS = ("image", "label", "suggested", "label_probability", "suggested_probability")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelError:
    """An image whose label is probably wrong."""

    image: str
    label: str
    suggested: str
    label_probability: float
    suggested_probability: float


def out_of_fold_probabilities(
    features: FloatArray, labels: Int64Array, groups: Sequence[int], *, classes: int, seed: int = 0
) -> Float64Array:
    """Probabilities of each image by a classifier that has seen neither it nor a copy of it, (images, classes).

    Args:
        features: float32 (images, features).
        labels: index of each image's class, (images,).
        groups: a number for each image, equal for copies.
        classes: number of classes; each needs two different images.

    Raises:
        DataError: a class has too few images.
    """
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1]
    counts = np.zeros((int(numbers.max(initial=-1)) + 1, classes), np.int64)
    np.add.at(counts, (numbers, labels), 1)
    if few := np.flatnonzero((counts > 0).sum(0) < 2).tolist():
        raise DataError(f"class {few[0]} has fewer than two different images")
    folds = stratified(counts, [1 / FOLDS] * FOLDS, seed=seed)[numbers]
    probabilities = np.zeros((len(labels), classes))
    for fold in range(FOLDS):
        held_out = folds == fold
        if held_out.any():
            fitted = _Discriminant(features[~held_out], labels[~held_out], classes)
            probabilities[held_out] = fitted.probabilities(features[held_out])
    return probabilities


class _Discriminant:
    """A linear discriminant with a shared covariance, shrunk towards the identity."""

    def __init__(self, features: FloatArray, labels: Int64Array, classes: int) -> None:
        self._mean = features.mean(0, dtype=np.float64)
        self._scale = features.std(0, dtype=np.float64) + 1e-6
        scaled = (features - self._mean) / self._scale
        counts = np.bincount(labels, minlength=classes)
        means = np.stack(
            [scaled[labels == label].mean(0) if counts[label] else 0 * scaled[0] for label in range(classes)]
        )
        apart = scaled - means[labels]
        covariance = apart.T @ apart / len(labels)
        size = len(covariance)
        shrunk = (1 - _SHRINKAGE) * covariance + np.eye(size) * (_SHRINKAGE * np.trace(covariance) / size + 1e-9)
        self._weights = np.linalg.solve(shrunk, means.T)
        with np.errstate(divide="ignore"):  # a class that these folds lack has no probability
            self._bias = np.log(counts / len(labels)) - 0.5 * (means.T * self._weights).sum(0)

    def probabilities(self, features: FloatArray) -> Float64Array:
        scores = (features - self._mean) / self._scale @ self._weights + self._bias
        raised = np.exp(scores - scores.max(1, keepdims=True))
        shares: Float64Array = raised / raised.sum(1, keepdims=True)
        return shares


def confident_classes(probabilities: Float64Array, labels: Int64Array) -> Int64Array:
    """The class that each image confidently belongs to, -1 where there is none; int64 (images,).

    An image belongs to a class where its probability is at least the mean over the images with that label; of several
    such classes, to the most probable one.
    """
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    own = probabilities[np.arange(len(labels)), labels]
    thresholds = np.bincount(labels, weights=own, minlength=classes) / np.maximum(counts, 1)
    thresholds[counts == 0] = np.inf
    is_confident = probabilities >= thresholds - _TOLERANCE
    # Of several confident classes the most probable class, as cleanlab has it; it is one of them or as probable.
    best = np.where(is_confident.sum(1) > 1, probabilities.argmax(1), is_confident.argmax(1))
    chosen: Int64Array = np.where(is_confident.any(1), best, -1).astype(np.int64)
    return chosen


def find_label_errors(
    probabilities: Float64Array, labels: Int64Array, classes: Sequence[str], paths: Sequence[str]
) -> list[LabelError]:
    """The images that confidently belong to another class than their label's, the least probable label first.

    Args:
        probabilities: out of fold, (images, classes).
        labels: index of each image's class, (images,).
    """
    confident = confident_classes(probabilities, labels)
    own = probabilities[np.arange(len(labels)), labels]
    # A label that no class is more probable than is not doubted.
    wrong = np.flatnonzero((confident >= 0) & (confident != labels) & (own < probabilities.max(1)))
    return [
        LabelError(
            image=paths[index],
            label=classes[labels[index]],
            suggested=classes[confident[index]],
            label_probability=float(own[index]),
            suggested_probability=float(probabilities[index, confident[index]]),
        )
        for index in wrong[np.argsort(own[wrong], kind="stable")]
    ]


def errors_csv(errors: Sequence[LabelError]) -> bytes:
    """The errors as a csv that `--drop` takes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for error in errors:
        shown = (csv_text(error.label), csv_text(error.suggested))
        writer.writerow([error.image, *shown, f"{error.label_probability:.4f}", f"{error.suggested_probability:.4f}"])
    return text.getvalue().encode("utf-8", "surrogateescape")


def read_probabilities(file: Path, classes: Sequence[str], paths: Sequence[str]) -> Float64Array:
    """Out-of-fold probabilities from a csv with a column `image` and one for each class, (images, classes).

    Raises:
        DataError: the file cannot be used, or an image has no row.
    """
    from fer_train.data.votes import read_votes

    votes = read_votes(file, classes)
    names = [unicodedata.normalize("NFC", path) for path in paths]  # as `by_path` has them
    missing = [path for path, name in zip(paths, names, strict=True) if name not in votes.by_path]
    if missing:
        raise DataError(
            f"{file} has no row for {len(missing)} of {len(paths)} images, such as {missing[0]}; its column image must "
            "hold such paths"
        )
    values = np.array([votes.by_path[name][:-1] for name in names], np.float64)
    sums = values.sum(1, keepdims=True)
    if (sums <= 0).any():
        raise DataError(f"{file} has no probability for {paths[int(sums.argmin())]}")
    shares: Float64Array = values / sums
    return shares
