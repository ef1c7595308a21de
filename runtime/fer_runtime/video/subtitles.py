"""Subtitles in SubRip's format."""

from __future__ import annotations

from fer_runtime.text import printable
from fer_runtime.video.segments import Segment


def to_srt(segment: Segment, number: int) -> str:
    """One subtitle in SubRip's format, numbered from 1."""
    return (
        f"{number}\n{_srt_time(segment.start)} --> {_srt_time(segment.end)}\n"
        f"face {segment.track}: {printable(segment.expression)} {segment.confidence:.0%}\n\n"
    )


def _srt_time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02},{rest % 1000:03}"
