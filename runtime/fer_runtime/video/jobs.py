"""A run over one video: its rows and its annotated copy, written while it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from fer_runtime.errors import ImageError, OutputError
from fer_runtime.images import Uint8Array
from fer_runtime.recognizer import Recognizer
from fer_runtime.video.annotated import AnnotatedVideo
from fer_runtime.video.recognize import recognize_video
from fer_runtime.video.results import FrameResult
from fer_runtime.video.rows import frame_row, gap_row, is_per_segment, segment_row
from fer_runtime.video.segments import Segment, SegmentBuilder
from fer_runtime.video.sources import FrameCounts, Gap, NamedSource, source_name


@dataclass(slots=True, kw_only=True)
class VideoSummary:
    """Counts and times of a run over one video."""

    counts: FrameCounts = field(default_factory=FrameCounts)
    segments: int = 0
    tracks: int = 0  # different faces
    gaps: int = 0  # times without frames
    seconds: float = 0.0  # time of the last processed frame


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoOptions:
    """Which frames of a video are processed, and how their rows and the annotated copy are written."""

    format_name: str = "jsonl"  # of an output format that is_for_videos
    segments: bool = False  # a row per segment, not per frame; tables and subtitles always have segments
    anonymize: str | None = None  # one of anonymize.METHODS: the copy has its faces covered, and nothing drawn in
    every: int = 1  # each N-th frame is processed
    start: float = 0.0  # seconds
    duration: float | None = None  # seconds; None: to the end

    @property
    def is_per_segment(self) -> bool:
        """Whether there is one row per segment, not per frame."""
        return is_per_segment(self.format_name, self.segments)


def write_video_rows(
    recognizer: Recognizer,
    source: Path | int | NamedSource,
    write: Callable[[str], object],
    options: VideoOptions | None = None,
    *,
    annotate: Path | None = None,
    summary: VideoSummary | None = None,
    on_result: Callable[[], object] = lambda: None,
) -> VideoSummary:
    """Recognize a video and write its rows while it is read. Ctrl-C ends a camera.

    Args:
        source: a file, a camera's number, or an open stream.
        write: takes text.
        options: by default a JSON line for every frame.
        annotate: file for the annotated copy.
        summary: filled while the video is read, and returned.
        on_result: called after each processed frame.

    Raises:
        ImageError: the source cannot be opened or decoded; or, after all its rows, it was lost, or its copy cannot be
            written.
    """
    options = options or VideoOptions()
    summary, builder = VideoSummary() if summary is None else summary, SegmentBuilder()
    format_name, per_segment = options.format_name, options.is_per_segment
    lost: ImageError | None = None
    copy = _Copy(annotate, source, every=options.every, anonymize=options.anonymize)

    def emit(ended: Sequence[Segment]) -> None:
        for segment in ended:
            summary.segments += 1
            write(segment_row(segment, format_name, summary.segments))

    def add_gap(gap: Gap) -> None:
        summary.gaps += 1
        emit(builder.finish(gap.start))
        write(gap_row(source_name(source), gap, recognizer.labels, format_name, segments=per_segment))

    try:
        results = recognize_video(
            recognizer,
            source,
            every=options.every,
            start=options.start,
            duration=options.duration,
            counts=summary.counts,
            on_frame=copy.add,
            on_gap=add_gap,
        )
        try:
            with closing(results):
                for result in results:
                    summary.seconds = result.time
                    summary.tracks = max(summary.tracks, *(face.track for face in result.faces), 0)
                    if per_segment:
                        emit(builder.add(result))
                    else:
                        write(frame_row(result, recognizer.labels, format_name))
                    on_result()
        except KeyboardInterrupt:
            if isinstance(source, Path):
                if per_segment:
                    emit(builder.finish())
                raise
        except ImageError as error:
            lost = error  # what was seen until then is kept
        if per_segment:
            emit(builder.finish(summary.counts.end))
        if lost is None or not isinstance(source, Path):
            copy.finish(summary.counts.end)
        if lost is not None:
            raise lost
    finally:
        copy.close()
    return summary


class _Copy:
    """The annotated copy of a video. One that cannot be written costs none of the video's rows.

    Args:
        path: None for no copy.
    """

    def __init__(
        self, path: Path | None, source: Path | int | NamedSource, *, every: int, anonymize: str | None
    ) -> None:
        self._video: AnnotatedVideo | None = None
        self._error: OutputError | None = None
        if path is not None:
            try:
                self._video = AnnotatedVideo(path, source, every=every, anonymize=anonymize)
            except OutputError as error:
                self._error = error

    def add(self, image: Uint8Array, result: FrameResult) -> None:
        if self._video is not None:
            try:
                self._video.add(image, result)
            except OutputError as error:
                self._error = error
                self.close()

    def finish(self, end: float) -> None:
        """Give the copy its name.

        Raises:
            ImageError: it could not be written.
        """
        if self._video is not None:
            try:
                self._video.finish(end)
            except OutputError as error:
                self._error = error
        if self._error is not None:
            raise ImageError(str(self._error)) from self._error

    def close(self) -> None:
        if self._video is not None:
            self._video.close()
            self._video = None
