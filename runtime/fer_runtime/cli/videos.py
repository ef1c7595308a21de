"""`fer-infer` over videos and cameras: rows by frame or segment, and a line about each video on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import click

from fer_runtime.cli.options import VideosRun
from fer_runtime.cli.progress import Progress
from fer_runtime.cli.recognizer import opened_recognizer
from fer_runtime.command import is_terminal
from fer_runtime.errors import ImageError
from fer_runtime.output.formats import OUTPUT_FORMATS
from fer_runtime.output.sink import opened_sink
from fer_runtime.recognizer import Recognizer
from fer_runtime.text import counted, printable
from fer_runtime.video.annotated import annotated_paths
from fer_runtime.video.jobs import VideoSummary, write_video_rows
from fer_runtime.video.rows import is_per_segment, write_failed_row, write_video_header, write_video_heading
from fer_runtime.video.sources import FrameCounts, NamedSource, source_name


def run_on_videos(options: VideosRun, videos: Sequence[Path | int], format_name: str) -> bool:
    """Write the rows of all videos; whether any could not be opened.

    Args:
        videos: files, and numbers of cameras.
    """
    with opened_recognizer(options) as recognizer:
        return _run(recognizer, options, videos, format_name)


def _run(recognizer: Recognizer, options: VideosRun, videos: Sequence[Path | int], format_name: str) -> bool:
    output = None if options.output is None else Path(options.output)
    copies = [None] * len(videos) if options.annotate is None else annotated_paths(options.annotate, videos)
    failed = False
    # A row per frame is progress enough where it can be seen; a stretch may last as long as the film.
    rows_are_seen = output is None and is_terminal(sys.stdout)
    is_seen_itself = rows_are_seen and not is_per_segment(format_name, options.segments)
    shows_progress = is_terminal(sys.stderr) and not (options.quiet or is_seen_itself)
    # A camera's answer is about now, and a film takes minutes: who reads the rows need not wait for others.
    output_format = OUTPUT_FORMATS[format_name]
    format_name = output_format.rows_of or format_name
    with opened_sink(output, frame=output_format.create_frame(), by_row=True) as sink:
        write_video_header(sink.write, recognizer.labels, format_name=format_name, segments=options.segments)
        for video, copy in zip(videos, copies, strict=True):
            if len(videos) > 1:
                write_video_heading(sink.write, video, format_name=format_name)
            failed |= _write_rows_of(
                recognizer,
                options,
                video,
                sink.write,
                format_name,
                copy,
                shows_progress=shows_progress,
                rows_are_seen=rows_are_seen,
            )
        if options.anonymize is not None:
            click.echo("copies have no sound and no metadata; faces that were not found are not covered", err=True)
    return failed


def _write_rows_of(
    recognizer: Recognizer,
    options: VideosRun,
    video: Path | int,
    write: Callable[[str], object],
    format_name: str,
    copy: Path | None,
    *,
    shows_progress: bool,
    rows_are_seen: bool,
) -> bool:
    """Write the rows of one video, and say what became of it; whether it failed.

    Args:
        copy: of the video, annotated; None for none.
        rows_are_seen: on the terminal that shows the progress.
    """
    started, summary = perf_counter(), VideoSummary()

    def say_summary() -> None:
        if not options.quiet:
            say_video_summary(video, summary, perf_counter() - started)

    progress = Progress(_video_done(video, summary, options.start, options.duration), is_shown=shows_progress)
    try:
        with progress:
            write_video_rows(
                recognizer,
                video,
                _after_clearing(progress, write) if rows_are_seen else write,
                format_name=format_name,
                segments=options.segments,
                annotate=copy,
                anonymize=options.anonymize,
                every=options.every,
                start=options.start,
                duration=options.duration,
                summary=summary,
                on_result=progress.say,
            )
    except ImageError as error:
        # The rows of the other videos are not lost for it.
        if summary.counts.processed:
            say_summary()
        click.echo(f"Error: {printable(error)}", err=True)
        write_failed_row(
            write, recognizer.labels, video, str(error), format_name=format_name, segments=options.segments
        )
        return True
    except KeyboardInterrupt:
        say_summary()
        raise
    say_summary()
    _warn_of_missing_frames(video, summary.counts)
    return False


def say_video_summary(video: Path | int | NamedSource, summary: VideoSummary, seconds: float) -> None:
    """Say what became of the frames, and how long it took."""
    counts = summary.counts
    more = f"; {counted(summary.gaps, 'gap')}" if summary.gaps else ""
    if counts.damaged:
        more += f"; {counted(counts.damaged, 'damaged packet')}"
    if counts.missing is None and isinstance(video, Path):
        more = "; whether frames are missing is not known: no constant frame rate, or no time stamps"
    elif not counts.is_end_known and not counts.is_cut:
        more += "; a missing end would not be noticed: the file states no length"
    click.echo(
        f"{_name(video)}: {counted(counts.total, 'frame')}: {counts.processed} looked at, {counts.skipped} skipped, "
        f"{counts.dropped} dropped; {counted(summary.tracks, 'face')} followed; {seconds:.1f} s, "
        f"{counts.processed / max(seconds, 1e-9):.0f} frames/s{more}",
        err=True,
    )


def _warn_of_missing_frames(video: Path | int, counts: FrameCounts) -> None:
    if counts.missing:
        missing = f"{counted(counts.missing, 'frame')} {'is' if counts.missing == 1 else 'are'} missing"
        click.echo(f"warning: {_name(video)}: {missing}: damaged, or left out by the recorder", err=True)
    if counts.is_cut:
        click.echo(f"warning: {_name(video)} ends within a packet: cut short, by an unknown length", err=True)
    if counts.missing_seconds:
        click.echo(
            f"warning: {_name(video)} ends {counts.missing_seconds:.1f} s earlier than it says: cut short, damaged, or "
            "only sound follows",
            err=True,
        )


def _after_clearing(progress: Progress, write: Callable[[str], object]) -> Callable[[str], object]:
    """`write`, for rows on the terminal that shows the progress."""

    def clear_and_write(rows: str) -> None:
        progress.clear()
        write(rows)

    return clear_and_write


def _video_done(
    video: Path | int, summary: VideoSummary, start: float, duration: float | None
) -> Callable[[float], str]:
    """For `Progress`: frames, their rate, and the time left of a file that says how long it is."""

    def describe(seconds: float) -> str:
        counts = summary.counts
        end = min(counts.stated_seconds, float("inf") if duration is None else start + duration)
        done, left = summary.seconds - start, ""
        if done > 0 and counts.stated_seconds:
            seconds_left = seconds * max(0.0, end - start - done) / done
            left = f", at {summary.seconds:.1f} of {end:.1f} s, {seconds_left:.0f} s left"
        return f"{_name(video)}: {counts.processed} frames{left}, {counts.processed / seconds:.0f} frames/s"

    return describe


def _name(video: Path | int | NamedSource) -> str:
    return printable(source_name(video))
