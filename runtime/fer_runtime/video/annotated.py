"""Annotated copies of videos: the frames with their faces drawn in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2

from fer_runtime.errors import OutputError
from fer_runtime.images import Uint8Array
from fer_runtime.output.annotate import draw_faces
from fer_runtime.output.image_files import unused_name
from fer_runtime.video.results import FrameResult
from fer_runtime.video.sources import native_path


def annotated_paths(folder: Path, sources: Sequence[Path | int]) -> list[Path]:
    """Files for the videos with their faces drawn in; of two sources with one name, the second gets a number."""
    used: set[str] = set()
    stems = (f"camera{source}" if isinstance(source, int) else source.stem for source in sources)
    return [folder / unused_name(stem, ".annotated.mp4", used) for stem in stems]


class AnnotatedVideo:
    """Writes frames to a temporary file that takes its name at the end."""

    def __init__(self, path: Path, source: Path | int, *, every: int) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.stem}.partial{path.suffix}")
        self._is_camera = isinstance(source, int)
        rate = 0.0
        if not isinstance(source, int):
            capture = cv2.VideoCapture(native_path(source))
            rate = capture.get(cv2.CAP_PROP_FPS)
            capture.release()
        self._rate = (rate if 0 < rate < 1000 else 25.0) / every
        self._writer: cv2.VideoWriter | None = None
        self._frames = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write to {path.parent}: {error.strerror}; choose another folder") from error

    def add(self, image: Uint8Array, result: FrameResult) -> None:
        drawn = draw_faces(image, [tracked.face for tracked in result.faces])
        if self._writer is None:
            size = (drawn.shape[1], drawn.shape[0])
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(native_path(self._partial), codec, self._rate, size)
            if not self._writer.isOpened():
                raise OutputError(f"this OpenCV cannot write the video {self._path}; leave --annotate away")
        # A camera's frames come as fast as they are looked at: each stays until it is the next one's time.
        for _ in range(round(result.time * self._rate) + 1 - self._frames if self._is_camera else 1):
            self._writer.write(drawn)
            self._frames += 1

    def finish(self) -> None:
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        # The writer reports no error, not even of a full disk.
        capture = cv2.VideoCapture(native_path(self._partial))
        written = round(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
        if written != self._frames:
            raise OutputError(
                f"cannot write {self._path}: {written} of {self._frames} frames arrived; is the disk full?"
            )
        os.replace(self._partial, self._path)

    def close(self) -> None:
        """Leave no half-written file behind."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
        self._partial.unlink(missing_ok=True)
