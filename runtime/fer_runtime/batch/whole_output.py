"""`--resume` with a finished file: check that its rows are those that this run would write."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from fer_runtime.batch.jobs import BLOCK, recognize_files
from fer_runtime.batch.resume import Finished, paths_left
from fer_runtime.errors import OutputError
from fer_runtime.files import refuse_special
from fer_runtime.output.destinations import COPY_FAILED
from fer_runtime.recognizer import Recognizer
from fer_runtime.text import counted
from fer_runtime.untrusted_json import parse_json

# Other models differ by more in some face of a block; batches of another size, as `--annotate` has them, by less.
_TOLERANCE = 1e-3
_WAY_OUT = "give another --output, or leave out --resume to replace it"


def check_whole(
    recognizer: Recognizer, images: Iterable[str], output: Path, *, read: Callable[[str], bytes]
) -> Finished:
    """Check that a finished file of JSON Lines has the rows of this run, and return them.

    Nothing is kept beside a finished file, so its first block of rows is computed again and compared.

    Args:
        images: of this run.
        output: the file.
        read: a path to the file's content.

    Raises:
        OutputError: a row differs, an image has no row, or the file is not rows of fer-infer.
    """
    first, finished = _read_rows(output)
    with closing(recognize_files(recognizer, [row["path"] for row in first], read=read)) as results:
        for number, (row, result) in enumerate(zip(first, results, strict=True), 1):
            if str(row["error"]).startswith(COPY_FAILED):
                row["error"] = None  # of the run's annotated copies, not of its answers
            if not _is_like(row, result.to_dict()):
                raise OutputError(
                    f"{output} is complete, but its row {number} is not what this run gives: made with another "
                    f"model, detector or threshold, or of another image; {_WAY_OUT}"
                )
    if left := sum(1 for _ in paths_left(images, output, finished)):
        raise OutputError(f"{output} is complete, but has no row for {counted(left, 'image')} of this run; {_WAY_OUT}")
    return finished


def _read_rows(output: Path) -> tuple[list[dict[str, Any]], Finished]:
    """The first block of rows, and how many there are."""
    refuse_special(output)
    first: list[dict[str, Any]] = []
    rows = failed = size = 0
    try:
        with output.open("rb") as file:
            for line in file:
                row = parse_json(line)
                failed += row["error"] is not None
                if not isinstance(row["path"], str):
                    raise TypeError("a path that is not text")
                rows, size = rows + 1, size + len(line)
                if rows <= BLOCK:
                    first.append(row)
    except OSError as error:
        raise OutputError(f"cannot read {output}: {error.strerror}; {_WAY_OUT}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{output} exists, but holds no JSON Lines of fer-infer; {_WAY_OUT}") from error
    return first, Finished(rows=rows, failed=failed, size=size)


def _is_like(value: Any, other: Any) -> bool:
    """Whether two rows are the same but for the last bits of their floats."""
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(_is_like(value[key], other[key]) for key in value)
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(_is_like, value, other))
    if isinstance(value, float) and isinstance(other, float):
        return abs(value - other) <= _TOLERANCE
    return bool(value == other)
