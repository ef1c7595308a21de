"""Overhead of `fer-infer` on crops, next to a minimal loop: `python -m benchmarks.studies.folder data/images/train`."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import click

from fer_bench.console import say_environment
from fer_bench.environment import environment
from fer_runtime.batch.sources import Inputs
from fer_runtime.command import FerCommand
from fer_runtime.errors import DataError
from fer_runtime.model.find import MODEL_NAMES, PRECISIONS, Precision, find_model, model_path
from fer_runtime.shared_options import models_dir_option


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderRates:
    """CPU time of whole processes, minimal loop and command, with one model on the same images."""

    model: str
    precision: str
    bare_cpu_s: tuple[float, ...]  # one value per round
    command_cpu_s: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """CPU time of the command divided by that of the loop, median over the rounds."""
        return statistics.median(
            command / bare for command, bare in zip(self.command_cpu_s, self.bare_cpu_s, strict=True)
        )


def measure_folder(
    paths: Sequence[str], model: str, precision: Precision, models_dir: Path, rounds: int
) -> FolderRates:
    """Run the loop and the command alternately, `rounds` times, on the CPUs that this process may use."""
    file = find_model(model, precision=precision, models_dir=models_dir)
    bare = [sys.executable, str(Path(__file__).with_name("bare_loop.py")), str(file)]
    bare_s, command_s = [], []
    for _ in range(rounds):
        bare_s.append(_cpu_seconds(bare, paths))
        with tempfile.TemporaryDirectory() as folder:
            output = str(Path(folder, "rows.jsonl"))
            command = [sys.executable, "-m", "fer_runtime", "-", "--model", str(file), "--threads", "1"]
            command_s.append(_cpu_seconds([*command, "--format", "jsonl", "--output", output], paths))
    return FolderRates(model=model, precision=precision, bare_cpu_s=tuple(bare_s), command_cpu_s=tuple(command_s))


@contextmanager
def _one_cpu() -> Iterator[None]:
    """This process and those that it starts use one CPU: two of one core would each count the other's time."""
    if not hasattr(os, "sched_setaffinity"):  # only on Linux
        yield
        return
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


def _cpu_seconds(command: Sequence[str], paths: Sequence[str]) -> float:
    """User and system time of the whole process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, input="\n".join(paths), capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise DataError(f"{' '.join(command[1:4])} failed: {done.stderr.strip()}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@click.command(cls=FerCommand)
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--images", default=20_000, show_default=True, help="Number of images from the folder.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Rounds of both.")
@click.option(
    "--model", "models", type=click.Choice(MODEL_NAMES), multiple=True, default=MODEL_NAMES, show_default=True
)
@click.option("--precision", "precisions", type=click.Choice(PRECISIONS), multiple=True, default=("fp32", "int8"))
@models_dir_option
def main(
    folder: str,
    images: int,
    rounds: int,
    models: tuple[str, ...],
    precisions: tuple[Precision, ...],
    models_dir: Path,
) -> None:
    """Measure the command next to a loop that only decodes and classifies, both on one CPU."""
    paths = [os.fsdecode(path) for path in islice(Inputs([folder], recursive=True), images)]
    say_environment(environment())
    click.echo(f"{len(paths):,} images, images a second of CPU time, start included, medians of {rounds} rounds")
    click.echo("model  precision   bare loop  fer-infer  CPU time, fer-infer / bare loop")
    for model in models:
        for precision in precisions:
            if not model_path(models_dir, model, precision).is_file():
                continue  # v1's fp32 is not in the repository
            with _one_cpu():
                rates = measure_folder(paths, model, precision, models_dir, rounds)
            bare, command = (
                len(paths) / statistics.median(seconds) for seconds in (rates.bare_cpu_s, rates.command_cpu_s)
            )
            click.echo(f"{model:5}  {precision:9}  {bare:10,.0f} {command:10,.0f}  {rates.ratio:.2f}")


if __name__ == "__main__":
    main()
