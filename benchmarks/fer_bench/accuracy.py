"""Accuracy of exported models on labelled images, measured with the runtime."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_bench.statistics import Interval, bootstrap, mcnemar, or_mean, or_wilson
from fer_runtime.errors import DataError, ImageError
from fer_runtime.expressions import FACE_SIZE
from fer_runtime.faces import prepare_face
from fer_runtime.images import Uint8Array, read_image
from fer_runtime.labels import label_difference
from fer_runtime.metrics import (
    ConfusionMatrix,
    accuracy,
    confusion_matrix,
    expected_calibration_error,
    macro_f1,
    per_class_precision,
    per_class_recall,
)
from fer_runtime.model.find import named_file
from fer_runtime.recognizer import Recognizer
from fer_runtime.text import printable
from fer_train.data.dataset import TEST, TRAIN, VALIDATION, find_split
from fer_train.data.source_folders import class_folders

FloatArray = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImages:
    """Face crops with their labels, read with the runtime."""

    folder: Path
    paths: tuple[str, ...]  # relative to the folder
    faces: Uint8Array  # (images, 48, 48), grayscale
    labels: Int64Array  # (images,), index into `classes`
    classes: tuple[str, ...]
    unreadable: tuple[str, ...]  # "path: reason" of images that are not counted

    def faces_for(self, recognizer: Recognizer) -> Uint8Array:
        """The faces in the size and colour of a model."""
        return self.faces_in(recognizer.size, recognizer.color)

    def faces_in(self, size: int, color: str) -> Uint8Array:
        """The faces, uint8 (images, size, size), or (images, size, size, 3) in RGB."""
        if (size, color) == (FACE_SIZE, "gray"):
            return self.faces
        images = (read_image(self.folder / path) for path in self.paths)
        return np.stack([prepare_face(image, size=size, color=color) for image in images])


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyResult:
    """Accuracy of a model as fractions, with 95 % intervals."""

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
    probabilities: FloatArray  # (images, classes), columns in the order of `classes`
    classes: tuple[str, ...]
    may_have_learned: bool  # from these images, see `may_have_learned_from`

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
            "labels": list(self.classes),
            "accuracy": self.accuracy.value,
            "accuracy_interval": self.accuracy.to_list(),
            "macro_f1": self.macro_f1.value,
            "macro_f1_interval": self.macro_f1.to_list(),
            "expected_calibration_error": self.expected_calibration_error.value,
            "expected_calibration_error_interval": self.expected_calibration_error.to_list(),
            "per_class_recall": {name: interval.value for name, interval in recall.items()},
            "per_class_recall_interval": {name: interval.to_list() for name, interval in recall.items()},
            "per_class_precision": {name: interval.value for name, interval in precision.items()},
            "per_class_precision_interval": {name: interval.to_list() for name, interval in precision.items()},
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


def labelled_folder(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder of class folders in a data set, and the names of those.

    Args:
        folder: the dataset's root, or a folder of class folders. Of a root, validation is taken, then test.

    Raises:
        DataError: there are no class folders.
    """
    root = find_split(folder, VALIDATION) or find_split(folder, TEST)
    if root is None:
        if find_split(folder, TRAIN) is not None:
            raise DataError(
                f"{folder} has no folder validation or test, and accuracy on images that a model has learned from "
                "says nothing; split the images with: fer-data split"
            )
        root = folder
    try:
        names = [path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot read {root}: {error.strerror}; --data takes a folder of class folders") from error
    if not names:
        raise DataError(f"{root} holds no class folders; --data takes a folder with one folder for each label")
    return root, tuple(sorted({unicodedata.normalize("NFC", name) for name in names}))


def read_labelled_images(
    folder: Path, labels: Sequence[str] | None = None, *, say: Callable[[str], None] = lambda text: None
) -> LabelledImages:
    """Face crops of a labelled folder.

    Args:
        folder: as for `labelled_folder`.
        labels: of the models that are measured; those of the folder by default.
        say: told of each image that cannot be read.

    Raises:
        DataError: there are no class folders, or a folder's name is not one of the labels.
    """
    root, found = labelled_folder(folder)
    classes = tuple(found if labels is None else labels)
    if unknown := [name for name in found if name not in classes]:
        raise DataError(
            f"{root} has the folder {printable(unknown[0])}, which is none of the labels: {', '.join(classes)}"
        )
    paths, faces, indices, unreadable = [], [], [], []
    for name, inside in class_folders(root).items():  # the images that fer-train counts
        for path in (f"{name}/{below}" for below in inside):
            try:
                faces.append(prepare_face(read_image(root / path)))
            except ImageError as error:
                unreadable.append(f"{path}: {error}")
                say(f"not counted: {unreadable[-1]}")
                continue
            paths.append(path)
            indices.append(classes.index(unicodedata.normalize("NFC", name)))
    if not faces:
        raise DataError(f"{root} has no readable image; --data takes a folder with one folder for each label")
    return LabelledImages(
        folder=root,
        paths=tuple(paths),
        faces=np.stack(faces),
        labels=np.array(indices, np.int64),
        classes=classes,
        unreadable=tuple(unreadable),
    )


def measure_accuracy(recognizer: Recognizer, images: LabelledImages, *, resamples: int = 500) -> AccuracyResult:
    """Classify the images and compute the metrics.

    Args:
        resamples: bootstrap resamples of each interval.

    Raises:
        DataError: the model has other labels than the images.
    """
    classes = images.classes
    if difference := label_difference(classes, recognizer.labels):
        raise DataError(f"{recognizer.path} has other labels than the images of {images.folder}: {difference}")
    # By name, because a model may order its labels differently.
    columns = [recognizer.labels.index(name) for name in classes]
    probabilities = recognizer.classify(images.faces_for(recognizer))[:, columns]
    labels, predictions = images.labels, probabilities.argmax(1)
    confidences, correct = probabilities.max(1), predictions == labels

    def of_confusion(figure: Any) -> Interval:
        return bootstrap(
            lambda chosen: figure(confusion_matrix(labels[chosen], predictions[chosen], classes=len(classes))),
            len(labels),
            resamples=resamples,
        )

    confusion = confusion_matrix(labels, predictions, classes=len(classes))
    hits, faces = np.diag(confusion).tolist(), confusion.sum(1).tolist()
    recall = {
        name: or_wilson(of_confusion(lambda table, name=name: per_class_recall(table, classes)[name]), right, count)
        for name, right, count in zip(classes, hits, faces, strict=True)
    }
    # A class without images counts 0 in macro-F1.
    absent = Interval(value=0, low=0, high=0)
    seen = [recall[name] if count else absent for name, count in zip(classes, faces, strict=True)]
    precision = {
        name: or_wilson(of_confusion(lambda table, name=name: per_class_precision(table, classes)[name]), right, count)
        for name, right, count in zip(classes, hits, confusion.sum(0).tolist(), strict=True)
    }
    metadata = recognizer.metadata
    return AccuracyResult(
        model=named_file(recognizer.path).name,
        precision=metadata.precision,
        path=recognizer.path,
        images=len(labels),
        accuracy=or_wilson(of_confusion(accuracy), sum(hits), len(labels)),
        macro_f1=or_mean(of_confusion(macro_f1), seen),
        expected_calibration_error=bootstrap(
            lambda chosen: expected_calibration_error(confidences[chosen], correct[chosen]),
            len(labels),
            resamples=resamples,
        ),
        per_class_recall=recall,
        per_class_precision=precision,
        confusion=confusion,
        probabilities=probabilities,
        classes=classes,
        may_have_learned=may_have_learned_from(metadata.training, images),
    )


def may_have_learned_from(training: Mapping[str, Any], images: LabelledImages) -> bool:
    """Whether a model's training had as many images of each label as `images`: probably these.

    Args:
        training: the summary in the model's file.
    """
    here = dict(zip(images.classes, np.bincount(images.labels, minlength=len(images.classes)).tolist(), strict=True))
    try:
        train, validation = (Counter(training["data"][split]["counts"]) for split in ("train", "validation"))
        # Without a folder for validation, a share of the images was held out.
        return here in (dict(train), dict(train + validation))
    except (KeyError, TypeError):  # of another program
        return False


def measure_files(
    paths: Sequence[Path], images: LabelledImages, *, progress: Callable[[int, int], None]
) -> list[AccuracyResult]:
    """`measure_accuracy` of each model file, one open at a time; `progress` is told (done, total)."""
    results = []
    for number, path in enumerate(paths, 1):
        with Recognizer(path) as recognizer:
            results.append(measure_accuracy(recognizer, images))
        progress(number, len(paths))
    # Files of one name, in several folders, are told apart by their paths.
    same_names = Counter((result.model, result.precision) for result in results)
    return [
        result if same_names[result.model, result.precision] == 1 else replace(result, model=str(result.path))
        for result in results
    ]


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
            row = [images.paths[index], images.classes[images.labels[index]]]
            for result in (first, other):
                answer = images.classes[result.predictions[index]]
                row += [f"{result.model} {result.precision}", answer, f"{result.probabilities[index].max():.3f}"]
            writer.writerow(row)
    return text.getvalue()
