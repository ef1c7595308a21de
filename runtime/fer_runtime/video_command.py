"""What `fer-infer` does with videos and cameras: rows by frame or segment, and a line about each video on stderr."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import click

from fer_runtime.errors import PictureError
from fer_runtime.recognizer import Recognizer
from fer_runtime.resume import Finished
from fer_runtime.sink import opened_sink
from fer_runtime.video_output import annotated_paths, write_failed_row, write_video_header, write_video_rows


def run_on_videos(
    recognizer: Recognizer,
    videos: Sequence[Path | int],
    format_name: str,
    output: Path | None,
    *,
    annotate: Path | None,
    segments: bool,
    every: int,
    start: float,
    duration: float | None,
) -> bool:
    """Write the rows of all videos; whether any could not be opened.

    Args:
        videos: files, and numbers of cameras.
        output: where the rows go; None is standard output.
        annotate: folder for copies with their faces drawn in.
        every, start, duration: the frames to look at, as `recognize_video` takes them.
    """
    copies = [None] * len(videos) if annotate is None else annotated_paths(annotate, videos)
    failed = False
    with opened_sink(output, Finished()) as write:
        write_video_header(write, format_name=format_name, segments=segments)
        for video, copy in zip(videos, copies, strict=True):
            started = perf_counter()
            try:
                summary = write_video_rows(
                    recognizer,
                    video,
                    write,
                    format_name=format_name,
                    segments=segments,
                    annotate=copy,
                    every=every,
                    start=start,
                    duration=duration,
                )
            except PictureError as error:
                # The rows of the other videos are not lost for it.
                click.echo(f"Error: {error}", err=True)
                write_failed_row(write, video, str(error), format_name=format_name, segments=segments)
                failed = True
                continue
            counts, seconds = summary.counts, perf_counter() - started
            click.echo(
                f"{video}: {counts.total} frames: {counts.processed} looked at, {counts.skipped} skipped, "
                f"{counts.dropped} dropped; {summary.tracks} faces followed; {seconds:.1f} s, "
                f"{counts.processed / max(seconds, 1e-9):.0f} frames/s",
                err=True,
            )
            if counts.missing_seconds:
                click.echo(
                    f"warning: {video} ends {counts.missing_seconds:.1f} s earlier than it says: cut short, or damaged",
                    err=True,
                )
    return failed
