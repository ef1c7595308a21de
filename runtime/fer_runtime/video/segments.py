"""Segments: stretches of time in which one face keeps one expression."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from fer_runtime.video.results import FrameResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of time in which one face kept one expression."""

    path: str
    track: int
    start: float  # seconds
    end: float
    expression: str
    confidence: float  # mean over the stretch

    def to_dict(self) -> dict[str, Any]:
        """As JSON lines hold it."""
        return {
            "path": self.path,
            "track": self.track,
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "expression": self.expression,
            "confidence": round(self.confidence, 6),
        }


@dataclass(slots=True)
class SegmentBuilder:
    """Turns frames into segments while they come; holds the open ones only.

    Args:
        max_gap: seconds without the face that end its segment.
    """

    max_gap: float = 1.0
    _open: dict[int, Segment] = field(default_factory=dict)
    _frames: dict[int, int] = field(default_factory=dict)

    def add(self, result: FrameResult) -> list[Segment]:
        """The segments that this frame ends, earliest first."""
        ended = [one for one in self._open.values() if result.time - one.end > self.max_gap]
        for gone in ended:
            # A count that stayed would be one more per face of a film without end.
            del self._open[gone.track], self._frames[gone.track]
        for tracked in result.faces:
            segment = self._open.get(tracked.track)
            face = tracked.face
            if segment is not None and segment.expression == face.expression:
                count = self._frames[tracked.track]
                mean = segment.confidence + (face.confidence - segment.confidence) / (count + 1)
                start = segment.start
            else:
                if segment is not None:
                    # The old expression lasts until the new one begins: no hole between the two.
                    ended.append(replace(segment, end=result.time))
                count, mean, start = 0, face.confidence, result.time
            self._frames[tracked.track] = count + 1
            self._open[tracked.track] = Segment(
                path=result.path,
                track=tracked.track,
                start=start,
                end=result.time,
                expression=face.expression,
                confidence=mean,
            )
        return sorted(ended, key=lambda one: (one.start, one.track))

    def finish(self) -> list[Segment]:
        """The segments that are open at the end of the video."""
        left = sorted(self._open.values(), key=lambda one: (one.start, one.track))
        self._open, self._frames = {}, {}
        return left
