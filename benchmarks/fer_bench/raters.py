"""Accuracy against the votes of several raters per image, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_bench.accuracy import LabelledImages
from fer_bench.statistics import Interval, bootstrap_all, or_mean, or_wilson
from fer_runtime.errors import DataError
from fer_runtime.metrics import ConfusionMatrix, per_class_recall
from fer_train.data.votes import measure_votes, open_votes, strict_majority, usable

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class RatersResult:
    """A model's answers compared with raters' votes, over the images whose votes name a class."""

    images: int
    majority_images: int  # images for which more than half of the raters name one class
    majority_accuracy: Interval  # on those
    mean_recall: Interval  # mean of the classes' recalls, on those
    per_class_recall: dict[str, Interval]  # on those
    plurality_accuracy: Interval  # the predicted class has the most votes, or as many as another
    cross_entropy: Interval  # to the distribution of votes, in nats
    agreement: Interval  # probability that a random rater names the predicted class
    vote_entropy: float  # the least possible cross-entropy
    best_agreement: float  # the highest possible agreement
    confusion: ConfusionMatrix  # rows are the strict majority's class

    def to_dict(self) -> dict[str, Any]:
        """As stored in results files: the value under its name, the interval under name + "_interval"."""
        found: dict[str, Any] = {
            "images": self.images,
            "majority_images": self.majority_images,
            "vote_entropy": self.vote_entropy,
            "best_agreement": self.best_agreement,
            "per_class_recall": {name: interval.value for name, interval in self.per_class_recall.items()},
            "per_class_recall_interval": {name: interval.to_list() for name, interval in self.per_class_recall.items()},
            "confusion": self.confusion.tolist(),
        }
        for name in ("majority_accuracy", "mean_recall", "plurality_accuracy", "cross_entropy", "agreement"):
            interval: Interval = getattr(self, name)
            found |= {name: interval.value, f"{name}_interval": interval.to_list()}
        return found


def measure_raters(
    probabilities: FloatArray, votes: FloatArray, classes: Sequence[str], *, resamples: int = 500
) -> RatersResult:
    """Compare a model's probabilities with raters' votes.

    Args:
        probabilities: float32 (images, classes).
        votes: float32 (images, classes + 1); the last column counts votes for none of the classes.
        resamples: bootstrap resamples of each interval.

    Raises:
        DataError: no image has votes for one of the classes.
    """
    report = measure_votes(probabilities, votes)
    rated = usable(votes)
    probabilities, votes = probabilities[rated], votes[rated]

    def figures(chosen: npt.NDArray[np.int64]) -> list[float]:
        measured = measure_votes(probabilities[chosen], votes[chosen])
        recalls = per_class_recall(measured.confusion, classes)
        overall = (
            measured.majority_accuracy,
            measured.mean_recall,
            measured.plurality_accuracy,
            measured.cross_entropy,
            measured.rater_agreement,
        )
        return [*overall, *(recalls[name] for name in classes)]

    majority, recall, plurality, cross_entropy, agreement, *recalls = bootstrap_all(
        figures, len(votes), resamples=resamples
    )
    hits, faces = np.diag(report.confusion).tolist(), report.confusion.sum(1).tolist()
    recalls = [or_wilson(*of_class) for of_class in zip(recalls, hits, faces, strict=True)]
    # Of the classes that `mean_recall` covers.
    seen = [interval for interval, count in zip(recalls, faces, strict=True) if count] or recalls
    return RatersResult(
        images=report.images,
        majority_images=report.majority_images,
        majority_accuracy=or_wilson(majority, sum(hits), report.majority_images),
        mean_recall=or_mean(recall, seen),
        per_class_recall=dict(zip(classes, recalls, strict=True)),
        plurality_accuracy=or_wilson(plurality, round(plurality.value * report.images), report.images),
        cross_entropy=cross_entropy,
        agreement=agreement,
        vote_entropy=report.entropy,
        best_agreement=report.rater_ceiling,
        confusion=report.confusion,
    )


def labelled_by_raters(images: LabelledImages, votes: str) -> LabelledImages:
    """The images of which more than half of the raters name one class, with that class as their label.

    Args:
        votes: a votes file, or "ferplus".

    Raises:
        DataError: the votes cannot be read, or no image has such a majority.
    """
    counts = open_votes(votes, images.classes).of(images.paths, images.faces, split=images.folder.name)
    majority = np.where(usable(counts), strict_majority(counts), -1)
    rated = np.flatnonzero(majority >= 0)
    if not len(rated):
        raise DataError(f"no image of {images.folder} has a strict majority of the votes in {votes}")
    paths = tuple(images.paths[index] for index in rated)
    return replace(images, paths=paths, faces=images.faces[rated], labels=majority[rated].astype(np.int64))


def format_raters(results: Sequence[tuple[str, RatersResult]]) -> str:
    """A table of models, then one of recalls, for the terminal.

    Args:
        results: names of models with their results, all on the same images.
    """
    first = results[0][1]
    heads = ("majority", "mean recall", "plurality", "cross-entropy", "agreement")
    lines = [
        f"raters' votes: {first.images} images, {first.majority_images} of them with a strict majority",
        f"{'model':12}" + "".join(f" {head:>21}" for head in heads),
    ]
    for name, result in results:
        shares = (result.majority_accuracy, result.mean_recall, result.plurality_accuracy)
        cells = [_percent(share) for share in shares] + [_nats(result.cross_entropy), _percent(result.agreement)]
        lines.append(f"{name:12}" + "".join(f" {cell:>21}" for cell in cells))
    best = ("", "", "", f"{first.vote_entropy:.3f}", f"{first.best_agreement:.1%}")
    lines.append(f"{'(best)':12}" + "".join(f" {cell:>21}" for cell in best))
    lines.append("\n" + f"{'recall':12}" + "".join(f" {name:>21}" for name, _ in results))
    for expression in first.per_class_recall:
        cells = [_percent(result.per_class_recall[expression]) for _, result in results]
        lines.append(f"{expression:12}" + "".join(f" {cell:>21}" for cell in cells))
    return "\n".join(lines)


def _percent(interval: Interval) -> str:
    return f"{interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def _nats(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
