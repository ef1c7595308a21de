"""The tables beside a data set's folders: a row for each image, by its path."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from fer_runtime.errors import OutputError
from fer_runtime.files import write_atomically

IMAGES_FILE, VOTES_FILE = "images.csv", "votes.csv"


def read_images_file(file: Path) -> dict[str, dict[str, str]]:
    """The rows of a table by their images; none where there is no such file.

    Raises:
        OutputError: the file was not written by fer-data.
    """
    try:
        return {row["image"]: row for row in _rows(file) if row["image"]}
    except FileNotFoundError:
        return {}


def merged_rows(file: Path, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """`rows` behind those that are in the file already and are of other images.

    Raises:
        OutputError: the file was not written by fer-data.
    """
    ours = {_key(row) for row in rows}
    try:
        return [row for row in _rows(file) if _key(row) not in ours] + rows
    except FileNotFoundError:
        return rows


def write_rows(file: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write a table whose rows may have different columns.

    Raises:
        OutputError: it cannot be written.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(file, text.getvalue().encode("utf-8", "surrogateescape"))


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        # Spreadsheets, in which people add columns, write a byte-order mark.
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            reader = csv.DictReader(stream, restval="")
            if "image" not in (reader.fieldnames or ()):
                raise OutputError(f"{file} has no column image, so fer-data has not written it; move it away")
            return [{key: value for key, value in row.items() if key is not None} for row in reader]
    except FileNotFoundError:
        raise
    except (OSError, csv.Error) as error:
        raise OutputError(f"cannot read {file}: {error}; move it away") from error


def _key(row: dict[str, str]) -> str:
    return row["image"] or row.get("source", "")
