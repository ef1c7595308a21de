"""A made-up dataset: bright and dark squares whose place depends on the class, so that it can be learned."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from fer_runtime.expressions import EXPRESSIONS


def write_images(root: Path, *, train: int = 12, validation: int = 4, size: int = 48, seed: int = 0) -> Path:
    """Write `images/train` and `images/validation` under `root`; `train` and `validation` images per class."""
    random = np.random.default_rng(seed)
    for split, count in (("train", train), ("validation", validation)):
        for label, name in enumerate(EXPRESSIONS):
            folder = root / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = random.integers(60, 120, (size, size), np.uint8)
                top = label * size // 8
                image[top : top + size // 6, size // 4 : 3 * size // 4] += 120
                cv2.imwrite(str(folder / f"{number:03}.png"), image)
    return root
