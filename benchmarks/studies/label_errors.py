"""How many planted label errors `fer-data audit` finds, and what FER+'s raters say of the images that it doubts.

python -m benchmarks.studies.label_errors --data data --split train --model v3
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.model.features import features_of
from fer_runtime.model.find import find_model
from fer_train.data.audit import copies_of
from fer_train.data.ferplus import FerPlusVotes
from fer_train.data.folders import load_faces
from fer_train.data.label_errors import find_label_errors, out_of_fold_probabilities

PLANTED = 0.05


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--split", default="train", show_default=True)
@click.option("--model", default="v3", show_default=True)
@click.option("--count", type=int, help="Use this many images, chosen at random.")
@click.option("--seed", default=0, show_default=True)
def main(data: Path, split: str, model: str, count: int | None, seed: int) -> None:
    """Plant errors, find them, and say how many were found at what precision."""
    random = np.random.default_rng(seed)
    whole = load_faces(data, split)
    if count is not None:
        whole = whole.subset(np.sort(random.permutation(len(whole))[:count]))
    groups = list(range(len(whole)))
    for copies in copies_of(whole.faces, whole.file_sha256):
        for index in copies:
            groups[index] = copies[0]
    features = features_of(find_model(model), whole.faces)
    votes = FerPlusVotes(EXPRESSIONS).of(whole.paths, whole.faces, split=split)
    voted = votes[:, :-1].sum(1) > 0
    planted = random.random(len(whole)) < PLANTED
    labels = whole.labels.copy()
    labels[planted] = (labels[planted] + random.integers(1, len(EXPRESSIONS), planted.sum())) % len(EXPRESSIONS)
    paths = [str(index) for index in range(len(whole))]
    click.echo(
        f"{split}, {len(whole)} images, features of {model} {features.shape[1:]}, planted {planted.sum()} errors"
    )
    for title, given in (("labels as they are", whole.labels), ("with planted errors", labels)):
        chances = out_of_fold_probabilities(features, given, groups, classes=len(EXPRESSIONS), seed=seed)
        found = find_label_errors(chances, given, EXPRESSIONS, paths)
        doubted = np.array([int(error.image) for error in found])
        # An error by the raters: fewer than two of ten chose the label.
        refuted = votes[np.arange(len(given)), given] < 0.2 * votes.sum(1)
        click.echo(
            f"{title}: classifier agrees with {np.mean(chances.argmax(1) == given):.1%} of the labels; doubts "
            f"{len(doubted)} images ({len(doubted) / len(given):.1%})"
        )
        if given is labels:
            caught = planted[doubted].sum()
            click.echo(f"  planted errors found: {caught} of {planted.sum()} ({caught / planted.sum():.1%})")
        for most in (planted.sum() // 2, planted.sum(), 2 * planted.sum(), len(doubted)):
            first = doubted[:most]
            line = f"  the first {len(first)}: raters refute the label of {refuted[first[voted[first]]].mean():.1%}"
            if given is labels:
                line += (
                    f"; planted {planted[first].mean():.1%}, {planted[first].sum() / planted.sum():.1%} of all planted"
                )
            click.echo(line)
        click.echo(f"  of all images with votes, raters refute the label of {refuted[voted].mean():.1%}")


if __name__ == "__main__":
    main()
