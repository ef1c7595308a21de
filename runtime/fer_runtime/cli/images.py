"""`fer-infer` over images and folders: a row each, annotated copies on request, and a summary on stderr."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from fer_runtime.batch.jobs import BLOCK, BlockEnds, JobSummary, recognize_files
from fer_runtime.batch.resume import Finished, check_settings, finished_rows, paths_left, read_rows
from fer_runtime.batch.sources import GivenPaths, Inputs, LeftOut, random_images, sample_images
from fer_runtime.cli.arguments import destinations_of
from fer_runtime.cli.options import ImagesRun
from fer_runtime.cli.progress import Progress, images_done, say_summary
from fer_runtime.cli.recognizer import opened_recognizer, progress_is_shown
from fer_runtime.errors import OutputError
from fer_runtime.files import can_be_written
from fer_runtime.images import Uint8Array
from fer_runtime.output.destinations import Destinations, ExistingFile, guarded
from fer_runtime.output.formats import OUTPUT_FORMATS, OutputFormat
from fer_runtime.output.partial import PartialFile, partial_path
from fer_runtime.output.sink import Sink, opened_sink
from fer_runtime.recognizer import Recognizer
from fer_runtime.results import ImageResult
from fer_runtime.text import counted, printable

if TYPE_CHECKING:
    from fer_runtime.output.image_files import AnnotatedCopies, SheetOfFaces
    from fer_runtime.output.rows import RowFormat

# More images than a killed run can have read without leaving their rows: a block for each of 62 threads, and two.
_SUSPECTS = 64 * BLOCK


def run_on_images(options: ImagesRun, format_name: str) -> bool:
    """Write a row per image; whether any failed, a folder was skipped, or there was no image at all."""
    with opened_recognizer(options, max_pixels=options.max_pixels) as recognizer, ExitStack() as stack:
        return _run(recognizer, options, format_name, stack)


def _run(recognizer: Recognizer, options: ImagesRun, format_name: str, stack: ExitStack) -> bool:
    destinations = destinations_of(options)
    existing = destinations.existing()
    rows_file = None
    if destinations.output is not None and not (options.resume and _is_complete(destinations.output)):
        rows_file = PartialFile(destinations.output)  # from here on no other run writes these rows
        stack.callback(rows_file.close)
        if not options.resume:
            rows_file.refuse_unfinished()
    given = GivenPaths(options.paths, null_separated=options.null_separated)
    shipped = sample_images() if options.samples else []
    listed: Iterable[str] = chain(given, shipped)
    left_out = LeftOut()
    if options.random_count is not None:
        listed = random_images(listed, options.random_count, left_out=left_out)
    if "-" in options.paths and destinations.replaces_copies():
        # The whole list first: an image of it may be an annotated copy of an earlier run.
        listed = list(listed)
        destinations.check_listed(listed)
    job = _Job(
        recognizer=recognizer,
        inputs=Inputs(listed, recursive=options.recursive, left_out=left_out),
        read=given.read,
        must_wait=given.must_wait,
        extras=_Extras.of(recognizer, destinations, options),
        quiet=options.quiet,
    )
    if destinations.output is not None and rows_file is None:
        failed = job.check_complete(destinations.output)
    else:
        # Not among the rows, where these go to the terminal themselves.
        shows_progress = progress_is_shown(options)
        total = None
        if shows_progress and "-" not in options.paths and options.random_count is None:
            # Walking the folders twice takes a second per million files, and tells how long the rest will take.
            total = sum(1 for _ in Inputs(chain(GivenPaths(options.paths), shipped), options.recursive))
        failed = job.write_rows(
            OUTPUT_FORMATS[format_name],
            rows_file,
            existing,
            resume=options.resume,
            is_resumable=OUTPUT_FORMATS[format_name].is_resumable and options.random_count is None,
            total=total,
            shows_progress=shows_progress,
        )
    job.extras.finish(quiet=options.quiet)
    return failed


def _is_complete(output: Path) -> bool:
    return os.path.exists(output) and not os.path.lexists(partial_path(output))


class _Extras(NamedTuple):
    """What a run writes besides its rows."""

    copies: AnnotatedCopies | None = None
    sheet: SheetOfFaces | None = None

    @classmethod
    def of(cls, recognizer: Recognizer, destinations: Destinations, options: ImagesRun) -> _Extras:
        copies = sheet = None
        if destinations.annotate is not None:
            from fer_runtime.output.image_files import AnnotatedCopies

            if not can_be_written(destinations.annotate):
                raise OutputError(f"cannot write into {destinations.annotate}; choose another folder")
            taken = [file for _, file in destinations.files()]
            copies = AnnotatedCopies(
                destinations.annotate, options.paths, options.reads_subfolders, taken, options.anonymize
            )
        if destinations.contact_sheet is not None:
            from fer_runtime.output.contact_sheet import ContactSheet
            from fer_runtime.output.image_files import SheetOfFaces

            labels = recognizer.labels
            truth = partial(_class_folder, labels=labels) if options.random_count else lambda path: None
            sheet = SheetOfFaces(destinations.contact_sheet, ContactSheet(labels), truth, options.max_pixels)
        return cls(copies, sheet)

    @property
    def need_images(self) -> bool:
        return self.copies is not None or self.sheet is not None

    def add(self, image: Uint8Array | None, row: ImageResult) -> ImageResult:
        """Take one image and its row; the row that is to be written."""
        if self.sheet is not None:
            row = self.sheet.add(image, row)
        return row if self.copies is None else self.copies.add(image, row)

    def replay(self, rows: Path, finished: Finished, read: Callable[[str], bytes]) -> int:
        """Take the rows that an earlier run has written; how many of their annotated copies are not there."""
        missing = 0 if self.copies is None else self.copies.replay(read_rows(rows, finished))
        if self.sheet is not None:
            self.sheet.replay(read_rows(rows, finished), read)
        return missing

    def finish(self, *, quiet: bool) -> None:
        """Write what is written at the end."""
        if self.sheet is not None:
            self.sheet.write()
            if not quiet:
                click.echo(printable(self.sheet.path), err=True)
        if self.copies is not None and self.copies.anonymize is not None:
            text = "copies have no EXIF; faces that were not found are not covered"
            if self.copies.unchanged:
                text += f": no face was found in {counted(self.copies.unchanged, 'image')} of this run"
            click.echo(text, err=True)

    def settings(self) -> dict[str, str | None]:
        """Return what a run must have in common with the run that it continues."""
        return {
            "annotate": None if self.copies is None else os.path.abspath(self.copies.folder),
            "anonymize": None if self.copies is None else self.copies.anonymize,
            "contact_sheet": None if self.sheet is None else os.path.abspath(self.sheet.path),
        }


class _Job(NamedTuple):
    """A run over images, ready to write its rows."""

    recognizer: Recognizer
    inputs: Inputs
    read: Callable[[str], bytes]  # of one of the inputs
    must_wait: Callable[[], bool]  # whether the next path is still to come on standard input
    extras: _Extras
    quiet: bool

    def check_complete(self, output: Path) -> bool:
        """Whether an image failed in the finished run whose rows are in `output`."""
        from fer_runtime.batch.whole_output import check_whole

        if self.extras.copies is not None and self.extras.copies.anonymize is not None:
            raise OutputError(
                f"{output} is complete, and nothing says whether its copies were anonymized; leave out --resume to "
                "write them again"
            )
        finished = check_whole(self.recognizer, self.inputs, output, read=self.read)
        if missing := self.extras.replay(output, finished, self.read):
            raise OutputError(
                f"{output} is complete, but annotated copies are missing ({missing}); leave out --resume to write them"
            )
        if not self.quiet:
            click.echo(
                f"{printable(output)} is complete: {counted(finished.rows, 'row')}, {finished.failed} of them failed",
                err=True,
            )
        return bool(finished.failed or self.inputs.left_out.only_folders or not finished.rows)

    def write_rows(
        self,
        output_format: OutputFormat,
        rows_file: PartialFile | None,
        existing: Sequence[ExistingFile],
        *,
        resume: bool,
        is_resumable: bool,
        total: int | None,
        shows_progress: bool,
    ) -> bool:
        """Write all rows; whether any image failed or was missed, now or in the run that is continued.

        Args:
            rows_file: where they are collected; None writes them to standard output.
            existing: files that the run writes, so that none of them is taken for an image.
            resume: continue the rows in `rows_file`.
            is_resumable: a later run can continue these rows.
            total: images of the run, for the progress; None where they were not counted.
        """
        recognizer, extras = self.recognizer, self.extras
        rows = output_format.create(recognizer.labels)
        finished, paths = Finished(), guarded(self.inputs, existing)
        if rows_file is not None:
            settings = recognizer.settings() | extras.settings() if is_resumable else None
            finished, paths = self._continue(rows_file, paths, settings, resume=resume)
        summary = JobSummary()
        written = JobSummary(seconds_by_stage=summary.seconds_by_stage)  # the rows that reach the output
        started = perf_counter()
        results = recognize_files(
            recognizer,
            paths,
            summary=summary,
            read=self.read,
            on_row=extras.add if extras.need_images else None,
            block_ends=BlockEnds(keeps_images=extras.need_images, images=finished.rows),
            isolate_first=_SUSPECTS if resume else 0,
            must_wait=self.must_wait,
            # In a file, blocks end where --resume finds them again.
            whole_blocks=rows_file is not None,
        )
        progress = Progress(
            images_done(written, None if total is None else total - finished.rows), is_shown=shows_progress
        )
        try:
            with (
                closing(results),
                progress,
                opened_sink(rows_file, frame=output_format.create_frame(), resumable=is_resumable) as sink,
            ):
                if not finished.rows:
                    sink.write(rows.header())
                _write_each(results, rows, sink, summary=summary, written=written, on_row=progress.say)
        except KeyboardInterrupt:
            self._say_summary(written, started)
            raise
        self._say_summary(written, started)
        if was_empty := not (written.images or finished.rows):
            click.echo("no images to read", err=True)
        return was_empty or bool(written.failed or finished.failed or self.inputs.left_out.only_folders)

    def _continue(
        self, rows_file: PartialFile, paths: Iterable[str], settings: dict[str, Any] | None, *, resume: bool
    ) -> tuple[Finished, Iterator[str]]:
        """Make the file ready for the next row.

        Returns:
            the rows of an earlier run that stay in it, and the paths that have none.
        """
        finished = Finished()
        if resume and rows_file.size:
            check_settings(rows_file.path, rows_file.settings, settings or {})
            finished = finished_rows(rows_file.path, BlockEnds(keeps_images=self.extras.need_images))
        if resume and not self.quiet:
            click.echo(f"{counted(finished.rows, 'row')} from the previous run", err=True)
        self.extras.replay(rows_file.path, finished, self.read)
        rows_file.start(finished.size, settings)
        return finished, paths_left(paths, rows_file.path, finished)

    def _say_summary(self, written: JobSummary, started: float) -> None:
        say_summary(
            written,
            left_out=self.inputs.left_out,
            seconds=perf_counter() - started,
            detector=self.recognizer.detector_used,
            quiet=self.quiet,
        )


def _write_each(
    results: Iterable[ImageResult],
    rows: RowFormat,
    sink: Sink,
    *,
    summary: JobSummary,
    written: JobSummary,
    on_row: Callable[[], object],
) -> None:
    """Write a row per result, and a block of them as soon as it is whole.

    Args:
        summary: of the results so far.
        written: counts the rows that reach the output.
        on_row: called after each row.
    """
    for result in results:
        writing = perf_counter()
        sink.write(rows.row(result), count=partial(written.count, result))
        if written.images == summary.images:  # the last row of its block: the next one may take a while
            sink.flush()
        summary.seconds_by_stage["write"] += perf_counter() - writing
        on_row()


def _class_folder(path: str, labels: Sequence[str]) -> str | None:
    """The true label of an image in a class folder."""
    name = os.path.basename(os.path.dirname(path))
    return name if name in labels else None
