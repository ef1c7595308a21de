"""Sources of frames: video files and cameras."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2

from fer_runtime.errors import ImageError
from fer_runtime.images import Uint8Array

_LEAST_MISSING_SECONDS, _LEAST_MISSING_SHARE = 0.5, 0.02


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


def source_name(source: Path | str | int) -> str:
    """A video's name in the rows: its path, or "camera N"."""
    return f"camera {source}" if isinstance(source, int) else str(source)


def native_path(path: Path) -> Any:
    """`path` as cv2's videos take it: a str with a byte that is no UTF-8 crashes the process, bytes do not."""
    return os.fsencode(path)


class VideoFile:
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


class Camera:
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
