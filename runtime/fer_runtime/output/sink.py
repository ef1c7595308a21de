"""Where rows go: standard output, or a file that waits beside its name until it is whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from fer_runtime.batch.resume import Finished, appended_output
from fer_runtime.command import is_terminal
from fer_runtime.errors import OutputError
from fer_runtime.text import printable

_LINE_BY_LINE = 1  # as `open` takes it


@contextmanager
def opened_sink(
    output: Path | None,
    finished: Finished,
    settings: Mapping[str, Any] | None = None,
    *,
    by_row: bool = False,
) -> Iterator[Callable[[str], object]]:
    """A function that takes the text of rows.

    Args:
        output: the file; None is standard output.
        finished: the rows that are there already.
        settings: what the rows are made with, where `--resume` can go on with them.
        by_row: each row leaves at once, as it does on a terminal; else they wait for others, which is faster.

    Raises:
        OutputError: there is no place for the rows.
    """
    if output is None:
        with _standard_output(by_row=by_row) as write:
            yield write
        return
    try:
        with appended_output(output, finished, settings, by_row=by_row) as stream:
            yield stream.write
    except KeyboardInterrupt:
        if settings is not None:
            click.echo(f"\nstopped; the rows so far wait beside {printable(output)}, go on with --resume", err=True)
        raise


@contextmanager
def _standard_output(*, by_row: bool) -> Iterator[Callable[[str], object]]:
    if sys.stdout is None:  # as `>&-` leaves it
        raise OutputError("standard output is closed; give --output FILE")
    try:
        # Names and reasons may hold anything; the rows are UTF-8 whatever the terminal's locale.
        buffering = _LINE_BY_LINE if by_row or is_terminal(sys.stdout) else 1 << 16
        with open(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", newline="", buffering=buffering) as stream:
            yield stream.write
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write to standard output: {error.strerror or error}; make room, or give --output FILE"
        ) from error
