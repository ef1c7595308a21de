"""Rows of images as text: JSON, CSV, and a table for people."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from functools import cache
from typing import Protocol

from fer_runtime.results import Face, ImageResult
from fer_runtime.text import csv_text, printable


class RowFormat(Protocol):
    """Turns results into text."""

    def header(self) -> str:
        """The text before the first row."""
        ...

    def row(self, result: ImageResult) -> str:
        """One image, with its line end."""
        ...


class JsonLines:
    """One JSON object per image; schema/image.schema.json describes it."""

    def header(self) -> str:
        return ""

    def row(self, result: ImageResult) -> str:
        # json.dumps of the whole row takes longer than a face through v0, so only what needs
        # escaping goes through it. A byte of the path that is no UTF-8 becomes a lone surrogate
        # "\udcXX", which os.fsencode turns back into that byte.
        faces = ", ".join(map(_face_json, result.faces))
        error = "null" if result.error is None else _quoted(result.error)
        width, height = ("null", "null") if result.width is None else (result.width, result.height)
        return (
            f'{{"path": {_quoted(result.path)}, "width": {width}, "height": {height}, '
            f'"error": {error}, "faces": [{faces}]}}\n'
        )


class JsonArray:
    """A frame that makes one JSON array of JSON Lines, complete also where a run was interrupted."""

    def __init__(self) -> None:
        self._before = "[\n"

    def rows(self, text: str) -> str:
        if not text:
            return ""
        before, self._before = self._before, ",\n"
        # A JSON value has no line end inside: each one here ends a row.
        return before + text.removesuffix("\n").replace("\n", ",\n")

    def end(self) -> str:
        return "[]\n" if self._before == "[\n" else "\n]\n"


_quoted = json.encoder.encode_basestring_ascii  # json.dumps looks at its nine options every time


def _face_json(face: Face) -> str:
    uncertain = "" if face.uncertain is None else f', "uncertain": {"true" if face.uncertain else "false"}'
    return _face_template(tuple(face.probabilities)) % (
        *face.box,
        "null" if face.detector_score is None else f"{face.detector_score:.6f}",
        _points_json(face) if face.landmarks else "null",
        _names_json(face.expression),
        face.confidence,
        *face.probabilities.values(),
        uncertain,
        _names_json(face.reasons),
        _names_json(face.not_checked),
    )


@cache
def _face_template(labels: tuple[str, ...]) -> str:
    # One % for a whole face takes half as long as an f-string per number.
    shares = ", ".join(_quoted(name).replace("%", "%%") + ": %.6f" for name in labels)
    return (
        '{"box": [%d, %d, %d, %d], "detector_score": %s, "landmarks": %s, "expression": %s, "confidence": %.6f, '
        '"probabilities": {' + shares + '}%s, "reasons": %s, "not_checked": %s}'
    )


_names_json = cache(json.JSONEncoder().encode)


def _points_json(face: Face) -> str:
    return "[" + ", ".join(f"[{x:.2f}, {y:.2f}]" for x, y in face.landmarks) + "]"


def csv_line(values: Sequence[object]) -> str:
    """One line of CSV with its end; None is an empty field, and texts pass through `csv_text`."""
    buffer = io.StringIO()
    safe = (csv_text(value) if isinstance(value, str) else value for value in values)
    csv.writer(buffer, lineterminator="\n").writerow(safe)
    return buffer.getvalue()


def label_columns(labels: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The columns of the labels' probabilities, each under its own name.

    Args:
        labels: of the model.
        taken: the other columns. A label of such a name, "uncertain" or "time", gets " (probability)" behind it.
    """
    used, columns = set(taken), []
    for label in labels:
        column = label
        while csv_text(column) in used:
            column += " (probability)"
        used.add(csv_text(column))
        columns.append(column)
    return columns


def uncertain_field(face: Face) -> str | None:
    """Whether a face is uncertain, as "true" or "false"; None, an empty field, without a threshold."""
    return None if face.uncertain is None else str(face.uncertain).lower()


QUALITY_COLUMNS = ("detector_score", "landmarks", "reasons", "not_checked")


def quality_fields(face: Face) -> list[str | None]:
    """The fields of QUALITY_COLUMNS: lists with a space between their parts, empty without any."""
    return [
        None if face.detector_score is None else f"{face.detector_score:.6f}",
        " ".join(f"{x:.2f} {y:.2f}" for x, y in face.landmarks) or None,
        " ".join(face.reasons) or None,
        " ".join(face.not_checked) or None,
    ]


class Csv:
    """One line per face, and one for an image without faces; the columns are always the same."""

    _IMAGE = ("path", "width", "height", "error")
    _FACE = ("face", "x", "y", "box_width", "box_height", "expression", "confidence")

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = tuple(labels)

    def header(self) -> str:
        before, after = (*self._IMAGE, *self._FACE), ("uncertain", *QUALITY_COLUMNS)
        return csv_line([*before, *label_columns(self._labels, (*before, *after)), *after])

    def row(self, result: ImageResult) -> str:
        image = [result.path, result.width, result.height, result.error]
        if not result.faces:
            return csv_line([*image, *[None] * (len(self._FACE) + len(self._labels) + 1 + len(QUALITY_COLUMNS))])
        return "".join(
            csv_line(
                [
                    *image,
                    number,
                    *face.box,
                    face.expression,
                    f"{face.confidence:.6f}",
                    *[f"{face.probabilities[name]:.6f}" for name in self._labels],
                    uncertain_field(face),
                    *quality_fields(face),
                ]
            )
            for number, face in enumerate(result.faces)
        )


_WIDEST_LABEL = 24  # characters; longer ones move the rest of their line


class Table:
    """One line per face, for people."""

    def __init__(self, labels: Sequence[str] = (), *, path_width: int = 40) -> None:
        self._path_width = path_width
        self._label_width = min(_WIDEST_LABEL, max(10, *map(len, labels), 0))

    def header(self) -> str:
        return f"{'image':{self._path_width}}  {'expression':{self._label_width}}  {'':5}  box\n"

    def row(self, result: ImageResult) -> str:
        name = self._padded(result.path)
        lines = []
        if result.error is not None:
            lines.append(f"{name}  {printable(result.error)}\n")
        elif not result.faces:
            lines.append(f"{name}  no face\n")
        for face in result.faces:
            x, y, width, height = face.box
            mark = "?" if face.uncertain else " "
            reasons = f"  {', '.join(face.reasons)}" if face.reasons else ""
            expression = printable(face.expression)
            lines.append(
                f"{'' if lines else name:{self._path_width}}  {expression:{self._label_width}}  "
                f"{face.confidence:5.0%}{mark} {width} x {height} at {x}, {y}{reasons}\n"
            )
        return "".join(lines)

    def _padded(self, path: str) -> str:
        text = printable(path)
        # The end of a path tells images apart.
        text = text if len(text) <= self._path_width else "…" + text[1 - self._path_width :]
        return f"{text:{self._path_width}}"
