"""Classification metrics against values worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fer_runtime import metrics

# Class 0: 3 faces, 2 right. Class 1: 2 faces, 1 right. Class 2: no face, never right.
CONFUSION = np.array([[2, 1, 0], [0, 1, 1], [0, 0, 0]])


def test_confusion_counts_true_rows_and_predicted_columns() -> None:
    labels, predictions = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 0, 1, 2])
    assert metrics.confusion_matrix(labels, predictions, classes=3).tolist() == CONFUSION.tolist()


def test_differing_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        metrics.confusion_matrix(np.zeros(3, int), np.zeros(2, int))


def test_figures_worked_by_hand() -> None:
    assert metrics.accuracy(CONFUSION) == pytest.approx(3 / 5)
    assert metrics.per_class_recall(CONFUSION, "abc") == pytest.approx({"a": 2 / 3, "b": 1 / 2, "c": 0})
    assert metrics.per_class_precision(CONFUSION, "abc") == pytest.approx({"a": 1, "b": 1 / 2, "c": 0})
    # F1: 2*2/(3+2) = 0.8, 2*1/(2+2) = 0.5, 0/(0+1) = 0.
    assert metrics.macro_f1(CONFUSION) == pytest.approx((0.8 + 0.5 + 0) / 3)


def test_no_faces_give_zero_and_no_warning() -> None:
    empty = np.zeros((2, 2), np.int64)
    assert metrics.accuracy(empty) == 0
    assert metrics.macro_f1(empty) == 0


def test_calibration_error_worked_by_hand() -> None:
    # Two bins of ten: 0.95 said and half right (gap 0.45, two faces), 0.55 said and right (gap 0.45, one face).
    confidences = np.array([0.95, 0.95, 0.55])
    correct = np.array([True, False, True])
    assert metrics.expected_calibration_error(confidences, correct, bins=10) == pytest.approx(0.45)
    assert metrics.expected_calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0
