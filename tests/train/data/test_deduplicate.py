"""Which training images stay, on a set small enough to read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fer_train.data.deduplicate import training_indices_without
from fer_train.data.folders import LabelledFaces, Uint8Array


def _faces(*images: tuple[str, int]) -> LabelledFaces:
    return LabelledFaces(
        faces=np.zeros((len(images), 48, 48), np.uint8),
        labels=np.array([label for _, label in images], np.int64),
        classes=("angry", "happy"),
        paths=tuple(f"{index}.png" for index in range(len(images))),
        file_sha256=tuple(content for content, _ in images),
        fingerprint="",
    )


# Image b stands twice, c under two labels, d also in validation, e there under another label.
TRAIN = _faces(("a", 0), ("b", 1), ("b", 1), ("c", 0), ("c", 1), ("d", 0), ("e", 0))
VALIDATION = _faces(("d", 0), ("e", 1))


@pytest.mark.parametrize(
    ("kinds", "kept"),
    [
        (("duplicates",), [0, 1, 3]),
        (("conflicts",), [0, 1, 2, 5]),
        (("duplicates", "conflicts"), [0, 1]),
        ((), [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_what_stays(kinds: tuple[str, ...], kept: list[int]) -> None:
    assert training_indices_without(TRAIN, VALIDATION, kinds).tolist() == kept


def test_what_looks_the_same_stays_out_of_validation_and_of_contradictions() -> None:
    random = np.random.default_rng(0)
    patterns = random.integers(40, 200, (4, 48, 48), np.uint8)
    darker = (patterns * 0.9).astype(np.uint8)

    def split(*images: tuple[str, int, Uint8Array]) -> LabelledFaces:
        return dataclasses.replace(
            _faces(*((content, label) for content, label, _ in images)), faces=np.stack([image[2] for image in images])
        )

    # a looks like one of validation; b twice under one label; c under two, with a copy of its first file; d alone.
    train = split(
        ("a", 0, darker[0]),
        ("b", 1, patterns[1]),
        ("b, darker", 1, darker[1]),
        ("c", 0, patterns[2]),
        ("c", 0, patterns[2]),
        ("c, darker", 1, darker[2]),
        ("d", 0, patterns[3]),
    )
    validation = split(("a of validation", 0, patterns[0]))
    assert training_indices_without(train, validation, ("near",)).tolist() == [1, 2, 6]
    assert training_indices_without(train, validation, ("duplicates", "conflicts")).tolist() == [0, 1, 2, 3, 5, 6]
    # A contradiction with validation: the training image leaves, too.
    other = split(("a of validation", 1, patterns[0]))
    assert training_indices_without(train, other, ("near",)).tolist() == [1, 2, 6]


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="blurred"):
        training_indices_without(TRAIN, VALIDATION, ("blurred",))
