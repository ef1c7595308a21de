"""Times of frames: frame rates, missing frames, and the duration that a file states."""

from __future__ import annotations

import os
from collections import Counter, deque
from pathlib import Path
from typing import BinaryIO

from fer_runtime.video.signatures import transport_packets

# Intervals as counted: Matroska's and FLV's times are whole milliseconds.
_RESOLUTION = 1e-3
_MAX_INTERVALS = 4096  # kinds of intervals that are counted; a film with more has no constant rate
# Of a constant frame rate: this share of the intervals is one step, and nearly all others are whole steps. Damage
# also gives an odd interval here and there.
_LEAST_REGULAR, _MOST_ODD = 0.7, 0.03
_STEP_TOLERANCE = 0.1  # of a step
_RECENT_INTERVALS = 5
_LONGEST_HEADER = 1 << 24  # bytes of MP4's "moov" that are searched


class FrameTimes:
    """The times of a file's frames, in seconds since the first one, and the frames that are missing between them.

    Args:
        rate: frames per second, for frames without a time stamp.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._frames = 0
        self._first = 0.0
        self._time = 0.0
        self._intervals: Counter[int] = Counter()
        self._has_stamps = True

    def add(self, stamp: float) -> float:
        """The time of the next frame.

        Args:
            stamp: seconds as the file gives them, 0 where it gives none.
        """
        stamp -= self._first
        if self._frames == 0:
            self._first = max(0.0, stamp)
        elif self._has_stamps and stamp > self._time:
            if len(self._intervals) < _MAX_INTERVALS:
                self._intervals[round((stamp - self._time) / _RESOLUTION)] += 1
            self._time = stamp
        else:
            # Raw streams have no stamps, the last frames of MPEG streams have none, and damage makes them jump back.
            self._has_stamps = self._has_stamps and self._frames > 1
            self._time += self.step
        self._frames += 1
        return self._time

    @property
    def step(self) -> float:
        """Seconds from one frame to the next: the median so far."""
        if not self._intervals:
            return 1 / self._rate
        middle, seen = self._intervals.total() / 2, 0
        for interval in sorted(self._intervals):
            seen += self._intervals[interval]
            if seen >= middle:
                return max(interval, 1) * _RESOLUTION
        raise AssertionError("a count without a median")

    @property
    def end(self) -> float:
        """Seconds: when the last frame ends."""
        return self._time + self.step if self._frames else 0.0

    @property
    def rate(self) -> float:
        """Frames per second: the stated rate where it agrees with the times, else that of the times."""
        measured = 1 / self.step
        # Milliseconds of the times are too coarse for rates such as 29.97.
        return self._rate if abs(1 / self._rate - self.step) < 1.5 * _RESOLUTION else measured

    @property
    def fastest_rate(self) -> float:
        """Frames per second where the frames follow each other most closely."""
        return 1 / (max(1, min(self._intervals)) * _RESOLUTION) if self._intervals else self._rate

    @property
    def is_constant(self) -> bool:
        """Whether the frame rate is constant as far as the times show."""
        return not self._has_stamps or self._frames < 2 or self.missing() is not None

    def missing(self) -> int | None:
        """Frames that are missing between those that were added; None where it cannot be known."""
        if not self._has_stamps or not self._intervals or len(self._intervals) >= _MAX_INTERVALS:
            return 0 if self._frames == 1 else None
        step, total = self.step, self._intervals.total()
        regular = odd = missing = 0
        for interval, count in self._intervals.items():
            seconds = interval * _RESOLUTION
            steps = max(1, round(seconds / step))
            if abs(seconds - steps * step) > _STEP_TOLERANCE * step + 2 * _RESOLUTION:
                odd += count
            elif steps == 1:
                regular += count
            missing += (steps - 1) * count
        is_constant = regular >= _LEAST_REGULAR * total and odd <= max(1, _MOST_ODD * total)
        return missing if is_constant else None


class Pace:
    """The interval between processed frames.

    A face that is hidden for `max_gap` seconds keeps its number. Frames that are themselves further apart than that
    (timelapse, `--every`) leave room for one frame in which the face was not found.
    """

    def __init__(self) -> None:
        self._last: float | None = None
        self._intervals: deque[float] = deque(maxlen=_RECENT_INTERVALS)

    def add(self, time: float) -> None:
        """Take the time of the next frame, in seconds."""
        if self._last is not None and time > self._last:
            self._intervals.append(time - self._last)
        self._last = time

    @property
    def interval(self) -> float:
        """Seconds from one frame to the next: the median of the last ones; 0 before the second frame."""
        return sorted(self._intervals)[len(self._intervals) // 2] if self._intervals else 0.0

    def longest_gap(self, max_gap: float) -> float:
        """Seconds between two frames with the same face."""
        return max(max_gap + self.interval, 2.5 * self.interval) + _RESOLUTION


def stated_seconds(path: Path) -> float | None:
    """The duration in seconds that an MP4 or QuickTime file states; None for other files.

    OpenCV knows the number of frames in the file. A phone that trims a film leaves all frames in it and states which
    of them are shown; this is the duration of those.
    """
    try:
        with path.open("rb") as file:
            return _movie_seconds(file, os.fstat(file.fileno()).st_size)
    except (OSError, ValueError):
        return None


def _movie_seconds(file: BinaryIO, size: int) -> float | None:
    """From the box "mvhd" inside "moov" (ISO/IEC 14496-12, 8.2.2)."""
    start, is_first = 0, True
    while start + 8 <= size:
        file.seek(start)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        content = start + 8
        if length == 1:
            length, content = int.from_bytes(header[8:16], "big"), start + 16
        if is_first and kind not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp"):
            return None
        if kind == b"moov":
            file.seek(content)
            return _header_seconds(file.read(min(length, _LONGEST_HEADER)))
        if length < 8:  # 0: to the end of the file
            return None
        start, is_first = start + length, False
    return None


def _header_seconds(movie: bytes) -> float | None:
    place = movie.find(b"mvhd")
    if place < 0:
        return None
    header = movie[place + 4 :]
    if header[:1] == b"\1":
        scale, duration = int.from_bytes(header[20:24], "big"), int.from_bytes(header[24:32], "big")
    else:
        scale, duration = int.from_bytes(header[12:16], "big"), int.from_bytes(header[16:20], "big")
    return duration / scale if scale and duration else None


# Microsoft, "Advanced Systems Format (ASF) Specification", 3.1 and 3.2.
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_TICKS = 10_000_000  # a second


def asf_seconds(head: bytes) -> float | None:
    """The duration in seconds that an ASF or WMV file states; None for other files and for broadcasts, which have none.

    FFmpeg gives the duration of a whole file alone, and none of one that was cut.

    Args:
        head: the first bytes of the file.
    """
    start = head.find(_ASF_FILE_PROPERTIES) + 24
    if not head.startswith(_ASF) or start < 24 or len(head) < start + 68:
        return None
    play, _, preroll = (int.from_bytes(head[start + place : start + place + 8], "little") for place in (40, 48, 56))
    is_broadcast = head[start + 64] & 1
    seconds = play / _ASF_TICKS - preroll / 1000
    return None if is_broadcast or seconds <= 0 else seconds


def ends_within_packet(path: Path, head: bytes) -> bool:
    """Whether `path`, which begins with `head`, is an MPEG transport stream that was cut within a packet."""
    if (packets := transport_packets(head)) is None:
        return False
    start, packet = packets
    try:
        size = path.stat().st_size
    except OSError:  # it has gone meanwhile
        return False
    # Packets of camcorders and Blu-rays have a time code before the sync byte.
    return (size - start) % packet != (188 if packet == 192 else 0)


def states_length(head: bytes) -> bool:
    """Whether the format of a file that begins so states a duration: MPEG streams and raw video do not."""
    return not (transport_packets(head) or head.startswith((b"\0\0\1", b"\0\0\0\1")))
