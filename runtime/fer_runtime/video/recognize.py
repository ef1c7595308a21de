"""Video files and cameras: faces followed through time, in constant memory, every frame accounted for."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np

from fer_runtime.errors import ImageError
from fer_runtime.images import Uint8Array
from fer_runtime.recognizer import Recognizer
from fer_runtime.results import Face
from fer_runtime.text import printable
from fer_runtime.video.smoothing import Smoother
from fer_runtime.video.tracking import Tracker


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedFace:
    """A face in a frame; its probabilities are averaged over the last moments of its track."""

    track: int  # number of the face, from 1, the same while it is seen
    face: Face

    def to_dict(self) -> dict[str, Any]:
        """As JSON lines hold it."""
        return {"track": self.track, **self.face.to_dict()}


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameResult:
    """The faces of one frame that was looked at."""

    path: str
    frame: int  # from 0
    time: float  # seconds since the first frame
    faces: tuple[TrackedFace, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON lines hold it."""
        return {
            "path": self.path,
            "frame": self.frame,
            "time": round(self.time, 4),
            "faces": [face.to_dict() for face in self.faces],
        }


@dataclass(slots=True)
class FrameCounts:
    """What became of every frame."""

    processed: int = 0
    skipped: int = 0  # left out by `every` or before `start`
    dropped: int = 0  # a camera's frames that came while another was looked at
    missing_seconds: float = 0.0  # how much earlier a file ended than it says
    stated_seconds: float = 0.0  # how long a file says that it is; 0 where it says nothing, as a camera

    @property
    def total(self) -> int:
        """All frames that the source gave."""
        return self.processed + self.skipped + self.dropped


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


def source_name(source: Path | str | int) -> str:
    """A video's name in the rows: its path, or "camera N"."""
    return f"camera {source}" if isinstance(source, int) else str(source)


def recognize_video(
    recognizer: Recognizer,
    source: Path | str | int,
    *,
    every: int = 1,
    start: float = 0.0,
    duration: float | None = None,
    counts: FrameCounts | None = None,
    on_frame: Callable[[Uint8Array, FrameResult], None] | None = None,
) -> Generator[FrameResult, None, None]:
    """Faces of a video file, or of a camera, frame by frame.

    Who stops before the last frame closes the generator (`contextlib.closing`), and the source is released.

    Args:
        source: the file, or the camera's number. A camera's frames that come while another is looked at
            are dropped, so that the answer is about now; a file's never are.
        every: look at each n-th frame.
        start: seconds to pass over first.
        duration: seconds to look at; None: to the end.
        counts: filled while results are taken; complete at the end.
        on_frame: called with each frame, uint8 (height, width, 3) in BGR, and its result.

    Raises:
        ImageError: the file or the camera cannot be opened.
        ValueError: `every` is less than 1.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, not {every}")
    counts = counts if counts is not None else FrameCounts()
    name = source_name(source)
    tracker, smoothers = Tracker(), _Smoothers()
    frames = _Camera(source) if isinstance(source, int) else _File(Path(source))
    try:
        for frame, time, image in frames.read(every=every, start=start, duration=duration, counts=counts):
            counts.processed += 1
            faces = recognizer.recognize(image, is_frame=True).faces
            numbers = tracker.update(time, [face.box for face in faces])
            tracked = tuple(
                TrackedFace(track=number, face=smoothers.smooth(recognizer, number, time, face))
                for number, face in zip(numbers, faces, strict=True)
            )
            result = FrameResult(path=name, frame=frame, time=time, faces=tracked)
            if on_frame is not None:
                on_frame(image, result)
            yield result
    finally:
        frames.close()


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


def native_path(path: Path) -> Any:
    """`path` as cv2's videos take it: a str with a byte that is no UTF-8 crashes the process, bytes do not."""
    return os.fsencode(path)


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


