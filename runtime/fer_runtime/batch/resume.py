"""Output that a killed run leaves behind, and how the next run goes on from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

from fer_runtime.batch.jobs import BLOCK
from fer_runtime.errors import OutputError
from fer_runtime.files import refuse_special


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The rows that a killed run has left whole."""

    rows: int = 0
    failed: int = 0  # of those, pictures without a result
    size: int = 0  # bytes of the file that hold them


def partial_path(output: Path) -> Path:
    """Where rows wait until all of them are there: beside `output`, with `.partial` behind its name."""
    return output.with_name(output.name + ".partial")


def _settings_path(output: Path) -> Path:
    """What the unfinished rows were made with; gone when they are whole."""
    return output.with_name(output.name + ".partial.settings")


def finished_rows(output: Path, settings: Mapping[str, Any] | None = None) -> Finished:
    """The whole rows of an unfinished run of JSON lines, down to a full block.

    Rows of a block that was cut short are made again: a block's faces go through the model
    together, so that an interrupted run ends with the same bytes as an uninterrupted one.

    Args:
        output: where the rows were to go.
        settings: of this run, as plain JSON; None takes rows of any run.

    Raises:
        OutputError: the rows were made with other settings, or cannot be read.
    """
    if settings is not None and partial_path(output).exists():
        _check_settings(output, settings)
    ends: list[tuple[int, int]] = [(0, 0)]  # failed rows and file size after each block
    failed, size = 0, 0
    try:
        with partial_path(output).open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                    failed += row["error"] is not None
                except (ValueError, KeyError, TypeError):
                    break
                if not line.endswith(b"\n"):
                    break
                size += len(line)
                if number % BLOCK == 0:
                    ends.append((failed, size))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OutputError(f"cannot read {partial_path(output)}: {error.strerror}") from error
    return Finished(rows=(len(ends) - 1) * BLOCK, failed=ends[-1][0], size=ends[-1][1])


def refuse_unfinished(output: Path) -> None:
    """Stop before a run that starts anew would throw away rows that `--resume` can go on with.

    Raises:
        OutputError: there are such rows.
    """
    partial = partial_path(output)
    # Without settings they are of CSV, or of videos: no run can go on with them.
    if _settings_path(output).is_file() and partial.is_file() and partial.stat().st_size:
        raise OutputError(
            f"rows of an unfinished run wait in {partial}; go on with --resume, or remove that file to start again"
        )


def paths_left(paths: Iterable[str], rows: Path, finished: Finished) -> Iterator[str]:
    """Those of `paths` that have no finished row in the file `rows` yet.

    The order is that of the killed run as a rule, and then nothing is held in memory. Where pictures
    came or went meanwhile, the finished paths are remembered from there on.
    """
    done = _finished_paths(rows, finished)
    remaining = iter(paths)
    for path in remaining:
        expected = next(done, None)
        if expected is None:
            yield path
            yield from remaining
            return
        if expected != path:
            known = {expected, *done}
            yield from (one for one in chain((path,), remaining) if one not in known)
            return


@contextmanager
def appended_output(
    output: Path, finished: Finished, settings: Mapping[str, Any] | None = None, *, by_row: bool = False
) -> Iterator[IO[str]]:
    """A stream for the rows; the file takes its name when the block ends without an error.

    Args:
        output: where the rows go.
        finished: the rows that are there already.
        settings: what the rows are made with, kept beside them until they are whole; None where no run
            can go on with them.
        by_row: each row is in the file at once, for who reads it meanwhile.

    Raises:
        OutputError: the folder cannot be written, or the disk is full. What was written stays for --resume.
    """
    refuse_special(output)
    partial = partial_path(output)
    next_step = "choose another folder"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if settings is not None and not finished.size:
            # Rows of another run go first: killed between the two, nothing stands beside the wrong settings.
            partial.unlink(missing_ok=True)
            _settings_path(output).write_text(json.dumps(settings), encoding="utf-8")
        mode, buffering = "a" if finished.size else "w", 1 if by_row else 1 << 18
        with partial.open(mode, encoding="utf-8", newline="", buffering=buffering) as stream:
            stream.truncate(finished.size)
            next_step = f"the rows so far are in {partial}" + (", go on with --resume" if settings is not None else "")
            yield stream
        partial.replace(output)
        _settings_path(output).unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(f"cannot write {output}: {error.strerror or error}; {next_step}") from error


def _check_settings(output: Path, settings: Mapping[str, Any]) -> None:
    try:
        before = json.loads(_settings_path(output).read_text(encoding="utf-8"))
        differing = [key for key in settings if before.get(key) != settings[key]]
        changed = [f"{key} was {before.get(key)}, is {settings[key]}" for key in differing]
    except (OSError, ValueError, AttributeError) as error:
        raise OutputError(
            f"what the rows in {partial_path(output)} were made with is not known ({error}); "
            "remove that file to start again"
        ) from error
    if changed:
        raise OutputError(
            f"the rows in {partial_path(output)} were made with other settings ({'; '.join(changed)}); give the "
            "same, or remove that file to start again"
        )


def _finished_paths(rows: Path, finished: Finished) -> Iterator[str]:
    if not finished.rows:
        return
    with rows.open("rb") as file:
        for _ in range(finished.rows):
            yield json.loads(file.readline())["path"]
