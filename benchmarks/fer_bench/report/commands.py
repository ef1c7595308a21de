"""The subcommands `fer-bench robustness`, `report` and `show`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from fer_bench.console import (
    FILE,
    FOLDER,
    data_option,
    json_option,
    models_dir_option,
    models_option,
    precisions_option,
    say_environment,
    show_progress,
    write_json,
)
from fer_runtime.command import FerCommand, needs_extra
from fer_runtime.model.find import DEFAULT_MODELS_DIR, MODEL_NAMES, PRECISIONS, Precision

# Repeated here so that --help does not load OpenCV; a test holds them equal to robustness.py's.
CONDITION_NAMES = ("crop_margin", "shift", "rotation", "brightness", "noise", "blur", "jpeg_quality", "size")
DEFAULT_FACES = 1000

_faces = click.option(
    "--faces",
    "count",
    type=click.IntRange(min=1),
    default=DEFAULT_FACES,
    show_default=True,
    help="Faces to degrade, a random choice of the pictures that keeps each expression's share. "
    "With 1000 an accuracy is known to 3 points, with 3589 to 1.6.",
)
_seed = click.option("--seed", default=0, show_default=True, help="Of the choice of faces, the shifts and the noise.")


@click.command(cls=FerCommand)
@models_option
@precisions_option
@models_dir_option
@data_option
@click.option(
    "--condition",
    "conditions",
    type=click.Choice(CONDITION_NAMES),
    multiple=True,
    help="What to degrade. May be given several times. [default: all]",
)
@_faces
@_seed
@click.option("--plot", type=FILE, help="Draw the curves to FILE (.png, .svg or .pdf); needs the extra bench.")
@json_option
def robustness(
    models: tuple[str, ...],
    precisions: tuple[Precision, ...],
    models_dir: Path,
    data: Path,
    conditions: tuple[str, ...],
    count: int,
    seed: int,
    plot: Path | None,
    json_path: Path | None,
) -> None:
    """Measure accuracy while faces are cropped, shifted, turned, lit, blurred or compressed worse.

    Every model sees the same degraded faces. Prints a table per condition, its unit in the heading.
    """
    from fer_bench.environment import environment
    from fer_bench.report.measure import measure_robustness_of
    from fer_bench.robustness import CONDITIONS, format_robustness

    if plot is not None:
        with needs_extra("bench"):  # known before the minutes of measuring, not after them
            from fer_bench.report.plots import write_curve_sheet
    machine = environment()
    say_environment(machine)
    chosen = [one for one in CONDITIONS if not conditions or one.name in conditions]
    measured = measure_robustness_of(
        data,
        models=models or MODEL_NAMES,
        precisions=precisions or PRECISIONS,
        models_dir=models_dir,
        conditions=chosen,
        count=count,
        seed=seed,
        progress=show_progress("level"),
    )
    click.echo(f"{measured.faces} of {measured.pictures} pictures of {measured.folder}")
    click.echo(format_robustness(measured.points))
    if plot is not None:
        write_curve_sheet(measured.points, plot)
        click.echo(plot, err=True)
    write_json(
        json_path,
        machine,
        [point.to_dict() for point in measured.points],
        data=str(measured.folder),
        faces=measured.faces,
        seed=seed,
    )


@click.command(cls=FerCommand)
@models_option
@precisions_option
@models_dir_option
@click.option("--data", type=FOLDER, help="Labelled pictures, as for accuracy. Needed unless --from is given.")
@click.option(
    "--output",
    type=FILE,
    default=Path("report.html"),
    show_default=True,
    help="The page: one file that loads nothing from anywhere.",
)
@click.option("--engine", "engines", multiple=True, help="Engine. May be given several times. [default: all]")
@click.option("--rounds", type=click.IntRange(min=2), default=8, show_default=True, help="Turns of each configuration.")
@click.option("--seconds", type=float, default=0.4, show_default=True, help="Length of a turn.")
@_faces
@_seed
@click.option("--json", "json_path", type=FILE, help="Also write everything measured to FILE, for --from.")
@click.option("--from", "source", type=FILE, help="Make the page from such a FILE and measure nothing.")
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
    """Measure everything and write one page that says which model to take.

    Latency beside other engines, accuracy, calibration and robustness of every model that is there,
    with the machine and the command that made it. Prints the verdict.
    """
    if (data is None) == (source is None):
        raise click.UsageError("give either --data DIR, to measure, or --from FILE, to draw what was measured before")
    with needs_extra("bench"):  # known before the minutes of measuring, not after them
        from fer_bench.report.page import render_page
    import json

    from fer_bench.engines import ENGINES
    from fer_bench.report.data import parse_report, read_report
    from fer_bench.report.measure import measure_report
    from fer_bench.report.verdict import decide
    from fer_runtime.files import write_atomically

    if unknown := [name for name in engines if name not in ENGINES]:
        raise click.BadParameter(f"no engine {unknown[0]!r}; one of: {', '.join(ENGINES)}", param_hint="--engine")
    if source is not None:
        content = read_report(source)
    else:
        assert data is not None
        measured = measure_report(
            data,
            command=shlex.join(["fer-bench", *sys.argv[1:]]),
            models=models or MODEL_NAMES,
            precisions=precisions or PRECISIONS,
            models_dir=models_dir,
            engines=engines or tuple(ENGINES),
            rounds=rounds,
            seconds=seconds,
            count=count,
            seed=seed,
            say=lambda text: click.echo(text, err=True),
            progress=show_progress,
        )
        if json_path is not None:
            write_atomically(json_path, json.dumps(measured, indent=1) + "\n")
            click.echo(json_path, err=True)
        content = parse_report(measured, source="what was measured")
    write_atomically(output, render_page(content))
    if content.candidates:
        verdict = decide(content.candidates, content.p_values)
        click.echo(f"{verdict.headline} {verdict.reason}")
        if verdict.lean:
            click.echo(f"Where speed or size decides, {verdict.lean.label}: {verdict.lean_reason}")
    click.echo(output, err=True)


@click.command(cls=FerCommand)
@click.argument("models_dir", type=FOLDER, default=DEFAULT_MODELS_DIR)
@click.option(
    "--output",
    type=FILE,
    default=Path("trainings.png"),
    show_default=True,
    help="The picture; its suffix says the format: .png, .svg or .pdf.",
)
def show(models_dir: Path, output: Path) -> None:
    """Draw how the models of MODELS_DIR were trained, side by side: curves and confusion matrices.

    Reads the results files that fer-train writes (model_0_results.json, model_v1_results.json).
    """
    from fer_bench.report.show import format_table, read_trainings

    trainings = read_trainings(models_dir)
    with needs_extra("bench"):
        from fer_bench.report.show import draw_trainings

        draw_trainings(trainings, output)
    click.echo(format_table(trainings))
    click.echo(output, err=True)
