"""Results for a video: its frames with their tracked faces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fer_runtime.results import Face


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedFace:
    """A face in a frame. Its probabilities are averaged over its track with a time constant of 0.4 seconds."""

    track: int  # number of the face, from 1, the same in all frames of its track
    face: Face

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON Lines hold it."""
        return {"track": self.track, **self.face.to_dict()}


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameResult:
    """The faces of one processed frame; iterate over it for its `TrackedFace`s."""

    path: str
    frame: int  # number of the frame in its source, from 0
    time: float  # seconds since the first frame; with `Tracker`, by your clock
    faces: tuple[TrackedFace, ...]
    clock: datetime | None = None  # UTC, when a camera or a stream gave the frame
    is_cut: bool = False  # a new scene begins: all tracks of the frame before have ended

    def __iter__(self) -> Iterator[TrackedFace]:
        return iter(self.faces)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON Lines hold it."""
        return {
            "path": self.path,
            "frame": self.frame,
            "time": round(self.time, 4),
            **({} if self.clock is None else {"clock": utc_text(self.clock)}),
            "faces": [face.to_dict() for face in self.faces],
        }


def utc_text(clock: datetime) -> str:
    """A time as rows hold it: ISO 8601 to milliseconds, such as "2026-11-29T08:30:00.125Z"."""
    return clock.strftime("%Y-%m-%dT%H:%M:%S.") + f"{clock.microsecond // 1000:03}Z"
