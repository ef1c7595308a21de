"""Overhead of a Ray cluster over the local engine: `python -m benchmarks.studies.scale data/images/train`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter

import click

from fer_runtime.batch.sources import Inputs
from fer_runtime.command import FerCommand
from fer_runtime.errors import DataError

SHARD_SIZE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleRun:
    """One run of `fer-infer`."""

    images: int
    wall_s: float
    steady_per_s: float | None  # images per second between the first and the last shard; None for one shard or a file


def measure_run(paths: list[str], *arguments: str) -> ScaleRun:
    """Run `fer-infer` on a list of paths."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "rows")
        started = perf_counter()
        command = [sys.executable, "-m", "fer_runtime", "-", "--format", "jsonl", "--output", str(output), *arguments]
        listed = "\n".join(paths).encode()
        done = subprocess.run(command, input=listed, stderr=subprocess.PIPE, check=False)
        wall_s = perf_counter() - started
        if done.returncode:
            raise DataError(f"fer-infer {' '.join(arguments)} failed: {done.stderr.decode(errors='replace').strip()}")
        times = sorted(shard.stat().st_mtime for shard in output.glob("part-*")) if output.is_dir() else []
    steady = (len(paths) - SHARD_SIZE) / (times[-1] - times[0]) if len(times) > 1 else None
    return ScaleRun(images=len(paths), wall_s=wall_s, steady_per_s=steady)


@click.command(cls=FerCommand)
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--images", default=20_480, show_default=True, help="Number of images from the folder.")
@click.option(
    "--workers", type=click.IntRange(min=1), multiple=True, default=(1, 2), show_default=True, help="Number of actors."
)
def main(folder: str, images: int, workers: tuple[int, ...]) -> None:
    """Time --engine ray next to --engine local on the same images."""
    paths = list(islice(Inputs([folder], recursive=True), images))
    click.echo("engine          images  wall s  images/s of the shards")
    runs: list[tuple[str, list[str], tuple[str, ...]]] = [("local", paths, ())]
    for count in workers:
        # The short run is mostly start-up; the difference to the long run is the cost of images.
        arguments: tuple[str, ...] = ("--engine", "ray", "--workers", str(count), "--part-size", str(SHARD_SIZE))
        runs += [(f"ray, {count} workers", some, arguments) for some in (paths[:64], paths)]
    for name, some, arguments in runs:
        run = measure_run(some, *arguments)
        steady = "" if run.steady_per_s is None else f"{run.steady_per_s:,.0f}"
        click.echo(f"{name:15} {run.images:8,}  {run.wall_s:6.1f}  {steady:>10}")


if __name__ == "__main__":
    main()
