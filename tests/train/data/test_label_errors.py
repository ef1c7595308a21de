"""Label errors: confident learning against cleanlab's answers, and errors that were planted."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from fer_runtime.errors import DataError
from fer_train.data.label_errors import (
    LabelError,
    confident_classes,
    errors_csv,
    find_label_errors,
    out_of_fold_probabilities,
    read_probabilities,
)

CLASSES = ("calm", "glad", "sad", "wild")


def test_confident_learning_answers_as_cleanlab() -> None:
    """Figures of cleanlab 2.9.0: compute_confident_joint, and find_label_issues(filter_by="confident_learning")."""
    random = np.random.default_rng(20)
    count, classes = 400, len(CLASSES)
    true = random.integers(0, classes, count)
    labels = np.where(random.random(count) < 0.15, (true + random.integers(1, classes, count)) % classes, true)
    logits = random.normal(0, 1.2, (count, classes))
    logits[np.arange(count), true] += 2.0
    logits[:, 2] += 0.5
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confident = confident_classes(probabilities, labels)
    joint = np.zeros((classes, classes), np.int64)
    np.add.at(joint, (labels[confident >= 0], confident[confident >= 0]), 1)
    assert joint.tolist() == [[51, 4, 9, 7], [8, 59, 10, 6], [7, 7, 58, 9], [5, 2, 8, 44]]
    off_diagonal = np.flatnonzero((confident >= 0) & (confident != labels))
    assert (len(off_diagonal), off_diagonal.sum()) == (82, 17331)
    # Ranked by self-confidence.
    found = [
        int(error.image) for error in find_label_errors(probabilities, labels, CLASSES, list(map(str, range(count))))
    ]
    assert found[:10] == [61, 129, 380, 41, 148, 229, 348, 194, 277, 236]
    assert (len(found), sum(found)) == (81, 16954)


def test_a_label_as_probable_as_another_class_is_not_doubted() -> None:
    chances = np.array([[0.5, 0.5], [0.5, 0.5], [0.6, 0.4]])
    (error,) = find_label_errors(chances, np.array([0, 1, 1]), ("calm", "glad"), ["a", "b", "c"])
    assert (error.image, error.suggested) == ("c", "calm")


def _features(count: int = 600, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of three classes that overlap a little."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    features = random.normal(0, 1, (count, 12))
    features[np.arange(count), labels] += 3.5
    return features.astype(np.float32), labels


def test_planted_errors_are_found_with_the_label_that_they_had() -> None:
    features, true = _features()
    labels = true.copy()
    planted = np.arange(0, len(labels), 20)
    labels[planted] = (labels[planted] + 1) % 3
    probabilities = out_of_fold_probabilities(features, labels, range(len(labels)), classes=3)
    found = find_label_errors(probabilities, labels, CLASSES[:3], list(map(str, range(len(labels)))))
    right = [
        error for error in found if int(error.image) in planted and error.suggested == CLASSES[true[int(error.image)]]
    ]
    # Classes that far apart: nearly all of the planted errors, and little else.
    assert len(right) > 0.9 * len(planted)
    assert len(right) > 0.6 * len(found)


def test_nobody_is_judged_by_what_has_learned_from_it() -> None:
    """Labels at random: in-sample, 600 images with 500 features would fit; out of fold, chance is left."""
    random = np.random.default_rng(1)
    features = random.normal(0, 1, (600, 500)).astype(np.float32)
    labels = random.integers(0, 3, 600)
    probabilities = out_of_fold_probabilities(features, labels, range(600), classes=3)
    # 1/3 with a standard deviation of 0.02.
    assert np.mean(probabilities.argmax(1) == labels) < 0.42
    # With a copy of each image that counts as another one, the copies give their labels away; as one group they do not.
    twice, both = np.concatenate([features, features]), np.concatenate([labels, labels])
    apart = out_of_fold_probabilities(twice, both, range(1200), classes=3)
    together = out_of_fold_probabilities(twice, both, [*range(600), *range(600)], classes=3)
    assert np.mean(apart.argmax(1) == both) > 0.6
    assert np.mean(together.argmax(1) == both) < 0.42


def test_a_class_with_one_image_is_an_error() -> None:
    features, labels = _features()
    with pytest.raises(DataError, match="class 3 has fewer than two"):
        out_of_fold_probabilities(features, np.where(np.arange(600) == 5, 3, labels), range(600), classes=4)


def test_probabilities_come_from_a_csv_by_name(tmp_path: Path) -> None:
    file = tmp_path / "chances.csv"
    file.write_text("image,glad,calm\ntrain/calm/a.png,1,3\ntrain/glad/b.png,0.9,0.1\n")
    names = ["train/glad/b.png", "train/calm/a.png"]
    assert read_probabilities(file, ("calm", "glad"), names).tolist() == pytest.approx(
        np.array([[0.1, 0.9], [0.75, 0.25]])
    )
    with pytest.raises(DataError, match=r"no row for 1 of 2 images, such as train/calm/c.png"):
        read_probabilities(file, ("calm", "glad"), ["train/calm/c.png", *names[:1]])
    # A Mac's folder names have accents apart from their letters.
    file.write_text("image,müde,wach\ntrain/müde/a.png,1,3\n", encoding="utf-8")
    assert read_probabilities(file, ("müde", "wach"), ["train/mu\u0308de/a.png"]).tolist() == [[0.25, 0.75]]


def test_the_csv_has_a_line_for_each_error() -> None:
    error = LabelError(
        image="train/calm/a.png", label="calm", suggested="=glad", label_probability=0.1, suggested_probability=0.8
    )
    (row,) = csv.DictReader(io.StringIO(errors_csv([error]).decode()))
    # A label that a spreadsheet would run as a formula is made a text.
    assert row == {
        "image": "train/calm/a.png",
        "label": "calm",
        "suggested": "'=glad",
        "label_probability": "0.1000",
        "suggested_probability": "0.8000",
    }
