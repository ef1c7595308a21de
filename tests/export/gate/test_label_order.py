"""The alarm about the order of the labels: loud for a wrong order, silent for a network that knows little."""

from __future__ import annotations

import numpy as np
import pytest

from fer_export.gate.judge import order_check
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.model.parity import FloatArray


def _logits(answers: np.ndarray, classes: int) -> FloatArray:
    found: FloatArray = np.eye(classes, dtype=np.float32)[answers]
    return found


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("faces", [20, 100, 700])
def test_a_network_that_guesses_raises_no_alarm(seed: int, faces: int) -> None:
    random = np.random.default_rng(seed)
    labels, answers = random.integers(0, 7, (2, faces))
    assert order_check(_logits(answers, 7), labels, EXPRESSIONS).passed


@pytest.mark.parametrize("faces", [150, 3589])
def test_the_order_of_the_csv_is_named(faces: int) -> None:
    """A network that is right about 65 % of the faces, read in FER2013's other order."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 7, faces)
    answers = np.where(random.random(faces) < 0.65, labels, random.integers(0, 7, faces))
    csv = (*EXPRESSIONS[:4], "sad", "surprise", "neutral")
    # Logit 4 is neutral, and csv calls it sad.
    labelled = np.array([csv.index(EXPRESSIONS[label]) for label in labels])
    check = order_check(_logits(answers, 7), labelled, csv, csv)
    assert not check.passed
    assert f"--labels {','.join(EXPRESSIONS)}" in check.detail
    # An exported model has its labels sorted. --labels names them in the order of the checkpoint's logits.
    place = np.array([csv.index(name) for name in EXPRESSIONS])
    check = order_check(_logits(answers, 7)[:, place], place.argsort()[labelled], EXPRESSIONS, csv)
    assert f"give --labels {','.join(EXPRESSIONS)}" in check.detail
    check = order_check(_logits(answers, 7), labelled, csv)
    assert "the checkpoint says the order of its labels" in check.detail
    assert "--labels" not in check.detail


def test_two_labels_may_be_exchanged() -> None:
    labels = np.arange(40) % 2
    check = order_check(_logits(1 - labels, 2), labels, ("bored", "engaged"))
    assert "100.00% as engaged,bored" in check.detail
