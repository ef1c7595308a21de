"""Split a data set into train, validation and test: stratified, with persons and copies kept in one split."""

from __future__ import annotations

import csv
import io
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from fer_runtime.errors import DataError, OutputError
from fer_runtime.files import write_atomically
from fer_runtime.images import read_bytes
from fer_runtime.text import counted, csv_text, printable
from fer_train.data.audit import copies_of
from fer_train.data.disjoint_sets import DisjointSets
from fer_train.data.images_file import IMAGES_FILE, VOTES_FILE
from fer_train.data.placing import Writing
from fer_train.data.reading import ReadImage, read_images, small_faces
from fer_train.data.source_folders import TEST, TRAIN, VALIDATION, Source, SourceImage, class_folders, not_read

SPLIT_FILE = "split.csv"
_TABLES = ("crops.csv", IMAGES_FILE)  # as crop and import leave them, with a column `image`
_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitOptions:
    """Options of a split."""

    validation: float = 0.2  # share of the images
    test: float = 0.0
    seed: int = 0
    group: str | None = None  # a column of the source's table, or a pattern of the path below the class folder
    drop: Collection[str] = ()  # images that are left out, by their path in the source


@dataclass(slots=True)
class SplitReport:
    """Counts of a split."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)  # images by split and label
    groups: dict[str, int] = field(default_factory=dict)  # persons by split
    copies: int = 0  # images in the split of one that is the same, or nearly
    dropped: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # path, reason
    notes: list[str] = field(default_factory=list)
    written: int = 0
    written_before: int = 0  # images that an earlier run had written


def split_images(
    source: Source,
    output: Path,
    options: SplitOptions,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> SplitReport:
    """Copy the images of `source` to `output/SPLIT/LABEL/`; `output/split.csv` says which went where.

    Images of the source's test split stay there. Those of train and validation are split anew.

    Raises:
        DataError: there are too few images or persons, or the group is not known.
        OutputError: an image cannot be written, or the output holds another split.
    """
    report = SplitReport()
    if source.ignored:
        report.notes.append(not_read(source))
    images = [image for image in source.images if image.name not in options.drop]
    report.dropped = len(source.images) - len(images)
    if unknown := set(options.drop) - {image.name for image in source.images}:
        if len(unknown) == len(options.drop):
            raise DataError(
                f"--drop names no image of {source.root}, but {sorted(unknown)[0]}; its column image must hold paths "
                f"such as {source.images[0].name}"
            )
        are = "is" if len(unknown) == 1 else "are"
        report.notes.append(
            f"{counted(len(unknown), 'path')} to leave out {are} of no image, such as {sorted(unknown)[0]}"
        )
    person_of = _persons(source, images, options.group, report)
    whole = read_images(images, progress=progress)
    report.unreadable = [(entry.image.name, entry.reason) for entry in whole if entry.reason]
    read = [entry for entry in whole if not entry.reason]
    if not read:
        raise DataError(f"{source.root} has no image that can be read; repair or replace them")
    groups = _groups(read, person_of, report)
    chosen = _choose(read, groups, options, report)
    _check(read, chosen, groups, options, report)
    _write(source, output, read, chosen, groups, person_of, report)
    return report


def stratified(counts: npt.NDArray[np.int64], shares: Sequence[float], *, seed: int = 0) -> npt.NDArray[np.int64]:
    """The split of each group, so that every class has nearly its share in every split; int64 (groups,).

    The largest groups choose first, each the split that lacks its classes most, relative to the class's size. For
    single images that is plain stratified sampling, exact to one image a class.

    Args:
        counts: images of each class in each group, (groups, classes).
        shares: of the splits, the largest first; they add up to 1.
        seed: of the order of groups that are equally large.
    """
    total = np.maximum(counts.sum(0), 1)
    lacking = np.outer(shares, counts.sum(0)).astype(np.float64)  # (splits, classes)
    # A small class gets one of its groups into every split, where it has as many.
    holders = (counts > 0).sum(0)
    least = np.where(holders >= len(shares), counts.sum(0) / np.maximum(holders, 1), 0)
    lacking[1:] = np.maximum(lacking[1:], least)
    lacking[0] = counts.sum(0) - lacking[1:].sum(0)
    order = list(range(len(counts)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: -int(counts[group].sum()))
    chosen = np.zeros(len(counts), np.int64)
    for group in order:
        # The least squared distance to the wanted counts, the classes weighted alike.
        split = int((lacking @ (counts[group] / total**2)).argmax())
        chosen[group] = split
        lacking[split] -= counts[group]
    return chosen


def _persons(
    source: Source, images: Sequence[SourceImage], group: str | None, report: SplitReport
) -> Mapping[str, str]:
    """The person of each image by its path; without a group, nobody is known."""
    if group is None:
        return {}
    persons = _column(source.root, group)
    if persons is None:
        try:
            pattern = re.compile(group)
        except re.error as error:
            raise DataError(
                f"{group!r} is neither a column of {' or '.join(_TABLES)} in {source.root} nor a regular expression "
                f"({error}); an example: --group 'subject\\d+'"
            ) from error
        persons = {}
        for image in images:
            if found := pattern.search(image.below):
                persons[image.name] = "|".join(found.groups(default="")) if found.groups() else found[0]
    without = [image.name for image in images if not persons.get(image.name)]
    if len(without) == len(images):
        raise DataError(
            f"--group {group} matches no image; give a pattern in the path below the class folder, such as "
            f"{printable(images[0].below, limit=80)}, or a column of {' or '.join(_TABLES)}"
        )
    if without:
        shown = ", ".join(printable(path, limit=80) for path in without[:_NAMED])
        report.notes.append(
            f"--group matches nothing in {counted(len(without), 'image')}, each of which counts as a separate person: "
            f"{shown}{' ...' if len(without) > _NAMED else ''}"
        )
    return persons


def _column(root: Path, column: str) -> dict[str, str] | None:
    """A column of the source's tables by image; None where no table has it."""
    found: dict[str, str] | None = None
    for name in _TABLES:
        try:
            with (root / name).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
                reader = csv.DictReader(stream)
                if column in (reader.fieldnames or ()) and "image" in (reader.fieldnames or ()):
                    found = (found or {}) | {row["image"]: row[column] or "" for row in reader if row["image"]}
        except FileNotFoundError:
            continue
        except (OSError, csv.Error) as error:
            raise DataError(f"cannot read {root / name}: {error}; make it again, or take it away") from error
    return found


