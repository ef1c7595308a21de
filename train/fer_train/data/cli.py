"""The command `fer-data`. It needs no PyTorch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fer_runtime.command import FerGroup, NumberRange, PathlibPath, Rule, say
from fer_runtime.errors import FerError
from fer_runtime.files import check_writable
from fer_runtime.model.find import MODEL_NAMES, PREFERENCE
from fer_runtime.shared_options import (
    detector_option,
    detector_rule,
    min_face_option,
    models_dir_option,
    named_models_rule,
    seed_option,
    yunet_option,
)
from fer_runtime.standard_streams import is_terminal
from fer_runtime.text import counted, printable
from fer_train.data.label_names import NUMBERINGS, LabelNames, parse_renames

if TYPE_CHECKING:
    from fer_train.data.crop import CropReport

_FOLDER = PathlibPath(file_okay=False)
_FILE = PathlibPath(dir_okay=False)
_LONGEST_CELL = 1 << 24  # characters; the pixels of a face are one cell
_NAMED = 10  # images that are named on the terminal; the report names all

_output = click.option("--output", type=_FOLDER, required=True, metavar="DIR", help="Folder for the data set.")
_rename = click.option(
    "--rename",
    "renames",
    multiple=True,
    metavar="OLD=NEW",
    help="Rename a label. May be repeated; an empty NEW leaves the label's images out.",
)
_numbers = click.option(
    "--numbers",
    type=click.Choice(tuple(NUMBERINGS)),
    help="Data set that the numbers come from, if the labels are numbers. Data sets number differently.",
)
_drop = click.option(
    "--drop",
    type=_FILE,
    metavar="FILE",
    help="Leave out the images that a csv names in its column image, such as label_errors.csv of fer-data audit.",
)


class InterruptedDataError(FerError):
    """Ctrl-C or SIGTERM."""

    def __init__(self) -> None:
        super().__init__("stopped; repeat the command to continue: what is written stays and is not made again")


@click.group("fer-data", cls=FerGroup)
def main() -> None:
    """Prepare training images for fer-train, from photographs or existing data sets.

    \b
    fer-data crop photos --output data           faces of photos/LABEL/*.jpg, cut out as fer-infer does
    fer-data import fer2013.csv --output data    a csv of pixels or paths, a list, or class folders
    fer-data split data --output sets            train and validation, by person with --group
    fer-data audit sets                          copies across the splits, probable label errors
    fer-train --name mine --model v3 --data sets

    Images are copied, never moved or changed, and nothing is overwritten. An image that cannot be
    used never ends a run; it is listed with the reason. Repeat a stopped command to continue it.
    """


@main.command(
    rules=(
        detector_rule("yunet", "auto"),
        detector_rule("min_face", "auto"),
    )
)
@click.argument("photos", type=_FOLDER)
@_output
@click.option(
    "--faces",
    type=click.Choice(["largest", "all", "one"]),
    default="largest",
    show_default=True,
    help="Faces to take from a photo with several. one: leave out such photos.",
)
@click.option(
    "--size",
    type=click.IntRange(32, 1024),
    default=192,
    show_default=True,
    help="Largest side of a crop in pixels. Smaller faces keep their size; nothing is enlarged.",
)
@detector_option
@yunet_option
@min_face_option
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=100_000_000,
    show_default=True,
    help="Largest photo, width times height.",
)
@_rename
@_numbers
def crop(
    photos: Path,
    output: Path,
    faces: str,
    size: int,
    detector: str,
    yunet: Path | None,
    min_face: int,
    max_pixels: int,
    renames: tuple[str, ...],
    numbers: str | None,
) -> None:
    """Cut the faces out of photos in class folders.

    \b
    photos/bored/*.jpg   photos/engaged/*.jpg
    fer-data crop photos --output data
    data/train/bored/*.png   data/train/engaged/*.png

    Faces are found, rotated upright and cropped as in fer-infer. Colour photos give colour crops.
    PHOTOS may also have folders train, validation (val, valid) and test with class folders in them;
    these splits are kept. DIR/crops.csv has a row for every photo: its crop and the place of the face,
    or why there is none. DIR/sheets has a contact sheet for each class; check them before you train.
    Exits 1 if no face was found at all.
    """
    from fer_train.data.crop import CropOptions, crop_photos
    from fer_train.data.source_folders import not_read, read_source

    names = _names(renames, numbers)
    _refuse_inside(output, photos)
    source = read_source(photos)
    if source.ignored:
        _say(not_read(source))
    options = CropOptions(
        faces=faces,
        size=size,
        detector=detector,
        yunet=yunet,
        min_face=min_face,
        max_pixels=max_pixels,
        renames=tuple(sorted(renames)),
    )
    with _working("photo", len(source.images)) as progress:
        report = crop_photos(source, output, names, options, progress=progress)
    _say_changes(names)
    _print_crops(report)
    if not report.faces:
        sys.exit(1)


@main.command(name="import")
@click.argument("source", type=PathlibPath())
@_output
@click.option(
    "--images", type=_FOLDER, metavar="DIR", help="Folder that a table's paths start from. [default: the table's]"
)
@_rename
@_numbers
@click.option("--path-column", metavar="NAME", help="Column of the paths. [default: path, image, file, ...]")
@click.option("--label-column", metavar="NAME", help="Column of the labels. [default: label, emotion, expression, ...]")
@click.option("--split-column", metavar="NAME", help="Column of the splits. [default: Usage, split, set, ...]")
@click.option(
    "--votes",
    type=_FILE,
    metavar="FILE",
    help="FER+'s fer2013new.csv for a fer2013.csv. [default: the one beside it, if there is one]",
)
def import_(
    source: Path,
    output: Path,
    images: Path | None,
    renames: tuple[str, ...],
    numbers: str | None,
    path_column: str | None,
    label_column: str | None,
    split_column: str | None,
    votes: Path | None,
) -> None:
    """Bring a data set into class folders.

    \b
    fer-data import fer2013.csv --output data              Kaggle's emotion,pixels,Usage; FER+ beside it
    fer-data import RAF-DB/basic --output data             RAF-DB: its list and aligned images
    fer-data import train.csv --images imgs --output data  any csv of paths and labels
    fer-data import sets/ --output data --rename joy=happy class folders under other names

    Common words for the seven expressions are renamed in any case (Anger, happiness, surprised), and the
    command prints what it renamed. Data sets number the expressions differently: labels that are numbers
    need --numbers, unless the header or the file names show which data set it is. Images are not
    changed; to cut faces out of photographs, use crop. DIR/images.csv has a row for every image, with the
    table's other columns, or the reason if it cannot be read. FER+'s votes become DIR/votes.csv, for
    fer-train --votes. Exits 1 if no image could be read.
    """
    import csv

    from fer_train.data.imports import ImportOptions, import_images
    from fer_train.data.tables import Columns

    csv.field_size_limit(_LONGEST_CELL)
    names = _names(renames, numbers)
    if source.is_dir():
        _refuse_inside(output, source)
    options = ImportOptions(
        images=images, votes=votes, columns=Columns(path=path_column, label=label_column, split=split_column)
    )
    with _working("image", None) as progress:
        report = import_images(source, output, names, options, progress=progress)
    for note in report.notes:
        _say(note)
    _say_changes(names)
    _say_problems(report.problems, "cannot be used", report.files[0])
    _say_problems(
        report.outdated,
        f"{{is}} of an earlier import and still in the data; remove the files, and their rows of {report.files[0]}",
        None,
    )
    _print_counts(report.counts)
    earlier = f", {report.written_before} of them from an earlier run" if report.written_before else ""
    left_out = sum(report.reasons.values()) - len(report.problems)
    say(
        f"{counted(report.images, 'image')}{earlier}, {len(report.problems)} cannot be used"
        + (f", {left_out} left out by their label" if left_out else "")
    )
    for file in report.files:
        say(printable(file))
    if not report.images:
        sys.exit(1)


@main.command()
@click.argument("source", type=_FOLDER)
@_output
@click.option(
    "--validation",
    type=NumberRange(0, 0.9, min_open=True),
    default=0.2,
    show_default=True,
    help="Share of the images for validation.",
)
@click.option(
    "--test",
    type=NumberRange(0, 0.9),
    default=0.0,
    show_default=True,
    help="Share for a test split, which fer-train does not use.",
)
@seed_option("Seed of the random split.")
@click.option(
    "--group",
    metavar="REGEX|COLUMN",
    help="Who is in the image: a pattern found in its path below the class folder, or a column of the source's "
    "images.csv or crops.csv. Nobody gets into two splits.",
)
@_drop
def split(
    source: Path, output: Path, validation: float, test: float, seed: int, group: str | None, drop: Path | None
) -> None:
    """Split a data set into train and validation, every class by the same share.

    \b
    fer-data split data --output sets --group 'subject\\d+'   subject07_happy_3.jpg: by person
    fer-data split data --output sets --group subject        a column of data/images.csv
    fer-data split data --output sets --test 0.1

    If a person is in both train and validation, the model looks better than it is. Use --group if file
    names or a column identify the person. Copies and near-duplicates are never put into two splits.
    A test split in SOURCE is kept; train and validation are split again. The same seed gives the
    same split. DIR/split.csv lists the split of each image.
    """
    from fer_train.data.dropping import read_drop_file
    from fer_train.data.source_folders import read_source
    from fer_train.data.split import SPLIT_FILE, SplitOptions, split_images

    if validation + test >= 1:
        raise click.UsageError(f"--validation {validation} and --test {test} leave nothing for train")
    _refuse_inside(output, source)
    options = SplitOptions(
        validation=validation,
        test=test,
        seed=seed,
        group=group,
        drop=frozenset() if drop is None else read_drop_file(drop),
    )
    found = read_source(source)
    with _working("image", len(found.images)) as progress:
        report = split_images(found, output, options, progress=progress)
    for note in report.notes:
        _say(note)
    _say_problems(report.unreadable, "cannot be read and {is} left out", None)
    _print_counts(report.counts)
    if group is not None:
        persons = ", ".join(f"{number} in {name}" for name, number in sorted(report.groups.items()))
        say(f"persons          {persons}; no person is in more than one split")
    copies = counted(report.copies, "image")
    say(f"copies           {copies} kept in the split of one that looks the same, none across splits")
    if report.dropped:
        say(f"left out         {counted(report.dropped, 'image')} by --drop")
    if report.written_before:
        say(f"already there    {counted(report.written_before, 'image')}")
    say(printable(output / SPLIT_FILE))


@main.command(
    rules=(
        Rule(
            *("model", "models_dir"),
            when=lambda given: given["probabilities"] is not None,
            because="--probabilities takes the model's place",
        ),
        Rule(
            *("model", "models_dir", "probabilities"),
            when=lambda given: given["no_label_errors"],
            because="not with --no-label-errors",
        ),
        named_models_rule("model", "models_dir"),
    )
)
@click.argument("data", type=_FOLDER)
@click.option(
    "--output", type=_FOLDER, default=Path("audit"), show_default=True, metavar="DIR", help="Folder for the report."
)
@click.option(
    "--model",
    metavar="NAME|FILE",
    help=f"Exported model whose features tell faces apart: {', '.join(MODEL_NAMES)}, your own, or an .onnx file. "
    f"[default: the first available of {', '.join(PREFERENCE)}]",
)
@models_dir_option
@click.option(
    "--probabilities",
    type=_FILE,
    metavar="FILE",
    help="Use your own probabilities instead: a csv with a column image and one for each class. Each image needs those "
    "of a model that was not trained on it.",
)
@click.option("--no-label-errors", is_flag=True, help="Look for copies, blank and strange images only.")
def audit(
    data: Path, output: Path, model: str | None, models_dir: Path, probabilities: Path | None, no_label_errors: bool
) -> None:
    """Look for copies, contradictions, non-faces and probable label errors.

    \b
    fer-data audit data
    fer-data audit data --no-label-errors           copies only, in seconds
    fer-train ... --drop audit/label_errors.csv     train without the images on the list

    Writes a report, audit.json; a contact sheet, audit.png; and label_errors.csv with its own sheet,
    label_errors.png. Nothing is changed in DATA. Label errors come from confident learning: a
    classifier on the model's features judges each image without having learned from it or a copy.
    They are suspicions. Look at the sheet and delete the lines that you do not agree with.
    """
    from fer_train.data.auditing import audit_folder, keep_earlier_errors, write_label_errors, write_report
    from fer_train.data.source_folders import read_source

    _refuse_inside(output, data)  # where it would be a class folder in the next run
    check_writable(output / "audit.json")
    source = read_source(data)
    with _working("image", len(source.images)) as progress:
        found = audit_folder(
            source,
            model=model,
            models_dir=models_dir,
            probabilities=probabilities,
            label_errors=not no_label_errors,
            progress=progress,
        )
    for note in found.notes:
        _say(note)
    _say_problems(found.unreadable, "cannot be read", None)
    _say_alike(found.audit.counts)
    say(found.audit.to_text())
    for line in found.error_lines():
        say(line)
    if (kept := keep_earlier_errors(found, output)) is not None:
        _say(f"an earlier list, which is not the same, is now {kept}")
    for path in (*write_report(found, output), *write_label_errors(found, output)):
        say(printable(path))


def _names(renames: Sequence[str], numbers: str | None) -> LabelNames:
    try:
        return LabelNames(parse_renames(renames), numbers)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--rename") from None


def _refuse_inside(output: Path, source: Path) -> None:
    """Stop where the output would be among the images that are read."""
    inner, outer = os.path.realpath(output), os.path.realpath(source)
    if inner == outer or inner.startswith(outer + os.sep):
        raise click.UsageError(f"--output {output} is inside {source}, which is read; choose a folder outside of it")


@contextmanager
def _working(noun: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Progress on a terminal; Ctrl-C becomes an error that says how to continue."""
    from fer_runtime.cli.progress import Progress  # loads OpenCV, which --help needs not wait for

    done = 0

    def describe(seconds: float) -> str:
        rate = done / max(seconds, 1e-9)
        if total is None or not done:
            return f"{counted(done, noun)}, {rate:.0f}/s"
        return f"{noun} {done} of {total}, {rate:.0f}/s, {max(0, total - done) / rate:.0f} s left"

    progress = Progress(describe, is_shown=is_terminal(sys.stderr))

    def show(count: int) -> None:
        nonlocal done
        done = count
        progress.say()

    try:
        with progress:
            yield show
    except KeyboardInterrupt:
        raise InterruptedDataError from None


def _print_crops(report: CropReport) -> None:
    no_crop = sum(map(len, report.reasons.values()))
    before = f", {report.before} of them in an earlier run" if report.before else ""
    _print_counts(report.counts)
    say(f"{counted(report.photos, 'photo')}{before}, {counted(report.faces, 'face')}, {no_crop} without a crop")
    if report.removed:
        say(
            f"  {counted(report.removed, 'crop')} of earlier runs {'is' if report.removed == 1 else 'are'} removed; "
            f"to make one again, take its row out of {printable(report.files[0])}"
        )
    if report.several:
        say(f"  {counted(report.several, 'photo')} with several faces")
    by_reason: dict[str, int] = {}
    for reason, sources in report.reasons.items():
        kind = reason.partition(":")[0]
        by_reason[kind] = by_reason.get(kind, 0) + len(sources)
    for kind, count in sorted(by_reason.items(), key=lambda entry: -entry[1]):
        say(f"  {count} x {printable(kind)}")
    if report.reasons and report.detector == "haar":
        _say("faces were searched with Haar's cascade; YuNet finds more: fer-infer --fetch-yunet")
    if report.copies:
        images = sum(map(len, report.copies))
        conflicts = sum(len({label for _, label in group}) > 1 for group in report.copies)
        groups = counted(len(report.copies), "group")
        say(f"  {images} near-duplicates in {groups}, {conflicts} of them under two labels")
    _say_problems(
        [(source, reason) for reason, sources in report.reasons.items() for source in sources],
        "{has} no crop",
        report.files[0] if report.files else None,
    )
    _say_problems(
        report.outdated,
        "{is} of an earlier photo and still in the data; remove the files",
        None,
    )
    for file in report.files:
        say(printable(file))


def _print_counts(counts: Mapping[str, Mapping[str, int]]) -> None:
    from fer_train.data.audit import table_of_counts

    if not counts:
        return
    _say_alike(counts)
    order = [name for name in ("train", "validation", "test") if name in counts]
    for line in table_of_counts({name: counts[name] for name in order}):
        say(line)


def _say_alike(counts: Mapping[str, Mapping[str, int]]) -> None:
    """Say which labels differ in capitals and blanks alone: a slip, which would be two classes of a model."""
    alike: dict[str, list[str]] = {}
    for label in sorted({label for found in counts.values() for label in found}):
        alike.setdefault(" ".join(label.casefold().split()), []).append(repr(label))
    for labels in alike.values():
        if len(labels) > 1:
            _say(
                f"{' and '.join(labels)} are different labels; if you mean one, rename the folder, or use fer-data "
                "import --rename OLD=NEW"
            )


def _say_changes(names: LabelNames) -> None:
    for line in names.changes():
        _say(line)


def _say_problems(problems: Sequence[tuple[str, str]], fact: str, file: Path | None) -> None:
    """Name images with their reasons, as far as a screen holds them.

    Args:
        fact: what all of them have in common, with {is} and {has} for the verbs.
    """
    if not problems:
        return
    if len(problems) == 1:
        _say(f"an image that {fact.format(**{'is': 'is', 'has': 'has'})}:")
    else:
        _say(f"{len(problems)} images that {fact.format(**{'is': 'are', 'has': 'have'})}:")
    for source, reason in problems[:_NAMED]:
        _say(f"  {source}: {reason}")
    if len(problems) > _NAMED:
        where = f"; {printable(file)} has them all" if file is not None else ""
        _say(f"  and {len(problems) - _NAMED} more{where}")


def _say(text: Any) -> None:
    say(printable(text), err=True)


if __name__ == "__main__":
    main()
