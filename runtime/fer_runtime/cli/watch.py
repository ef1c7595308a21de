"""`fer-infer --watch`: a row for every file that is added to a folder, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import click

from fer_runtime.batch.jobs import BlockEnds, JobSummary, recognize_files
from fer_runtime.batch.resume import Finished, check_settings, finished_paths, finished_rows
from fer_runtime.batch.watch import Covered, FolderWatch
from fer_runtime.cli.options import WatchRun
from fer_runtime.cli.progress import say_summary
from fer_runtime.cli.recognizer import opened_recognizer
from fer_runtime.errors import OutputError
from fer_runtime.output.formats import OUTPUT_FORMATS
from fer_runtime.output.partial import PartialFile
from fer_runtime.output.sink import NoFrame, Sink, opened_sink
from fer_runtime.recognizer import Recognizer
from fer_runtime.text import counted, printable

_LEAST_SECONDS = 1.0  # between two looks
_SCAN_SHARE = 20  # a look that takes long is followed by a pause of so many times that


class _EveryRow(BlockEnds):
    """Files come one by one, so each row is complete by itself."""

    def after(self, pixels: int) -> bool:
        return True


def run_on_watched(options: WatchRun, format_name: str) -> bool:
    """Write rows until a signal ends the run; whether an image failed."""
    output = None if options.output is None else Path(options.output)
    with (
        opened_recognizer(options, max_pixels=options.max_pixels) as recognizer,
        _opened(output, recognizer, format_name, quiet=options.quiet) as (sink, before, note),
    ):
        known = () if output is None else finished_paths(output, before.finished)
        watch = FolderWatch(str(options.watch), recursive=options.recursive, known=known, covered=before.covered)
        rows = OUTPUT_FORMATS[format_name].create(recognizer.labels)
        summary, started, known_unreadable = JobSummary(), perf_counter(), list[str]()
        if not before.finished.rows:
            sink.write(rows.header())
        try:
            while True:
                looking = perf_counter()
                paths = watch.new_files()
                pause = max(_LEAST_SECONDS, _SCAN_SHARE * (perf_counter() - looking))
                if paths:  # a kill must not leave a replaced file without its row
                    note(watch.covered)
                with closing(recognize_files(recognizer, paths, summary=summary)) as results:
                    for result in results:
                        sink.write(rows.row(result))
                if paths:
                    note(watch.then_covered)
                for folder in watch.unreadable:
                    if folder not in known_unreadable:
                        fact = "cannot be read" if os.path.isdir(folder) else "has disappeared"
                        click.echo(f"warning: {printable(folder)} {fact}; waiting for it", err=True)
                known_unreadable = watch.unreadable
                time.sleep(pause)
        except KeyboardInterrupt:
            # The only end that a watch has.
            say_summary(
                summary,
                left_out=watch.left_out,
                seconds=perf_counter() - started,
                detector=recognizer.detector_used,
                quiet=options.quiet,
            )
    return summary.failed > 0


class _Before(NamedTuple):
    """The rows of an earlier run in the output."""

    finished: Finished = Finished()
    covered: Covered = Covered()


def _refuse_damaged(rows: Path, finished: Finished) -> None:
    """Stop before rows behind a damaged one are thrown away: their files may have gone.

    Raises:
        OutputError: more than the beginning of a last row follows the rows that can be read.
    """
    with rows.open("rb") as file:
        file.seek(finished.size)
        if file.readline().endswith(b"\n"):
            raise OutputError(
                f"row {finished.rows + 1} in {rows} is damaged; repair or remove that line, or give another --output"
            )


@contextmanager
def _opened(
    output: Path | None, recognizer: Recognizer, format_name: str, *, quiet: bool
) -> Iterator[tuple[Sink, _Before, Callable[[Covered], object]]]:
    """Open the output; gives the sink for rows, the rows of an earlier run, and what notes which files they cover."""
    if output is None:
        with opened_sink(None, frame=OUTPUT_FORMATS[format_name].create_frame(), by_row=True) as sink:
            yield sink, _Before(), lambda covered: None
        return
    with closing(PartialFile(output, in_place=True)) as file:
        settings, before = recognizer.settings(), _Before()
        if file.size:
            check_settings(file.path, file.settings, settings)
            covered = _noted(file.watched) or Covered(os.stat(file.path).st_mtime)  # when the last row was written
            before = _Before(finished_rows(file.path, _EveryRow()), covered)
            _refuse_damaged(file.path, before.finished)
            if not quiet:
                click.echo(f"{counted(before.finished.rows, 'row')} from the previous run", err=True)
        file.start(before.finished.size, settings)

        def note(covered: Covered) -> None:
            file.note_watched({"until": covered.until, "replaced": sorted(covered.replaced)})

        yield Sink(file, NoFrame(), by_row=True), before, note


def _noted(watched: Any) -> Covered | None:
    """What an earlier run has noted; None where it is no such note."""
    try:
        until, replaced = watched["until"], watched["replaced"]
        if isinstance(until, float) and all(isinstance(path, str) for path in replaced):
            return Covered(until, frozenset(replaced))
    except (TypeError, KeyError):
        pass
    return None
