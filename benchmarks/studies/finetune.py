"""What few images of one's own are worth: from scratch, a linear probe of a shipped model, and fine-tuning it.

    python -m benchmarks.studies.finetune --data data --network v0 --images 20 --images 100

The images are FER2013's validation images, which no shipped model has learned from: so many of each class to learn
from, a fifth of the rest to choose the epoch by, the others to measure on. Disgust has 56 images, at most half of which
are learned from.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch

from fer_runtime.model.find import checkpoint_path
from fer_train.checkpoints import load_checkpoint
from fer_train.data.folders import LabelledFaces, load_faces
from fer_train.loop.trainer import Trainer
from fer_train.networks.registry import create_network, predict_logits
from fer_train.recipes import FINETUNE, Recipe

# As long as fine-tuning gets no better by more epochs; a fresh network needs more, and a higher rate.
SCRATCH = replace(FINETUNE, epochs=60, lr=2e-3, last_layer="kept")


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--network", "networks", multiple=True, default=("v0",))
@click.option("--images", multiple=True, type=int, default=(20, 100), help="Of each class to learn from.")
@click.option("--seeds", type=int, default=3, show_default=True)
@click.option("--set", "settings", multiple=True, help="Settings of the fine-tuning, such as lr=0.001.")
@click.option("--no-scratch", is_flag=True)
def main(
    data: Path,
    networks: tuple[str, ...],
    images: tuple[int, ...],
    seeds: int,
    settings: tuple[str, ...],
    no_scratch: bool,
) -> None:
    """Print the accuracy in per cent on the images that were not learned from, mean and range over the seeds."""
    torch.set_num_threads(1)
    recipe = FINETUNE.with_settings(*settings)
    whole = load_faces(data, "validation")
    for network in networks:
        for count in images:
            rows: dict[str, list[float]] = {}
            for seed in range(seeds):
                splits = _splits(whole, count, seed)
                if not no_scratch:
                    rows.setdefault("from scratch", []).append(_reached(network, splits, SCRATCH, seed, start=False))
                rows.setdefault("shipped model as it is", []).append(_as_it_is(network, splits))
                probe = replace(recipe, epochs=1, lr=1e-12, optimizer="sgd")
                rows.setdefault("linear probe", []).append(_reached(network, splits, probe, seed, start=True))
                rows.setdefault("fine-tuned", []).append(_reached(network, splits, recipe, seed, start=True))
            for name, values in rows.items():
                shown = f"{100 * np.mean(values):5.1f}  ({100 * min(values):.1f} to {100 * max(values):.1f})"
                click.echo(f"{network}  {count:4} images a class  {name:24} {shown}")


_Splits = tuple[LabelledFaces, LabelledFaces, LabelledFaces]


def _splits(whole: LabelledFaces, count: int, seed: int) -> _Splits:
    random = np.random.default_rng(seed)
    chosen: list[list[int]] = [[], [], []]
    for label in range(len(whole.classes)):
        members = random.permutation(np.flatnonzero(whole.labels == label))
        learned = min(count, len(members) // 2)
        by = learned + (len(members) - learned) // 5
        for part, indices in zip(chosen, (members[:learned], members[learned:by], members[by:]), strict=True):
            part.extend(indices.tolist())
    train, validation, test = (whole.subset(sorted(indices)) for indices in chosen)
    return train, validation, test


def _as_it_is(network: str, splits: _Splits) -> float:
    """Of the shipped model, without a look at these images."""
    return _accuracy(load_checkpoint(checkpoint_path(Path("models"), network), name=network).network(), splits[2])


def _reached(network: str, splits: _Splits, recipe: Recipe, seed: int, *, start: bool) -> float:
    torch.manual_seed(seed)
    built = create_network(network, dropout=recipe.dropout)
    if start:
        built.load_state_dict(load_checkpoint(checkpoint_path(Path("models"), network), name=network).state_dict)
        with torch.no_grad():
            # Labels of one's own have no rows in the last layer.
            last = [module for module in built.modules() if isinstance(module, torch.nn.Linear)][-1]
            last.reset_parameters()
    run = Trainer(
        built, splits[0], splits[1], recipe, device=torch.device("cpu"), seed=seed, starts_trained=start, identity={}
    )
    run.run()
    run.finished()
    return _accuracy(run.network, splits[2])


def _accuracy(network: torch.nn.Module, faces: LabelledFaces) -> float:
    logits = predict_logits(network.eval(), torch.from_numpy(faces.faces))
    return float((logits.argmax(1).numpy() == faces.labels).mean())


if __name__ == "__main__":
    main()
