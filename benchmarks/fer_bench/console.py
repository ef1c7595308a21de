"""Options and habits of output that the subcommands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fer_runtime.model.find import DEFAULT_MODELS_DIR, MODEL_NAMES, PRECISIONS

if TYPE_CHECKING:
    from fer_bench.latency.measure import LatencyResult

# Integer arithmetic may round otherwise in another engine; beyond this a time is that of another function.
SAME_ANSWER = 0.02

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)

models_dir_option = click.option(
    "--models-dir",
    type=FOLDER,
    default=DEFAULT_MODELS_DIR,
    show_default=True,
    help="Where named models are looked for before those inside the package.",
)
models_option = click.option(
    "--model",
    "models",
    multiple=True,
    metavar="|".join((*MODEL_NAMES, "FILE")),
    help="Model: a name or an .onnx file. May be given several times. [default: all that are there]",
)
precisions_option = click.option(
    "--precision", "precisions", type=click.Choice(PRECISIONS), multiple=True, help="Of named models. [default: all]"
)
data_option = click.option(
    "--data",
    type=FOLDER,
    required=True,
    help="Labelled pictures: a dataset's root, a folder with validation, or a folder of class folders.",
)
json_option = click.option("--json", "json_path", type=FILE, help="Also write environment and results to FILE.")


def say_environment(machine: dict[str, Any]) -> None:
    """Processor and versions on stderr."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    click.echo(f"{machine['cpu']}, {machine['cpus']} CPUs, Python {machine['python']}, {versions}", err=True)


def show_progress(unit: str) -> Callable[[int, int], None]:
    """A function that shows how many of how many are done, on a terminal."""

    def show(done: int, of: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{unit} {done} of {of}" + ("\n" if done == of else ""), err=True, nl=False)

    return show


def warn_about(results: Sequence[LatencyResult]) -> None:
    """Say on stderr what keeps a figure from being a property of the model."""
    if busy := [result for result in results if result.is_busy]:
        named = ", ".join(map(str, busy)) if len(busy) <= 3 else f"{len(busy)} of {len(results)} configurations"
        share, spread = min(result.cpu_share for result in busy), max(result.spread for result in busy)
        click.echo(
            f"warning: the machine was busy during {named}: they had a CPU for down to {min(share, 1):.0%} of the "
            f"time, and rounds differ by up to {spread:.0%}",
            err=True,
        )
    for result in results:
        difference = result.max_probability_difference or 0
        if difference > SAME_ANSWER:
            click.echo(
                f"warning: {result} gives other probabilities than ONNX Runtime, by up to {difference:.3f}", err=True
            )


def write_json(path: Path | None, machine: dict[str, Any], results: list[dict[str, Any]], **more: Any) -> None:
    """Write environment and results to `path`, when there is one."""
    if path is None:
        return
    from fer_runtime.files import write_atomically

    write_atomically(path, json.dumps({"environment": machine, "results": results, **more}, indent=1) + "\n")
    click.echo(path, err=True)
