"""`recognize_video` and `Tracker`: faces followed through videos, cameras and streams, in constant memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fer_runtime.faces import prepare_face
from fer_runtime.images import Uint8Array
from fer_runtime.recognizer import Recognizer, checked_image
from fer_runtime.results import Face
from fer_runtime.system import available_cpus
from fer_runtime.video.addresses import is_stream
from fer_runtime.video.cuts import CutDetector
from fer_runtime.video.results import FrameResult, TrackedFace
from fer_runtime.video.smoothing import Smoother
from fer_runtime.video.sources import (
    Camera,
    FrameCounts,
    FrameSource,
    Gap,
    NamedSource,
    SourceFrame,
    VideoFile,
    source_name,
)
from fer_runtime.video.tracking import BoxTracker

# Bytes of the frames that wait for their faces: 40 of 1080p, 10 of 4K.
_WAITING_BYTES = 1 << 28


class _Seen(NamedTuple):
    """The faces of a frame, which depend on no other frame."""

    faces: tuple[Face, ...]
    looks: list[Uint8Array]  # their crops, as the tracker compares them


class Tracker:
    """Follows faces through frames that you bring yourself: from Picamera2, GStreamer, a robot or a stream.

        tracker = Tracker(Recognizer())
        for frame in frames:
            for tracked in tracker.update(frame, time.monotonic()).faces:
                print(tracked.track, tracked.face.expression)

    Use one tracker for one camera. It is not thread-safe.

    Args:
        recognizer: finds and classifies the faces.
        max_gap: seconds that a face may be hidden without losing its number.
    """

    def __init__(self, recognizer: Recognizer, *, max_gap: float = 1.5) -> None:
        self._recognizer = recognizer
        self._boxes = BoxTracker(max_gap)
        self._cuts = CutDetector()
        self._smoothers: dict[int, tuple[float, Smoother]] = {}
        self._frames = 0
        self._time: float | None = None

    def update(self, frame: Uint8Array, seconds: float, *, number: int | None = None, path: str = "") -> FrameResult:
        """Return the faces of the next frame, with track numbers and with probabilities averaged over time.

        Args:
            frame: uint8 (height, width, 3) in BGR, or uint8 (height, width).
            seconds: time of the frame by any clock, later than that of the frame before.
            number: of the frame in the result; counted from 0 by default.
            path: name of the source in the result.

        Raises:
            ImageError: the frame has more pixels than the recognizer's `max_pixels`.
            ValueError: `seconds` is not later, or the frame has another shape or dtype.
        """
        frame = checked_image(frame, self._recognizer.max_pixels)
        return self._follow(frame, _search(self._recognizer, frame), seconds, number=number, path=path)

    def _follow(
        self, frame: Uint8Array, seen: _Seen, seconds: float, *, number: int | None = None, path: str = ""
    ) -> FrameResult:
        """The result of the next frame, whose faces are known."""
        if not seconds > (float("-inf") if self._time is None else self._time):  # nor NaN
            raise ValueError(f"seconds must rise from frame to frame: {seconds} after {self._time}")
        is_cut = self._cuts.is_cut(frame, seconds)
        if is_cut:
            self._boxes.end_tracks()
        tracks = self._boxes.update(seconds, [face.box for face in seen.faces], seen.looks)
        self._time = seconds
        result = FrameResult(
            path=path,
            frame=self._frames if number is None else number,
            time=seconds,
            faces=tuple(
                TrackedFace(track=track, face=self._smooth(track, seconds, face))
                for track, face in zip(tracks, seen.faces, strict=True)
            ),
            is_cut=is_cut,
        )
        self._frames += 1
        return result

    def _smooth(self, track: int, seconds: float, face: Face) -> Face:
        _, smoother = self._smoothers.get(track, (seconds, Smoother()))
        values, best = smoother.update(seconds, np.array(list(face.probabilities.values()), np.float32))
        self._smoothers[track] = (seconds, smoother)
        if len(self._smoothers) > 256:  # of faces long gone
            self._smoothers = {key: entry for key, entry in self._smoothers.items() if seconds - entry[0] < 10}
        return self._recognizer.with_probabilities(face, values, best)


def recognize_video(
    recognizer: Recognizer,
    source: Path | str | int | NamedSource,
    *,
    every: int = 1,
    start: float = 0.0,
    duration: float | None = None,
    counts: FrameCounts | None = None,
    on_frame: Callable[[Uint8Array, FrameResult], None] | None = None,
    on_gap: Callable[[Gap], object] = lambda gap: None,
) -> Generator[FrameResult, None, None]:
    """Yield the faces of a video file, a camera or a stream, frame by frame.

    If you stop before the last frame, close the generator (`contextlib.closing`) to release the source.

    Args:
        recognizer: finds and classifies the faces.
        source: the file, the camera's number, the address of a stream (rtsp://, http://, ...; needs the extra
            `stream`), or an open `fer_runtime.video.streams.Stream`. Frames of a camera or stream that arrive while
            another is processed are dropped, so that answers are current; a file's never are.
        every: process every n-th frame.
        start: seconds to skip first.
        duration: seconds to process; None: to the end.
        counts: filled while results are taken; complete at the end.
        on_frame: called with each frame, uint8 (height, width, 3) in BGR, and its result.
        on_gap: called for each time in which a stream gave no frame.

    Raises:
        ImageError: the source cannot be opened, is lost, or has no frame that can be decoded.
        ExtraMissingError: the source is a stream, and PyAV is not installed.
        ValueError: `every` is less than 1, or the camera's number is out of range.
        TypeError: the source is something else.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, not {every}")
    counts = counts if counts is not None else FrameCounts()
    name = source_name(source)
    tracker = Tracker(recognizer)
    frames = _open_source(source)
    # A file waits for nobody: its frames are processed on all CPUs. A live source's next frame is not there yet.
    threads = recognizer.runs_at_once(available_cpus()) if isinstance(frames, VideoFile) else 1
    try:
        read = frames.read(every=every, start=start, duration=duration, counts=counts)
        for searched in _search_frames(recognizer, read, threads):
            if isinstance(searched, Gap):
                on_gap(searched)
                continue
            frame = searched.frame
            counts.processed += 1
            result = tracker._follow(frame.image, searched.seen(), frame.time, number=frame.number, path=name)
            result = replace(result, clock=frame.clock)
            if on_frame is not None:
                on_frame(frame.image, result)
            yield result
    finally:
        frames.close()


