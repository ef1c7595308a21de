"""Video files and cameras: faces followed through time, in constant memory, every frame accounted for."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np

from fer_runtime.images import Uint8Array
from fer_runtime.recognizer import Recognizer
from fer_runtime.results import Face
from fer_runtime.video.results import FrameResult, TrackedFace
from fer_runtime.video.smoothing import Smoother
from fer_runtime.video.sources import Camera, FrameCounts, VideoFile, source_name
from fer_runtime.video.tracking import Tracker


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
    frames = Camera(source) if isinstance(source, int) else VideoFile(Path(source))
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
