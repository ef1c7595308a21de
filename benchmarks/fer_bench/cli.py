"""The command `fer-bench`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fer_bench.browser.measure import browser
from fer_bench.console import (
    FILE,
    NAMED_MODELS_RULE,
    OUTPUT_FILE,
    data_option,
    engines_option,
    json_option,
    models_option,
    precisions_option,
    say_environment,
    show_progress,
    threads_option,
    warn_about,
    write_json,
)
from fer_bench.diff_command import diff
from fer_bench.interoperability.command import interoperability
from fer_bench.ledger.command import ledger
from fer_bench.quality_commands import reasons, unfamiliar
from fer_bench.report.commands import report, robustness
from fer_runtime.command import FerGroup, NumberRange, Rule, say
from fer_runtime.errors import DataError
from fer_runtime.model.find import PRECISIONS, Precision
from fer_runtime.shared_options import models_dir_option, named_models_rule
from fer_runtime.text import printable

if TYPE_CHECKING:
    from fer_bench.accuracy import AccuracyResult, FloatArray, LabelledImages, PairedComparison
    from fer_bench.raters import RatersResult


@click.group("fer-bench", cls=FerGroup)
def main() -> None:
    """Measure exported models: latency, accuracy and robustness.

    \b
    fer-bench latency                                 every available model, one face per call, one thread
    fer-bench accuracy --data data                    on a folder of labelled images
    fer-bench robustness --data data                  with shifted, rotated, dark, blurred ... faces
    fer-bench report --data data --output report.html all of the above on one page
    fer-bench compare old.json new.json               find latency regressions
    fer-bench diff pi.json v3 photos/                 which faces get another label, and the stage that did it
    fer-bench unfamiliar --data data                  how many images without a face a model is sure about
    fer-bench reasons --data data                     where the thresholds of a row's reasons come from
    fer-bench serve                                   fer-serve under load, next to the bare model
    fer-bench interoperability                        which programs read the files, and what they compute
    fer-bench ledger show                             self-tests and latencies of boards
    fer-bench browser                                 one face in a browser tab, next to face-api.js
    """


main.add_command(robustness)
main.add_command(report)
main.add_command(browser)
main.add_command(reasons)
main.add_command(interoperability)
main.add_command(ledger)
main.add_command(unfamiliar)
main.add_command(diff)


@main.command(
    rules=(
        Rule("threads", when=lambda given: given["sweep_threads"], because="--sweep-threads sets the thread counts"),
        NAMED_MODELS_RULE,
    )
)
@models_option
@precisions_option
@models_dir_option
@engines_option
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1,),
    show_default=True,
    help="Faces per call. May be repeated.",
)
@threads_option
@click.option("--sweep-threads", is_flag=True, help="Use 1, 2, 4 ... threads, up to the available CPUs.")
@click.option(
    "--rounds", type=click.IntRange(min=2), default=8, show_default=True, help="Number of turns per configuration."
)
@click.option(
    "--seconds", type=NumberRange(min=0, min_open=True), default=0.4, show_default=True, help="Seconds per turn."
)
@json_option
def latency(
    models: tuple[str, ...],
    precisions: tuple[Precision, ...],
    models_dir: Path,
    engines: tuple[str, ...],
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    sweep_threads: bool,
    rounds: int,
    seconds: float,
    json_path: Path | None,
) -> None:
    """Time single inferences. Each configuration runs in its own process, and the processes take turns.

    Prints median, 95th and 99th percentile and minimum in ms, images per second, CPU time per call, and the median as
    a multiple of the roofline. Then prints the cold start by stage. Exits 1 if nothing could be measured.

    The engines openvino-ir, ncnn, ort-format, executorch and litert run the files of fer-export --target beside the
    model, if they pass their self-test.
    """
    from fer_bench.engines import ENGINES
    from fer_bench.environment import environment
    from fer_bench.latency.measure import configurations, without_files
    from fer_bench.latency.roofline import measure_with_peak_rates, rows_with_roofline, warn_below_roofline
    from fer_bench.latency.tables import cold_start_table, latency_table
    from fer_runtime.system import available_cpus

    if sweep_threads:
        cpus = available_cpus()
        threads = tuple(sorted({*(1 << power for power in range(cpus.bit_length())), cpus}))
    wanted = configurations(
        models=models,
        precisions=precisions or PRECISIONS,
        engines=engines or tuple(ENGINES),
        batches=batches,
        threads=threads,
        models_dir=models_dir,
    )
    for reason in without_files(engines, wanted):
        say(f"not measured: {reason}", err=True)
    machine = environment()
    say_environment(machine)
    results, unavailable, peak_rates = measure_with_peak_rates(
        wanted, rounds=rounds, seconds=seconds, progress=show_progress("turn")
    )
    for missing in unavailable:
        say(f"not measured: {missing.configuration}: {missing.reason}", err=True)
    if peak_rates is None:
        raise DataError("nothing was measured; the reasons are above")
    say(
        f"peak rate of one thread: {peak_rates.fp32_macs_per_second / 1e9:.0f} GMAC/s fp32, "
        f"{peak_rates.int8_macs_per_second / 1e9:.0f} GMAC/s int8",
        err=True,
    )
    rows = rows_with_roofline(results, wanted, peak_rates)
    say(latency_table(rows))
    say(f"\n{cold_start_table(rows)}")
    warn_about(results)
    if warning := warn_below_roofline(rows):
        say(f"warning: {warning}", err=True)
    write_json(json_path, machine | {"peak_rates": peak_rates.to_dict()}, rows)


@main.command(rules=(NAMED_MODELS_RULE,))
@models_option
@precisions_option
@models_dir_option
@data_option
@click.option(
    "--votes",
    metavar="FILE|ferplus",
    help="Also compare with raters' votes: a CSV file with one row per image, or ferplus for the bundled votes.",
)
@click.option("--flips", type=OUTPUT_FILE, help="Write the images that two models classify differently to FILE (CSV).")
@json_option
def accuracy(
    models: tuple[str, ...],
    precisions: tuple[Precision, ...],
    models_dir: Path,
    data: Path,
    votes: str | None,
    flips: Path | None,
    json_path: Path | None,
) -> None:
    """Measure accuracy on labelled face crops, with 95 % intervals.

    Every pair of models is also compared face by face with McNemar's test. With --votes, models are also compared with
    what several raters see in each image: the strict majority, the plurality, the cross-entropy to the distribution
    of votes, and the agreement with a random rater.
    """
    from fer_bench.accuracy import compare_pairwise, flips_csv, measure_files
    from fer_bench.environment import environment
    from fer_bench.latency.measure import configurations
    from fer_bench.matching import images_for

    files = configurations(
        models=models,
        precisions=precisions or PRECISIONS,
        engines=("onnxruntime",),
        models_dir=models_dir,
    )
    images, files = images_for(data, files, are_named=bool(models), say=lambda text: say(text, err=True))
    votes_of_images = None if votes is None else _votes_of(images, votes)
    machine = environment()
    say_environment(machine)
    results = measure_files([file.source for file in files], images, progress=show_progress("model"))
    comparisons = compare_pairwise(results, images.labels)
    for result in results:
        if result.may_have_learned:
            say(
                f"warning: {result.model} {result.precision} was trained on as many images of each label as there are "
                "here; if they are these, measure on others: fer-data split",
                err=True,
            )
    say(printable(f"{len(images.labels)} images of {images.folder}"))
    _say_accuracies(results, comparisons)
    rated = [] if votes_of_images is None else _rate(results, votes_of_images, images.classes)
    if flips is not None:
        from fer_runtime.files import write_atomically

        write_atomically(flips, flips_csv(results, images))
        say(flips, err=True)
    write_json(
        json_path,
        machine,
        [
            result.to_dict() | ({"votes": rated[number].to_dict()} if rated else {})
            for number, result in enumerate(results)
        ],
        comparisons=[pair.to_dict() for pair in comparisons],
    )


def _votes_of(images: LabelledImages, votes: str) -> FloatArray:
    """The raters' votes of each image; `votes` is the value of --votes."""
    from fer_train.data.votes import open_votes

    return open_votes(votes, images.classes).of(images.paths, images.faces, split=images.folder.name)


