"""Read the tables of data sets: csv files and lists of paths and labels, with or without a header."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fer_runtime.errors import DataError
from fer_runtime.text import printable

# What data sets call their columns, in lower case and without spaces, underscores and hyphens.
_PATH_COLUMNS = (
    *("path", "image", "imagename", "imagepath", "imgpath", "img", "file", "filename", "filepath", "picture", "pth"),
    *("subdirectoryfilepath", "name", "id"),
)
_LABEL_COLUMNS = ("label", "emotion", "expression", "class", "classname", "target", "category")
_SPLIT_COLUMNS = ("usage", "split", "set", "subset", "partition")
_PIXELS_COLUMN = "pixels"
_DELIMITERS = ",;\t"
_HEAD_BYTES = 1 << 16
_IMAGE_NAME = re.compile(r"\.(jpe?g|png|bmp|webp|tiff?|gif)$", flags=re.IGNORECASE)
_BYTE_ORDER_MARKS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The names of a table's columns, given by the user; None is found by the usual names."""

    path: str | None = None
    label: str | None = None
    split: str | None = None


@dataclass(frozen=True, slots=True)
class TableRow:
    """One image of a table."""

    line: int  # 1 for the first row behind the header
    label: str
    path: str  # "" in a table of pixels
    pixels: str  # "" in a table of paths
    split: str  # as the table has it, "" for none
    others: Mapping[str, str]  # the other columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table's file and how it is read; iterate as often as needed."""

    file: Path
    columns: tuple[str, ...]
    has_header: bool
    delimiter: str | None  # None: any white space
    label: str  # this and the rest: names of columns
    path: str | None = None
    split: str | None = None
    pixels: str | None = None

    def __iter__(self) -> Iterator[TableRow]:
        """The rows.

        Raises:
            DataError: the file is damaged.
        """
        used = {self.path, self.label, self.split, self.pixels}
        for line, cells in enumerate(self.lines(), start=1):
            row = dict(zip(self.columns, cells, strict=False))
            yield TableRow(
                line,
                row.get(self.label, "").strip(),
                row.get(self.path or "", "").strip(),
                row.get(self.pixels or "", ""),
                row.get(self.split or "", "").strip(),
                {name: text for name, text in row.items() if name and name not in used},
            )

    def lines(self) -> Iterator[list[str]]:
        """The cells of each row behind the header; empty lines do not count."""
        with _opened(self.file) as stream:
            lines = iter(_split_lines(stream, self.delimiter))
            if self.has_header:
                next(lines, None)
            yield from lines


def read_table(file: Path, given: Columns) -> Table:
    """Look at a table: its delimiter, its header and which columns are which.

    Raises:
        DataError: the file cannot be read, or the columns of the paths and labels are not known.
    """
    with _opened(file) as stream:
        head = stream.read(_HEAD_BYTES)
    first = next((line for line in head.splitlines() if line.strip()), "")
    if not first:
        raise DataError(f"{file} is empty; give a csv with a column of paths and one of labels")
    found = max(_DELIMITERS, key=first.count)
    delimiter = found if found in first else None
    cells = next(iter(_split_lines(io.StringIO(first), delimiter)), [])
    names = [cell.strip().lstrip("\ufeff") for cell in cells]
    plain = [_plain(name) for name in names]
    known = {*_PATH_COLUMNS, *_LABEL_COLUMNS, *_SPLIT_COLUMNS, _PIXELS_COLUMN}
    is_header = not known.isdisjoint(plain) or not {given.path, given.label, given.split}.isdisjoint(names)
    if not is_header:
        # Of more columns, any could be the labels.
        if len(cells) != 2 or not _IMAGE_NAME.search(names[0]):
            raise DataError(
                f"{file} has neither a header that is known nor a path and a label in each line; its first line is: "
                f"{printable(first, limit=80)}; give it a header (path,label), or name its columns: --path-column NAME "
                "--label-column NAME"
            )
        return Table(
            file=file, columns=("path", "label"), has_header=False, delimiter=delimiter, label="label", path="path"
        )

    def find(wanted: str | None, usual: Sequence[str], option: str) -> str | None:
        if wanted is not None:
            if wanted not in names:
                raise DataError(f"{file} has no column {wanted!r}; its columns are: {_shown(names)} ({option})")
            return wanted
        return next((names[plain.index(name)] for name in usual if name in plain), None)

    pixels = find(None, (_PIXELS_COLUMN,), "")
    path = None if pixels else find(given.path, _PATH_COLUMNS, "--path-column")
    label = find(given.label, _LABEL_COLUMNS, "--label-column")
    split = find(given.split, _SPLIT_COLUMNS, "--split-column")
    if label is None or (path is None and pixels is None):
        lacking = "labels with --label-column" if label is None else "paths with --path-column"
        raise DataError(f"{file} has the columns {_shown(names)}; name the column of {lacking} NAME")
    return Table(
        file=file,
        columns=tuple(names),
        has_header=True,
        delimiter=delimiter,
        label=label,
        path=path,
        split=split,
        pixels=pixels,
    )


@contextmanager
def _opened(file: Path) -> Iterator[IO[str]]:
    """A text file, plain or gzipped, in UTF-8 or, with a byte-order mark, UTF-16.

    Raises:
        DataError: it cannot be read, or is damaged or no text.
    """
    try:
        if file.exists() and not file.is_file():  # a pipe, such as <(...) of the shell
            raise DataError(f"{file} is not a regular file, and a table is read more than once; save it first")
        with file.open("rb") as raw:
            if not (head := raw.read(4)):
                raise DataError(f"{file} is empty; give a csv with a column of paths and one of labels")
        is_gzip = head.startswith(b"\x1f\x8b")
        encoding = next((name for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), "utf-8-sig")
        stream: IO[str]
        with (
            gzip.open(file, "rt", encoding="utf-8-sig", newline="")
            if is_gzip
            else file.open(encoding=encoding, newline="") as stream
        ):
            yield stream
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}; give a csv or a list") from error
    except (UnicodeError, EOFError, zlib.error, csv.Error) as error:
        raise DataError(f"{file} is damaged or no text ({error}); save it as csv in UTF-8") from error


def _split_lines(stream: IO[str], delimiter: str | None) -> Iterator[list[str]]:
    if delimiter is None:
        return (line.split() for line in stream if line.strip())
    return (cells for cells in csv.reader(stream, delimiter=delimiter) if cells)


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]", "", name).casefold()


def _shown(names: Sequence[str]) -> str:
    return ", ".join(printable(name, limit=40) for name in names[:20])
