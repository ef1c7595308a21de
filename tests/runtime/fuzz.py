"""Mutated pictures and models: `python -m tests.runtime.fuzz --minutes 10` runs for longer than the tests do.

Whatever the bytes are, reading a picture ends in a picture or a ImageError, loading a model in a
Recognizer or a ModelFileError, and nothing else.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import cv2
import numpy as np
from tests.runtime.tiny_models import write_band_model

from fer_runtime import Recognizer
from fer_runtime.batch.sources import sample_images
from fer_runtime.errors import ImageError, ModelFileError
from fer_runtime.images import decode_image

CHECKOUT = Path(__file__).parents[2]


def picture_seeds() -> list[bytes]:
    """Small real pictures in every format that is read."""
    image = cv2.imread(sample_images()[0])
    assert image is not None
    small = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
    seeds = [
        cv2.imencode(suffix, picture)[1].tobytes()
        for suffix, pictures in (
            (".jpg", (small, gray)),
            (".png", (small, gray)),
            (".bmp", (small, gray)),
            (".webp", (small,)),
            (".tiff", (small, gray)),
            (".ppm", (small,)),
            (".pgm", (gray,)),
        )
        for picture in pictures
    ]
    alpha = np.dstack([small, gray])
    return [*seeds, cv2.imencode(".png", alpha)[1].tobytes(), cv2.imencode(".png", gray.astype(np.uint16))[1].tobytes()]


def mutations(seeds: list[bytes], *, seed: int) -> Iterator[bytes]:
    """Endless damage: bytes changed, cut, repeated, swapped, or taken from another seed."""
    chooser = random.Random(seed)
    while True:
        content = bytearray(chooser.choice(seeds))
        for _ in range(chooser.choice((1, 1, 2, 4, 16))):
            # Headers decide the most, so half of the damage falls on the first bytes.
            end = len(content) if chooser.random() < 0.5 else min(len(content), 64)
            place = chooser.randrange(max(1, end))
            kind = chooser.randrange(6)
            if kind == 0 and content:
                content[place] ^= 1 << chooser.randrange(8)
            elif kind == 1 and content:
                content[place] = chooser.choice((0, 1, 127, 128, 255))
            elif kind == 2:
                del content[place:]
            elif kind == 3:
                del content[place : place + chooser.randrange(1, 40)]
            elif kind == 4:
                content[place:place] = content[place : place + chooser.randrange(1, 40)] * chooser.randrange(1, 5)
            else:
                other = chooser.choice(seeds)
                content[place:] = other[place:]
        yield bytes(content)


def try_picture(content: bytes) -> str:
    """What became of it: "read" or "refused"."""
    try:
        image = decode_image(content)
    except ImageError:
        return "refused"
    assert image.dtype == np.uint8
    assert image.ndim == 2 or image.shape[2] == 3
    assert 0 not in image.shape
    return "read"


def try_model(content: bytes, folder: Path) -> str:
    """What became of it: "loaded" or "refused"."""
    path = folder / "mutated.onnx"
    path.write_bytes(content)
    try:
        with Recognizer(path) as recognizer:
            recognizer.classify(np.zeros((2, 48, 48), np.uint8))
    except ModelFileError:
        return "refused"
    return "loaded"


@click.command()
@click.option("--minutes", default=10.0, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(minutes: float, seed: int) -> None:
    """Mutate pictures and models for the given time; a crash or another error ends the run."""
    counts: Counter[str] = Counter()
    end = time.monotonic() + minutes * 60
    pictures = mutations(picture_seeds(), seed=seed)
    with TemporaryDirectory() as folder:
        models = mutations([write_band_model(Path(folder) / "bands.onnx").read_bytes()], seed=seed)
        while time.monotonic() < end:
            # A model takes as long as twenty pictures.
            for content in islice(pictures, 20):
                counts[f"pictures {try_picture(content)}"] += 1
            counts[f"models {try_model(next(models), Path(folder))}"] += 1
    click.echo(dict(counts))


if __name__ == "__main__":
    main()
