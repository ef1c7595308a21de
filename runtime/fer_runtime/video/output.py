"""Rows of a video: per frame or per segment, as JSON lines, CSV or subtitles; and the video with its faces drawn in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2

from fer_runtime.errors import OutputError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.images import Uint8Array
from fer_runtime.output.annotate import draw_faces
from fer_runtime.output.image_files import unused_name
from fer_runtime.output.rows import csv_line, uncertain_field
from fer_runtime.recognizer import Recognizer
from fer_runtime.text import printable
from fer_runtime.video.recognize import recognize_video
from fer_runtime.video.results import FrameResult
from fer_runtime.video.segments import Segment, SegmentBuilder
from fer_runtime.video.sources import FrameCounts, native_path, source_name
from fer_runtime.video.subtitles import to_srt

VIDEO_FORMATS = ("jsonl", "csv", "srt", "table")
_FRAME_COLUMNS = (
    *("path", "frame", "time", "track", "x", "y", "box_width", "box_height", "expression", "confidence"),
    *EXPRESSIONS,
    "uncertain",
    "error",
)
_SEGMENT_COLUMNS = ("path", "track", "start", "end", "expression", "confidence", "error")


@dataclass(slots=True, kw_only=True)
class VideoSummary:
    """What a run over one video did."""

    counts: FrameCounts = field(default_factory=FrameCounts)
    segments: int = 0
    tracks: int = 0  # different faces
    seconds: float = 0.0  # time of the last frame that was looked at


def annotated_paths(folder: Path, sources: Sequence[Path | int]) -> list[Path]:
    """Files for the videos with their faces drawn in; of two sources with one name, the second gets a number."""
    used: set[str] = set()
    stems = (f"camera{source}" if isinstance(source, int) else source.stem for source in sources)
    return [folder / unused_name(stem, ".annotated.mp4", used) for stem in stems]


def write_video_header(write: Callable[[str], object], *, format_name: str, segments: bool) -> None:
    """Write what stands before the rows of all videos."""
    if format_name == "csv":
        columns = _SEGMENT_COLUMNS if is_per_segment(format_name, segments) else _FRAME_COLUMNS
        write(csv_line(columns))


def write_video_heading(write: Callable[[str], object], source: Path | int, *, format_name: str) -> None:
    """Write which of several videos the rows of a table are of; the other formats name it in every row."""
    if format_name == "table":
        write(f"{printable(source_name(source))}\n")


def write_failed_row(
    write: Callable[[str], object], source: Path | int, reason: str, *, format_name: str, segments: bool
) -> None:
    """Write the one row of a video that could not be opened; subtitles have no place for a reason."""
    path = source_name(source)
    if format_name == "jsonl":
        write(json.dumps({"path": path, "error": reason}) + "\n")
    elif format_name == "csv":
        columns = _SEGMENT_COLUMNS if segments else _FRAME_COLUMNS
        write(csv_line([path, *[None] * (len(columns) - 2), reason]))
    elif format_name == "table":
        write(f"  {printable(reason)}\n")


def is_per_segment(format_name: str, segments: bool) -> bool:
    """Whether rows are of stretches of time, not of frames."""
    return segments or format_name in ("srt", "table")


def write_video_rows(
    recognizer: Recognizer,
    source: Path | int,
    write: Callable[[str], object],
    *,
    format_name: str = "jsonl",
    segments: bool = False,
    annotate: Path | None = None,
    every: int = 1,
    start: float = 0.0,
    duration: float | None = None,
    summary: VideoSummary | None = None,
    on_result: Callable[[], object] = lambda: None,
) -> VideoSummary:
    """Recognise a video and write its rows while it is read; Ctrl-C is how watching a camera ends.

    Args:
        source: a file, or a camera's number.
        write: takes text.
        format_name: one of VIDEO_FORMATS; subtitles and tables are per segment always.
        segments: a row per stretch of one face with one expression, instead of one per frame.
        annotate: file for the video with its faces drawn in.
        summary: filled while the video is read, and returned.
        on_result: called after each frame that was looked at.

    Raises:
        ImageError: the source cannot be opened.
        OutputError: the annotated video cannot be written.
    """
    summary, builder = VideoSummary() if summary is None else summary, SegmentBuilder()
    per_segment = is_per_segment(format_name, segments)
    drawn = None if annotate is None else _AnnotatedVideo(annotate, source, every=every)

    def emit(ended: Sequence[Segment]) -> None:
        for segment in ended:
            summary.segments += 1
            write(_segment_row(segment, format_name, summary.segments))

    try:
        results = recognize_video(
            recognizer,
            source,
            every=every,
            start=start,
            duration=duration,
            counts=summary.counts,
            on_frame=None if drawn is None else drawn.add,
        )
        try:
            with closing(results):
                for result in results:
                    summary.seconds = result.time
                    summary.tracks = max(summary.tracks, *(face.track for face in result.faces), 0)
                    if per_segment:
                        emit(builder.add(result))
                    else:
                        write(_frame_row(result, format_name))
                    on_result()
        except KeyboardInterrupt:
            if not isinstance(source, int):
                raise
        if per_segment:
            emit(builder.finish())
        if drawn is not None:
            drawn.finish()
    finally:
        if drawn is not None:
            drawn.close()
    return summary


def _frame_row(result: FrameResult, format_name: str) -> str:
    if format_name == "jsonl":
        return json.dumps(_rounded(result.to_dict())) + "\n"
    return "".join(
        csv_line(
            (
                result.path,
                result.frame,
                f"{result.time:.4f}",
                tracked.track,
                *tracked.face.box,
                tracked.face.expression,
                f"{tracked.face.confidence:.6f}",
                *(f"{tracked.face.probabilities[name]:.6f}" for name in EXPRESSIONS),
                uncertain_field(tracked.face),
                None,
            )
        )
        for tracked in result.faces
    ) or csv_line((result.path, result.frame, f"{result.time:.4f}", *[None] * (len(_FRAME_COLUMNS) - 3)))


def _segment_row(segment: Segment, format_name: str, number: int) -> str:
    if format_name == "srt":
        return to_srt(segment, number)
    if format_name == "jsonl":
        return json.dumps(segment.to_dict()) + "\n"
    values = segment.to_dict()
    if format_name == "csv":
        return csv_line([values.get(name) for name in _SEGMENT_COLUMNS])
    return (
        f"{segment.start:8.2f} - {segment.end:8.2f} s  face {segment.track:3}  {printable(segment.expression):10} "
        f"{segment.confidence:4.0%}\n"
    )


def _rounded(value: Any) -> Any:
    """Floats to six decimals, as the rows of pictures have them."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return value


class _AnnotatedVideo:
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
