"""Audit labelled images: copies, contradictory labels, and images without a face."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from fer_runtime.files import write_atomically
from fer_runtime.output.annotate import write_image
from fer_runtime.text import counted, printable
from fer_train.data.disjoint_sets import DisjointSets
from fer_train.data.folders import LabelledFaces, Uint8Array

FloatArray = npt.NDArray[np.float32]

# Cosine similarity of 16 x 16 thumbnails, mean subtracted, above which two images are near duplicates:
# the same photograph stored twice, not two photographs of one person.
_NEAR = 0.995
_THUMBNAIL = 16
_BLANK_STD = 8.0  # gray levels; an image flatter than this shows nothing
_COMMON = 0.95  # share of the variance that counts as what images have in common
_STRANGEST = 48  # images of the contact sheet's last row
_CHUNK = 1024  # images whose contrast is computed at once, in float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Images that are equal, or nearly."""

    paths: tuple[str, ...]  # "train/happy/1.jpg"
    labels: tuple[str, ...]  # of the images, in the same order

    @property
    def has_conflict(self) -> bool:
        """Whether the images have more than one label."""
        return len(set(self.labels)) > 1

    @property
    def crosses_splits(self) -> bool:
        """Whether the images are in more than one split."""
        return len({path.partition("/")[0] for path in self.paths}) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The findings of an audit. Paths begin with their split."""

    counts: dict[str, dict[str, int]]  # images per class and split
    exact: tuple[Group, ...]  # byte-identical files
    # Pairs that look the same and are not byte-identical: the two first, then the identical copies of both.
    near: tuple[Group, ...]
    blank: tuple[str, ...]
    strange: tuple[str, ...]  # least like the others, the strangest first: look at them

    @property
    def spare(self) -> int:
        """Redundant files: all but one of each group of identical images."""
        return sum(len(group.paths) - 1 for group in self.exact)

    @property
    def _across(self) -> str:
        return "in both splits" if len(self.counts) < 3 else "in more than one split"

    def to_dict(self) -> dict[str, Any]:
        """As the JSON file holds it."""
        return {
            "counts": self.counts,
            "exact_groups": len(self.exact),
            "exact_spare": self.spare,
            "exact_conflicts": sum(group.has_conflict for group in self.exact),
            "exact_across_splits": sum(group.crosses_splits for group in self.exact),
            "near_pairs": len(self.near),
            "near_conflicts": sum(pair.has_conflict for pair in self.near),
            "near_across_splits": sum(pair.crosses_splits for pair in self.near),
            "blank": list(self.blank),
            "strange": list(self.strange),
            "exact": [asdict(group) for group in self.exact],
            "near": [asdict(pair) for pair in self.near],
        }

    def to_text(self) -> str:
        """The findings for a terminal."""
        found = self.to_dict()
        lines = [
            *table_of_counts(self.counts),
            "",
            f"byte-identical   {counted(len(self.exact), 'group')}, {counted(self.spare, 'redundant image')}; "
            f"{counted(found['exact_conflicts'], 'group')} under two labels, "
            f"{found['exact_across_splits']} {self._across}",
            f"nearly the same  {counted(len(self.near), 'further pair')}; {found['near_conflicts']} under two labels, "
            f"{found['near_across_splits']} {self._across}",
            f"blank            {len(self.blank)}" + "".join(f"\n  {path}" for path in self.blank),
            f"strange          {len(self.strange)}, the least like the others: look at the contact sheet",
        ]
        return "\n".join(lines)


def table_of_counts(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Lines with the images of each split and class, and their sums."""
    names = sorted({name for split in counts.values() for name in split})
    widths = [max(10, len(printable(label, limit=24)) + 2) for label in names]
    head = "".join(f"{printable(name, limit=24):>{width}}" for name, width in zip(names, widths, strict=True))
    lines = [f"{'':12}{head}{'total':>10}"]
    for split, found in counts.items():
        cells = "".join(f"{found.get(name, 0):{width}}" for name, width in zip(names, widths, strict=True))
        lines.append(f"{split:12}{cells}{sum(found.values()):10}")
    return lines


