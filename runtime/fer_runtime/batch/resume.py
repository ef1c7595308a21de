"""`--resume`: the rows that a stopped run has written, and the images that are left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from fer_runtime.batch.jobs import BlockEnds
from fer_runtime.errors import OutputError
from fer_runtime.results import Face
from fer_runtime.untrusted_json import parse_json


class Finished(NamedTuple):
    """The rows that a stopped run has left complete."""

    rows: int = 0
    failed: int = 0  # of those, images without a result
    size: int = 0  # bytes of the file that hold them


def finished_rows(rows: Path, block_ends: BlockEnds) -> Finished:
    """The complete rows of an unfinished run of JSON Lines, up to the end of a block.

    Rows of a block that was cut short are made again: a block's faces go through the model
    together, so that an interrupted run ends with the same bytes as an uninterrupted one.

    Args:
        rows: the file of rows.
        block_ends: tells where blocks end; of a new run.

    Raises:
        OutputError: the file cannot be read.
    """
    whole = Finished()
    failed = size = 0
    try:
        with rows.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = parse_row(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                failed += row["error"] is not None
                pixels = (row["width"] or 0) * (row["height"] or 0)
                size += len(line)
                if block_ends.after(pixels):
                    whole = Finished(rows=number, failed=failed, size=size)
    except OSError as error:
        raise OutputError(f"cannot read {rows}: {error.strerror}") from error
    return whole


def parse_row(line: bytes) -> dict[str, Any]:
    """A row of JSON Lines.

    Raises:
        ValueError: it is not as `ImageResult.to_dict` makes it.
    """
    row = parse_json(line)
    try:
        sizes, error = (row["width"], row["height"]), row["error"]
        if not isinstance(row["path"], str) or not isinstance(error, (str, type(None))):
            raise ValueError("a path or reason that is not text")
        if not all(size is None or (type(size) is int and size > 0) for size in sizes):
            raise ValueError("an image of no size")
        for face in row["faces"]:
            _check_face(Face.from_dict(face))
    except (KeyError, TypeError, AttributeError) as unlike:
        raise ValueError(f"not a row of fer-infer: {unlike!r}") from unlike
    return dict(row)


def _check_face(face: Face) -> None:
    numbers = [face.confidence, *face.probabilities.values()]
    if len(face.box) != 4 or not all(type(side) is int for side in face.box) or min(face.box[2:]) < 1:
        raise ValueError("an invalid box")
    if not all(type(share) in (int, float) and 0 <= share <= 1 for share in numbers):
        raise ValueError("an invalid probability")
    if face.probabilities.get(face.expression) != face.confidence:
        raise ValueError("another confidence than the label's probability")
    if not all(isinstance(text, str) for text in (*face.probabilities, *face.reasons, *face.not_checked)):
        raise ValueError("a label or reason that is not text")


def check_settings(rows: Path, before: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> None:
    """Raise an error if rows of different models or options would be mixed in one file.

    Args:
        rows: the unfinished file, for messages.
        before: what its rows were made with; None: no run can continue them.
        settings: of this run.

    Raises:
        OutputError: the settings differ.
    """
    if before is None:
        raise OutputError(
            f"the rows in {rows} do not come from a run that --resume can continue; remove that file to start again"
        )
    differing = [key for key in settings if before.get(key) != settings[key]]
    if differing:
        changed = "; ".join(f"{key} was {before.get(key)}, is {settings[key]}" for key in differing)
        raise OutputError(
            f"the rows in {rows} were made with other settings ({changed}); give the same settings, or remove that "
            "file to start again"
        )


def paths_left(paths: Iterable[str], rows: Path, finished: Finished) -> Iterator[str]:
    """Yield the `paths` without a finished row in the file `rows`; a path that is given twice has two rows.

    The order is usually that of the stopped run, and then nothing is held in memory. Where images
    came or went meanwhile, the finished paths are counted from there on.
    """
    done = finished_paths(rows, finished)
    remaining = iter(paths)
    for path in remaining:
        expected = next(done, None)
        if expected is None:
            yield path
            yield from remaining
            return
        if expected != path:
            known = Counter(chain((expected,), done))
            for other in chain((path,), remaining):
                if known[other]:
                    known[other] -= 1
                else:
                    yield other
            return


def finished_paths(rows: Path, finished: Finished) -> Iterator[str]:
    """The paths of the finished rows in the file `rows`, in their order."""
    for row in read_rows(rows, finished):
        yield row["path"]


def read_rows(rows: Path, finished: Finished) -> Iterator[dict[str, Any]]:
    """The finished rows in the file `rows`."""
    if not finished.rows:
        return
    with rows.open("rb") as file:
        for _ in range(finished.rows):
            yield parse_json(file.readline())
