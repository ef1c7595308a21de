"""Segments: stretches of time in which one face keeps one expression."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from fer_runtime.video.results import FrameResult, utc_text
from fer_runtime.video.timing import Pace


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of time in which one face keeps one expression."""

    path: str
    track: int
    start: float  # seconds
    end: float
    expression: str
    confidence: float  # mean over the stretch
    clock: datetime | None = None  # UTC of the start, of a camera or a stream

    def to_dict(self) -> dict[str, Any]:
        """The segment as JSON Lines hold it."""
        return {
            "path": self.path,
            "track": self.track,
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "expression": self.expression,
            "confidence": round(self.confidence, 6),
            **({} if self.clock is None else {"clock": utc_text(self.clock)}),
        }


class SegmentBuilder:
    """Turns frames into segments while they come; holds the open ones only.

    What a frame shows lasts until the next frame, so that a segment from a single frame has a length, too.

    Args:
        max_gap: seconds without the face that end its segment; more where the frames themselves are further apart.
    """

    def __init__(self, max_gap: float = 1.0) -> None:
        self._max_gap = max_gap
        self._pace = Pace()
        self._last: float | None = None  # time of the last frame
        self._open: dict[int, _Open] = {}

    def add(self, result: FrameResult) -> list[Segment]:
        """The segments that this frame ends, earliest first."""
        time = result.time
        self._pace.add(time)
        self._extend(time)
        longest = self._pace.longest_gap(self._max_gap)
        ended = [entry for entry in self._open.values() if result.is_cut or time - entry.seen > longest]
        for gone in ended:
            # An entry that stayed would be one more for each face of a film without end.
            del self._open[gone.segment.track]
        for tracked in result.faces:
            face, current = tracked.face, self._open.get(tracked.track)
            if current is not None and current.segment.expression == face.expression:
                current.frames += 1
                mean = current.segment.confidence
                mean += (face.confidence - mean) / current.frames
                current.segment, current.seen = replace(current.segment, end=time, confidence=mean), time
                continue
            if current is not None:
                # The old expression lasts until the new one begins: no hole between the two.
                current.segment = replace(current.segment, end=time)
                ended.append(current)
            segment = Segment(
                path=result.path,
                track=tracked.track,
                start=time,
                end=time,
                expression=face.expression,
                confidence=face.confidence,
                clock=result.clock,
            )
            self._open[tracked.track] = _Open(segment, seen=time)
        return _in_order(ended)

    def finish(self, end: float | None = None) -> list[Segment]:
        """The segments that are open at the end of the video.

        Args:
            end: seconds, when the video ends; None: as long after the last frame as the frames are apart.
        """
        if self._last is not None:
            last = self._last + self._pace.interval if end is None else max(end, self._last)
            self._extend(last, is_end=end is not None)
        left = _in_order(list(self._open.values()))
        self._open = {}
        return left

    def _extend(self, time: float, *, is_end: bool = False) -> None:
        """Let the faces of the last frame stay until `time`, but no longer than until its next frame was due."""
        if self._last is not None:
            due = self._last + self._pace.interval if self._pace.interval else time
            for entry in self._open.values():
                if entry.seen == self._last:
                    entry.segment = replace(entry.segment, end=min(time, due))
        if not is_end:
            self._last = time


@dataclass(slots=True)
class _Open:
    segment: Segment
    seen: float  # seconds, the last frame with this face
    frames: int = 1


def _in_order(segments: list[_Open]) -> list[Segment]:
    return sorted((entry.segment for entry in segments), key=lambda segment: (segment.start, segment.track))
