"""Faces followed from frame to frame by the overlap of their boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Box = tuple[int, int, int, int]  # x, y, width, height in pixels

_LEAST_OVERLAP = 0.25
_MAX_GAP_SECONDS = 1.0


@dataclass(slots=True)
class _Track:
    number: int
    box: Box
    time: float  # seconds, of the last frame with this face
    velocity: tuple[float, float] = (0.0, 0.0)  # of the box's corner, pixels per second

    def expected(self, time: float) -> Box:
        """Where the box is by now if the face went on as before."""
        passed = time - self.time
        x, y, width, height = self.box
        return round(x + self.velocity[0] * passed), round(y + self.velocity[1] * passed), width, height


@dataclass(slots=True)
class Tracker:
    """Numbers faces, from 1, so that a face keeps its number while it is seen.

    Args:
        max_gap: seconds that a face may be hidden without losing its number.
    """

    max_gap: float = _MAX_GAP_SECONDS
    _tracks: list[_Track] = field(default_factory=list)
    _next: int = 1

    def update(self, time: float, boxes: Sequence[Box]) -> list[int]:
        """Numbers of the faces of one frame, in the order of `boxes`.

        Args:
            time: seconds since the first frame, rising from call to call.
        """
        self._tracks = [track for track in self._tracks if time - track.time <= self.max_gap]
        # Greedily, the best overlap first: faces are few, and seldom overlap each other.
        pairs = sorted(
            (
                (overlap(track.expected(time), box), track.number, index)
                for track in self._tracks
                for index, box in enumerate(boxes)
            ),
            key=lambda pair: (-pair[0], pair[1], pair[2]),
        )
        by_number = {track.number: track for track in self._tracks}
        numbers: dict[int, int] = {}
        for shared, number, index in pairs:
            if shared < _LEAST_OVERLAP:
                break
            if index in numbers or number in numbers.values():
                continue
            numbers[index] = number
            self._move(by_number[number], boxes[index], time)
        for index, box in enumerate(boxes):
            if index not in numbers:
                numbers[index] = self._next
                self._tracks.append(_Track(self._next, box, time))
                self._next += 1
        return [numbers[index] for index in range(len(boxes))]

    @staticmethod
    def _move(track: _Track, box: Box, time: float) -> None:
        passed = time - track.time
        if passed > 0:
            # Half of the old speed: a detector's box trembles from frame to frame.
            track.velocity = (
                0.5 * track.velocity[0] + 0.5 * (box[0] - track.box[0]) / passed,
                0.5 * track.velocity[1] + 0.5 * (box[1] - track.box[1]) / passed,
            )
        track.box, track.time = box, time


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (first[2] * first[3] + second[2] * second[3] - shared)
