"""Other people's data sets brought into class folders: tables of pixels or paths, and folders under other names."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fer_runtime.errors import NO_MEMORY, DataError, ImageError, OutputError
from fer_runtime.files import lock_file
from fer_runtime.images import IMAGE_SUFFIXES, Uint8Array, decode_image, read_bytes
from fer_runtime.output.annotate import encode_image
from fer_runtime.output.destinations import identities
from fer_runtime.text import counted, csv_text, printable
from fer_train.data.images_file import IMAGES_FILE, VOTES_FILE, merged_rows, read_images_file, write_rows
from fer_train.data.label_names import NUMBERINGS, LabelNames
from fer_train.data.placing import Placing, Writing, in_threads, safe_name
from fer_train.data.source_folders import TEST, TRAIN, SourceImage, not_read, read_source, split_named
from fer_train.data.tables import Columns, Table, TableRow, read_table
from fer_train.data.votes import pixels_name

_OWN_COLUMNS = ("image", "label", "split", "source", "reason")
# Files that stand for a whole data set, in the order in which they are looked for.
_KNOWN_FILES = ("fer2013.csv", "icml_face_data.csv", "list_patition_label.txt", "list_partition_label.txt")
_FERPLUS_FILE = "fer2013new.csv"
# How RAF-DB names its images, in its list and in its folders of numbers: train_00001.jpg, test_0001_aligned.jpg.
_RAFDB_NAME = re.compile(r"(train|test)_\d{4,5}(_aligned)?\.jpe?g", flags=re.IGNORECASE)
_AFFECTNET_COLUMN = "subDirectory_filePath"
_NAMED_SPLITS = 5  # words of a column of splits that mean none
_PROBED = 50  # rows that tell where a table's images are
_NO_LABEL = "has no label"
_LEFT_OUT = "left out by its label"
# FER+'s columns, and what the votes file calls them.
FERPLUS_COLUMNS = {
    "angry": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happiness",
    "neutral": "neutral",
    "sad": "sadness",
    "surprise": "surprise",
    "contempt": "contempt",
    "unknown": "unknown",
    "not_a_face": "NF",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """Options of an import."""

    images: Path | None = None  # folder that a table's paths start from
    votes: Path | None = None  # FER+'s fer2013new.csv
    columns: Columns = field(default_factory=Columns)


@dataclass(slots=True)
class ImportReport:
    """Counts and notes of an import."""

    output: Path
    counts: dict[str, Counter[str]] = field(default_factory=dict)  # images by split and label
    reasons: Counter[str] = field(default_factory=Counter)  # images that are not there, by reason
    problems: list[tuple[str, str]] = field(default_factory=list)  # the same, each: what, why
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    written_before: int = 0  # images that an earlier run had written
    outdated: list[tuple[str, str]] = field(
        default_factory=list
    )  # images under an earlier label: path, where it is now

    @property
    def images(self) -> int:
        return sum(count.total() for count in self.counts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """An image that is to be imported."""

    source: str  # for the report
    label: str  # as the data set has it
    split: str
    folder: str  # below the label's folder, "" or with "/" at its end
    stem: str
    suffix: str
    read: Callable[[], bytes]  # its file's content
    others: dict[str, str]
    reason: str = ""  # why it cannot be imported


def import_images(
    source: Path,
    output: Path,
    names: LabelNames,
    options: ImportOptions,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> ImportReport:
    """Bring a data set's images to `output/SPLIT/LABEL/`; `output/images.csv` has a row for every one.

    Args:
        source: a table, a list, or a folder.
        names: gives the labels their names.
        options: what the user says about the data set.
        progress: called with the number of images so far.

    Raises:
        DataError: the data set is not understood.
        OutputError: an image cannot be written.
    """
    report = ImportReport(output=output)
    source = _known_file(source, report)
    votes: Path | None = None
    if source.is_dir():
        if options.images is not None or options.votes is not None or options.columns != Columns():
            raise DataError(f"{source} is a folder; --images, --votes and the columns are for tables")
        candidates = _in_folder(source, names, report)
    else:
        if identities(source) & identities(output / IMAGES_FILE):
            raise OutputError(f"{source} would be replaced by the table of this import; choose another --output")
        table = read_table(source, options.columns)
        votes = _votes_file(table, options, report)
        candidates = _in_table(table, names, options, report)
    rows: list[dict[str, str]] = []
    voters = _VotesWriter(votes, names) if votes is not None else None

    with _locked(output):
        with Writing() as writing:
            placing = Placing(output, writing.write)
            for done, (candidate, content, reason) in enumerate(in_threads(_read_candidate, candidates), start=1):
                progress(done)
                path, name = "", names.name(candidate.label) if candidate.label else ""
                if content is not None:
                    path = placing.place(
                        f"{candidate.split}/{name}{candidate.folder}", candidate.stem, candidate.suffix, content
                    )
                    report.counts.setdefault(candidate.split, Counter())[name] += 1
                elif reason != _LEFT_OUT:
                    report.problems.append((candidate.source, reason))
                if reason:
                    report.reasons[reason] += 1
                if voters is not None:
                    voters.add(path)
                rows.append(_row(candidate, path, name, reason))
        report.written_before = placing.written_before
        if not rows:
            raise DataError(f"{source} has no rows; give the whole data set")
        report.outdated = _outdated(output, rows)
        write_rows(output / IMAGES_FILE, merged_rows(output / IMAGES_FILE, rows))
        report.files.append(output / IMAGES_FILE)
        if voters is not None:
            votes_rows = list(csv.DictReader(io.StringIO(voters.finish())))
            write_rows(output / VOTES_FILE, merged_rows(output / VOTES_FILE, votes_rows))
            report.files.append(output / VOTES_FILE)
    return report


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Keep other imports away from `output`: of two at a time, one would lose the rows that the other adds to a table.

    Raises:
        OutputError: there is another one, or the folder cannot be made.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write into {output}: {error.strerror}; choose another --output") from error
    try:
        descriptor = os.open(output, os.O_RDONLY)
    except OSError:  # Windows opens no folder
        yield
        return
    try:
        if not lock_file(descriptor):
            raise OutputError(f"another fer-data import writes into {output}; wait for it, or choose another --output")
        yield
    finally:
        os.close(descriptor)


def _outdated(output: Path, rows: Sequence[dict[str, str]]) -> list[tuple[str, str]]:
    """Images of an earlier import that this one has put elsewhere, such as under a corrected label."""
    mine = {row["image"] for row in rows}
    earlier: dict[str, list[str]] = {}
    for image, row in read_images_file(output / IMAGES_FILE).items():
        if image not in mine:
            earlier.setdefault(row.get("source", ""), []).append(image)
    found = []
    for row in rows:
        for image in earlier.get(row["source"], ()) if row["image"] else ():
            # Another data set may have a file of the same name.
            if _is_same(output / image, output / row["image"]):
                found.append((image, f"it is now {row['image']}"))
    return found


def _is_same(file: Path, other: Path) -> bool:
    try:
        return file.read_bytes() == other.read_bytes()
    except OSError:  # it was removed
        return False


def _read_candidate(candidate: _Candidate) -> tuple[_Candidate, bytes | None, str]:
    """The content to write, or None and the reason why there is none."""
    if candidate.reason:
        return candidate, None, candidate.reason
    try:
        content = candidate.read()
        image = decode_image(content)
    except (ImageError, MemoryError) as error:
        return candidate, None, str(error) or NO_MEMORY
    if candidate.suffix == ".png" and not content.startswith(b"\x89PNG"):
        content = encode_image(Path("image.png"), image)
    return candidate, content, ""


def _row(candidate: _Candidate, path: str, label: str, reason: str) -> dict[str, str]:
    """The row of images.csv, with the columns of the data set's own table behind ours."""
    given = (path, label, candidate.split, csv_text(candidate.source), csv_text(reason))
    others = {key: csv_text(text) for key, text in candidate.others.items() if key not in _OWN_COLUMNS}
    return dict(zip(_OWN_COLUMNS, given, strict=True)) | others


