"""Measure the thresholds of `fer_runtime.quality`: the values at which accuracy has fallen by five points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fer_bench.robustness import CONDITIONS, Classify, Condition, Int64Array, degrade_faces
from fer_runtime import quality
from fer_runtime.detectors.yunet import YuNetDetector
from fer_runtime.images import Uint8Array

FloatArray = npt.NDArray[np.float64]

LOSS = 0.05  # of the accuracy
_STEPS = 8  # of the search for a level
_TURNS = (0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, np.inf)
_ENLARGED, _BORDER = 144, 24  # pixels: YuNet finds few faces that fill an image of 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """The level at which one way to degrade faces costs five points of accuracy."""

    reason: str
    condition: str
    level: float  # of the condition
    measure: float  # of `quality`: the median of the faces at that level
    used: float  # the threshold in `quality`
    caught: float  # share of the faces at that level that the threshold in use names
    lost: float  # share of the faces as they are that it names


_SEARCHES: dict[str, tuple[str, float, float, Callable[[Uint8Array, float], FloatArray], float]] = {
    # condition, a harmless level, a ruinous level, measure, threshold in use
    "small": ("size", 48, 8, lambda faces, level: np.full(len(faces), level), quality.SMALL_BELOW),
    "blurred": (
        "blur",
        0,
        3,
        lambda faces, level: quality.sharpness(faces).astype(np.float64),
        quality.BLURRED_BELOW,
    ),
    "dark": (
        "brightness",
        0,
        -7,
        lambda faces, level: quality.brightness(faces).astype(np.float64),
        quality.DARK_BELOW,
    ),
}


def find_thresholds(classify: Classify, faces: Uint8Array, labels: Int64Array) -> list[Threshold]:
    """The level of each condition at which accuracy is five points lower, and the measure of the faces there.

    Args:
        classify: the model.
        faces: uint8 (faces, 48, 48), with `labels` int64 (faces,).
    """
    before = _accuracy(classify, faces, labels)
    found = []
    for reason, (name, good, bad, measure, used) in _SEARCHES.items():
        condition = next(condition for condition in CONDITIONS if condition.name == name)
        level = _level_of_loss(classify, faces, labels, condition, before - LOSS, good, bad)
        values = measure(degrade_faces(faces, condition, level), level)
        clean = measure(faces, good)
        found.append(
            Threshold(
                reason=reason,
                condition=name,
                level=level,
                measure=float(np.median(values)),
                used=used,
                caught=float((values < used).mean()),
                lost=float((clean < used).mean()),
            )
        )
    return found


def _level_of_loss(
    classify: Classify,
    faces: Uint8Array,
    labels: Int64Array,
    condition: Condition,
    wanted: float,
    good: float,
    bad: float,
) -> float:
    for _ in range(_STEPS):
        middle = (good + bad) / 2
        if _accuracy(classify, degrade_faces(faces, condition, middle), labels) >= wanted:
            good = middle
        else:
            bad = middle
    return good


def _accuracy(classify: Classify, faces: Uint8Array, labels: Int64Array) -> float:
    return float((classify(faces).argmax(1) == labels).mean())


def accuracy_by_turn(
    classify: Classify, faces: Uint8Array, labels: Int64Array, yunet: Path
) -> list[tuple[float, float, int, float]]:
    """Accuracy of faces by `quality.turn` of YuNet's landmarks: from, to, faces, accuracy."""
    detector = YuNetDetector(yunet)
    turns = np.array([_turn(detector, face) for face in faces])
    right = classify(faces).argmax(1) == labels
    rows = []
    for low, high in pairwise(_TURNS):
        inside = (turns >= low) & (turns < high)
        if inside.any():
            rows.append((low, high, int(inside.sum()), float(right[inside].mean())))
    return rows


def _turn(detector: YuNetDetector, face: Uint8Array) -> float:
    large = cv2.resize(face, (_ENLARGED, _ENLARGED), interpolation=cv2.INTER_CUBIC)
    framed = cv2.copyMakeBorder(large, _BORDER, _BORDER, _BORDER, _BORDER, cv2.BORDER_REPLICATE)
    found = detector.detect(np.asarray(framed, np.uint8))
    best = max(found, key=lambda detection: detection.score or 0, default=None)
    turned = None if best is None else quality.turn(best.landmarks)
    return -1.0 if turned is None else turned


def format_thresholds(thresholds: list[Threshold]) -> str:
    """The table that `fer-bench reasons` prints."""
    lines = [
        f"{'reason':8} {'condition':>10} {'level':>7} {'measure':>8} {'in use':>7} {'caught there':>12} {'clean':>6}"
    ]
    lines += [
        f"{threshold.reason:8} {threshold.condition:>10} {threshold.level:7.2f} {threshold.measure:8.2f} "
        f"{threshold.used:7.2f} {threshold.caught:12.0%} {threshold.lost:6.1%}"
        for threshold in thresholds
    ]
    return "\n".join(lines)


def format_turns(rows: list[tuple[float, float, int, float]]) -> str:
    """Accuracy by turn, as `fer-bench reasons` prints it."""
    lines = [f"{'turn':>11} {'faces':>6} {'accuracy':>9}"]
    lines += [f"{low:4.2f} - {high:4.2f} {count:6} {accuracy:9.1%}" for low, high, count, accuracy in rows]
    return "\n".join(lines)
