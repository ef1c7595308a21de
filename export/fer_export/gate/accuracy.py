"""What a quantised model may lose: accuracy, macro-F1 and the weakest classes, within a budget."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.metrics import accuracy, confusion_matrix, macro_f1, per_class_recall
from fer_runtime.model.parity import Check, FloatArray

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The largest losses against fp32, in percentage points."""

    accuracy: float = 0.5
    macro_f1: float = 0.5
    recall: float = 2.0  # of the weakest class


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How well a model labels faces whose expression is known."""

    faces: int
    accuracy: float  # fraction
    macro_f1: float
    per_class_recall: dict[str, float]

    @property
    def worst_recall(self) -> float:
        return min(self.per_class_recall.values())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_quality(logits: FloatArray, labels: Int64Array) -> Quality:
    """Quality of predictions float32 (faces, 7) for faces with `labels` (faces,)."""
    confusion = confusion_matrix(labels, logits.argmax(1))
    return Quality(
        faces=len(labels),
        accuracy=accuracy(confusion),
        macro_f1=macro_f1(confusion),
        per_class_recall=per_class_recall(confusion, EXPRESSIONS),
    )


def budget_checks(quality: Quality, reference: Quality, budget: Budget) -> list[Check]:
    """Does a model stay within the budget of `reference`, the fp32 model on the same faces?"""
    weakest = min(quality.per_class_recall, key=lambda name: quality.per_class_recall[name])
    rows = (
        ("accuracy", quality.accuracy, reference.accuracy, budget.accuracy, "accuracy"),
        ("macro-F1", quality.macro_f1, reference.macro_f1, budget.macro_f1, "macro-F1"),
        ("recall", quality.worst_recall, reference.worst_recall, budget.recall, f"weakest class ({weakest})"),
    )
    return [
        Check(
            name=name,
            passed=bool(100 * (before - after) <= allowed + 1e-9),
            detail=f"{what} {after:.2%}, fp32 {before:.2%}: {100 * (after - before):+.2f} points "
            f"(allowed {-allowed:+.2f})",
        )
        for name, after, before, allowed, what in rows
    ]