def audit_faces(splits: Mapping[str, LabelledFaces]) -> Audit:
    """Look at the images of all splits; nothing is changed on disk."""
    paths = [f"{split}/{path}" for split, part in splits.items() for path in part.paths]
    split_of = [split for split, part in splits.items() for _ in part.paths]
    labels = [part.classes[label] for part in splits.values() for label in part.labels]
    digests = [digest for part in splits.values() for digest in part.file_sha256]
    faces = np.concatenate([part.faces for part in splits.values()])

    def group(indices: Sequence[int]) -> Group:
        return Group(paths=tuple(paths[i] for i in indices), labels=tuple(labels[i] for i in indices))

    def pair(copies: list[int], others: list[int]) -> Group:
        # Of all copies, the two that say the most come first: under two labels, or else in both splits.
        first = max(
            itertools.product(copies, others),
            key=lambda two: (labels[two[0]] != labels[two[1]], split_of[two[0]] != split_of[two[1]]),
        )
        return group((*first, *(index for index in (*copies, *others) if index not in first)))

    # One of each group of equal images is enough to compare.
    distinct = np.array([copies[0] for copies in _shown_copies(faces, digests)], dtype=np.int64)
    return Audit(
        counts={split: part.counts for split, part in splits.items()},
        exact=tuple(group(copies) for copies in _copies(digests) if len(copies) > 1),
        near=tuple(pair(copies, others) for copies, others in near_copies(faces, digests)),
        blank=tuple(paths[i] for i in np.flatnonzero(_is_blank(faces))),
        strange=tuple(paths[distinct[i]] for i in strangest(faces[distinct])[:_STRANGEST]),
    )


def near_copies(faces: Uint8Array, file_sha256: Sequence[str]) -> list[tuple[list[int], list[int]]]:
    """Pairs of images that look the same in different files: of both, the indices of all byte-identical copies.

    Args:
        faces: uint8 (images, size, size).
        file_sha256: of each image's file.
    """
    groups = _shown_copies(faces, file_sha256)
    distinct = np.array([copies[0] for copies in groups], dtype=np.int64)
    return [(groups[index], groups[other]) for index, other in near_pairs(faces[distinct])]


def copies_of(faces: Uint8Array, file_sha256: Sequence[str]) -> list[list[int]]:
    """Indices of images that are the same, or nearly: the groups of two and more."""
    same = [*_copies(file_sha256), *([*copies, *others] for copies, others in near_copies(faces, file_sha256))]
    sets = DisjointSets(len(faces))
    for indices in same:
        for index in indices:
            sets.join(index, indices[0])
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(faces)):
        groups[sets.root(index)].append(index)
    return [group for group in groups.values() if len(group) > 1]


def _copies(file_sha256: Sequence[str]) -> list[list[int]]:
    """Indices of the images by their file, in the order of the first ones."""
    by_digest: dict[str, list[int]] = defaultdict(list)
    for index, digest in enumerate(file_sha256):
        by_digest[digest].append(index)
    return list(by_digest.values())


def _shown_copies(faces: Uint8Array, file_sha256: Sequence[str]) -> list[list[int]]:
    """The same without blank images, each of which is like every other."""
    blank = _is_blank(faces)
    return [copies for copies in _copies(file_sha256) if not blank[copies[0]]]


def _is_blank(faces: Uint8Array) -> npt.NDArray[np.bool_]:
    """Whether each image shows nothing, (images,)."""
    flat = faces.reshape(len(faces), -1)
    # numpy computes in float64, 600 MB for the whole of FER2013.
    contrast = [flat[start : start + _CHUNK].std(1) for start in range(0, len(flat), _CHUNK)]
    blank: npt.NDArray[np.bool_] = np.concatenate(contrast) < _BLANK_STD
    return blank


def near_pairs(faces: Uint8Array, *, similarity: float = _NEAR) -> list[tuple[int, int]]:
    """Pairs of images whose small copies are all but equal up to brightness and contrast.

    Args:
        faces: uint8 (images, size, size).
        similarity: least cosine of the angle between two small copies, their means subtracted.
    """
    small = _thumbnails(faces)
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(small), 1024):
        likeness = small[start : start + 1024] @ small[start:].T
        first, second = np.nonzero(likeness > similarity)
        pairs += [
            (start + int(row), start + int(column)) for row, column in zip(first, second, strict=True) if row < column
        ]
    return pairs


