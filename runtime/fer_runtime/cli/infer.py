"""The command `fer-infer`: its options, and which of its runs they ask for."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from fer_runtime.cli.arguments import find_videos, format_by_suffix, refuse_overwriting, refuse_uris
from fer_runtime.command import ShortCommand, is_terminal
from fer_runtime.model.find import DEFAULT_MODELS_DIR, MODEL_NAMES, PRECISIONS, PREFERENCE, Precision

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


def _confidence(context: click.Context, parameter: click.Parameter, value: str | None) -> float | str | None:
    """A probability, or "auto"."""
    if value is None or value == "auto":
        return value
    confidence: float = click.FloatRange(0, 1)(value, parameter, context)
    return confidence


@click.command(cls=ShortCommand, context_settings={"max_content_width": 100})
@click.argument("paths", nargs=-1, metavar="PATH...", type=click.Path(path_type=str))
@click.option("--samples", is_flag=True, help="Run on the photographs that ship with the package.")
@click.option("--recursive", is_flag=True, help="Go down into folders of folders.")
@click.option(
    "--model",
    metavar="|".join((*MODEL_NAMES, "FILE")),
    help="Model: a name or an .onnx file. [default: the first that is there of: " + ", ".join(PREFERENCE) + "]",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Of a named model. [default: "
    + ", ".join(f"{order[0]} of {name}" for name, order in PREFERENCE.items())
    + ", or what is there]",
)
@click.option(
    "--models-dir",
    type=_FOLDER,
    default=DEFAULT_MODELS_DIR,
    show_default=True,
    help="Where named models are looked for before those inside the package.",
)
@click.option(
    "--detector",
    type=click.Choice(["auto", "haar", "yunet", "whole"]),
    default="auto",
    show_default=True,
    help="auto: a picture up to 64 pixels on its short side is a face, in larger ones faces are found, by YuNet "
    "where its file is there, else by Haar; haar, yunet: find faces in all; whole: every picture is a face.",
)
@click.option("--yunet", type=_FILE, help="YuNet's file, if not in the cache.")
@click.option("--fetch-yunet", is_flag=True, help="Download YuNet (233 kB, MIT) to the cache folder: better, faster.")
@click.option(
    "--min-face",
    type=click.IntRange(min=1),
    default=24,
    show_default=True,
    help="Smallest face in pixels. Haar sees none under 1/16 of a picture's long side, or 1/64 where it found none.",
)
@click.option(
    "--min-confidence",
    callback=_confidence,
    metavar="P|auto",
    help="Mark faces with less confidence as uncertain; auto takes the threshold fitted at export.",
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["table", "jsonl", "csv", "srt", "parquet"]),
    help="Of the rows; srt: subtitles of a video; parquet: with --engine ray. [default: by the suffix of --output; "
    "table on a terminal, else jsonl]",
)
@click.option("--annotate", type=_FOLDER, help="Write the pictures, or the video, with their faces drawn in to DIR.")
@click.option("--contact-sheet", type=_FILE, help="Write a page of the faces, grouped by expression, to FILE.")
@click.option(
    "--random",
    "random_count",
    type=click.IntRange(min=1),
    help="Take N random pictures of the folders; a class folder's name counts as the true label.",
)
@click.option("--camera", type=click.IntRange(min=0), help="Watch camera N until Ctrl-C or --duration.")
@click.option("--every", type=click.IntRange(min=1), default=1, show_default=True, help="Of a video: each N-th frame.")
@click.option("--start", type=click.FloatRange(min=0), default=0.0, help="Of a video: seconds to pass over first.")
@click.option("--duration", type=click.FloatRange(min=0), help="Of a video: seconds to look at.")
@click.option("--segments", is_flag=True, help="Of a video: a row per face and expression, with start and end.")
@click.option(
    "--output",
    type=click.Path(path_type=str),
    metavar="FILE",
    help="Write the rows to FILE, whole or not; with --engine ray a folder of parts, or its URI.",
)
@click.option("--resume", is_flag=True, help="Go on with a stopped run of JSON lines, or of --engine ray, to --output.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: pictures at paths or URIs (s3://, gs://, ...) over the machines of a Ray cluster; extra `ray`.",
)
@click.option(
    "--ray-address", metavar="ADDRESS", help="Of a running cluster, host:port or auto. [default: this machine]"
)
@click.option(
    "--workers", type=click.IntRange(min=1), help="Of --engine ray: recognizers at once. [default: the cluster's CPUs]"
)
@click.option(
    "--part-size",
    type=click.IntRange(min=64),
    metavar="N",
    help="Of --engine ray: pictures a part, a multiple of 64. [default: 1024]",
)
@click.option(
    "--provider", default="CPU", show_default=True, help="ONNX Runtime execution provider: CPU, CUDA, CoreML, ..."
)
@click.option("--strict", is_flag=True, help="Fail when ONNX Runtime falls back to another provider.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Of ONNX Runtime, up to the CPUs there are.",
)
@click.option(
    "--self-test", is_flag=True, help="Compare the model on this machine with PyTorch's answers inside its file."
)
def main(
    paths: tuple[str, ...],
    samples: bool,
    recursive: bool,
    model: str | None,
    precision: Precision | None,
    models_dir: Path,
    detector: str,
    yunet: Path | None,
    fetch_yunet: bool,
    min_face: int,
    min_confidence: Any,
    format_name: str | None,
    annotate: Path | None,
    contact_sheet: Path | None,
    random_count: int | None,
    camera: int | None,
    every: int,
    start: float,
    duration: float | None,
    segments: bool,
    output: str | None,
    resume: bool,
    engine: str,
    ray_address: str | None,
    workers: int | None,
    part_size: int | None,
    provider: str,
    strict: bool,
    threads: int,
    self_test: bool,
) -> None:
    """Read expressions from the faces in pictures, folders of pictures, videos and cameras.

    \b
    fer-infer --samples                          the photographs that ship with the package
    fer-infer holiday/ --recursive               a table, one line per face
    fer-infer holiday/ --format jsonl | head     one JSON line per picture
    fer-infer crops/ --output faces.jsonl        rows in a file; a stopped run goes on with --resume
    fer-infer holiday/ --annotate seen/          copies with boxes, expressions and bars
    fer-infer film.mp4 --format srt              subtitles: who looked how, from when to when
    fer-infer --camera 0 --annotate seen/        a camera, until Ctrl-C
    fer-infer s3://b/p --engine ray --output d   a folder of parts, by the machines of a Ray cluster
    fer-infer --self-test                        does this machine compute what was trained?

    Every picture gets its row, a broken one with the reason. PATH may be "-": a picture, or a list
    of paths, on standard input. Exits 0 when all went well, 1 when some pictures failed, 2 for
    wrong usage. Opens no network, but for --fetch-yunet.
    """
    if self_test:
        _self_test(model, precision, models_dir, provider=provider, strict=strict, threads=threads)
        return
    if fetch_yunet:
        from fer_runtime.detectors.yunet_file import fetch_yunet as fetch

        click.echo(fetch())
        if not paths and not samples:
            return
    if not paths and not samples and camera is None:
        raise click.UsageError("Give pictures, folders or videos, or try: fer-infer --samples")
    format_name = format_by_suffix(format_name, output)
    if engine == "ray":
        format_name = format_name or "jsonl"
        if annotate or contact_sheet or random_count or camera is not None or segments:
            raise click.UsageError(
                "--annotate, --contact-sheet, --random, --camera and --segments are not for --engine ray"
            )
        if format_name not in ("jsonl", "parquet") or (format_name == "parquet" and output is None):
            raise click.UsageError("--engine ray writes --format jsonl, or --format parquet to --output DIR")
        if (part_size or 64) % 64:
            raise click.UsageError(f"--part-size must be a multiple of 64, not {part_size}")
    elif ray_address or workers or part_size or format_name == "parquet":
        raise click.UsageError("--ray-address, --workers, --part-size and --format parquet need --engine ray")
    if engine == "local":
        refuse_uris(paths)
    file = None if output is None or engine == "ray" else Path(output)
    if file is not None and file.is_dir():
        raise click.UsageError(f"--output {file} is a folder; give the name of a file")
    format_name = format_name or ("table" if output is None and is_terminal(sys.stdout) else "jsonl")
    # numpy's BLAS would start a thread per core, 0.04 s of CPU time, and nothing here multiplies matrices with it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # OpenCV and ONNX Runtime take 0.1 s to load; --help needs neither.
    from fer_runtime.model.session import find_provider, silence
    from fer_runtime.recognizer import Recognizer
    from fer_runtime.system import available_cpus
    from fer_runtime.text import printable

    silence()

    videos = find_videos(paths, camera)
    if videos and engine == "ray":
        raise click.UsageError("--engine ray is for pictures, not for videos")
    if videos and (resume or random_count or contact_sheet or samples):
        raise click.UsageError("--resume, --random, --contact-sheet and --samples are for pictures, not for videos")
    if not videos and (segments or format_name == "srt" or every != 1 or start or duration is not None):
        raise click.UsageError(
            "--segments, --format srt, --every, --start and --duration are for videos and cameras, not for pictures"
        )
    if len(videos) > 1 and format_name == "srt":
        raise click.UsageError("--format srt takes one video at a time: subtitles belong to one film")
    if resume and (output is None or (format_name != "jsonl" and engine == "local")):
        raise click.UsageError("--resume goes on with a run of --format jsonl to --output FILE")
    if resume and (random_count or contact_sheet):
        raise click.UsageError("--resume cannot know the pictures of --random, nor the faces of --contact-sheet so far")
    if yunet is not None and detector in ("haar", "whole"):
        raise click.UsageError(f"--yunet is for --detector auto or yunet, not for {detector}")
    if paths.count("-") > 1:
        raise click.UsageError("Give - once: standard input can be read only once")
    films = [str(video) for video in videos if isinstance(video, Path)]
    refuse_overwriting(films or paths, annotate=annotate, output=file, contact_sheet=contact_sheet, recursive=recursive)
    cpus = available_cpus()
    if threads > cpus:
        click.echo(f"warning: {threads} threads are more than the {cpus} CPUs that this process may use", err=True)
    with Recognizer(
        model,
        precision=precision,
        models_dir=models_dir,
        detector=detector,
        yunet=yunet,
        min_face=min_face,
        min_confidence=min_confidence,
        threads=min(threads, cpus),
        provider=provider,
        strict=strict,
    ) as recognizer:
        click.echo(
            f"{printable(recognizer.path)}  {printable(recognizer.metadata.precision)}  {recognizer.provider}  "
            f"faces by {recognizer.detector_used}",
            err=True,
        )
        if recognizer.provider != find_provider(provider):
            click.echo(f"warning: onnxruntime fell back from {provider} to {recognizer.provider}", err=True)
        if engine == "ray":
            from fer_runtime.cli.cluster import run_on_ray
            from fer_runtime.cluster.engine import PART_SIZE, RayOptions, pack_recognizer

            recipe = pack_recognizer(
                recognizer,
                yunet=yunet,
                detector=detector,
                min_face=min_face,
                min_confidence=min_confidence,
                threads=threads,
                provider=provider,
                strict=strict,
            )
            failed = run_on_ray(
                recipe,
                paths,
                output,
                RayOptions(address=ray_address, workers=workers, threads=threads, part_size=part_size or PART_SIZE),
                format_name=format_name,
                samples=samples,
                recursive=recursive,
                resume=resume,
                shows_progress=is_terminal(sys.stderr) and not (output is None and is_terminal(sys.stdout)),
            )
        elif videos:
            from fer_runtime.cli.videos import run_on_videos

            failed = run_on_videos(
                recognizer,
                videos,
                format_name,
                file,
                annotate=annotate,
                segments=segments,
                every=every,
                start=start,
                duration=duration,
            )
        else:
            from fer_runtime.cli.images import run_on_pictures

            failed = run_on_pictures(
                recognizer,
                paths,
                format_name,
                file,
                samples=samples,
                recursive=recursive,
                random_count=random_count,
                annotate=annotate,
                contact_sheet=contact_sheet,
                resume=resume,
            )
    if failed:
        sys.exit(1)


def _self_test(
    model: str | None, precision: Precision | None, models_dir: Path, *, provider: str, strict: bool, threads: int
) -> None:
    from fer_runtime.model.find import find_model
    from fer_runtime.model.self_test import run_self_test

    path = find_model(model, precision=precision, models_dir=models_dir)
    report = run_self_test(path, provider=provider, threads=threads, strict=strict)
    click.echo(report.to_text())
    if not report.passed:
        sys.exit(1)