class _Smoothers:
    """One smoother per track; those of faces long gone are forgotten."""

    def __init__(self) -> None:
        self._by_track: dict[int, tuple[float, Smoother]] = {}

    def smooth(self, recognizer: Recognizer, track: int, time: float, face: Face) -> Face:
        _, smoother = self._by_track.get(track, (time, Smoother()))
        values, best = smoother.update(time, np.array(list(face.probabilities.values()), np.float32))
        self._by_track[track] = (time, smoother)
        if len(self._by_track) > 256:
            self._by_track = {key: one for key, one in self._by_track.items() if time - one[0] < 10}
        return recognizer.face(face.box, values, best=best)


_LEAST_MISSING_SECONDS, _LEAST_MISSING_SHARE = 0.5, 0.02


class _File:
    """A video file's frames."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ImageError(f"no video at {path}")
        self._capture = cv2.VideoCapture(native_path(path))
        if not self._capture.isOpened():
            raise ImageError(f"{path} cannot be opened as a video: damaged, or of a kind that OpenCV does not read")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self._rate = rate if 0 < rate < 1000 else 25.0
        # Some containers state the number of frames, of others OpenCV reckons it from the duration.
        self._stated_seconds = max(0.0, self._capture.get(cv2.CAP_PROP_FRAME_COUNT)) / self._rate

    def read(
        self, *, every: int, start: float, duration: float | None, counts: FrameCounts
    ) -> Iterator[tuple[int, float, Uint8Array]]:
        frame, time = -1, 0.0
        counts.stated_seconds = self._stated_seconds
        # grab() decodes without converting to pixels: a frame that is left out costs a fraction.
        while self._capture.grab():
            frame += 1
            stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            # Some containers carry no time stamps; their frames come at the stated rate.
            time = stamp if stamp > 0 or frame == 0 else frame / self._rate
            if duration is not None and time >= start + duration:
                return
            if time < start or frame % every:
                counts.skipped += 1
                continue
            there, image = self._capture.retrieve()
            if not there:
                counts.dropped += 1
                continue
            yield frame, time, image  # type: ignore[misc]
        missing = self._stated_seconds - (time + 1 / self._rate)
        # A duration is rounded, and sound may go on a little longer than the pictures.
        if missing > max(_LEAST_MISSING_SECONDS, _LEAST_MISSING_SHARE * self._stated_seconds):
            counts.missing_seconds = missing

    def close(self) -> None:
        self._capture.release()


class _Camera:
    """A camera's frames, the newest one each time; a thread takes the others off and counts them."""

    def __init__(self, number: int) -> None:
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise ImageError(f"no camera {number}; is it plugged in, and may you read /dev/video{number}?")
        self._condition = threading.Condition()
        self._newest: Any = None
        self._grabbed = 0
        self._ends = False
        self._started = perf_counter()
        self._thread = threading.Thread(target=self._grab, name="fer-camera", daemon=True)
        self._thread.start()

    def read(
        self, *, every: int, start: float, duration: float | None, counts: FrameCounts
    ) -> Iterator[tuple[int, float, Uint8Array]]:
        taken = 0
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._newest is not None or self._ends)
                if self._newest is None:
                    return
                frame, time, image = self._newest
                self._newest = None
            counts.dropped += frame - taken
            taken = frame + 1
            if duration is not None and time >= start + duration:
                counts.skipped += 1
                return
            if time < start or frame % every:
                counts.skipped += 1
                continue
            yield frame, time, image

    def close(self) -> None:
        self._ends = True
        # The garbage collector may run this in the camera's own thread, for a generator that nobody closed.
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=2)

    def _grab(self) -> None:
        while not self._ends:
            there, image = self._capture.read()
            with self._condition:
                if not there:
                    self._ends = True
                else:
                    self._newest = (self._grabbed, perf_counter() - self._started, image)
                    self._grabbed += 1
                self._condition.notify()
        # Here, for a camera that hangs: releasing it in the middle of a read crashes.
        self._capture.release()
