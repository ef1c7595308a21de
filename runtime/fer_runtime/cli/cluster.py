"""What `fer-infer --engine ray` does: lists the pictures, and brings rows to standard output or a folder of parts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from time import perf_counter

import click

from fer_runtime.batch.jobs import JobSummary
from fer_runtime.batch.resume import Finished
from fer_runtime.batch.sources import GivenPaths, Inputs, sample_pictures
from fer_runtime.cli.progress import Progress, pictures_done, say_summary
from fer_runtime.cluster.engine import RayOptions, RecognizerRecipe, load_ray, rows_in_order, write_parts
from fer_runtime.cluster.storage import RemoteFolders, is_uri
from fer_runtime.output.sink import opened_sink


def run_on_ray(
    recipe: RecognizerRecipe,
    paths: Sequence[str],
    output: str | None,
    options: RayOptions,
    *,
    format_name: str,
    samples: bool,
    recursive: bool,
    resume: bool,
    shows_progress: bool,
) -> bool:
    """Write a row per picture; whether any failed, a folder was not gone into, or there was none at all.

    Args:
        output: a folder of parts, as path or URI; None is standard output, JSON lines in the order of the paths.
        shows_progress: whether there is a terminal, and no rows go to it.
    """
    load_ray(options.address)  # where it is missing, nothing is listed or written
    remote = RemoteFolders(chain(_without_picture(GivenPaths(paths)), sample_pictures() if samples else ()), recursive)
    pictures = Inputs(remote, recursive, remote.left_out)
    summary = JobSummary()
    started = perf_counter()
    progress = Progress(pictures_done(summary, None), is_shown=shows_progress)
    try:
        if output is None:
            with progress, opened_sink(None, Finished()) as write:
                for rows in rows_in_order(recipe, pictures, options, summary=summary):
                    write(rows)
                    progress.say()
        else:
            given = [path if is_uri(path) or path == "-" else os.path.abspath(path) for path in paths]
            with progress:
                write_parts(
                    recipe,
                    pictures,
                    output,
                    options,
                    given={"paths": given, "samples": samples, "recursive": recursive},
                    format_name=format_name,
                    resume=resume,
                    summary=summary,
                    on_start=_say_start,
                    on_part=progress.say,
                )
    except KeyboardInterrupt:
        if output is not None:
            click.echo(f"\nstopped; the parts so far are in {output}, go on with --resume", err=True)
        raise
    say_summary(
        summary,
        left_out=pictures.left_out,
        seconds=perf_counter() - started,
        detector=recipe.settings["detector_used"],
    )
    return bool(summary.failed or pictures.left_out.only_folders or not summary.pictures)


def _without_picture(given: Iterable[str]) -> Iterator[str]:
    for path in given:
        if path == "-":
            raise click.UsageError("--engine ray takes a list of paths on standard input, and no picture")
        yield path


def _say_start(finished: int, parts: int, pictures: int) -> None:
    there = f", {finished} of them are there already" if finished else ""
    click.echo(f"{pictures} pictures in {parts} parts{there}", err=True)
