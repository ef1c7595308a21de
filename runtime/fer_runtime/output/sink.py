"""Write rows to standard output, or to a file that gets its name when the rows are complete."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import click

from fer_runtime.errors import OutputError
from fer_runtime.output.partial import PartialFile
from fer_runtime.standard_streams import is_terminal
from fer_runtime.stopping import undivided
from fer_runtime.text import printable


class Frame(Protocol):
    """Text around the rows of a whole output, such as the brackets of a JSON array."""

    def rows(self, text: str) -> str:
        """The text of one or more rows as written to the output."""
        ...

    def end(self) -> str:
        """The text after the last row, also of a run that was interrupted."""
        ...


class NoFrame:
    """Rows one after another."""

    def rows(self, text: str) -> str:
        return text

    def end(self) -> str:
        return ""


class _Target(Protocol):
    def write(self, text: str) -> None: ...

    def flush(self) -> None: ...


class Sink:
    """Takes the text of rows.

    Args:
        target: a file or standard output.
        frame: what surrounds the rows.
        by_row: each row leaves at once; otherwise rows leave with `flush`, which is faster.
    """

    def __init__(self, target: _Target, frame: Frame, *, by_row: bool) -> None:
        self._target = target
        self._frame = frame
        self._by_row = by_row

    def write(self, text: str, *, count: Callable[[], object] | None = None) -> None:
        """Add the text of rows.

        Args:
            count: called where the rows were added, and only there: no signal comes between the two.
        """
        with undivided:
            self._target.write(self._frame.rows(text))
            if count is not None:
                count()
        if self._by_row:
            self._target.flush()

    def flush(self) -> None:
        """Write out the rows that were added, so that a later kill loses none of them."""
        self._target.flush()

    def end(self) -> None:
        """Write what follows the last row."""
        self._target.write(self._frame.end())
        self._target.flush()


@contextmanager
def opened_sink(
    output: PartialFile | Path | None, *, frame: Frame | None = None, by_row: bool = False, resumable: bool = False
) -> Iterator[Sink]:
    """A sink for rows. The file takes its name when the block ends without an error.

    Args:
        output: the file, opened and started, or the path of a new one; None is standard output.
        frame: what surrounds the rows, nothing by default.
        by_row: each row leaves at once, as it does on a terminal.
        resumable: `--resume` can continue the rows of the file.

    Raises:
        OutputError: there is no place for the rows.
    """
    frame = NoFrame() if frame is None else frame
    if output is None:
        with _standard_output() as target:
            sink = Sink(target, frame, by_row=by_row or is_terminal(sys.stdout))
            try:
                yield sink
            except BrokenPipeError:
                raise
            except BaseException:
                sink.end()
                raise
            sink.end()
        return
    if not isinstance(output, PartialFile):
        output = PartialFile(output)
        try:
            output.refuse_unfinished()
            output.start(0, None)
        except BaseException:
            output.close()
            raise
    try:
        sink = Sink(output, frame, by_row=by_row)
        try:
            yield sink
        except KeyboardInterrupt:
            sink.end()
            advice = "continue with --resume" if resumable else "a new run replaces them"
            click.echo(f"\nstopped; the rows so far are in {printable(output.path)}, {advice}", err=True)
            raise
        except OutputError:
            raise
        except BaseException:
            sink.end()
            raise
        sink.end()
        output.finish()
    finally:
        output.close()


class _StandardOutput:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rows: list[str] = []

    def write(self, text: str) -> None:
        self._rows.append(text)

    def flush(self) -> None:
        # Names and reasons may hold anything; the rows are UTF-8 whatever the terminal's locale.
        rows, self._rows = self._rows, []
        view = memoryview("".join(rows).encode("utf-8"))
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                # Whoever made the pipe, such as Node, does not wait on it. A file is always ready, a full one fails.
                select.select([], [self._descriptor], [])


@contextmanager
def _standard_output() -> Iterator[_StandardOutput]:
    if sys.stdout is None:  # as `>&-` leaves it
        raise OutputError("standard output is closed; give --output FILE")
    try:
        yield _StandardOutput(sys.stdout.fileno())
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write to standard output: {error.strerror or error}; make room, or give --output FILE"
        ) from error
