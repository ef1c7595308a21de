"""`fer-infer` over videos and cameras: rows by frame or segment, and a line about each video on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import click

from fer_runtime.cli.options import VideosRun
from fer_runtime.cli.progress import Progress
from fer_runtime.cli.recognizer import opened_recognizer
from fer_runtime.errors import ImageError
from fer_runtime.output.formats import OUTPUT_FORMATS
from fer_runtime.output.sink import opened_sink
from fer_runtime.recognizer import Recognizer
from fer_runtime.standard_streams import is_terminal
from fer_runtime.text import counted, printable
from fer_runtime.video.annotated import annotated_paths
from fer_runtime.video.jobs import VideoOptions, VideoSummary, write_video_rows
from fer_runtime.video.rows import write_failed_row, write_video_header, write_video_heading
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
    output_format = OUTPUT_FORMATS[format_name]
    how = video_options(options, format_name)
    rows_are_seen = output is None and is_terminal(sys.stdout)
    # Rows of frames on the terminal show the progress themselves; a segment may last as long as the film.
    shows_progress = is_terminal(sys.stderr) and not (options.quiet or (rows_are_seen and not how.is_per_segment))
    # By row: a camera shows the present, and a film takes minutes.
    with opened_sink(output, frame=output_format.create_frame(), by_row=True) as sink:
        write_video_header(sink.write, recognizer.labels, format_name=how.format_name, segments=how.segments)
        for video, copy in zip(videos, copies, strict=True):
            if len(videos) > 1:
                write_video_heading(sink.write, video, format_name=how.format_name)
            summary = VideoSummary()
            progress = Progress(_video_done(video, summary, options.start, options.duration), is_shown=shows_progress)
            rows = _Rows(recognizer, sink.write, how, quiet=options.quiet)
            failed |= rows.write_all(video, copy, summary, progress, clears_progress=rows_are_seen)
        say_anonymized(options)
    return failed


def video_options(options: VideosRun, format_name: str) -> VideoOptions:
    """The options of the command line for `write_video_rows`.

    Args:
        format_name: of the output; its rows may be those of another format.
    """
    return VideoOptions(
        format_name=OUTPUT_FORMATS[format_name].rows_of or format_name,
        segments=options.segments,
        anonymize=options.anonymize,
        every=options.every,
        start=options.start,
        duration=options.duration,
    )


class _Rows(NamedTuple):
    """Where the rows of all videos are written, and how."""

    recognizer: Recognizer
    write: Callable[[str], object]
    options: VideoOptions
    quiet: bool

    def write_all(
        self, video: Path | int, copy: Path | None, summary: VideoSummary, progress: Progress, *, clears_progress: bool
    ) -> bool:
        """Write the rows of one video, and print its summary; whether it failed.

        Args:
            copy: file for the annotated copy.
            summary: filled while the video is read.
            clears_progress: the rows go to the terminal that shows the progress.
        """
        started = perf_counter()

        def say_summary(*, was_stopped: bool = False) -> None:
            if not self.quiet:
                say_video_summary(video, summary, perf_counter() - started, was_stopped=was_stopped)

        write = _after_clearing(progress, self.write) if clears_progress else self.write
        try:
            with progress:
                write_video_rows(
                    self.recognizer,
                    video,
                    write,
                    self.options,
                    annotate=copy,
                    summary=summary,
                    on_result=progress.say,
                )
        except ImageError as error:
            # The next videos still get their rows.
            if summary.counts.processed:
                say_summary()
            click.echo(f"Error: {printable(error)}", err=True)
            how = self.options
            write_failed_row(
                self.write,
                self.recognizer.labels,
                video,
                str(error),
                format_name=how.format_name,
                segments=how.segments,
            )
            return True
        except KeyboardInterrupt:
            say_summary(was_stopped=True)
            raise
        say_summary()
        _warn_of_missing_frames(video, summary.counts)
        return False


def say_anonymized(options: VideosRun) -> None:
    """Say what the copies of `--anonymize` lack, and what they may still show."""
    if options.anonymize is not None:
        click.echo("copies have no sound and no metadata; faces that were not found are not covered", err=True)


def say_video_summary(
    video: Path | int | NamedSource, summary: VideoSummary, seconds: float, *, was_stopped: bool = False
) -> None:
    """Say what became of the frames, and how long it took.

    Args:
        was_stopped: the video was not read to its end, so that nothing is known of missing frames.
    """
    counts = summary.counts
    more = f"; {counted(summary.gaps, 'gap')}" if summary.gaps else ""
    if counts.damaged:
        more += f"; {counted(counts.damaged, 'damaged packet')}"
    if counts.missing is None and isinstance(video, Path) and not was_stopped:
        more += "; whether frames are missing is not known: no constant frame rate, or no time stamps"
    elif not counts.is_end_known and not counts.is_cut and not was_stopped:
        more += "; a missing end would not be noticed: the file states no length"
    click.echo(
        f"{_name(video)}: {counted(counts.total, 'frame')}: {counts.processed} processed, {counts.skipped} skipped, "
        f"{counts.dropped} dropped; {counted(summary.tracks, 'face')} tracked; {seconds:.1f} s, "
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
