"""Which training pictures stay, on a set small enough to read."""

from __future__ import annotations

import numpy as np
import pytest

from fer_train.cleaning import training_indices_without
from fer_train.data import LabelledFaces


def _faces(*pictures: tuple[str, int]) -> LabelledFaces:
    return LabelledFaces(
        faces=np.zeros((len(pictures), 48, 48), np.uint8),
        labels=np.array([label for _, label in pictures], np.int64),
        classes=("angry", "happy"),
        paths=tuple(f"{index}.png" for index in range(len(pictures))),
        file_sha256=tuple(content for content, _ in pictures),
        fingerprint="",
    )


# Picture b stands twice, c under two labels, d also in validation, e there under another label.
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


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="blurred"):
        training_indices_without(TRAIN, VALIDATION, ("blurred",))
