"""Choose the training images to leave out: duplicates, and copies under two labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import numpy as np

from fer_train.data.audit import near_copies
from fer_train.data.folders import Int64Array, LabelledFaces

KINDS = ("duplicates", "conflicts", "near")


def training_indices_without(train: LabelledFaces, validation: LabelledFaces, kinds: Collection[str]) -> Int64Array:
    """Indices of the training images that stay. Nothing is deleted on disk.

    "duplicates" leaves out images that are in validation too, and all but the first of equal
    ones; "conflicts" leaves out every copy of an image that has two labels. Equal
    means byte-identical files. "near" leaves out images that look the same as one of validation, and
    both of two that look the same under two labels, where the files differ (as `fer-data audit` counts them).

    Raises:
        ValueError: `kinds` names something else.
    """
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(f"cannot drop {', '.join(sorted(unknown))}; one of: {', '.join(KINDS)}")
    labels_of: dict[str, set[int]] = defaultdict(set)
    for split in (train, validation):
        for digest, label in zip(split.file_sha256, split.labels, strict=True):
            labels_of[digest].add(int(label))
    unwanted = _near(train, validation) if "near" in kinds else set()
    seen = set(validation.file_sha256)
    kept = []
    for index, digest in enumerate(train.file_sha256):
        if index in unwanted:
            continue
        if "conflicts" in kinds and len(labels_of[digest]) > 1:
            continue
        if "duplicates" in kinds:
            if digest in seen:
                continue
            seen.add(digest)
        kept.append(index)
    return np.array(kept, dtype=np.int64)


def _near(train: LabelledFaces, validation: LabelledFaces) -> set[int]:
    faces = np.concatenate([train.small_gray(), validation.small_gray()])
    labels = np.concatenate([train.labels, validation.labels])
    unwanted: set[int] = set()
    for copies, others in near_copies(faces, (*train.file_sha256, *validation.file_sha256)):
        has_conflict = len(set(labels[[*copies, *others]].tolist())) > 1
        for side, opposite in ((copies, others), (others, copies)):
            if has_conflict or max(opposite) >= len(train):
                unwanted.update(index for index in side if index < len(train))
    return unwanted
