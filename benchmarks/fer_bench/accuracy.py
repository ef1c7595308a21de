"""Accuracy of exported models on labelled images, measured with the runtime."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_bench.statistics import Interval, bootstrap, mcnemar
from fer_runtime.errors import DataError, ImageError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.faces import prepare_face
from fer_runtime.images import IMAGE_SUFFIXES, Uint8Array, read_image
from fer_runtime.metrics import (
    ConfusionMatrix,
    accuracy,
    confusion_matrix,
    expected_calibration_error,
    macro_f1,
    per_class_precision,
    per_class_recall,
)
from fer_runtime.recognizer import Recognizer

FloatArray = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImages:
    """Face crops with their labels, read with the runtime."""

    folder: Path
    paths: tuple[str, ...]  # relative to the folder
    faces: Uint8Array  # (images, 48, 48)
    labels: Int64Array  # (images,), index into EXPRESSIONS
    unreadable: tuple[str, ...]  # "path: reason" of images that are not counted


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyResult:
    """Accuracy of a model as fractions, with 95 % bootstrap intervals."""

    model: str
    precision: str
    path: Path
    images: int
    accuracy: Interval
    macro_f1: Interval
    expected_calibration_error: Interval
    per_class_recall: dict[str, Interval]
    per_class_precision: dict[str, Interval]
    confusion: ConfusionMatrix  # rows are the true class
    probabilities: FloatArray  # (images, 7), columns in the order of EXPRESSIONS

    @property
    def predictions(self) -> Int64Array:
        """Predicted classes, shape (images,)."""
        best: Int64Array = self.probabilities.argmax(1)
        return best

    def to_dict(self) -> dict[str, Any]:
        """As stored in results files: the value under its name, the interval under name + "_interval"."""
        recall, precision = self.per_class_recall, self.per_class_precision
        return {
            "model": self.model,
            "precision": self.precision,
            "model_sha256": sha256(self.path.read_bytes()).hexdigest(),
            "images": self.images,
            "accuracy": self.accuracy.value,
            "accuracy_interval": self.accuracy.to_list(),
            "macro_f1": self.macro_f1.value,
            "macro_f1_interval": self.macro_f1.to_list(),
            "expected_calibration_error": self.expected_calibration_error.value,
            "expected_calibration_error_interval": self.expected_calibration_error.to_list(),
            "per_class_recall": {name: one.value for name, one in recall.items()},
            "per_class_recall_interval": {name: one.to_list() for name, one in recall.items()},
            "per_class_precision": {name: one.value for name, one in precision.items()},
            "per_class_precision_interval": {name: one.to_list() for name, one in precision.items()},
            "confusion": self.confusion.tolist(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedComparison:
    """Paired comparison of two models on the same images."""

    first: str
    second: str
    only_first_right: int
    only_second_right: int
    changed: int  # images with different predictions
    p_value: float  # of McNemar's exact test

    def to_dict(self) -> dict[str, Any]:
        """As stored in results files."""
        return {
            "first": self.first,
            "second": self.second,
            "only_first_right": self.only_first_right,
            "only_second_right": self.only_second_right,
            "changed": self.changed,
            "mcnemar_p": self.p_value,
        }


def read_labelled_images(folder: Path) -> LabelledImages:
    """Face crops of a labelled folder.

    Args:
        folder: the dataset's root, a folder with `validation`, or a folder of class folders.

    Raises:
        DataError: there are no class folders, or a folder name is not an expression.
    """
    root = next((one for one in (folder / "images" / "validation", folder / "validation") if one.is_dir()), folder)
    try:
        found = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read {root}: {error.strerror}; --data takes a folder of class folders") from error
    unknown = [name for name in found if name not in EXPRESSIONS]
    if not found or unknown:
        fact = f"has the folder {unknown[0]}, which is not an expression" if unknown else "holds no class folders"
        raise DataError(f"{root} {fact}; the classes are: {', '.join(EXPRESSIONS)}")
    paths, faces, labels, unreadable = [], [], [], []
    for name in found:
        for path in sorted((root / name).iterdir()):
            if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
                continue
            try:
                faces.append(prepare_face(read_image(path)))
            except ImageError as error:
                unreadable.append(f"{name}/{path.name}: {error}")
                continue
            paths.append(f"{name}/{path.name}")
            labels.append(EXPRESSIONS.index(name))
    if not faces:
        raise DataError(f"{root} has no readable image")
    return LabelledImages(
        folder=root,
        paths=tuple(paths),
        faces=np.stack(faces),
        labels=np.array(labels, np.int64),
        unreadable=tuple(unreadable),
    )


def measure_accuracy(recognizer: Recognizer, images: LabelledImages, *, resamples: int = 500) -> AccuracyResult:
    """Classify the images and compute the metrics.

    Args:
        resamples: bootstrap resamples of each interval.
    """
    # By name, because a model may order its labels differently.
    columns = [recognizer.metadata.labels.index(name) for name in EXPRESSIONS]
    probabilities = recognizer.classify(images.faces)[:, columns]
    labels, predictions = images.labels, probabilities.argmax(1)
    confidences, correct = probabilities.max(1), predictions == labels

    def of_confusion(figure: Any) -> Interval:
        return bootstrap(
            lambda chosen: figure(confusion_matrix(labels[chosen], predictions[chosen])),
            len(labels),
            resamples=resamples,
        )

    metadata = recognizer.metadata
    return AccuracyResult(
        model=metadata.name,
        precision=metadata.precision,
        path=recognizer.path,
        images=len(labels),
        accuracy=of_confusion(accuracy),
        macro_f1=of_confusion(macro_f1),
        expected_calibration_error=bootstrap(
            lambda chosen: expected_calibration_error(confidences[chosen], correct[chosen]),
            len(labels),
            resamples=resamples,
        ),
        per_class_recall={
            name: of_confusion(lambda table, name=name: per_class_recall(table, EXPRESSIONS)[name])
            for name in EXPRESSIONS
        },
        per_class_precision={
            name: of_confusion(lambda table, name=name: per_class_precision(table, EXPRESSIONS)[name])
            for name in EXPRESSIONS
        },
        confusion=confusion_matrix(labels, predictions),
        probabilities=probabilities,
    )


def compare_pairwise(results: Sequence[AccuracyResult], labels: Int64Array) -> list[PairedComparison]:
    """Compare every pair of results face by face."""
    comparisons = []
    for first, other in combinations(results, 2):
        right, other_right = first.predictions == labels, other.predictions == labels
        only_first, only_second = int((right & ~other_right).sum()), int((other_right & ~right).sum())
        comparisons.append(
            PairedComparison(
                first=f"{first.model} {first.precision}",
                second=f"{other.model} {other.precision}",
                only_first_right=only_first,
                only_second_right=only_second,
                changed=int((first.predictions != other.predictions).sum()),
                p_value=mcnemar(only_first, only_second),
            )
        )
    return comparisons


def flips_csv(results: Sequence[AccuracyResult], images: LabelledImages) -> str:
    """CSV of the images that two models classify differently, with both answers and confidences."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("answer", "confidence", "other_model", "other_answer", "other_confidence")
    writer.writerow(("path", "label", "model", *columns))
    for first, other in combinations(results, 2):
        for index in np.flatnonzero(first.predictions != other.predictions):
            row = [images.paths[index], EXPRESSIONS[images.labels[index]]]
            for result in (first, other):
                answer = EXPRESSIONS[result.predictions[index]]
                row += [f"{result.model} {result.precision}", answer, f"{result.probabilities[index].max():.3f}"]
            writer.writerow(row)
    return text.getvalue()
