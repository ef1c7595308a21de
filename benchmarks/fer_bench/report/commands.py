"""The subcommands `fer-bench robustness` and `fer-bench report`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from fer_bench.console import (
    FILE,
    FOLDER,
    NAMED_MODELS_RULE,
    OUTPUT_FILE,
    data_option,
    engines_option,
    json_option,
    models_option,
    precisions_option,
    say_environment,
    show_progress,
    write_json,
)
from fer_runtime.command import FerCommand, NumberRange, Rule, say
from fer_runtime.extras import needs_extra
from fer_runtime.model.find import PRECISIONS, Precision
from fer_runtime.shared_options import models_dir_option, seed_option
from fer_runtime.text import printable

# Copied from robustness.py so that --help does not load OpenCV; a test compares them.
CONDITION_NAMES = ("crop_margin", "shift", "rotation", "brightness", "noise", "blur", "jpeg_quality", "size")
DEFAULT_FACES = 1000

_faces = click.option(
    "--faces",
    "count",
    type=click.IntRange(min=1),
    default=DEFAULT_FACES,
    show_default=True,
    help="Number of faces to degrade: a random sample with each label's share kept. "
    "The 95 % interval of the accuracy is ±3 points with 1000 faces and ±1.6 with 3589.",
)
_seed = seed_option("Seed of the sample, the shifts and the noise.")


@click.command(cls=FerCommand, rules=(NAMED_MODELS_RULE,))
@models_option
@precisions_option
@models_dir_option
@data_option
@click.option(
    "--votes",
    metavar="FILE|ferplus",
    help="Take the strict majority of several raters as the label of each image: a CSV file as for accuracy, or "
    "ferplus for the bundled votes. Images without a majority are left out.",
)
@click.option(
    "--condition",
    "conditions",
    type=click.Choice(CONDITION_NAMES),
    multiple=True,
    help="Condition to measure. May be repeated. [default: all]",
)
@_faces
@_seed
@json_option
def robustness(
    models: tuple[str, ...],
    precisions: tuple[Precision, ...],
    models_dir: Path,
    data: Path,
    votes: str | None,
    conditions: tuple[str, ...],
    count: int,
    seed: int,
    json_path: Path | None,
) -> None:
    """Measure accuracy on degraded faces.

    Faces are cropped, shifted, rotated, darker, brighter, noisy, blurred, compressed or small.

    Every model gets the same degraded faces. Prints one table per condition, with the unit in its heading.
    """
    from fer_bench.environment import environment
    from fer_bench.report.measure import measure_robustness_of
    from fer_bench.robustness import CONDITIONS, format_robustness

    machine = environment()
    say_environment(machine)
    chosen = [condition for condition in CONDITIONS if not conditions or condition.name in conditions]
    measured = measure_robustness_of(
        data,
        models=models,
        precisions=precisions or PRECISIONS,
        models_dir=models_dir,
        conditions=chosen,
        count=count,
        seed=seed,
        votes=votes,
        progress=show_progress("level"),
        say=lambda text: say(text, err=True),
    )
    labelled = "" if votes is None else ", labelled by the majority of the raters"
    say(printable(f"{measured.faces} of {measured.images} images of {measured.folder}{labelled}"))
    say(format_robustness(measured.points))
    write_json(
        json_path,
        machine,
        [point.to_dict() for point in measured.points],
        data=str(measured.folder),
        faces=measured.faces,
        seed=seed,
        votes=votes,
    )


_MEASURING = ("models", "precisions", "models_dir", "engines", "rounds", "seconds", "count", "seed", "json_path")


@click.command(
    cls=FerCommand,
    rules=(
        Rule(
            *_MEASURING,
            when=lambda given: given["source"] is not None and given["data"] is None,
            because="--from FILE measures nothing",
        ),
        NAMED_MODELS_RULE,
    ),
)
@models_option
@precisions_option
@models_dir_option
@click.option("--data", type=FOLDER, help="Labelled images, as for accuracy. Required unless --from is given.")
@click.option(
    "--output",
    type=OUTPUT_FILE,
    default=Path("report.html"),
    show_default=True,
    help="HTML file to write. It is self-contained and loads nothing.",
)
@engines_option
@click.option(
    "--rounds", type=click.IntRange(min=2), default=8, show_default=True, help="Number of turns per configuration."
)
@click.option(
    "--seconds", type=NumberRange(min=0, min_open=True), default=0.4, show_default=True, help="Seconds per turn."
)
@_faces
@_seed
@click.option("--json", "json_path", type=OUTPUT_FILE, help="Also write the measurements to FILE, for --from.")
@click.option("--from", "source", type=FILE, help="Draw the page from a FILE of --json without measuring.")
def report(
    models: tuple[str, ...],
    precisions: tuple[Precision, ...],
    models_dir: Path,
    data: Path | None,
    output: Path,
    engines: tuple[str, ...],
    rounds: int,
    seconds: float,
    count: int,
    seed: int,
    json_path: Path | None,
    source: Path | None,
) -> None:
    """Measure everything and write one page that recommends a model.

    The page shows latency next to other engines, accuracy, calibration and robustness of every available model, the
    machine and the command. Prints the recommendation.
    """
    if (data is None) == (source is None):
        raise click.UsageError("give either --data DIR to measure, or --from FILE to draw earlier measurements")
    with needs_extra("bench"):  # fails before minutes of measuring
        from fer_bench.report.page import render_page
    import json

    from fer_bench.engines import ENGINES
    from fer_bench.report.data import parse_report, read_report
    from fer_bench.report.measure import measure_report
    from fer_bench.report.verdict import decide
    from fer_runtime.files import write_atomically

    if source is not None:
        content = read_report(source)
    else:
        assert data is not None
        measured = measure_report(
            data,
            command=shlex.join(["fer-bench", *sys.argv[1:]]),
            models=models,
            precisions=precisions or PRECISIONS,
            models_dir=models_dir,
            engines=engines or tuple(ENGINES),
            rounds=rounds,
            seconds=seconds,
            count=count,
            seed=seed,
            say=lambda text: say(text, err=True),
            progress=show_progress,
        )
        if json_path is not None:
            write_atomically(json_path, json.dumps(measured, indent=1) + "\n")
            say(json_path, err=True)
        content = parse_report(measured, source="the measurement")
    write_atomically(output, render_page(content))
    if content.candidates:
        verdict = decide(content.candidates, content.p_values)
        say(f"{verdict.headline} {verdict.reason}")
        if verdict.lean:
            say(f"If speed or size decides: {verdict.lean.label}. {verdict.lean_reason}")
    say(output, err=True)
