"""Where rows go: standard output, or a file that waits beside its name until it is whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from fer_runtime.errors import OutputError
from fer_runtime.resume import Finished, appended_output


@contextmanager
def opened_sink(
    output: Path | None, finished: Finished, settings: Mapping[str, Any] | None = None
) -> Iterator[Callable[[str], object]]:
    """A function that takes the text of rows.

    Args:
        output: the file; None is standard output.
        finished: the rows that are there already.
        settings: what the rows are made with, where `--resume` can go on with them.

    Raises:
        OutputError: there is no place for the rows.
    """
    if output is None:
        with _standard_output() as write:
            yield write
        return
    try:
        with appended_output(output, finished, settings) as stream:
            yield stream.write
    except KeyboardInterrupt:
        if settings is not None:
            click.echo(f"\nstopped; the rows so far wait beside {output}, go on with --resume", err=True)
        raise


@contextmanager
def _standard_output() -> Iterator[Callable[[str], object]]:
    if sys.stdout is None:  # as `>&-` leaves it
        raise OutputError("standard output is closed; give --output FILE")
    try:
        # Names and reasons may hold anything; the rows are UTF-8 whatever the terminal's locale.
        with open(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", newline="", buffering=1 << 16) as stream:
            yield stream.write
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write to standard output: {error.strerror or error}; make room, or give --output FILE"
        ) from error
