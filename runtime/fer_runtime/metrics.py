"""Classification metrics from a confusion matrix, the same for training, export and benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ConfusionMatrix = npt.NDArray[np.int64]  # (classes, classes), rows are the true class, columns the predicted


def confusion_matrix(
    labels: npt.NDArray[np.integer], predictions: npt.NDArray[np.integer], *, classes: int = 7
) -> ConfusionMatrix:
    """Count (true, predicted) pairs.

    Args:
        labels: true classes, shape (faces,).
        predictions: predicted classes, shape (faces,).

    Raises:
        ValueError: the shapes differ.
    """
    if labels.shape != predictions.shape:
        raise ValueError(f"labels have shape {labels.shape}, predictions {predictions.shape}")
    pairs = labels.astype(np.int64) * classes + predictions
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def accuracy(confusion: ConfusionMatrix) -> float:
    """Fraction of right predictions, 0 for no faces."""
    return float(np.trace(confusion)) / max(int(confusion.sum()), 1)


def per_class_recall(confusion: ConfusionMatrix, expressions: Sequence[str]) -> dict[str, float]:
    """Right predictions of a class over its faces, 0 for a class without faces."""
    return {name: float(confusion[i, i]) / max(int(confusion[i].sum()), 1) for i, name in enumerate(expressions)}


def per_class_precision(confusion: ConfusionMatrix, expressions: Sequence[str]) -> dict[str, float]:
    """Right predictions of a class over all predictions of it, 0 for a class never predicted."""
    return {name: float(confusion[i, i]) / max(int(confusion[:, i].sum()), 1) for i, name in enumerate(expressions)}


def macro_f1(confusion: ConfusionMatrix) -> float:
    """Mean over the classes of 2 TP / (2 TP + FP + FN); a class without faces and predictions counts 0."""
    hits = np.diag(confusion).astype(np.float64)
    support = confusion.sum(1) + confusion.sum(0)
    return float(np.mean(2 * hits / np.maximum(support, 1)))


def expected_calibration_error(
    confidences: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_], *, bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their faces.

    Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599.

    Args:
        confidences: probability of the predicted class, shape (faces,).
        correct: whether the prediction is right, shape (faces,).
    """
    which = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(which, confidences - correct, bins)
    return float(np.abs(gaps).sum()) / max(len(confidences), 1)


_MOST_ORDERED = 12  # classes; each one more doubles the time


def best_label_order(confusion: ConfusionMatrix) -> tuple[int, ...]:
    """The order of a model's outputs under which it is right most often.

    A model whose labels are in another order than assumed is right about some classes and wrong about others. The best
    assignment of outputs to classes is found exactly, over all orders.

    Args:
        confusion: (classes, classes), rows are the true class, columns the output that was largest.

    Returns:
        The class of each output. (0, 1, 2, ...) if no other order is better, and for more than 12 classes, which are
        not searched.
    """
    classes = len(confusion)
    present = tuple(range(classes))
    if classes > _MOST_ORDERED:
        return present
    # Over the sets of classes that the first outputs have taken: 2^n steps where all orders are n!.
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    for output in range(classes):
        longer: dict[int, tuple[int, tuple[int, ...]]] = {}
        for taken, (right, order) in best.items():
            for label in range(classes):
                if not taken >> label & 1:
                    found = (right + int(confusion[label, output]), (*order, label))
                    key = taken | 1 << label
                    if key not in longer or found[0] > longer[key][0]:
                        longer[key] = found
        best = longer
    right, order = best[(1 << classes) - 1]
    return order if right > int(np.trace(confusion)) else present


def wilson_interval(right: int, faces: int) -> tuple[float, float]:
    """95 % interval of a fraction (Wilson, J. Am. Stat. Assoc. 22, 1927); (0, 1) for no faces."""
    if faces == 0:
        return 0.0, 1.0
    z, share = 1.959964, right / faces
    middle = (share + z * z / (2 * faces)) / (1 + z * z / faces)
    half = z * math.sqrt(share * (1 - share) / faces + z * z / (4 * faces * faces)) / (1 + z * z / faces)
    return max(0.0, middle - half), min(1.0, middle + half)


def auroc(low: npt.NDArray[np.floating], high: npt.NDArray[np.floating]) -> float:
    """The probability that a score of `high` is above one of `low`; ties count half (Mann and Whitney, 1947).

    Args:
        low: scores that should be the lower ones, shape (images,).
        high: those that should be the higher ones, shape (other images,).
    """
    order = np.concatenate([low, high]).astype(np.float64)
    _, inverse, counts = np.unique(order, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    above = ranks[len(low) :].sum() - len(high) * (len(high) + 1) / 2
    return float(above / (len(low) * len(high)))
