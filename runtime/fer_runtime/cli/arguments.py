"""Interpret the arguments of `fer-infer` together, and refuse combinations that make no sense."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import click

from fer_runtime.cli.options import ImagesRun, RecognizerOptions, VideosRun
from fer_runtime.errors import OutputError
from fer_runtime.output.formats import OUTPUT_FORMATS
from fer_runtime.standard_streams import is_terminal
from fer_runtime.video.addresses import PROTOCOLS, is_stream, stream_name

if TYPE_CHECKING:
    from pathlib import Path

    from fer_runtime.output.destinations import Destinations

_NAMED = 3  # paths in one message
_DEVICE = "/dev/video"

_SCHEME_ADVICE = {
    "ftp": "files are not downloaded; download it first, and give the file",
    **dict.fromkeys(
        ("rtmp", "srt", "rtp", "mms"), "streams are read from " + ", ".join(f"{protocol}://" for protocol in PROTOCOLS)
    ),
    "file": "give the path alone, without file://",
}


def output_format(options: RecognizerOptions, *, default: str) -> str:
    """The name of the format that `--format`, or else the suffix of `--output`, asks for.

    Raises:
        click.UsageError: they ask for two formats, or for one that this kind of run does not write.
    """
    suffix = os.path.splitext((options.output or "").rstrip("/"))[1].lower()
    by_suffix = next((entry.name for entry in OUTPUT_FORMATS.values() if suffix in entry.suffixes), None)
    if None not in (options.format_name, by_suffix) and options.format_name != by_suffix:
        raise click.UsageError(
            f"--output {options.output} is named for {by_suffix}, but --format says {options.format_name}; "
            "give another name, or leave out --format"
        )
    name = options.format_name or by_suffix or default
    if not options.writes(OUTPUT_FORMATS[name]):
        written = ", ".join(entry.name for entry in OUTPUT_FORMATS.values() if options.writes(entry))
        raise click.UsageError(f"{options.title} does not write --format {name}; choose from: {written}")
    return name


def is_printed_as_table(output: str | None) -> bool:
    """Whether the rows go to a person's terminal."""
    return output is None and is_terminal(sys.stdout)


def refuse_uris(paths: Sequence[str]) -> None:
    """Stop where an argument is `scheme://...`: this machine's engine reads files.

    Raises:
        click.UsageError: there is one, and this is what to do instead.
    """
    for path in paths:
        scheme, separator, _ = path.partition("://")
        if separator and scheme.isalnum() and not os.path.lexists(path):
            raise click.UsageError(
                f"{stream_name(path)}: "
                + _SCHEME_ADVICE.get(scheme.lower(), "object stores are read by --engine ray (extra `ray`)")
            )


def has_streams(paths: Sequence[str], names: Sequence[str]) -> bool:
    """Whether the arguments are streams. Either all of them are, or none is.

    Raises:
        click.UsageError: there are streams and other things, or there is no name for each of the streams.
    """
    streams = [path for path in paths if is_stream(path)]
    if not streams:
        return False
    from fer_runtime.images import IMAGE_SUFFIXES

    for address in streams:
        if os.path.splitext(address.partition("?")[0])[1].lower() in IMAGE_SUFFIXES:
            raise click.UsageError(f"{stream_name(address)}: images are not downloaded; download it first")
    if len(streams) < len(paths):
        raise click.UsageError(
            f"{', '.join(map(stream_name, streams[:_NAMED]))}: give streams in a run of their own, without files"
        )
    if names and len(names) != len(streams):
        raise click.UsageError(
            f"--name is given {len(names)} times for {len(streams)} streams; give one per stream, or none"
        )
    if len(set(names)) < len(names):
        raise click.UsageError("two streams have the same --name, so their rows could not be told apart")
    return True


def find_videos(paths: Sequence[str], camera: int | None, *, samples: bool = False) -> list[Path | int]:
    """The videos among the arguments, patterns expanded. Either all arguments are videos, or none is.

    Args:
        samples: whether the images of the package are among the arguments.

    Raises:
        click.UsageError: there are videos and images, or a camera was given as a path.
    """
    from pathlib import Path

    from fer_runtime.batch.sources import expanded
    from fer_runtime.video.kinds import is_video

    videos: list[Path | int] = []
    others = samples
    for path in paths:
        number = _camera_number(path)
        if number is not None:
            raise click.UsageError(f"{path} is not an image file; to watch a camera, give --camera {number}")
        if path == "-":
            others = True
            continue
        for file in expanded(path) if _may_match_videos(path) else [path]:
            if is_video(file):
                videos.append(Path(file))
            else:
                others = True
    if not others:
        return videos if camera is None else [*videos, camera]
    if videos or camera is not None:
        named = [str(video) for video in videos[:_NAMED]] or [f"--camera {camera}"]
        more = f" and {len(videos) - _NAMED} more" if len(videos) > _NAMED else ""
        raise click.UsageError(
            f"{', '.join(named)}{more}: give videos and cameras in a run of their own, without images and folders"
        )
    return []


def _may_match_videos(pattern: str) -> bool:
    """Whether a glob pattern can match anything but files named as images."""
    from fer_runtime.images import IMAGE_SUFFIXES

    return os.path.splitext(pattern)[1].lower() not in IMAGE_SUFFIXES


def _camera_number(path: str) -> str | None:
    """N, where `path` is the number of a camera, or Linux's /dev/videoN."""
    device, number = path[: len(_DEVICE)], path[len(_DEVICE) :]
    if device == _DEVICE and number.isdecimal():
        return number
    return path if len(path) <= 2 and path.isdecimal() and not os.path.lexists(path) else None


def destinations_of(options: ImagesRun | VideosRun) -> Destinations:
    """The output files and folders of a run."""
    from pathlib import Path

    from fer_runtime.output.destinations import Destinations  # OpenCV takes long to load; --help needs none

    output = None if options.output is None else Path(options.output)
    contact_sheet = options.contact_sheet if isinstance(options, ImagesRun) else None
    return Destinations(output=output, contact_sheet=contact_sheet, annotate=options.annotate)


def refuse_overwriting(paths: Sequence[str], options: ImagesRun | VideosRun) -> None:
    """Stop before the run would overwrite one of the files that it reads.

    Raises:
        click.UsageError: it would, or --output is a folder.
    """
    from fer_runtime.batch.sources import expanded, sample_images
    from fer_runtime.detectors.yunet_file import yunet_path
    from fer_runtime.model.find import find_model

    paths = [path for path in paths if not is_stream(path)]
    if options.output is not None and os.path.isdir(options.output):
        raise click.UsageError(f"--output {options.output} is a folder; give the name of a file")
    model = find_model(options.model, precision=options.precision, models_dir=options.models_dir)
    reads: dict[str, Path | int] = {"the model": model, "YuNet's file": options.yunet or yunet_path()}
    if "-" in paths and sys.stdin is not None:
        reads["the file on standard input"] = sys.stdin.fileno()
    named = [*chain.from_iterable(expanded(path) for path in paths if path != "-")]
    recursive = False
    if isinstance(options, ImagesRun):
        recursive = options.reads_subfolders
        named += sample_images() if options.samples else []
    try:
        destinations_of(options).check(named, recursive=recursive, reads=reads)
    except OutputError as error:
        raise click.UsageError(str(error)) from error
