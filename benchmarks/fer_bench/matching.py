"""Match model files with labelled images, by the names of their labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fer_bench.accuracy import LabelledImages, labelled_folder, read_labelled_images
from fer_bench.latency.measure import Configuration
from fer_runtime.errors import DataError
from fer_runtime.labels import label_difference
from fer_runtime.model.opening import read_model


def images_for(
    data: Path,
    files: Sequence[Configuration],
    *,
    are_named: bool,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[LabelledImages, list[Configuration]]:
    """The labelled images, and the model files whose labels are theirs.

    Args:
        are_named: the user has named the models: one of other labels is an error. Else it is left out, and said.
        say: told of models that are left out, and of images that cannot be read.

    Raises:
        DataError: a named model, or every model, has other labels.
    """
    folder, found = labelled_folder(data)
    labels: tuple[str, ...] | None = None
    kept = []
    for file in files:
        own = labels_of(file.source)
        # A folder may lack a label; all models must have the same ones.
        difference = (
            label_difference(found, own) if not set(found) <= set(own) else label_difference(labels or own, own)
        )
        if not difference:
            labels = labels or own
            kept.append(file)
            continue
        fact = f"{file.model} {file.precision} has other labels than {folder}: {difference}"
        if are_named:
            raise DataError(f"{fact}; measure models of the same labels together")
        say(f"not measured: {fact}")
    if labels is None:
        raise DataError(f"no model has the labels of {folder}: {', '.join(found)}; name one with --model")
    return read_labelled_images(data, labels, say=say), kept


def labels_of(path: Path) -> tuple[str, ...]:
    """The labels that a model file names, in the order of its logits."""
    return read_model(path).metadata.labels
