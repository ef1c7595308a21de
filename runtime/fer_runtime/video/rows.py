"""Rows of a video: per frame or per segment, as a table, JSON Lines, CSV or subtitles."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from fer_runtime.output.rows import QUALITY_COLUMNS, csv_line, label_columns, quality_fields, uncertain_field
from fer_runtime.text import printable
from fer_runtime.video.results import FrameResult, utc_text
from fer_runtime.video.segments import Segment
from fer_runtime.video.sources import Gap, NamedSource, source_name
from fer_runtime.video.subtitles import to_srt

_FRAME_COLUMNS = ("path", "frame", "time", "track", "x", "y", "box_width", "box_height", "expression", "confidence")
_LAST_FRAME_COLUMNS = ("uncertain", *QUALITY_COLUMNS, "error", "clock")  # behind a column for each label
_SEGMENT_COLUMNS = ("path", "track", "start", "end", "expression", "confidence", "error", "clock")


def write_video_header(
    write: Callable[[str], object], labels: Sequence[str], *, format_name: str, segments: bool
) -> None:
    """Write what precedes the rows of all videos."""
    if format_name == "csv":
        write(csv_line(_SEGMENT_COLUMNS if is_per_segment(format_name, segments) else _frame_columns(labels)))


def _frame_columns(labels: Sequence[str]) -> list[str]:
    between = label_columns(labels, (*_FRAME_COLUMNS, *_LAST_FRAME_COLUMNS))
    return [*_FRAME_COLUMNS, *between, *_LAST_FRAME_COLUMNS]


def write_video_heading(write: Callable[[str], object], source: Path | int | NamedSource, *, format_name: str) -> None:
    """Write the name of the video above its rows of a table; the other formats have it in every row."""
    if format_name == "table":
        write(f"{printable(source_name(source))}\n")


def write_failed_row(
    write: Callable[[str], object],
    labels: Sequence[str],
    source: Path | int | NamedSource,
    reason: str,
    *,
    format_name: str,
    segments: bool,
) -> None:
    """Write the row with the reason why a video failed; subtitles have no place for it."""
    path = source_name(source)
    if format_name == "jsonl":
        write(json.dumps({"path": path, "error": reason}) + "\n")
    elif format_name == "csv":
        columns = len(_SEGMENT_COLUMNS if segments else _frame_columns(labels))
        write(csv_line([path, *[None] * (columns - 3), reason, None]))
    elif format_name == "table":
        write(f"  {printable(reason)}\n")


def is_per_segment(format_name: str, segments: bool) -> bool:
    """Whether there is one row per segment, not per frame."""
    return segments or format_name in ("srt", "table")


def frame_row(result: FrameResult, labels: Sequence[str], format_name: str) -> str:
    """The row of a frame: a line of JSON, or a line of CSV per face and one without a face where there is none."""
    if format_name == "jsonl":
        return json.dumps(_rounded(result.to_dict())) + "\n"
    return "".join(
        csv_line(
            (
                result.path,
                result.frame,
                f"{result.time:.4f}",
                tracked.track,
                *tracked.face.box,
                tracked.face.expression,
                f"{tracked.face.confidence:.6f}",
                *(f"{tracked.face.probabilities[name]:.6f}" for name in labels),
                uncertain_field(tracked.face),
                *quality_fields(tracked.face),
                None,
                _clock_field(result.clock),
            )
        )
        for tracked in result.faces
    ) or csv_line(
        (
            result.path,
            result.frame,
            f"{result.time:.4f}",
            *[None] * (len(_frame_columns(labels)) - 4),
            _clock_field(result.clock),
        )
    )


def gap_row(name: str, gap: Gap, labels: Sequence[str], format_name: str, *, segments: bool) -> str:
    """The row of a time in which a stream gave no frame; subtitles have none."""
    start, end = round(gap.start, 3), round(gap.end, 3)
    if format_name == "jsonl":
        values = {"path": name, "start": start, "end": end, "gap": gap.reason, "clock": utc_text(gap.clock)}
        return json.dumps(values) + "\n"
    if format_name == "csv":
        row = {"path": name, "start": start, "end": end, "time": start, "clock": utc_text(gap.clock)}
        row["error"] = f"gap of {gap.end - gap.start:.1f} s: {gap.reason}"
        return csv_line([row.get(column) for column in (_SEGMENT_COLUMNS if segments else _frame_columns(labels))])
    if format_name == "table":
        return f"{gap.start:8.2f} - {gap.end:8.2f} s  no frames: {printable(gap.reason)}\n"
    return ""


def segment_row(segment: Segment, format_name: str, number: int) -> str:
    """The row of a segment; `number` counts subtitles from 1."""
    if format_name == "srt":
        return to_srt(segment, number)
    if format_name == "jsonl":
        return json.dumps(segment.to_dict()) + "\n"
    values = segment.to_dict()
    if format_name == "csv":
        return csv_line([values.get(name) for name in _SEGMENT_COLUMNS])
    return (
        f"{segment.start:8.2f} - {segment.end:8.2f} s  face {segment.track:3}  {printable(segment.expression):10} "
        f"{segment.confidence:4.0%}\n"
    )


def _clock_field(clock: datetime | None) -> str | None:
    return None if clock is None else utc_text(clock)


def _rounded(value: Any) -> Any:
    """Floats to six decimals, as in the rows of images."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