def _groups(read: Sequence[ReadImage], person_of: Mapping[str, str], report: SplitReport) -> list[int]:
    """A number for each image: equal for images of one person, and for copies."""
    sets = DisjointSets(len(read))
    first: dict[str, int] = {}
    for index, entry in enumerate(read):
        if person := person_of.get(entry.image.name):
            sets.join(index, first.setdefault(person, index))
    for copies in copies_of(small_faces(read), [entry.sha256 for entry in read]):
        report.copies += len(copies) - 1
        for index in copies[1:]:
            sets.join(index, copies[0])
    return [sets.root(index) for index in range(len(read))]


def _choose(read: Sequence[ReadImage], groups: Sequence[int], options: SplitOptions, report: SplitReport) -> list[str]:
    """The split of each image."""
    labels = sorted({entry.image.label for entry in read})
    number = {label: index for index, label in enumerate(labels)}
    # A group with an image of the source's own test split belongs there.
    fixed = {group for entry, group in zip(read, groups, strict=True) if entry.image.split == TEST}
    if fixed:
        if options.test:
            raise DataError("the source has a test split, which stays as it is; leave --test out")
        report.notes.append("the source's test split stays as it is")
        moved = sum(group in fixed and entry.image.split != TEST for entry, group in zip(read, groups, strict=True))
        if moved:
            report.notes.append(
                f"{counted(moved, 'image')} of train or validation go to test, where the same person or a copy is"
            )
    free = sorted(set(groups) - fixed)
    place = {group: index for index, group in enumerate(free)}
    counts = np.zeros((len(free), len(labels)), np.int64)
    for entry, group in zip(read, groups, strict=True):
        if group in place:
            counts[place[group], number[entry.image.label]] += 1
    names = (TRAIN, VALIDATION, TEST) if options.test else (TRAIN, VALIDATION)
    shares = [1 - options.validation - options.test, options.validation, options.test][: len(names)]
    chosen = stratified(counts, shares, seed=options.seed) if len(free) else np.zeros(0, np.int64)
    return [names[chosen[place[group]]] if group in place else TEST for group in groups]