def _known_file(source: Path, report: ImportReport) -> Path:
    """The file that stands for a data set's folder, or the folder itself."""
    if not source.exists():
        raise DataError(f"no file or folder {source}; give a csv, a list, or a folder of class folders")
    if not source.is_dir():
        return source
    # RAF-DB's list is two folders below its root.
    places = [source, *(path for path in sorted(source.glob("*")) if path.is_dir())]
    places += [path for path in sorted(source.glob("*/*")) if path.is_dir() and path.name == "EmoLabel"]
    for folder in places:
        for name in _KNOWN_FILES:
            if (folder / name).is_file():
                report.notes.append(f"reading {folder / name}")
                return folder / name
    return source


def _in_folder(source: Path, names: LabelNames, report: ImportReport) -> Iterator[_Candidate]:
    found = read_source(source)
    if names.numbering is None and _is_rafdb((image.path.name for image in found.images), found.labels):
        _note_numbering(names, "rafdb", report, "its file names are RAF-DB's")
    names.prepare(found.labels)
    if found.ignored:
        report.notes.append(not_read(found))
    return (_from_folder(names, image) for image in found.images)


def _from_folder(names: LabelNames, image: SourceImage) -> _Candidate:
    below = PurePosixPath(image.below)
    return _Candidate(
        source=image.name,
        label=image.label,
        split=image.split,
        folder=_folder(below.parts[:-1]),
        stem=below.stem,
        suffix=_suffix(below.suffix),
        read=lambda: read_bytes(image.path),
        others={},
        reason=_why_not(names, image.label),
    )