class _Searched(NamedTuple):
    """A frame, and what gives its faces."""

    frame: SourceFrame
    seen: Callable[[], _Seen]


def _search_frames(
    recognizer: Recognizer, read: Iterator[SourceFrame | Gap], threads: int
) -> Generator[_Searched | Gap, None, None]:
    """The frames with their faces, in order; several frames are searched at a time."""
    waiting: deque[_Searched] = deque()
    pool = None
    try:
        for frame in read:
            if isinstance(frame, Gap):
                yield frame
                continue
            if threads == 1:
                yield _Searched(frame, partial(_search, recognizer, frame.image))
                continue
            pool = pool or ThreadPoolExecutor(threads, thread_name_prefix="fer-video")
            waiting.append(_Searched(frame, pool.submit(_search, recognizer, frame.image).result))
            # One more than there are threads, so that none waits while rows are written.
            if len(waiting) > threads + 1 or len(waiting) * frame.image.nbytes > _WAITING_BYTES:
                yield waiting.popleft()
    except Exception:
        while waiting:
            yield waiting.popleft()
        raise
    else:
        while waiting:
            yield waiting.popleft()
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


def _search(recognizer: Recognizer, frame: Uint8Array) -> _Seen:
    detections = recognizer.detect(frame, is_frame=True)
    faces = recognizer.classify_detections(frame, detections)
    return _Seen(faces, [prepare_face(frame, detection.box, roll=detection.roll) for detection in detections])


def _open_source(source: Path | str | int | NamedSource) -> FrameSource:
    if isinstance(source, int):
        return Camera(source)
    if isinstance(source, str) and is_stream(source):
        from fer_runtime.video.streams import Stream

        return Stream(source)
    return VideoFile(Path(source)) if isinstance(source, (str, Path)) else source
