"""The command `fer-infer`: its options, and which kind of run they ask for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from fer_runtime.cli.arguments import (
    find_videos,
    has_streams,
    is_printed_as_table,
    output_format,
    refuse_overwriting,
    refuse_uris,
)
from fer_runtime.cli.options import (
    RUNS,
    ClusterRun,
    DevicesRun,
    FetchRun,
    ImagesRun,
    ListModelsRun,
    PipedRun,
    RecognizerOptions,
    SelfTestRun,
    StreamsRun,
    VideosRun,
    WatchRun,
)
from fer_runtime.collector import collector_stopped
from fer_runtime.command import (
    GivenPath,
    NumberRange,
    PathlibPath,
    RegistryChoice,
    Rule,
    ShortCommand,
    option_group,
    take_options,
)
from fer_runtime.model.find import PRECISIONS
from fer_runtime.output.formats import OUTPUT_FORMATS
from fer_runtime.shared_options import (
    detector_rule,
    face_detection_options,
    max_pixels_option,
    model_option,
    models_dir_option,
    named_models_rule,
    provider_option,
    threads_option,
)
from fer_runtime.targets import TARGETS, target_of
from fer_runtime.video import LAST_CAMERA
from fer_runtime.video.addresses import is_stream

_FOLDER = PathlibPath(file_okay=False)
_FILE = PathlibPath(dir_okay=False)
_MOST_WORKERS = 100_000
_SHARD_MULTIPLE = 64  # images: a shard is made of whole blocks


def _shard_size(context: click.Context, parameter: click.Parameter, value: int | None) -> int | None:
    if (value or _SHARD_MULTIPLE) % _SHARD_MULTIPLE:
        raise click.BadParameter(f"must be a multiple of {_SHARD_MULTIPLE}, not {value}", context, parameter)
    return value


_RULES = (
    detector_rule("yunet", "auto"),
    detector_rule("min_face", "auto"),
    named_models_rule("model", "precision", "models_dir"),
    Rule(
        *("provider", "strict", "any_operator", "trust"),
        when=lambda given: target_of(given["model"]) is not None,
        because="only with an .onnx file, not with a file of another runtime",
    ),
    Rule(
        "model",
        when=lambda given: target_of(given["model"]) is not None and not given["self_test"],
        because="fer-infer runs .onnx files; add --self-test to replay a file of another runtime",
    ),
    Rule(
        "recursive",
        when=lambda given: given["samples"] and not given["paths"],
        because="--samples has no folders to search",
    ),
    Rule(
        "engine",
        when=lambda given: given["watch"] is not None and given["engine"] != "local",
        because="--watch reads its folder on this machine alone",
    ),
    Rule("allow", when=lambda given: given["provider"].lower() != "auto", because="only with --provider auto"),
    Rule("live", when=lambda given: given["input_format"] is None, because="only with --input-format"),
    Rule("null_separated", when=lambda given: "-" not in given["paths"], because="only with the PATH -"),
    Rule("resume", when=lambda given: given["output"] is None, because="only with --output"),
    Rule("anonymize", when=lambda given: given["annotate"] is None, because="only with --annotate DIR"),
    Rule(
        "random_count",
        when=lambda given: given["resume"],
        because="not with --resume, which cannot repeat the random choice",
    ),
)


@click.command("fer-infer", cls=ShortCommand, runs=RUNS, rules=_RULES)
# Not checked here: a folder that cannot be read gets its row, as an image does, and ends no other's.
@click.argument("paths", nargs=-1, metavar="PATH...", type=click.Path(path_type=str, readable=False))
@option_group(
    "Input",
    click.option("--samples", is_flag=True, help="Use the photographs that ship with the package."),
    click.option(
        "--watch",
        type=PathlibPath(exists=True, file_okay=False),
        metavar="FOLDER",
        help="Write a row for every image that is in the folder or is added to it, until Ctrl-C. With --output, a new "
        "run continues.",
    ),
    click.option("--recursive", is_flag=True, help="Search folders inside folders too."),
    click.option(
        "-0",
        "--null",
        "null_separated",
        is_flag=True,
        help="The list of paths on standard input is separated by NUL bytes (find -print0), not by line ends.",
    ),
    click.option(
        "--random",
        "random_count",
        type=click.IntRange(min=1),
        help="Use N random images of the folders and their subfolders. The name of a class folder counts as the true "
        "label.",
    ),
    max_pixels_option(100_000_000),
)
@option_group(
    "Model",
    model_option(),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        help="Precision of a named model. [default: int8, or what is available]",
    ),
    models_dir_option,
    provider_option(" (see --devices). auto: the fastest that passes the model's self-test."),
    click.option(
        "--allow",
        type=click.Choice(["bf16"]),
        help="With --provider auto: also take a provider that computes in bf16, with its wider tolerance.",
    ),
    click.option("--strict", is_flag=True, help="Fail when ONNX Runtime falls back to another provider."),
    threads_option("one block of images or one frame, capped at the available CPUs"),
    click.option(
        "--any-operator",
        is_flag=True,
        help="Load a model with operators that fer-export never writes. Only for files that you trust.",
    ),
)
@face_detection_options
@option_group(
    "Output",
    click.option(
        "--format",
        "format_name",
        type=RegistryChoice(OUTPUT_FORMATS),
        help="Format of the rows. {entries} [default: by the suffix of --output; else table on a terminal, jsonl "
        "elsewhere]",
    ),
    click.option(
        "--output",
        type=GivenPath(path_type=str),
        metavar="FILE",
        help="Write the rows to FILE, which appears when it is complete. With --engine ray: a folder or its URI.",
    ),
    click.option("--resume", is_flag=True, help="Continue an interrupted --output run (JSON Lines or --engine ray)."),
    click.option(
        "--annotate", type=_FOLDER, metavar="DIR", help="Write copies of the images or videos with the faces drawn in."
    ),
    click.option(
        "--anonymize",
        type=click.Choice(("pixelate", "blur", "solid")),
        help="With --annotate: copies with unrecognizable faces, nothing drawn in, no EXIF and no sound.",
    ),
    click.option(
        "--contact-sheet", type=_FILE, metavar="FILE", help="Write one image of all faces, grouped by expression."
    ),
    click.option("--quiet", is_flag=True, help="Print only warnings and errors on stderr."),
)
@option_group(
    "Videos and cameras",
    click.option(
        "--camera", type=click.IntRange(0, LAST_CAMERA), metavar="N", help="Watch camera N until Ctrl-C or --duration."
    ),
    click.option(
        "--every", type=click.IntRange(min=1), default=1, show_default=True, help="Process every N-th video frame."
    ),
    click.option("--start", type=NumberRange(min=0), default=0.0, help="Seconds to skip at the start."),
    click.option("--duration", type=NumberRange(min=0), help="Seconds to process."),
    click.option("--segments", is_flag=True, help="Write a row per face and expression, with start and end."),
)
@option_group(
    "Streams",
    click.option(
        "--name",
        "stream_names",
        multiple=True,
        metavar="NAME",
        help="Name of the stream in its rows; give one per stream. Streams need the extra `stream`.",
    ),
    click.option(
        "--reconnect",
        type=NumberRange(min=0),
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="How long to try again when the connection is lost: 0 not at all, inf for ever.",
    ),
    click.option(
        "--input-format",
        metavar="FORMAT",
        help="With PATH -: standard input is a video. auto, a format of FFmpeg (mpegts, h264, mjpeg, ...), or raw "
        "frames as raw:PIXELS:WIDTHxHEIGHT[@RATE], such as raw:bgr24:640x480@25.",
    ),
    click.option("--live", is_flag=True, help="With --input-format: drop frames that come while another is processed."),
)
@option_group(
    "Ray cluster",
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="ray: process images at paths or URIs (s3://, gs://, ...) on a Ray cluster; needs the extra `ray`.",
    ),
    click.option(
        "--ray-address",
        metavar="ADDRESS",
        help="Running cluster, host:port or auto. [default: start Ray on this machine]",
    ),
    click.option(
        "--workers", type=click.IntRange(1, _MOST_WORKERS), help="Parallel workers. [default: the CPUs of the cluster]"
    ),
    click.option(
        "--part-size",
        type=click.IntRange(min=_SHARD_MULTIPLE),
        callback=_shard_size,
        metavar="N",
        help=f"Images per shard, a multiple of {_SHARD_MULTIPLE}. [default: 1024]",
    ),
)
@option_group(
    "Other runs",
    click.option(
        "--self-test",
        is_flag=True,
        help="Compare the model on this machine with PyTorch's results stored in its file. Also for files of "
        "fer-export --target, in their own runtime: " + ", ".join(entry.suffix for entry in TARGETS.values()) + ".",
    ),
    click.option(
        "--trust",
        type=_FILE,
        metavar="KEY",
        help="With --self-test: the model must be signed by the holder of this public key (extra `sign`).",
    ),
    click.option(
        "--devices", is_flag=True, help="List the execution providers of this machine, and how to get others."
    ),
    click.option("--list-models", is_flag=True, help="List the models that --model finds by name."),
    click.option(
        "--fetch-yunet", is_flag=True, help="Download the detector YuNet (233 kB, MIT): more faces than Haar, faster."
    ),
)
def main(**given: Any) -> None:
    """Read expressions from the faces in images, folders, videos, cameras and streams.

    \b
    fer-infer --samples                          the photographs that ship with the package
    fer-infer holiday/ --recursive               a table, one line per face
    fer-infer holiday/ --format jsonl | head     one JSON line per image
    fer-infer crops/ --output faces.jsonl        rows in a file; continue a stopped run with --resume
    fer-infer holiday/ --annotate seen/          copies with boxes, expressions and bars
    fer-infer --watch inbox/ --output rows.jsonl every file that is added, until Ctrl-C
    fer-infer film.mp4 --format srt              subtitles with each face's expression
    fer-infer holiday/ --annotate safe/ --anonymize pixelate    copies with unrecognizable faces
    fer-infer --camera 0 --annotate seen/        a camera, until Ctrl-C
    fer-infer rtsp://camera.local/main           a stream: rtsp, http, https or udp
    fer-infer s3://b/p --engine ray --output d   a folder of shards, made by a Ray cluster
    fer-infer --self-test                        does this machine compute what was trained?

    Every image gets a row. If it cannot be read, the row has the reason. PATH may be "-": an image
    or a list of paths on standard input. Exit codes: 0 success, 1 some images failed or
    Ctrl-C, 2 wrong usage, 143 stopped by SIGTERM. A stopped run keeps its rows. Ctrl-C is the
    normal end of --watch, cameras and streams: exit code 0.
    Only --fetch-yunet, and addresses that you give, open a network connection.
    """
    if given["self_test"]:
        from fer_runtime.cli.self_test import run_self_test

        failed = run_self_test(take_options(SelfTestRun))
    elif given["devices"]:
        from fer_runtime.cli.devices import list_devices

        failed = list_devices(take_options(DevicesRun))
    elif given["list_models"]:
        from fer_runtime.cli.list_models import list_models

        failed = list_models(take_options(ListModelsRun))
    elif given["watch"] is not None or given["paths"] or given["samples"] or given["camera"] is not None:
        with collector_stopped():
            run = _watching(given) if given["watch"] is not None else _recognition(given)
        failed = run()
    elif given["fetch_yunet"]:
        take_options(FetchRun)
        _fetch_yunet(is_result=True)
        failed = False
    else:
        raise click.UsageError("give images, folders or videos, or try: fer-infer --samples")
    if failed:
        sys.exit(1)


def _recognition(given: dict[str, Any]) -> Callable[[], bool]:
    """The run over images, videos or a cluster, loaded and checked; it says whether anything failed."""
    # numpy's BLAS would start a thread per core, 0.04 s of CPU time, and nothing here multiplies matrices with it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Here, not deep in the imports below: where the stack of calls crosses the end of a block of Python's frame stack
    # (3.11 and later), every call maps and unmaps memory. It happened 1,600 times, for 10 ms, while numpy was imported.
    import numpy  # noqa: F401

    paths: tuple[str, ...] = given["paths"]
    if paths.count("-") > 1:
        raise click.UsageError("give - once: standard input can be read only once")
    options: ClusterRun | VideosRun | ImagesRun
    if given["engine"] == "ray":
        options = take_options(ClusterRun)
        if any(map(is_stream, paths)) or find_videos(paths, None):
            raise click.UsageError("--engine ray processes images, not videos")
        format_name = output_format(options, default="jsonl")
        if format_name == "parquet" and options.output is None:
            raise click.UsageError("--format parquet: only with --output DIR")
        _fetch_if_asked(options)
        from fer_runtime.cli.cluster import run_on_ray

        return partial(run_on_ray, options, format_name)
    default = "table" if is_printed_as_table(given["output"]) else "jsonl"
    if given["input_format"] is not None or has_streams(paths, given["stream_names"]):
        return _stream_recognition(given, default)
    refuse_uris(paths)
    if videos := find_videos(paths, given["camera"], samples=given["samples"]):
        options = take_options(VideosRun)
        format_name = output_format(options, default=default)
        if len(videos) > 1 and format_name == "srt":
            raise click.UsageError("--format srt takes one video at a time: subtitles belong to one film")
        refuse_overwriting([str(video) for video in videos if not isinstance(video, int)], options)
        _fetch_if_asked(options)
        from fer_runtime.cli.videos import run_on_videos

        return partial(run_on_videos, options, videos, format_name)
    options = take_options(ImagesRun)
    format_name = output_format(options, default=default)
    if options.resume and not OUTPUT_FORMATS[format_name].is_resumable:
        resumable = ", ".join(entry.name for entry in OUTPUT_FORMATS.values() if entry.is_resumable)
        raise click.UsageError(f"--resume continues a run of --format {resumable}")
    refuse_overwriting(paths, options)
    _fetch_if_asked(options)
    from fer_runtime.cli.images import run_on_images

    return partial(run_on_images, options, format_name)


def _watching(given: dict[str, Any]) -> Callable[[], bool]:
    """The run over the files that are added to a folder; calling it tells whether any failed."""
    options = take_options(WatchRun)
    default = "table" if is_printed_as_table(given["output"]) else "jsonl"
    format_name = output_format(options, default=default)
    if options.output is not None and not OUTPUT_FORMATS[format_name].is_resumable:
        raise click.UsageError(f"--watch with --output writes --format jsonl, not {format_name}")
    if options.output is not None and os.path.isdir(options.output):
        raise click.UsageError(f"--output {options.output} is a folder; give the name of a file")
    _fetch_if_asked(options)
    from fer_runtime.cli.watch import run_on_watched

    return partial(run_on_watched, options, format_name)


def _stream_recognition(given: dict[str, Any], default: str) -> Callable[[], bool]:
    """The run over network streams, or over a video on standard input; it says whether anything failed."""
    is_piped = given["input_format"] is not None
    if is_piped and (given["paths"] != ("-",) or len(given["stream_names"]) > 1 or given["camera"] is not None):
        raise click.UsageError(
            "--input-format: the video is on standard input; give - as the only PATH, and one --name"
        )
    if given["camera"] is not None:
        raise click.UsageError("give --camera in a run of its own, without streams")
    options = take_options(PipedRun) if is_piped else take_options(StreamsRun)
    format_name = output_format(options, default=default)
    if len(given["paths"]) > 1 and format_name == "srt":
        raise click.UsageError("--format srt takes one stream at a time")
    refuse_overwriting(given["paths"], options)
    _fetch_if_asked(options)
    from fer_runtime.cli.streams import run_on_piped_video, run_on_streams

    if isinstance(options, StreamsRun):
        return partial(run_on_streams, options, format_name)
    return partial(run_on_piped_video, options, format_name)


def _fetch_if_asked(options: RecognizerOptions) -> None:
    if options.fetch_yunet:
        _fetch_yunet(is_result=False)


def _fetch_yunet(*, is_result: bool) -> None:
    """Download YuNet and say where it is: on stdout, unless that is for rows."""
    from fer_runtime.detectors.yunet_file import fetch_yunet

    click.echo(fetch_yunet(), err=not is_result)
