"""Rows that a stopped run has left: what is no row of ours ends the part that is continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fer_runtime.batch.jobs import BlockEnds
from fer_runtime.batch.resume import finished_rows, parse_row
from fer_runtime.results import Face, ImageResult

_FACE = Face(
    box=(1, 2, 30, 40),
    expression="a",
    confidence=0.75,
    probabilities={"a": 0.75, "b": 0.25},
    uncertain=False,
    landmarks=((1.0, 2.0),) * 5,
    reasons=("small",),
)
_ROW = ImageResult(path="a\udcff.jpg", width=100, height=90, error=None, faces=(_FACE,)).to_dict()
_FAILED = ImageResult(path="b.jpg", width=None, height=None, error="is empty (0 bytes)", faces=()).to_dict()


_OTHER_FACES: tuple[dict[str, Any], ...] = (
    {"box": [1, 2, 30]},
    {"box": [1, 2, 30, "40"]},
    {"box": [1, 2, 0, 40]},
    {"confidence": "0.75"},
    {"confidence": 0.7},
    {"expression": "c"},
    {"expression": []},
    {"probabilities": [0.75]},
    {"probabilities": {"a": 0.75, "b": 25}},
    {"landmarks": [1]},
    {"reasons": None},
    {"reasons": [3]},
    {"other": 3},
)


class _EveryRow(BlockEnds):
    def after(self, pixels: int) -> bool:
        return True


@pytest.mark.parametrize("row", [_ROW, _FAILED])
def test_our_own_rows_are_read(row: dict[str, Any]) -> None:
    assert parse_row(json.dumps(row).encode()) == row


@pytest.mark.parametrize(
    "change",
    [
        {"path": 3},
        {"path": None},
        {"error": 3},
        {"width": "100"},
        {"width": True},
        {"width": -1},
        {"height": 1.5},
        {"faces": None},
        {"faces": {"a": 1}},
        {"faces": [[]]},
        {"faces": [{}]},
        *({"faces": [_FACE.to_dict() | change]} for change in _OTHER_FACES),
    ],
    ids=str,
)
def test_a_row_of_another_kind_and_those_behind_it_are_made_again(change: dict[str, Any], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl.partial"
    good = json.dumps(_ROW).encode() + b"\n"
    rows.write_bytes(good + json.dumps(_ROW | change).encode() + b"\n" + good)
    finished = finished_rows(rows, _EveryRow())
    assert (finished.rows, finished.size) == (1, len(good))
