"""Time of an epoch in `fer-train` next to a notebook's loop: `python -m benchmarks.studies.epoch --data data`."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING

import click
import numpy as np

from fer_bench.console import FOLDER, say_environment
from fer_bench.environment import environment
from fer_runtime.command import FerCommand
from fer_runtime.extras import needs_extra

if TYPE_CHECKING:
    from fer_train.data.folders import LabelledFaces

_ROWS = (
    ("notebook", "none"),
    ("notebook", "autoaugment"),
    ("fer-train", "none"),
    ("fer-train", "autoaugment"),
)


def notebook_epoch(faces: LabelledFaces, augmentation: str, *, seed: int = 0) -> float:
    """Train v0 on all faces like a notebook, and return the loss of the last batch.

    Plain PyTorch modules in float32, batch 32, Adam, and torchvision's AutoAugment image by image. The images are
    already decoded; decoding in the loop would be slower.
    """
    import torch
    import torch.nn.functional as F  # noqa: N812

    from fer_train.data.folders import class_weights
    from fer_train.networks.registry import create_network
    from fer_train.networks.torchvision_import import torchvision_transforms
    from fer_train.recipes import FIRST

    torch.manual_seed(seed)
    network = create_network("v0").train()
    optimizer = torch.optim.Adam(network.parameters(), lr=FIRST.lr)
    weights = torch.tensor(class_weights(list(faces.counts.values())), dtype=torch.float32)
    augment = torchvision_transforms().AutoAugment() if augmentation == "autoaugment" else lambda image: image
    planes, labels = torch.from_numpy(faces.faces), torch.from_numpy(faces.labels)
    loss = torch.zeros(())
    for batch in torch.split(torch.randperm(len(labels)), FIRST.batch_size):
        images = torch.stack([augment(planes[i].expand(3, -1, -1)) for i in batch.tolist()])
        loss = F.cross_entropy(network(images / 255), labels[batch], weight=weights)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float(loss.detach())


def our_epoch(faces: LabelledFaces, augmentation: str, *, seed: int = 0) -> float:
    """Train v0 over all faces with the recipe "first", and return the epoch's loss."""
    import torch

    from fer_train.loop.trainer import Trainer
    from fer_train.networks.registry import create_network
    from fer_train.recipes import FIRST

    torch.manual_seed(seed)
    trainer = Trainer(
        create_network("v0"),
        faces,
        faces.subset([0]),  # validation: the other loop has none
        FIRST.overridden(epochs=1, augmentation=augmentation),
        device=torch.device("cpu"),
        seed=seed,
    )
    trainer.run()
    return trainer.history.train_loss[-1]


@click.command(cls=FerCommand)
@click.option("--data", type=FOLDER, required=True, help="The dataset's root.")
@click.option(
    "--faces", type=click.IntRange(min=64), default=6400, show_default=True, help="Number of training images."
)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Rounds of all rows.")
def main(data: Path, faces: int, rounds: int) -> None:
    """Measure both loops on one thread; seconds are scaled to an epoch of all training images."""
    with needs_extra("train"):
        import torch

        from fer_train.data.folders import load_faces

    torch.set_num_threads(1)
    whole = load_faces(data, "train")
    # Evenly spaced, because images are ordered by class.
    part = whole.subset(np.linspace(0, len(whole) - 1, min(faces, len(whole)), dtype=np.int64))
    loops: dict[str, Callable[[LabelledFaces, str], float]] = {"notebook": notebook_epoch, "fer-train": our_epoch}
    seconds: dict[tuple[str, str], list[float]] = {row: [] for row in _ROWS}
    for _ in range(rounds):
        for loop, augmentation in _ROWS:
            started = process_time()
            loops[loop](part, augmentation)
            seconds[loop, augmentation].append((process_time() - started) * len(whole) / len(part))
    say_environment(environment())
    click.echo(f"v0, recipe first, {len(whole):,} images, one thread, medians of {rounds} rounds")
    click.echo("loop       augmentation  CPU s an epoch")
    for (loop, augmentation), measured in seconds.items():
        click.echo(f"{loop:9}  {augmentation:12}  {statistics.median(measured):14.3g}")


if __name__ == "__main__":
    main()
