"""The subcommands `fer-bench reasons` and `fer-bench unfamiliar`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

import fer_runtime as runtime
from fer_bench.console import (
    FILE,
    FOLDER,
    NAMED_MODELS_RULE,
    data_option,
    json_option,
    models_option,
    precisions_option,
)
from fer_runtime.command import FerCommand, say
from fer_runtime.errors import DataError
from fer_runtime.model.find import PRECISIONS, Precision, named_file
from fer_runtime.shared_options import models_dir_option, named_models_rule

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


@click.command(cls=FerCommand, rules=(named_models_rule("model", "precision", "models_dir"),))
@model_option
@precision_option
@models_dir_option
@data_option
@votes_option
@click.option(
    "--faces", "count", type=click.IntRange(min=100), default=1000, show_default=True, help="Faces to degrade."
)
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
    """Measure where faces become too small, blurred or dark.

    That is the level at which accuracy has fallen by five points. Prints this level for each reason, the median of
    the measure there and the threshold that fer-infer uses. Then prints the share of the faces that the threshold
    marks, at that level and unchanged. With YuNet's file, also prints the accuracy by how far the heads are turned.
    """
    import numpy as np

    from fer_bench import accuracy as measure
    from fer_bench import reasons as work
    from fer_runtime.detectors.yunet_file import yunet_path
    from fer_runtime.recognizer import Recognizer

    with Recognizer(model, precision=precision, models_dir=models_dir, detector="whole") as recognizer:
        images = measure.read_labelled_images(data, recognizer.labels, say=partial(say, err=True))
        faces, labels = images.faces_for(recognizer), images.labels
        if votes is not None:
            from fer_train.data.votes import open_votes, strict_majority

            found = open_votes(votes, recognizer.labels).of(images.paths, images.faces, split=images.folder.name)
            labels = strict_majority(found)
        known = np.flatnonzero(labels >= 0)
        if not len(known):
            raise DataError(f"no image of {images.folder} has a strict majority of the votes in {votes}")
        chosen = np.sort(np.random.default_rng(0).permutation(known)[:count])
        name = f"{named_file(recognizer.path).name} {recognizer.metadata.precision}"
        say(f"{name}, {len(chosen)} faces of {images.folder}")
        say(work.format_thresholds(work.find_thresholds(recognizer.classify, faces[chosen], labels[chosen])))
        file = yunet or yunet_path()
        if file.is_file():
            say(work.format_turns(work.accuracy_by_turn(recognizer.classify, faces[known], labels[known], file)))
        else:
            say("turned: not measured, there is no YuNet file (fer-infer --fetch-yunet, or --yunet FILE)", err=True)


@click.command(cls=FerCommand, rules=(NAMED_MODELS_RULE,))
@models_option
@precisions_option
@models_dir_option
@click.option(
    "--data",
    type=FOLDER,
    help="Labelled faces as for fer-bench accuracy. They give the AUROC and the share of faces that are lost.",
)
@click.option(
    "--backgrounds",
    type=FOLDER,
    help="Folder of photographs to cut backgrounds from, searched recursively. [default: the bundled samples]",
)
@click.option("--count", type=click.IntRange(min=10), default=500, show_default=True, help="Images of each kind.")
@json_option
def unfamiliar(
    models: tuple[str, ...],
    precisions: tuple[Precision, ...],
    models_dir: Path,
    data: Path | None,
    backgrounds: Path | None,
    count: int,
    json_path: Path | None,
) -> None:
    """Count the images without a face that a model is sure about.

    Counts them with and without the reason `unfamiliar`. Backgrounds are cut out of photographs beside their faces;
    noise, cells, curves and charts are generated. fer-export fits on none of these images. "Sure" means at least the
    confidence threshold of the model's file.
    """
    from fer_bench import accuracy, console
    from fer_bench import unfamiliar as work
    from fer_bench.environment import environment
    from fer_bench.latency.measure import configurations
    from fer_runtime.batch.sources import find_images
    from fer_runtime.detectors import create_detector
    from fer_runtime.recognizer import Recognizer

    photos = Path(runtime.__file__).parent / "samples" if backgrounds is None else backgrounds
    if not photos.is_dir():
        raise DataError(f"there is no folder {photos}; give a folder of photographs")
    paths = [Path(path) for path in find_images(photos, recursive=True)]
    kinds = {"backgrounds": work.cut_backgrounds(paths, create_detector("auto"), count)}
    if not kinds["backgrounds"]:
        raise DataError(f"no background can be cut from the images of {photos}; give a folder of photographs")
    kinds |= {kind: list(work.made_images(kind, count)) for kind in work.MADE}
    images = None if data is None else accuracy.read_labelled_images(data, say=partial(say, err=True))
    real = None if images is None else images.faces
    machine = environment()
    console.say_environment(machine)
    files = configurations(
        models=models, precisions=precisions or PRECISIONS, engines=("onnxruntime",), models_dir=models_dir
    )
    results = []
    for file in files:
        with Recognizer(file.source) as recognizer:
            found, lost = work.measure(recognizer, kinds, real)
            metadata = recognizer.metadata
        results += found
        name = f"{named_file(file.source).name} {metadata.precision}"
        if metadata.unfamiliar_above is None:
            say(f"{name}: no output unfamiliarity; export it again with fer-export --data", err=True)
        elif lost is not None and images is not None:
            say(
                f"{name}: {lost:.1%} of {len(images.labels)} faces of {images.folder} are unfamiliar; the export "
                f"counted {metadata.quality.get('lost', 0):.1%} on faces that its threshold was not fitted on"
            )
    say(work.format_results(results))
    console.write_json(json_path, machine, [result.to_dict() for result in results])