def _in_table(table: Table, names: LabelNames, options: ImportOptions, report: ImportReport) -> Iterator[_Candidate]:
    labels, unknown_splits = set[str](), Counter[str]()
    for row in table:
        if row.label:
            labels.add(row.label)
        if row.split and split_named(row.split) is None:
            unknown_splits[row.split] += 1
    first = list(islice(table, 1))
    if not first:
        raise DataError(f"{table.file} has no rows; give the whole data set")
    is_rafdb = table.pixels is None and _is_rafdb((_last_part(row.path) for row in table), sorted(labels))
    if names.numbering is None:
        if table.pixels is not None:
            _note_numbering(names, "fer2013", report, "a table of pixels is FER2013's")
        elif is_rafdb:
            _note_numbering(names, "rafdb", report, "the names of its images are RAF-DB's")
        elif table.path == _AFFECTNET_COLUMN:
            _note_numbering(names, "affectnet", report, f"the column {_AFFECTNET_COLUMN} is AffectNet's")
    names.prepare(labels)
    for word, count in unknown_splits.most_common(_NAMED_SPLITS):
        report.notes.append(
            f"{counted(count, 'image')} in train, because the column {printable(table.split, limit=40)} says "
            f"{printable(word, limit=40)!r}, which is no split (train, validation, test)"
        )
    if table.pixels is not None:
        return (_from_pixels(table, names, row) for row in table)
    find = _finder(table, options)
    return (_from_path(table, names, row, find, is_rafdb) for row in table)


def _from_pixels(table: Table, names: LabelNames, row: TableRow) -> _Candidate:
    def read() -> bytes:
        return encode_image(Path("face.png"), face_from_pixels(row.pixels))

    return _Candidate(
        source=f"{table.file.name}, row {row.line}",
        label=row.label,
        split=_split_of(row.split),
        folder="",
        stem=pixels_name(row.line - 1),
        suffix=".png",
        read=read,
        others={},
        reason=_why_not(names, row.label),
    )


