"""Annotated copies of videos: the frames with their faces drawn in."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import cv2
import numpy as np

from fer_runtime.errors import ImageError, OutputError
from fer_runtime.files import replaced_atomically
from fer_runtime.images import Uint8Array
from fer_runtime.output.annotate import draw_faces
from fer_runtime.output.anonymize import CoveredFaces, cover_faces
from fer_runtime.output.destinations import COPY_MARK, copy_inside
from fer_runtime.output.image_files import unused_name
from fer_runtime.video.results import FrameResult
from fer_runtime.video.sources import NamedSource, native_path, open_capture
from fer_runtime.video.timing import FrameTimes

_CAMERA_RATE = 25.0  # frames per second
_MAX_RATE = 60.0  # frames per second of a copy, where the video's own rate varies
_EXAMINED_FRAMES = 300  # of a video, to find its rate


def annotated_paths(folder: Path, sources: Sequence[Path | int | NamedSource]) -> list[Path]:
    """Files for the annotated copies; of two sources with one name, the second gets a number."""
    used: set[str] = set()
    stems = map(_stem, sources)
    return [folder / unused_name(stem, ".annotated.mp4", used) for stem in stems]


def _stem(source: Path | int | NamedSource) -> str:
    if isinstance(source, int):
        return f"camera{source}"
    # The name of a stream may hold anything.
    return source.stem if isinstance(source, Path) else re.sub(r"[^\w.-]+", "-", source.name).strip("-.") or "stream"


class _UnfinishedError(Exception):
    """The copy is not complete."""


class AnnotatedVideo:
    """Writes frames to a temporary file that gets its name at the end.

    The copy has a constant frame rate, and each frame stays until it is time for the next one: the copy of a camera,
    or of a video with a variable frame rate, plays at the pace of the scene.

    Args:
        path: the copy, .mp4.
        source: a file, a camera's number, or an open stream.
        every: each N-th frame of the file is drawn.
        anonymize: one of anonymize.METHODS: faces are covered instead of drawn in.

    Raises:
        ImageError: the source cannot be opened.
        OutputError: the copy cannot be written.
    """

    def __init__(
        self, path: Path, source: Path | int | NamedSource, *, every: int, anonymize: str | None = None
    ) -> None:
        self._path = path
        self._anonymize = anonymize
        self._covered = CoveredFaces()
        self._rate = _copy_rate(source, every) if isinstance(source, Path) else _CAMERA_RATE
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)  # width and height of the copy, those of its first frame
        self._frames = 0
        self._start = 0.0  # seconds, of the first frame
        self._last: Uint8Array | None = None
        self._file = ExitStack()
        try:
            with suppress(FileNotFoundError):
                os.lstat(path)  # a name that is too long, before the work and not after it
            copy_inside(path.parent, path.name)
            # FFmpeg tells the format by the suffix.
            self._partial = self._file.enter_context(replaced_atomically(path, through_link=False, suffix=".mp4"))
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}; choose another folder") from error
        except OutputError as error:
            message = str(error)
            raise OutputError(
                message if message.startswith("cannot write") else f"cannot write {path}: {message}"
            ) from error

    def add(self, image: Uint8Array, result: FrameResult) -> None:
        """Write a frame.

        Args:
            image: uint8 (height, width, 3) in BGR.

        Raises:
            OutputError: this OpenCV writes no such video.
        """
        if self._anonymize is not None:
            drawn = cover_faces(image, self._covered.update(result), self._anonymize)
        else:
            drawn = draw_faces(
                image, [tracked.face for tracked in result.faces], numbers=[tracked.track for tracked in result.faces]
            )
        if self._writer is not None:
            drawn = _fitted(drawn, self._size)
        else:
            size = self._size = (drawn.shape[1], drawn.shape[0])
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            try:
                name = native_path(self._partial)
            except ImageError as error:
                raise OutputError(str(error)) from error
            self._writer = cv2.VideoWriter(name, cv2.CAP_FFMPEG, codec, self._rate, size)
            if not self._writer.isOpened():
                raise OutputError(
                    f"cannot write {self._path}: this OpenCV writes no MP4 of {size[0]} x {size[1]} pixels; leave "
                    "out --annotate"
                )
            self._start = result.time
        place = round((result.time - self._start) * self._rate)
        if self._last is not None:
            self._hold(self._last, until=place)
        # A source faster than the copy would play slower there: frames that have no place of their own are left out.
        if self._frames <= place:
            self._write(drawn)
        self._last = drawn

    def finish(self, end: float) -> None:
        """Give the copy its name.

        Args:
            end: seconds, when the last frame ends.

        Raises:
            OutputError: the disk is full.
        """
        if self._writer is None or self._last is None:
            return
        self._hold(self._last, until=math.floor((end - self._start) * self._rate + 0.5))
        self._writer.release()
        self._writer = None
        # The writer reports no error, not even of a full disk.
        capture = cv2.VideoCapture(native_path(self._partial))
        written = round(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
        if written != self._frames:
            raise OutputError(
                f"cannot write {self._path}: {max(0, written)} of {self._frames} frames arrived; is the disk full?"
            )
        try:
            with self._partial.open("ab") as file:
                # An MP4 box without a meaning for players; `copy_inside` knows the copy by it.
                file.write((8 + len(COPY_MARK)).to_bytes(4, "big") + b"free" + COPY_MARK)
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}; make room") from error
        self._file.close()

    def close(self) -> None:
        """Remove an unfinished file."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
        with suppress(_UnfinishedError):
            self._file.__exit__(_UnfinishedError, _UnfinishedError(), None)

    def _hold(self, drawn: Uint8Array, *, until: int) -> None:
        while self._frames < until:
            self._write(drawn)

    def _write(self, drawn: Uint8Array) -> None:
        assert self._writer is not None
        self._writer.write(drawn)
        self._frames += 1


def _fitted(drawn: Uint8Array, size: tuple[int, int]) -> Uint8Array:
    """A frame of another size, as a stream may have them, whole and undistorted on black: a video has one size."""
    width, height = size
    if drawn.shape[:2] == (height, width):
        return drawn
    scale = min(width / drawn.shape[1], height / drawn.shape[0])
    across, down = max(1, round(scale * drawn.shape[1])), max(1, round(scale * drawn.shape[0]))
    frame = np.zeros((height, width, 3), np.uint8)
    left, top = (width - across) // 2, (height - down) // 2
    frame[top : top + down, left : left + across] = cv2.resize(drawn, (across, down), interpolation=cv2.INTER_AREA)
    return frame


def _copy_rate(path: Path, every: int) -> float:
    """Frames per second of the copy: that of the frames that are drawn, or the fastest where it varies."""
    capture = open_capture(path)
    try:
        stated = capture.get(cv2.CAP_PROP_FPS)
        times = FrameTimes(stated if 0 < stated < 1000 else _CAMERA_RATE)
        for _ in range(_EXAMINED_FRAMES):
            if not capture.grab():
                break
            times.add(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    finally:
        capture.release()
    rate = times.rate / every if times.is_constant else min(_MAX_RATE, times.fastest_rate)
    # OpenCV rounds rates to thousandths, which is too coarse for one frame a minute: such a frame is written often.
    return rate * math.ceil(1 / rate)
