"""A run over one video: its rows and its annotated copy, written while it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from fer_runtime.recognizer import Recognizer
from fer_runtime.video.annotated import AnnotatedVideo
from fer_runtime.video.recognize import recognize_video
from fer_runtime.video.rows import frame_row, is_per_segment, segment_row
from fer_runtime.video.segments import Segment, SegmentBuilder
from fer_runtime.video.sources import FrameCounts


@dataclass(slots=True, kw_only=True)
class VideoSummary:
    """What a run over one video did."""

    counts: FrameCounts = field(default_factory=FrameCounts)
    segments: int = 0
    tracks: int = 0  # different faces
    seconds: float = 0.0  # time of the last frame that was looked at


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
        format_name: of an output format that is_for_videos; subtitles and tables are per segment always.
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
    drawn = None if annotate is None else AnnotatedVideo(annotate, source, every=every)

    def emit(ended: Sequence[Segment]) -> None:
        for segment in ended:
            summary.segments += 1
            write(segment_row(segment, format_name, summary.segments))

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
                        write(frame_row(result, format_name))
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
