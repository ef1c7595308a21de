"""`fer-infer --engine ray`: list the images, then write their rows to standard output or to a folder of shards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from time import perf_counter

import click

from fer_runtime.batch.jobs import JobSummary
from fer_runtime.batch.sources import GivenPaths, Inputs, sample_images
from fer_runtime.cli.options import ClusterRun
from fer_runtime.cli.progress import Progress, images_done, say_summary
from fer_runtime.cli.recognizer import opened_recognizer, progress_is_shown
from fer_runtime.cluster.engine import (
    SHARD_SIZE,
    RayOptions,
    RecognizerRecipe,
    load_ray,
    pack_recognizer,
    rows_in_order,
    write_shards,
)
from fer_runtime.cluster.storage import RemoteFolders, is_uri
from fer_runtime.output.sink import opened_sink
from fer_runtime.system import MAX_THREADS
from fer_runtime.text import counted, printable


def run_on_ray(options: ClusterRun, format_name: str) -> bool:
    """Write a row per image; whether any failed, a folder was skipped, or there was no image at all."""
    # The driver's own are capped; a worker's machine may have more CPUs.
    if options.threads > MAX_THREADS:
        raise click.UsageError(f"--threads: at most {MAX_THREADS} for each worker")
    with opened_recognizer(options, max_pixels=options.max_pixels) as recognizer:
        recipe = pack_recognizer(
            recognizer,
            yunet=options.yunet,
            detector=options.detector,
            min_face=options.min_face,
            min_confidence=options.min_confidence,
            max_pixels=options.max_pixels,
            threads=options.threads,
            provider=options.provider if options.allow is None else f"{options.provider}:{options.allow}",
            strict=options.strict,
            any_operator=options.any_operator,
        )
        ray = RayOptions(
            address=options.ray_address,
            workers=options.workers,
            threads=options.threads,
            shard_size=options.part_size or SHARD_SIZE,
        )
        return _run(recipe, ray, options, format_name)


def _run(recipe: RecognizerRecipe, ray: RayOptions, options: ClusterRun, format_name: str) -> bool:
    paths, output, samples, recursive = options.paths, options.output, options.samples, options.recursive
    load_ray(ray.address)  # where it is missing, nothing is listed or written
    given = GivenPaths(paths, null_separated=options.null_separated)
    remote = RemoteFolders(chain(_without_image(given), sample_images() if samples else ()), recursive)
    images = Inputs(remote, recursive, remote.left_out)
    summary = JobSummary()
    started = perf_counter()
    progress = Progress(images_done(summary, None), is_shown=progress_is_shown(options))

    def say() -> None:
        say_summary(
            summary,
            left_out=images.left_out,
            seconds=perf_counter() - started,
            detector=recipe.settings["detector_used"],
            quiet=options.quiet,
        )

    try:
        if output is None:
            with progress, opened_sink(None) as sink:
                for rows in rows_in_order(recipe, images, ray, summary=summary):
                    sink.write(rows)
                    sink.flush()
                    progress.say()
        else:
            places = [path if is_uri(path) or path == "-" else os.path.abspath(path) for path in paths]
            with progress:
                write_shards(
                    recipe,
                    images,
                    output,
                    ray,
                    given={"paths": places, "samples": samples, "recursive": recursive},
                    format_name=format_name,
                    resume=options.resume,
                    summary=summary,
                    on_start=(lambda *_: None) if options.quiet else _say_start,
                    on_shard=progress.say,
                )
    except KeyboardInterrupt:
        if output is not None:
            click.echo(f"\nstopped; the shards so far are in {printable(output)}, continue with --resume", err=True)
        say()
        raise
    say()
    if not summary.images:
        click.echo("no images to read", err=True)
    return bool(summary.failed or images.left_out.only_folders or not summary.images)


def _without_image(given: Iterable[str]) -> Iterator[str]:
    for path in given:
        if path == "-":
            raise click.UsageError("--engine ray takes a list of paths on standard input, not an image")
        yield path


def _say_start(finished: int, shards: int, images: int) -> None:
    finished_text = f", {finished} of them complete" if finished else ""
    click.echo(f"{counted(images, 'image')} in {counted(shards, 'shard')}{finished_text}", err=True)
