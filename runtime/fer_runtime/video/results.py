"""Results for a video: its frames with their tracked faces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fer_runtime.results import Face


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedFace:
    """A face in a frame; its probabilities are averaged over the last moments of its track."""

    track: int  # number of the face, from 1, the same while the face is seen
    face: Face

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON Lines hold it."""
        return {"track": self.track, **self.face.to_dict()}


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameResult:
    """The faces of one frame that was processed."""

    path: str
    frame: int  # from 0
    time: float  # seconds since the first frame
    faces: tuple[TrackedFace, ...]
    is_cut: bool = False  # a new scene begins: all tracks of the frame before have ended

    def __iter__(self) -> Iterator[TrackedFace]:
        return iter(self.faces)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON Lines hold it."""
        return {
            "path": self.path,
            "frame": self.frame,
            "time": round(self.time, 4),
            "faces": [face.to_dict() for face in self.faces],
        }
