"""Options and output that the subcommands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fer_bench.engines import ENGINES
from fer_runtime.checksums import with_checksum
from fer_runtime.command import PathlibPath, RegistryChoice, say
from fer_runtime.errors import OutputError
from fer_runtime.model.find import MODEL_NAMES, PRECISIONS
from fer_runtime.shared_options import named_models_rule

if TYPE_CHECKING:
    from fer_bench.latency.measure import LatencyResult

# Engines may round integer arithmetic differently. A larger difference means that an engine computes something else.
SAME_ANSWER = 0.02

FOLDER = PathlibPath(file_okay=False)
FILE = PathlibPath(dir_okay=False)


class _OutputFile(PathlibPath):
    """A file that is written at the end of a run; where it could not be, the run does not begin.

    Args:
        holds_text: it may not replace a file that is no text, such as a model.
    """

    def __init__(self, *, holds_text: bool) -> None:
        super().__init__(dir_okay=False)
        self._holds_text = holds_text

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from fer_runtime.files import check_writable
        from fer_runtime.output.destinations import is_text

        path = Path(str(super().convert(value, param, ctx)))
        check_writable(path)
        if self._holds_text and not is_text(path):
            raise OutputError(f"{path} is an existing file and no text; give another name, or remove it")
        return path


OUTPUT_FILE = _OutputFile(holds_text=True)
IMAGE_OUTPUT_FILE = _OutputFile(holds_text=False)


def _available_threads(context: click.Context, parameter: click.Parameter, value: tuple[int, ...]) -> tuple[int, ...]:
    from fer_runtime.system import available_cpus

    if max(value) > available_cpus():
        raise click.BadParameter(f"at most {available_cpus()}, the CPUs that this process may use", context, parameter)
    return value


models_option = click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME|FILE",
    help=f"Model: a name such as {', '.join(MODEL_NAMES)} or your own, or an .onnx file. May be repeated. "
    "[default: all available]",
)
precisions_option = click.option(
    "--precision",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    help="Precision of named models. May be repeated. [default: all]",
)
data_option = click.option(
    "--data",
    type=FOLDER,
    required=True,
    help="Labelled images: a dataset's root, a folder with validation, or a folder of class folders.",
)
engines_option = click.option(
    "--engine",
    "engines",
    type=RegistryChoice(ENGINES),
    multiple=True,
    help="Engine. May be repeated. [default: all]",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1,),
    show_default=True,
    callback=_available_threads,
    help="Threads of the engine, at most the available CPUs. May be repeated.",
)
json_option = click.option("--json", "json_path", type=OUTPUT_FILE, help="Also write environment and results to FILE.")
NAMED_MODELS_RULE = named_models_rule("models", "precisions", "models_dir")


def say_environment(machine: dict[str, Any]) -> None:
    """Print processor and versions to stderr."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    say(f"{machine['cpu']}, {machine['cpus']} CPUs, Python {machine['python']}, {versions}", err=True)


def show_progress(unit: str) -> Callable[[int, int], None]:
    """A function of (done, total) that shows progress on a terminal."""

    def show(done: int, of: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{unit} {done} of {of}" + ("\n" if done == of else ""), err=True, nl=False)

    return show


def warn_about(results: Sequence[LatencyResult]) -> None:
    """Print to stderr why a time may not be a property of the model."""
    if busy := [result for result in results if result.is_busy]:
        named = ", ".join(map(str, busy)) if len(busy) <= 3 else f"{len(busy)} of {len(results)} configurations"
        share, spread = min(result.cpu_share for result in busy), max(result.spread for result in busy)
        say(
            f"warning: the machine was busy during {named}: CPU time was down to {min(share, 1):.0%} of the wall time, "
            f"and rounds differ by up to {spread:.0%}",
            err=True,
        )
    for result in results:
        difference = result.max_probability_difference or 0
        if difference > SAME_ANSWER:
            say(f"warning: {result}: probabilities differ from ONNX Runtime by up to {difference:.3f}", err=True)


def write_json(path: Path | None, machine: dict[str, Any], results: list[dict[str, Any]], **more: Any) -> None:
    """Write environment and results to `path`, unless it is None."""
    if path is None:
        return
    from fer_runtime.files import write_atomically

    content = with_checksum({"environment": machine, "results": results, **more})
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    say(path, err=True)
