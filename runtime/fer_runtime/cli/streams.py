"""`fer-infer` over network streams and piped video: several at once, with their rows in the order of their frames."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from time import perf_counter

import click

from fer_runtime.cli.options import PipedRun, StreamsRun, VideosRun
from fer_runtime.cli.recognizer import opened_recognizer
from fer_runtime.cli.videos import say_anonymized, say_video_summary, video_options
from fer_runtime.errors import ImageError, OutputError
from fer_runtime.output.formats import OUTPUT_FORMATS
from fer_runtime.output.sink import opened_sink
from fer_runtime.recognizer import Recognizer
from fer_runtime.text import printable
from fer_runtime.video.addresses import stream_name
from fer_runtime.video.annotated import annotated_paths
from fer_runtime.video.jobs import VideoOptions, VideoSummary, write_video_rows
from fer_runtime.video.rows import write_failed_row, write_video_header
from fer_runtime.video.streams import PipedVideo, Stream


def run_on_streams(options: StreamsRun, format_name: str) -> bool:
    """Write the rows of all streams until they end, or Ctrl-C or SIGTERM; whether one of them failed."""
    names = options.stream_names or _unique([stream_name(address) for address in options.paths])
    with opened_recognizer(options) as recognizer, ExitStack() as stack:
        sources = [
            stack.enter_context(Stream(address, name=name, reconnect=options.reconnect, on_message=_warn))
            for address, name in zip(options.paths, names, strict=True)
        ]
        return _write_rows(recognizer, options, sources, format_name)


def run_on_piped_video(options: PipedRun, format_name: str) -> bool:
    """Write the rows of the video on standard input; whether it failed."""
    if sys.stdin is None:
        raise OutputError("standard input is closed; pipe a video into fer-infer")
    name = options.stream_names[0] if options.stream_names else "-"
    try:
        video = PipedVideo(sys.stdin.fileno(), input_format=options.input_format, name=name, is_live=options.live)
    except ValueError as error:
        raise click.UsageError(f"--input-format: {error}") from error
    with closing(video), opened_recognizer(options) as recognizer:
        return _write_rows(recognizer, options, [video], format_name)


def _unique(names: Sequence[str]) -> list[str]:
    """`names`, numbered where two are the same: two streams of one camera have the same host."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]


def _write_rows(
    recognizer: Recognizer, options: VideosRun, sources: Sequence[Stream | PipedVideo], format_name: str
) -> bool:
    output_format, how = OUTPUT_FORMATS[format_name], video_options(options, format_name)
    copies: Sequence[Path | None] = [None] * len(sources)
    if options.annotate is not None:
        copies = annotated_paths(options.annotate, sources)
    output = None if options.output is None else Path(options.output)
    ended: queue.SimpleQueue[BaseException | bool] = queue.SimpleQueue()  # an answer of each thread
    with opened_sink(output, frame=output_format.create_frame(), by_row=True) as sink:
        lock = threading.Lock()
        write_video_header(sink.write, recognizer.labels, format_name=how.format_name, segments=how.segments)

        def run(source: Stream | PipedVideo, copy: Path | None) -> None:
            # Rows of several streams are mixed; a table has no column for their names.
            name = f"{printable(source.name)}  " if how.format_name == "table" and len(sources) > 1 else ""

            def write(rows: str) -> None:
                with lock:
                    sink.write(name + rows if rows else rows)

            try:
                ended.put(_write_rows_of(recognizer, source, write, how, copy, quiet=options.quiet))
            except BaseException as error:
                ended.put(error)

        threads = [
            threading.Thread(target=run, args=pair, name="fer-rows", daemon=True)
            for pair in zip(sources, copies, strict=True)
        ]
        for thread in threads:
            thread.start()
        answers: list[BaseException | bool] = []
        try:
            while len(answers) < len(threads) and not any(isinstance(given, BaseException) for given in answers):
                # Not without end: a signal that the system gives to another thread would not interrupt it.
                with suppress(queue.Empty):
                    answers.append(ended.get(timeout=1.0))
        except KeyboardInterrupt:
            pass  # a live source has no other end
        for source in sources:
            source.close()
        while len(answers) < len(threads):
            answers.append(ended.get())
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
    say_anonymized(options)
    return any(answer is True for answer in answers)


def _write_rows_of(
    recognizer: Recognizer,
    source: Stream | PipedVideo,
    write: Callable[[str], object],
    how: VideoOptions,
    copy: Path | None,
    *,
    quiet: bool,
) -> bool:
    """Write the rows of one source, and print its summary; whether it failed."""
    started, summary = perf_counter(), VideoSummary()
    try:
        write_video_rows(recognizer, source, write, how, annotate=copy, summary=summary)
    except ImageError as error:
        # The other streams keep running.
        click.echo(f"Error: {printable(error)}", err=True)
        write_failed_row(
            write, recognizer.labels, source, str(error), format_name=how.format_name, segments=how.segments
        )
        return True
    finally:
        if not quiet:
            say_video_summary(source, summary, perf_counter() - started)
    return False


def _warn(text: str) -> None:
    click.echo(f"warning: {printable(text)}", err=True)
