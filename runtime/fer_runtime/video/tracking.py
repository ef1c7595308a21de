"""Track faces from frame to frame by their predicted positions, at any frame rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from fer_runtime.images import Uint8Array
from fer_runtime.video.similarity import similarity
from fer_runtime.video.timing import Pace

Box = tuple[int, int, int, int]  # x, y, width, height in pixels
FloatArray = npt.NDArray[np.float64]

# A face that is hidden for one second may be missed by the detector before or after.
_MAX_GAP_SECONDS = 1.5
# How far from its expected place a face is looked for, in face widths: a share for the detector's trembling, and one
# that grows with the seconds since the face was seen. A head that crosses the image at walking pace (1.4 m/s) moves
# some 8 of its widths a second; a face whose speed is known leaves that course by less.
_REACH, _REACH_PER_SECOND, _NEW_REACH_PER_SECOND = 0.6, 2.0, 8.0
_LONGEST_REACH = 8.0  # face widths
_MAX_SIZE_RATIO = 2.0  # of the sides of one face in two frames
# A face that is lost costs more than two that are far from where they were expected.
_COST_OF_LOSS = 2.0
_COST_OF_SIZE = 0.5  # at the largest ratio
_COST_OF_ABSENCE = 0.25  # after the longest gap
# Crops of one face in neighbouring frames correlate by 0.8 and more, those of two people by up to 0.74 (the faces of
# the samples, shifted by up to a tenth and enlarged by up to 15 %).
_LEAST_SIMILAR = 0.75
_CLOSE_SECONDS = 0.1
_LOOK_MARGIN = 8  # pixels of 48
_SPEED_SECONDS = 0.3  # time constant of the averaged speed: boxes tremble from frame to frame


@dataclass(slots=True)
class _Track:
    number: int
    center: tuple[float, float]
    side: float  # pixels
    time: float  # seconds, of the last frame with this face
    speed: tuple[float, float] | None = None  # pixels per second; None: seen once
    look: Uint8Array | None = None  # the face's crop, blurred

    def expected(self, time: float) -> tuple[float, float]:
        """The centre at `time` if the face moves on at its speed, in pixels."""
        passed = time - self.time
        x, y = self.speed or (0.0, 0.0)
        return self.center[0] + x * passed, self.center[1] + y * passed

    def cost(self, center: tuple[float, float], side: float, time: float, absent: float) -> float:
        """The cost of giving a box to this track: 0 where expected, about 1 at the end of the reach, infinite beyond.

        Args:
            absent: for how much of the longest gap the face has been hidden, 0 to 1.
        """
        growth = abs(math.log(side / self.side)) / math.log(_MAX_SIZE_RATIO)
        if growth > 1:
            return math.inf
        passed = time - self.time
        per_second = _NEW_REACH_PER_SECOND if self.speed is None else _REACH_PER_SECOND
        reach = min(_REACH + per_second * passed, _LONGEST_REACH) * math.sqrt(side * self.side)
        x, y = self.expected(time)
        distance = math.hypot(center[0] - x, center[1] - y)
        if distance > reach:
            return math.inf
        # A face that is hidden is behind the one that is seen: of two that fit, the one that was seen last.
        return (distance / reach) ** 2 + _COST_OF_SIZE * growth**2 + _COST_OF_ABSENCE * absent

    def is_another(self, look: Uint8Array, time: float) -> bool:
        """Whether `look` is the crop of somebody else: a face changes little from one frame to the next."""
        if self.look is None or time - self.time > _CLOSE_SECONDS:
            return False
        return similarity(self.look, look, _LOOK_MARGIN) < _LEAST_SIMILAR

    def move(self, center: tuple[float, float], side: float, time: float, look: Uint8Array | None) -> None:
        """Take the place of the face in a new frame."""
        passed = time - self.time
        if passed > 0:
            new = (center[0] - self.center[0]) / passed, (center[1] - self.center[1]) / passed
            old = new if self.speed is None else self.speed
            weight = 1 - math.exp(-passed / _SPEED_SECONDS)
            self.speed = old[0] + weight * (new[0] - old[0]), old[1] + weight * (new[1] - old[1])
        self.center, self.side, self.time, self.look = center, side, time, look


@dataclass(slots=True)
class BoxTracker:
    """Numbers faces, from 1, so that a face keeps its number while it is seen.

    Args:
        max_gap: seconds that a face may be hidden without losing its number; more where the frames themselves are
            further apart.
    """

    max_gap: float = _MAX_GAP_SECONDS
    _tracks: list[_Track] = field(default_factory=list)
    _next: int = 1
    _pace: Pace = field(default_factory=Pace)

    def update(self, time: float, boxes: Sequence[Box], looks: Sequence[Uint8Array] = ()) -> list[int]:
        """Numbers of the faces of one frame, in the order of `boxes`.

        Args:
            time: seconds since the first frame, rising from call to call.
            looks: the faces' crops, uint8 (48, 48); with them, another face in the same place has another number.
        """
        self._pace.add(time)
        longest = self._pace.longest_gap(self.max_gap)
        self._tracks = [track for track in self._tracks if time - track.time <= longest]
        places = [((x + width / 2, y + height / 2), math.sqrt(width * height)) for x, y, width, height in boxes]
        blurred: list[Uint8Array | None] = [_blurred(look) for look in looks] or [None] * len(boxes)
        interval = self._pace.interval
        absent = [max(0.0, time - track.time - interval) / longest for track in self._tracks]
        costs = np.array(
            [
                [track.cost(*place, time, gone) for place in places]
                for track, gone in zip(self._tracks, absent, strict=True)
            ]
        )
        costs = costs.reshape(len(self._tracks), len(boxes))
        for row, column in zip(*np.nonzero(np.isfinite(costs)), strict=True):
            look = blurred[column]
            if look is not None and self._tracks[row].is_another(look, time):
                costs[row, column] = math.inf
        numbers: dict[int, int] = {}
        for row, index in assign(costs, _COST_OF_LOSS):
            numbers[index] = self._tracks[row].number
            self._tracks[row].move(*places[index], time, blurred[index])
        for index, (center, side) in enumerate(places):
            if index not in numbers:
                numbers[index] = self._next
                self._tracks.append(_Track(self._next, center, side, time, look=blurred[index]))
                self._next += 1
        return [numbers[index] for index in range(len(boxes))]

    def end_tracks(self) -> None:
        """Forget all faces: the next frame shows another scene."""
        self._tracks = []


def _blurred(look: Uint8Array) -> Uint8Array:
    return cv2.GaussianBlur(look, (5, 5), 0)  # type: ignore[return-value]


def assign(costs: FloatArray, cost_of_loss: float) -> list[tuple[int, int]]:
    """Pairs of a row and a column with the least total cost; a row without a pair costs `cost_of_loss`.

    The Hungarian algorithm with potentials, one row at a time (Jonker and Volgenant 1987).

    Args:
        costs: float64 (rows, columns), infinite where there may be no pair.
    """
    rows, columns = costs.shape
    if not rows or not columns:
        return []
    # A column for each row, in which it has no pair, makes every row find one.
    padded = np.full((rows, columns + rows), 1e9)
    padded[:, :columns] = np.where(np.isfinite(costs), costs, 1e9)
    padded[np.arange(rows), columns + np.arange(rows)] = cost_of_loss
    width = columns + rows
    row_of = np.full(width + 1, -1)  # of each column; the last one is where the search for a row starts
    row_price, column_price = np.zeros(rows), np.zeros(width + 1)
    for row in range(rows):
        row_of[width] = row
        column, shortest = width, np.full(width, np.inf)
        came_from, done = np.full(width, width), np.zeros(width + 1, bool)
        while row_of[column] >= 0:
            done[column] = True
            current = row_of[column]
            reduced = padded[current] - row_price[current] - column_price[:width]
            better = ~done[:width] & (reduced < shortest)
            shortest[better], came_from[better] = reduced[better], column
            following = int(np.where(done[:width], np.inf, shortest).argmin())
            step = shortest[following]
            row_price[row_of[done]] += step
            column_price[done] -= step
            shortest[~done[:width]] -= step
            column = following
        while column != width:
            row_of[column], column = row_of[came_from[column]], int(came_from[column])
    return [(int(row_of[column]), column) for column in range(columns) if row_of[column] >= 0]