def strangest(faces: Uint8Array) -> npt.NDArray[np.int64]:
    """Indices by how little an image has in common with the others, the strangest first.

    The measure is the residual of a thumbnail after its projection on the first principal components of all.
    """
    if len(faces) == 0:
        return np.zeros(0, np.int64)
    small = _thumbnails(faces)
    centered = small - small.mean(0)
    variances, vectors = np.linalg.eigh(centered.T @ centered)
    # eigh sorts them rising: the last ones that make up the share.
    components = int(np.searchsorted(np.cumsum(variances[::-1]), _COMMON * variances.sum())) + 1
    main = vectors[:, -components:]
    left = ((centered - centered @ main @ main.T) ** 2).sum(1)
    order: npt.NDArray[np.int64] = np.argsort(-left, kind="stable")
    return order


def write_audit(audit: Audit, folder: Path, splits: Mapping[str, LabelledFaces]) -> tuple[Path, Path]:
    """Write `audit.json` and the contact sheet `audit.png`; the paths of both."""
    report, sheet = folder / "audit.json", folder / "audit.png"
    write_atomically(report, json.dumps(audit.to_dict(), indent=1, ensure_ascii=True) + "\n")
    images = {
        f"{split}/{path}": face
        for split, part in splits.items()
        for path, face in zip(part.paths, part.faces, strict=True)
    }
    write_image(sheet, _draw_sheet(audit, images))
    return report, sheet


def _thumbnails(faces: Uint8Array) -> FloatArray:
    """Unit vectors float32 (images, 256) of small copies without their mean."""
    flat = np.empty((len(faces), _THUMBNAIL * _THUMBNAIL), np.float32)
    for row, face in zip(flat, faces, strict=True):
        row[:] = cv2.resize(face, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA).ravel()
    flat -= flat.mean(1, keepdims=True)
    unit: FloatArray = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return unit


def _sheet_rows(audit: Audit) -> list[tuple[str, list[tuple[str, str]]]]:
    """Contradictions, copies across the splits, near copies, blank and strange images.

    A title each, and examples: the path of an image and what is written under it.
    """
    conflicts = [group for group in audit.exact if group.has_conflict]
    across = [group for group in audit.exact if group.crosses_splits]
    near = [pair for pair in audit.near if pair.has_conflict] or list(audit.near)

    def one_of_each(groups: list[Group]) -> list[tuple[str, str]]:
        return [(group.paths[0], " / ".join(sorted(set(group.labels)))) for group in groups]

    return [
        (f"under two labels: {counted(len(conflicts), 'group')}", one_of_each(conflicts)),
        (f"{audit._across}: {counted(len(across), 'group')}", one_of_each(across)),
        (
            f"nearly the same: {counted(len(audit.near), 'pair')}, side by side",
            [example for pair in near for example in zip(pair.paths[:2], pair.labels[:2], strict=True)],
        ),
        (f"blank: {len(audit.blank)}", [(path, path.split("/")[1]) for path in audit.blank]),
        ("the least like the others", [(path, path.split("/")[1]) for path in audit.strange]),
    ]


def _draw_sheet(audit: Audit, images: dict[str, Uint8Array]) -> Uint8Array:
    rows = _sheet_rows(audit)
    columns, side, caption, header, shown = 12, 96, 20, 34, 48
    height = sum(header + -(-min(len(row), shown) // columns) * (side + caption) for _, row in rows) + 8
    page = np.full((height, columns * (side + 8) + 8), 250, np.uint8)
    top = 4
    for title, row in rows:
        cv2.putText(page, title, (8, top + 22), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 30, 1, cv2.LINE_AA)
        top += header
        for number, (path, text) in enumerate(row[:shown]):
            x, y = 8 + number % columns * (side + 8), top + number // columns * (side + caption)
            page[y : y + side, x : x + side] = cv2.resize(images[path], (side, side), interpolation=cv2.INTER_CUBIC)
            cv2.putText(page, text, (x, y + side + 13), cv2.FONT_HERSHEY_SIMPLEX, 0.36, 30, 1, cv2.LINE_AA)
        top += -(-min(len(row), shown) // columns) * (side + caption)
    return page
