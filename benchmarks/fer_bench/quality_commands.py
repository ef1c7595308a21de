"""The subcommands about what a model knows of its own answers: `fer-bench reasons`."""

from __future__ import annotations

from pathlib import Path

import click

from fer_bench.console import FILE, data_option, models_dir_option
from fer_runtime.command import FerCommand
from fer_runtime.model.find import PRECISIONS, Precision

model_option = click.option("--model", metavar="NAME|FILE", help="Model. [default: that of fer-infer]")
precision_option = click.option("--precision", type=click.Choice(PRECISIONS), help="Precision of a named model.")
votes_option = click.option(
    "--votes",
    metavar="FILE|ferplus",
    help="Count only the images with a strict majority of the raters, against that label: a CSV file with one row per "
    "image, or ferplus for the bundled votes.",
)
yunet_option = click.option(
    "--yunet", type=FILE, help="YuNet's file. [default: the one that fer-infer --fetch-yunet stored, if any]"
)


@click.command(cls=FerCommand)
@model_option
@precision_option
@models_dir_option
@data_option
@votes_option
@click.option("--faces", "count", type=click.IntRange(min=100), default=1000, show_default=True, help="Sample's size.")
@yunet_option
def reasons(
    model: str | None,
    precision: Precision | None,
    models_dir: Path,
    data: Path,
    votes: str | None,
    count: int,
    yunet: Path | None,
) -> None:
    """Measure where faces become too small, blurred or dark: where accuracy has fallen by five points.

    Prints for each reason the level at which that happens, the median of the measure there, the threshold that
    fer-infer uses, the share of the faces at that level that it names, and the share of the unchanged faces. With
    YuNet's file, also the accuracy by how far the heads are turned.
    """
    import numpy as np

    from fer_bench import accuracy as measure
    from fer_bench import reasons as work
    from fer_runtime.detectors.yunet_file import yunet_path
    from fer_runtime.recognizer import Recognizer

    with Recognizer(model, precision=precision, models_dir=models_dir, detector="whole") as recognizer:
        images = measure.read_labelled_images(data, recognizer.labels)
        faces, labels = images.faces_for(recognizer), images.labels
        if votes is not None:
            from fer_train.data.votes import open_votes, strict_majority

            found = open_votes(votes, recognizer.labels).of(images.paths, images.faces, split=images.folder.name)
            labels = strict_majority(found)
        known = np.flatnonzero(labels >= 0)
        chosen = np.sort(np.random.default_rng(0).permutation(known)[:count])
        click.echo(
            f"{recognizer.metadata.name} {recognizer.metadata.precision}, {len(chosen)} faces of {images.folder}"
        )
        click.echo(work.format_thresholds(work.find_thresholds(recognizer.classify, faces[chosen], labels[chosen])))
        file = yunet or yunet_path()
        if file.is_file():
            click.echo(work.format_turns(work.accuracy_by_turn(recognizer.classify, faces[known], labels[known], file)))
        else:
            click.echo(
                "turned: not measured, there is no YuNet file (fer-infer --fetch-yunet, or --yunet FILE)", err=True
            )
