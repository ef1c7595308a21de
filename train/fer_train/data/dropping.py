"""`--drop FILE`: leave out the images that a csv names in its column `image`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from fer_runtime.errors import DataError
from fer_train.data.folders import Int64Array, LabelledFaces


def read_drop_file(file: Path) -> frozenset[str]:
    """The images that a csv names, "train/happy/1.png".

    Raises:
        DataError: the file cannot be read, or has no column `image`.
    """
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            reader = csv.DictReader(stream)
            if "image" not in (reader.fieldnames or ()):
                raise DataError(f"{file} has no column image; fer-data audit writes such a file, label_errors.csv")
            return frozenset((row["image"] or "").removeprefix("images/") for row in reader if row["image"])
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; fer-data audit writes such a file") from error
    except csv.Error as error:
        raise DataError(f"{file} is damaged ({error}); write it again with fer-data audit") from error


def without_named(train: LabelledFaces, kept: Int64Array, files: Sequence[Path]) -> Int64Array:
    """Return the training images at `kept` that no file names.

    Raises:
        DataError: a file cannot be read, or names no training image.
    """
    paths = {f"train/{path}" for path in train.paths}
    named: set[str] = set()
    for file in files:
        found = read_drop_file(file)
        if found and not found & paths:
            raise DataError(
                f"{file} names no training image of {train.folder}, but {min(found)}; its column image must hold paths "
                f"such as {min(paths)}"
            )
        named |= found
    return kept[[f"train/{train.paths[index]}" not in named for index in kept]]
