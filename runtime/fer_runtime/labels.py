"""Check, parse and compare labels, the names of a model's classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fer_runtime.text import printable

MIN_LABELS, MAX_LABELS = 2, 1000
_MAX_CHARACTERS = 100


def check_labels(labels: Any) -> tuple[str, ...]:
    """`labels` as a tuple, where a model can have them: 2 to 1,000 different texts on one line each.

    Raises:
        ValueError: there are too few or too many, one is no printable text, or two are the same.
    """
    if not isinstance(labels, (list, tuple)) or not MIN_LABELS <= len(labels) <= MAX_LABELS:
        raise ValueError(f"labels must be a list of {MIN_LABELS} to {MAX_LABELS}")
    for label in labels:
        if not isinstance(label, str) or not 1 <= len(label) <= _MAX_CHARACTERS or label != label.strip():
            shown = printable(label, limit=40)
            raise ValueError(f"a label must be a printable text of 1 to {_MAX_CHARACTERS} characters, got {shown!r}")
        if printable(label) != label:
            raise ValueError(f"a label must be a printable text, got {printable(label)!r}")
    if len(set(labels)) < len(labels):
        raise ValueError(f"the label {next(label for label in labels if labels.count(label) > 1)!r} occurs twice")
    return tuple(labels)


def parse_labels(text: str) -> tuple[str, ...]:
    """Labels as an option takes them: "angry,disgust,..."; one with a comma is quoted as in CSV.

    Raises:
        ValueError: they are no labels that a model can have.
    """
    import csv  # models are read without

    rows = list(csv.reader([text], skipinitialspace=True))
    try:
        return check_labels([label.strip() for label in rows[0]] if len(rows) == 1 else [])
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error


def label_difference(expected: Sequence[str], actual: Sequence[str]) -> str:
    """Which of the expected labels `actual` lacks, and which it adds, as the end of a sentence; "" where none differs.

    The order does not matter: labels are compared by name.
    """
    missing = [label for label in expected if label not in set(actual)]
    added = [label for label in actual if label not in set(expected)]
    parts = [f"it lacks {_shown(missing)}"] if missing else []
    parts += [f"it also has {_shown(added)}"] if added else []
    return ", and ".join(parts)


def _shown(labels: Sequence[str]) -> str:
    shown = ", ".join(printable(label, limit=40) for label in labels[:8])
    return shown + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