def _from_path(
    table: Table, names: LabelNames, row: TableRow, find: Callable[[str], Path | None], is_rafdb: bool
) -> _Candidate:
    parts = [part for part in row.path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    below = PurePosixPath(parts[-1] if parts else "image")
    split = split_named(row.split)
    if is_rafdb and split is None:
        split = TRAIN if below.name.lower().startswith("train") else TEST
    # A path that says split and label says what the new folders say anyway.
    known = {row.label.casefold(), names.name(row.label).casefold() if row.label else ""}
    folders = [part for part in parts[:-1] if split_named(part) is None and part.casefold() not in known]
    reason = _why_not(names, row.label) or ("" if row.path else "has no path")

    def read() -> bytes:
        path = find(row.path)
        if path is None:
            raise ImageError("no such file")
        return read_bytes(path)

    return _Candidate(
        source=row.path or f"{table.file.name}, row {row.line}",
        label=row.label,
        split=split or _split_of(row.split),
        folder="" if os.path.isabs(row.path) else _folder(folders),
        stem=below.stem,
        suffix=_suffix(below.suffix),
        read=read,
        others=dict(row.others),
        reason=reason,
    )


def _finder(table: Table, options: ImportOptions) -> Callable[[str], Path | None]:
    """A function from a table's path to the file that it means; None where there is none.

    Raises:
        DataError: none of the first images is anywhere.
    """
    beside = table.file.parent
    folders = [options.images] if options.images is not None else [beside, beside / "images"]
    # RAF-DB's list is in EmoLabel, and the images that have been aligned have names of their own.
    folders += [folder / "aligned" for folder in list(folders)]
    if options.images is None:
        folders += [beside.parent / "Image" / "aligned", beside.parent / "Image" / "original", beside.parent]

    def find(text: str) -> Path | None:
        tried = [text, text.replace("\\", "/")]
        tried += [f"{os.path.splitext(name)[0]}_aligned{os.path.splitext(name)[1]}" for name in tried]
        for folder in folders:
            for name in dict.fromkeys(tried):
                path = folder / name  # an absolute path stays as it is
                try:
                    if path.is_file():
                        return path
                except (OSError, ValueError):  # too long, or with a null byte
                    continue
        return None

    probed = [row.path for row in islice(table, _PROBED) if row.path]
    if probed and not any(map(find, probed)):
        raise DataError(
            f"none of the first {len(probed)} images of {table.file} is there, such as "
            f"{folders[0] / printable(probed[0], limit=80)}; name the folder that its paths start from: --images DIR"
        )
    return find


def face_from_pixels(text: str) -> Uint8Array:
    """A face from FER2013's text of 48 x 48 numbers, or of another square.

    Raises:
        ImageError: it is no square of gray levels.
    """
    try:
        values = np.array(text.split(), np.int64)
    except (ValueError, OverflowError):
        raise ImageError("its pixels are not numbers") from None
    side = round(len(values) ** 0.5)
    if not len(values) or side * side != len(values):
        raise ImageError(f"has {len(values)} pixels, which do not form a square")
    if values.min() < 0 or values.max() > 255:
        raise ImageError("has pixels outside 0 to 255")
    return values.astype(np.uint8).reshape(side, side)


def _is_rafdb(names: Any, labels: Sequence[str]) -> bool:
    """Whether these are RAF-DB's own names and numbers."""
    return set(labels) <= set("1234567") and all(_RAFDB_NAME.fullmatch(name) for name in names)


def _note_numbering(names: LabelNames, numbering: str, report: ImportReport, why: str) -> None:
    names.numbering = numbering
    report.notes.append(f"labels are numbered as in {numbering}: {why}")


def _why_not(names: LabelNames, label: str) -> str:
    if not label:
        return _NO_LABEL
    return "" if names.name(label) else _LEFT_OUT


def _split_of(text: str) -> str:
    """FER2013's own words first: its PublicTest is for validation, its PrivateTest for the end."""
    return split_named(text) or TRAIN


def _last_part(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def _folder(parts: Sequence[str]) -> str:
    return "".join(f"/{safe_name(part)}" for part in parts)


def _suffix(suffix: str) -> str:
    return suffix.lower() if suffix.lower() in IMAGE_SUFFIXES else ".png"


def _votes_file(table: Table, options: ImportOptions, report: ImportReport) -> Path | None:
    """FER+'s votes for a table of pixels: the file that is given, or lies beside it."""
    if options.votes is not None:
        if table.pixels is None:
            raise DataError(
                f"--votes (FER+'s {_FERPLUS_FILE}) works only for fer2013.csv, a table of pixels; leave it out"
            )
        return options.votes
    beside = table.file.parent / _FERPLUS_FILE
    if table.pixels is None or not beside.is_file():
        return None
    report.notes.append(f"reading FER+'s votes in {beside}")
    return beside


class _VotesWriter:
    """The votes file of the imported images. FER+'s rows are those of fer2013.csv, in the same order.

    Raises:
        DataError: the file is not FER+'s.
    """

    def __init__(self, file: Path, names: LabelNames) -> None:
        self._file = file
        table = read_table(file, Columns(path="Image name", label="neutral"))
        if missing := [name for name in FERPLUS_COLUMNS.values() if name not in table.columns]:
            raise DataError(f"{file} is not FER+'s {_FERPLUS_FILE}: it lacks the columns {', '.join(missing)}")
        # Labels that were given other names, or one name together, have their votes there.
        named = {was: names.name(number) or was for number, was in NUMBERINGS["fer2013"].items()}
        self._places: dict[str, list[int]] = {}
        for name, column in FERPLUS_COLUMNS.items():
            self._places.setdefault(named.get(name, name), []).append(table.columns.index(column))
        self._rows = iter(table.lines())
        self._text = io.StringIO()
        self._writer = csv.writer(self._text, lineterminator="\n")
        self._writer.writerow(["image", *self._places])
        self._count = 0

    def add(self, path: str) -> None:
        """The next image of the table; "" where it is not imported."""
        row = next(self._rows, None)
        self._count += 1
        if row is None:
            raise DataError(f"{self._file} has {self._count - 1} rows, fewer than the images; copy both files again")
        try:
            votes = [sum(int(row[place]) for place in places) for places in self._places.values()]
        except (IndexError, ValueError):
            raise DataError(
                f"row {self._count} of {self._file} has no vote in some column; copy the file again"
            ) from None
        if path:
            self._writer.writerow([path, *votes])

    def finish(self) -> str:
        if next(self._rows, None) is not None:
            raise DataError(f"{self._file} has more rows than the {self._count} images; copy both files again")
        return self._text.getvalue()