def _say_accuracies(results: Sequence[AccuracyResult], comparisons: Sequence[PairedComparison]) -> None:
    """Print the models in one table, each by its classes, and each pair."""
    from fer_bench.accuracy_tables import accuracy_table, class_table, comparison_line

    say(accuracy_table(results))
    for result in results:
        say(f"\n{class_table(result)}")
    for pair in comparisons:
        say(f"\n{comparison_line(pair)}")


def _rate(results: Sequence[AccuracyResult], votes: FloatArray, classes: Sequence[str]) -> list[RatersResult]:
    """Compare each model with the raters, and print the table."""
    from fer_bench.raters import format_raters, measure_raters

    rated = [measure_raters(result.probabilities, votes, classes) for result in results]
    names = [f"{result.model} {result.precision}" for result in results]
    say("\n" + format_raters(list(zip(names, rated, strict=True))))
    return rated


@main.command()
@click.option("--runs", type=click.IntRange(min=1), default=20, show_default=True, help="Simulations of each scene.")
def tracks(runs: int) -> None:
    """Count the simulations in which people keep their track numbers.

    Prints a row for each scene and frame rate.
    """
    from fer_bench.tracks import track_table
    from fer_runtime.video.tracking import BoxTracker

    say(track_table(BoxTracker, runs=runs))