def _check(
    read: Sequence[ReadImage],
    chosen: Sequence[str],
    groups: Sequence[int],
    options: SplitOptions,
    report: SplitReport,
) -> None:
    """Count, and stop where a class would be missing from train or validation."""
    persons: dict[str, set[int]] = defaultdict(set)
    of_label: dict[str, set[int]] = defaultdict(set)
    for entry, split, group in zip(read, chosen, groups, strict=True):
        report.counts.setdefault(split, Counter())[entry.image.label] += 1
        persons[split].add(group)
        of_label[entry.image.label].add(group)
    report.groups = {split: len(found) for split, found in persons.items()}
    who, how = ("person", "--group, ") if options.group is not None else ("different image", "")
    for split in (TRAIN, VALIDATION):
        for label, found in sorted(of_label.items()):
            if not report.counts.get(split, Counter())[label]:
                raise DataError(
                    f"no image of {printable(label)} would be in {split}: it has {counted(len(found), who)}; add some, "
                    f"or change {how}--validation, --test or --seed"
                )


def _write(
    source: Source,
    output: Path,
    read: Sequence[ReadImage],
    chosen: Sequence[str],
    groups: Sequence[int],
    person_of: Mapping[str, str],
    report: SplitReport,
) -> None:
    if output.resolve() == source.root.resolve():
        raise OutputError(f"{output} is the source itself; choose another --output")
    planned: dict[str, ReadImage] = {}
    taken: set[str] = set()
    for entry, split in zip(read, chosen, strict=True):
        wanted, number = PurePosixPath(f"{split}/{entry.image.label}/{entry.image.below}"), 2
        name = wanted
        # Two images of one name, of the source's train and validation.
        while str(name).casefold() in taken:
            name, number = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}"), number + 1
        taken.add(str(name).casefold())
        planned[str(name)] = entry
    _refuse_others(output, planned)
    with Writing() as writing:
        for path, entry in planned.items():
            file = output / path
            content = read_bytes(entry.image.path)
            if not os.path.lexists(file):
                writing.write(file, content)
                report.written += 1
            elif read_bytes(file) == content:
                report.written_before += 1
            else:
                raise OutputError(f"{file} is another image; choose another --output")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "label", "split", "source", "group"])
    for (path, entry), group in zip(planned.items(), groups, strict=True):
        person = person_of.get(entry.image.name) or f"#{group}"
        writer.writerow([path, entry.image.label, path.partition("/")[0], entry.image.name, csv_text(person)])
    write_atomically(output / SPLIT_FILE, text.getvalue().encode("utf-8", "surrogateescape"))
    _write_votes(
        source.root / VOTES_FILE, output / VOTES_FILE, {entry.image.name: path for path, entry in planned.items()}
    )


def _write_votes(file: Path, output: Path, moved: Mapping[str, str]) -> None:
    """The source's votes file under the images' new paths, where it has one."""
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            header, *rows = [row for row in csv.reader(stream) if row]
    except FileNotFoundError:
        return
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"cannot read {file}: {error}; make it again, or take it away") from error
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([moved[path], *votes] for path, *votes in rows if path in moved)
    write_atomically(output, text.getvalue().encode("utf-8", "surrogateescape"))


def _refuse_others(output: Path, planned: Collection[str]) -> None:
    """Stop where the output's split folders hold images that are not of this split: they would mix."""
    for split in (TRAIN, VALIDATION, TEST):
        if not (output / split).is_dir():
            continue
        for label, below in class_folders(output / split).items():
            for path in below:
                if f"{split}/{label}/{path}" not in planned:
                    raise OutputError(
                        f"{output / split / label / path} is not of this split (other images, shares, --seed or "
                        "--group); choose another --output"
                    )
