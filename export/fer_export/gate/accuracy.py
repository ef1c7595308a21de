"""Limits on the losses of a quantized model: numbers, accuracy, macro-F1 and the recall of each class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_runtime.metrics import accuracy, confusion_matrix, macro_f1, per_class_recall, wilson_interval
from fer_runtime.model.parity import Check, FloatArray, Outputs

Int64Array = npt.NDArray[np.int64]
_NOTHING = 1e-6  # points
QUANTILE = 0.99  # of what chance alone explains


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The largest losses against fp32, in percentage points."""

    accuracy: float = 0.5
    macro_f1: float = 0.5
    recall: float = 2.0  # of each class

    @property
    def fewest_faces(self) -> int | None:
        """Labelled faces under which a loss beyond the accuracy budget cannot be excluded.

        Where no label changes among n faces, the share of changed labels is under 3 / n with 95 % confidence (the
        rule of three, Hanley and Lippman-Hand 1983). 3 / n is 0.5 points at n = 600. None: a budget of 0, for which no
        number of faces is enough. 0: a gain is asked for.
        """
        if 0 <= self.accuracy < _NOTHING:
            return None
        return math.ceil(300 / self.accuracy) if self.accuracy > 0 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberLimits:
    """Limits on the differences between a quantized model's numbers and the network's, on labelled faces.

    About twice what the worst of v0, v1, v2 and v3 showed on FER2013's 3,589 validation faces: 1.4 % other labels,
    |Δp| 0.12, 0.0075 in the mean, an error of 2.2 % of the logits' spread and a slope of
    1.002. Eight bits explain them: a layer's rounding error is 1 / sqrt(12) of a step of some 1 / 20 of the
    activations' standard deviation, 1.4 %, and a few layers add up to 2 %.

    Of 65 faces 97 % leave one with another label, and a right file has two in every fourth case. So on few faces as
    many may differ as chance makes of the 1.4 %, in 99 of 100 cases; from some 400 faces on that is less than 3 %.
    """

    agreement: float = 0.97  # share of the faces with the network's label, where the network's margin is no tie
    other_labels: float = 0.014  # share of the faces to which a right file gives another label
    probability: float = 0.25  # |Δp|, the worst class of the worst face
    mean_probability: float = 0.015  # mean over faces of the worst class's |Δp|
    # Root mean square, as a share of the logits' standard deviation; None where roundings.py knows it exactly.
    logit_error: float | None = 0.045
    slope: float = 0.02  # |slope - 1| of the regression on the network's logits


