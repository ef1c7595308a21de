"""`fer-infer` over images and folders: a row per image, annotated copies on request, a summary on stderr."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from time import perf_counter

import click

from fer_runtime.batch.jobs import JobSummary, recognize_files
from fer_runtime.batch.resume import Finished, finished_rows, partial_path, paths_left, refuse_unfinished
from fer_runtime.batch.sources import GivenPaths, Inputs, random_pictures, sample_pictures
from fer_runtime.cli.options import ImagesRun
from fer_runtime.cli.progress import Progress, pictures_done, say_summary
from fer_runtime.cli.recognizer import opened_recognizer, progress_is_shown
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.images import Uint8Array
from fer_runtime.output.formats import OUTPUT_FORMATS
from fer_runtime.output.sink import opened_sink
from fer_runtime.recognizer import Recognizer
from fer_runtime.results import ImageResult
from fer_runtime.text import printable

_TakeImage = Callable[[Uint8Array, ImageResult], object]
# More images than a killed run can have read without leaving their rows: what goes through it in a second, and more.
_SUSPECTS = 20_000


def run_on_images(options: ImagesRun, format_name: str) -> bool:
    """Write a row per image; whether any failed, a folder was skipped, or there was no image at all."""
    with opened_recognizer(options, max_pixels=options.max_pixels) as recognizer:
        return _run(recognizer, options, format_name)


def _run(recognizer: Recognizer, options: ImagesRun, format_name: str) -> bool:
    paths, recursive, random_count = options.paths, options.recursive, options.random_count
    output = None if options.output is None else Path(options.output)
    given = GivenPaths(paths)
    shipped = sample_pictures() if options.samples else []
    listed: Iterable[str] = chain(given, shipped)
    if random_count is not None:
        listed = random_pictures(listed, random_count)
    pictures = Inputs(listed, recursive=recursive)
    # Not among the rows, where these go to the terminal themselves.
    shows_progress = progress_is_shown(options)
    total = None
    if shows_progress and "-" not in paths and random_count is None:
        # Walking the folders twice takes a second per million files, and tells how long the rest will take.
        total = sum(1 for _ in Inputs([*paths, *shipped], recursive))
    takers: list[_TakeImage] = []
    if options.annotate is not None:
        from fer_runtime.output.image_files import AnnotatedCopies

        takers.append(AnnotatedCopies(options.annotate, paths).add)
    sheet = None
    if options.contact_sheet is not None:
        from fer_runtime.output.contact_sheet import ContactSheet
        from fer_runtime.output.image_files import SheetOfFaces

        truth = _class_folder if random_count else lambda path: None
        sheet = SheetOfFaces(options.contact_sheet, ContactSheet(recognizer.metadata.expressions), truth)
        takers.append(sheet.add)
    failed = _write_rows(
        recognizer,
        pictures,
        given.read,
        format_name,
        output,
        resume=options.resume,
        takers=takers,
        total=total,
        shows_progress=shows_progress,
        quiet=options.quiet,
    )
    if sheet is not None:
        sheet.write()
        click.echo(printable(options.contact_sheet), err=True)
    return failed


def _class_folder(path: str) -> str | None:
    """The true label of a picture in a class folder."""
    name = os.path.basename(os.path.dirname(path))
    return name if name in EXPRESSIONS else None


def _write_rows(
    recognizer: Recognizer,
    pictures: Inputs,
    read: Callable[[str], bytes],
    format_name: str,
    output: Path | None,
    *,
    resume: bool,
    takers: Sequence[_TakeImage],
    total: int | None,
    shows_progress: bool,
    quiet: bool,
) -> bool:
    """Write all rows; whether any picture failed or was missed, now or in the run that is resumed."""
    rows = OUTPUT_FORMATS[format_name].create()
    finished, paths = Finished(), iter(pictures)
    settings = recognizer.settings() if output is not None and format_name == "jsonl" else None
    if output is not None and not resume:
        refuse_unfinished(output)
    elif output is not None and output.exists() and not partial_path(output).exists():
        from fer_runtime.batch.whole_output import check_whole

        finished = check_whole(recognizer, pictures, output, read=read)
        click.echo(
            f"{printable(output)} is whole already: {finished.rows} rows, {finished.failed} of them failed", err=True
        )
        return bool(finished.failed or pictures.left_out.only_folders or not finished.rows)
    elif output is not None:
        finished = finished_rows(output, settings)
        paths = paths_left(pictures, partial_path(output), finished)
        click.echo(f"{finished.rows} rows are there already", err=True)
    summary = JobSummary()
    started = perf_counter()
    results = recognize_files(
        recognizer,
        paths,
        summary=summary,
        read=read,
        isolate_first=_SUSPECTS if resume else 0,
        on_image=(lambda image, row: [take(image, row) for take in takers]) if takers else None,
    )
    left = None if total is None else total - finished.rows
    progress = Progress(pictures_done(summary, left), is_shown=shows_progress)
    with closing(results), progress, opened_sink(output, finished, settings) as write:
        if not finished.rows:
            write(rows.header())
        for result in results:
            written = perf_counter()
            write(rows.row(result))
            summary.seconds_by_stage["write"] += perf_counter() - written
            progress.say()
    say_summary(
        summary,
        left_out=pictures.left_out,
        seconds=perf_counter() - started,
        detector=recognizer.detector_used,
        quiet=quiet,
    )
    was_empty = not (summary.pictures or finished.rows)
    return was_empty or bool(summary.failed or finished.failed or pictures.left_out.only_folders)