@main.command(rules=(named_models_rule("model", "precision", "models_dir"),))
@click.option("--model", metavar="NAME|FILE", help="Model. [default: the one that fer-serve serves]")
@click.option("--precision", type=click.Choice(PRECISIONS), help="Precision of a named model.")
@models_dir_option
@click.option(
    "--clients",
    type=click.IntRange(1, 512),  # connections that fer-serve holds open
    multiple=True,
    default=(1, 8, 64),
    show_default=True,
    help="Parallel connections; each sends its next request after an answer. May be repeated.",
)
@click.option(
    "--faces",
    type=click.IntRange(1, 4096),  # that a request may have
    multiple=True,
    default=(1, 32),
    show_default=True,
    help="Faces per request. May be repeated.",
)
@click.option("--seconds", type=NumberRange(min=0.1), default=5.0, show_default=True, help="Seconds per load.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Turns per service and load.")
@json_option
def serve(
    model: str | None,
    precision: Precision | None,
    models_dir: Path,
    clients: tuple[int, ...],
    faces: tuple[int, ...],
    seconds: float,
    rounds: int,
    json_path: Path | None,
) -> None:
    """Measure the throughput and latency of fer-serve under load.

    It takes turns with the bare model and with a service that does not batch. Each service has one core. The requests
    are face crops, sent to /v2 on the loopback address. Needs the extra `serve`, and Linux.
    """
    from fer_bench.environment import environment
    from fer_bench.serving import measure_serving, serving_table
    from fer_runtime.model.find import find_model

    machine = environment()
    say_environment(machine)
    path = find_model(model, precision=precision, models_dir=models_dir)
    results = measure_serving(path, clients=clients, faces=faces, seconds=seconds, rounds=rounds)
    say(serving_table(results))
    write_json(json_path, machine, [result.to_dict() for result in results])


@main.command()
@click.argument("old", type=FILE)
@click.argument("new", type=FILE)
@click.option(
    "--tolerance",
    type=NumberRange(min=0),
    default=0.07,
    show_default=True,
    help="Slowdown that is still noise, as a fraction.",
)
def compare(old: Path, new: Path, tolerance: float) -> None:
    """Compare two files of fer-bench latency --json.

    Exits 1 if a configuration became slower by more than --tolerance.
    """
    from fer_bench.latency.compare import compare_results, read_latency

    before, after = read_latency(old), read_latency(new)
    # Clouds use one name for several generations of processors; instruction sets tell them apart.
    machines = [
        f"{content['environment'].get('cpu')} ({', '.join(content['environment'].get('cpu_flags', [])) or 'no flags'})"
        for content in (before, after)
    ]
    if machines[0] != machines[1]:
        say(f"warning: measured on different processors, {machines[0]} and {machines[1]}", err=True)
    for path, content in ((old, before), (new, after)):
        if busy := sum(bool(result.get("is_busy")) for result in content["results"]):
            say(
                f"warning: the machine was busy during {busy} of {len(content['results'])} configurations of {path}; "
                "measure again on an idle machine before you trust a regression",
                err=True,
            )
    changes, single = compare_results(before["results"], after["results"], tolerance=tolerance)
    for change in changes:
        say(str(change))
    for name in single:
        say(printable(f"in one file only: {name}"), err=True)
    if not changes:
        raise DataError(f"{old} and {new} have no configuration in common; measure the same configurations twice")
    if any(change.is_regression for change in changes):
        sys.exit(1)