NUMBER_LIMITS = {
    "int8": NumberLimits(),
    # What a fp16 file may cost. Whether it is what was to be written, roundings.py says.
    "fp16": NumberLimits(
        agreement=0.99, other_labels=0, probability=0.01, mean_probability=0.001, logit_error=None, slope=0.001
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How well a model labels faces whose expression is known."""

    faces: int
    accuracy: float  # fraction
    macro_f1: float
    per_class_recall: dict[str, float]
    per_class_faces: dict[str, int]

    @property
    def worst_recall(self) -> float:
        return min(self.per_class_recall.values())

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """95 % confidence, Wilson's interval."""
        return wilson_interval(round(self.accuracy * self.faces), self.faces)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "accuracy_interval": list(self.accuracy_interval)}


def measure_quality(logits: FloatArray, labels: Int64Array, names: Sequence[str]) -> Quality:
    """Quality of predictions float32 (faces, classes) for faces with `labels` (faces,), the indices of `names`."""
    confusion = confusion_matrix(labels, logits.argmax(1), classes=len(names))
    return Quality(
        faces=len(labels),
        accuracy=accuracy(confusion),
        macro_f1=macro_f1(confusion),
        per_class_recall=per_class_recall(confusion, names),
        per_class_faces=dict(zip(names, confusion.sum(1).tolist(), strict=True)),
    )


def number_checks(expected: Outputs, actual: Outputs, limits: NumberLimits, program: str = "PyTorch") -> list[Check]:
    """Compare a quantized model's numbers with those of the original in `program`, without the labels."""
    reference = expected.logits.astype(np.float64)
    difference = actual.logits - reference
    by_face = np.abs(actual.probabilities.astype(np.float64) - expected.probabilities).max(1)
    error = float(np.sqrt((difference**2).mean()) / max(reference.std(), 1e-12))
    centered = reference - reference.mean(1, keepdims=True)
    own = actual.logits - actual.logits.mean(1, keepdims=True, dtype=np.float64)
    slope = float((centered * own).sum() / max((centered**2).sum(), 1e-12))
    best_two = np.sort(reference, axis=1)[:, -2:]
    decided = best_two[:, 1] - best_two[:, 0] > 1e-3
    agrees = (reference.argmax(1) == actual.logits.argmax(1))[decided]
    agreement = float(agrees.mean()) if len(agrees) else 1.0
    low, high = wilson_interval(int(agrees.sum()), len(agrees))
    other = most_by_chance(len(agrees), limits.other_labels)
    is_few = other > (1 - limits.agreement) * len(agrees)
    # Written with "<=" and ">=" so that NaN fails.
    return [
        Check(
            name="agreement",
            passed=bool(agreement >= limits.agreement) or int((~agrees).sum()) <= other,
            detail=f"{agreement:.2%} of {len(agrees)} faces keep {program}'s label, 95 % interval {low:.2%} to "
            f"{high:.2%} (needed {limits.agreement:.0%}{f', or all but {other}' if is_few else ''})",
        ),
        Check(
            name="difference",
            passed=bool(by_face.max() <= limits.probability and by_face.mean() <= limits.mean_probability),
            detail=f"max |Δp| {by_face.max():.3f} (allowed {limits.probability:g}), mean {by_face.mean():.4f} "
            f"(allowed {limits.mean_probability:g})",
        ),
        Check(
            name="slope" if limits.logit_error is None else "logit error",
            passed=bool((limits.logit_error is None or error <= limits.logit_error) and abs(slope - 1) <= limits.slope),
            detail=f"{error:.2%} of the logits' spread"
            + ("" if limits.logit_error is None else f" (allowed {limits.logit_error:.1%})")
            + f", slope {slope:.4f} (allowed 1 ± {limits.slope:g})",
        ),
    ]


def most_by_chance(faces: int, share: float) -> int:
    """The 99 % quantile of how many of `faces` it happens to, where it happens to each with probability `share`."""
    chance = reached = (1 - share) ** faces
    count = 0
    while reached < QUANTILE and count < faces:
        chance *= (faces - count) / (count + 1) * share / (1 - share)
        count += 1
        reached += chance
    return count


def budget_checks(quality: Quality, reference: Quality, budget: Budget) -> list[Check]:
    """Check that a model stays within the budget of `reference`, the fp32 model on the same faces.

    One face less is not beyond it: of few labelled faces it is more points than the budget, and says nothing.
    `proof_shortfall` then says that nothing is proven. A negative budget asks for a gain, which one face less is not.
    """
    lost = round((reference.accuracy - quality.accuracy) * reference.faces)
    one_face = 100 / max(reference.faces, 1)
    may_lose_one = 0 <= budget.accuracy < one_face
    rows = (
        ("accuracy", quality.accuracy, reference.accuracy, budget.accuracy),
        ("macro-F1", quality.macro_f1, reference.macro_f1, budget.macro_f1),
    )
    checks = [
        Check(
            name=name,
            passed=bool(100 * (before - after) <= allowed + 1e-9) or (may_lose_one and lost <= 1),
            detail=f"{name} {after:.2%}, fp32 {before:.2%}: {100 * (after - before):+.2f} points "
            f"(allowed {-allowed:+.2f}{' or one face' if may_lose_one else ''})",
        )
        for name, after, before, allowed in rows
    ]
    return [*checks, _recall_check(quality, reference, budget)]


def _recall_check(quality: Quality, reference: Quality, budget: Budget) -> Check:
    """Class by class: each may lose the budget, and a rare class in addition one face, the least it can lose."""
    losses: dict[str, float] = {}
    beyond: dict[str, float] = {}
    for name, before in reference.per_class_recall.items():
        faces = reference.per_class_faces[name]
        losses[name] = 100 * (before - quality.per_class_recall[name])
        one_face = 100 / faces if faces else 0.0
        beyond[name] = losses[name] - max(budget.recall, one_face)
    worst = max(losses, key=lambda name: beyond[name])
    before, after = reference.per_class_recall[worst], quality.per_class_recall[worst]
    return Check(
        name="recall",
        passed=bool(beyond[worst] <= 1e-9),
        detail=f"of {len(losses)} classes {worst} loses most against its budget: {after:.2%}, fp32 {before:.2%} "
        f"({-losses[worst]:+.2f} points of {reference.per_class_faces[worst]} faces, "
        f"allowed {-budget.recall:+.2f} or one face)",
    )


def proof_shortfall(quality: Quality, budget: Budget) -> str:
    """Why these labelled faces cannot show that the accuracy budget holds; "" where they can."""
    if (fewest := budget.fewest_faces) is None:
        return f"{quality.faces} labelled faces; no number of them excludes a loss of more than 0 points"
    if quality.faces < fewest:
        return (
            f"{quality.faces} labelled faces; {fewest} are needed to exclude a loss of "
            f"{budget.accuracy:g} points (3 / n, the rule of three)"
        )
    if empty := [name for name, faces in quality.per_class_faces.items() if not faces]:
        return f"no labelled face of {', '.join(empty)}"
    return ""
