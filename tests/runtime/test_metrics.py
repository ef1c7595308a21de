"""Classification metrics against values worked by hand."""

from __future__ import annotations

from itertools import permutations

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


def test_the_best_label_order_is_that_of_trying_them_all() -> None:
    random = np.random.default_rng(0)
    for _ in range(5):
        confusion = random.integers(0, 50, (5, 5))
        tried = {
            order: sum(confusion[label, output] for output, label in enumerate(order))
            for order in permutations(range(5))
        }
        assert tried[metrics.best_label_order(confusion)] == max(tried.values())


def test_a_model_in_the_order_of_fer2013s_csv_is_named() -> None:
    # Outputs 4, 5 and 6 are sad, surprise and neutral, and labels 4, 5 and 6 are neutral, sad and surprise.
    true = np.repeat(np.arange(7), 20)
    output_of = np.array([0, 1, 2, 3, 6, 4, 5])
    outputs = output_of[true]
    outputs[::10] = 0
    assert metrics.best_label_order(metrics.confusion_matrix(true, outputs)) == (0, 1, 2, 3, 5, 6, 4)
    assert metrics.best_label_order(metrics.confusion_matrix(true, true)) == tuple(range(7))
    assert metrics.best_label_order(np.zeros((13, 13), np.int64)) == tuple(range(13))


def test_wilsons_interval_is_that_of_the_textbook() -> None:
    # statsmodels: proportion_confint(8, 10, method="wilson") and (0, 20)
    assert metrics.wilson_interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert metrics.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611252), abs=1e-6)
    assert metrics.wilson_interval(0, 0) == (0.0, 1.0)


def test_auroc_counts_pairs_and_half_of_ties() -> None:
    real, strange = np.array([0.0, 1.0, 1.0], np.float32), np.array([1.0, 2.0], np.float32)
    pairs = [(float(high > low) + 0.5 * float(high == low)) for low in real for high in strange]
    assert metrics.auroc(real, strange) == pytest.approx(np.mean(pairs))
