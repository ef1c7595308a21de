"""Made-up data sets of any labels, in any folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np


def write_own_images(folder: Path, labels: Sequence[str], count: int, *, size: int = 48, seed: int = 0) -> Path:
    """Write `count` colour images per label to class folders: a bright square whose place and colour tell the label."""
    random = np.random.default_rng(seed)
    for number, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            image = random.integers(60, 120, (size, size, 3), np.uint8)
            top = number * size // (len(labels) + 1)
            image[top : top + size // 5, size // 4 : 3 * size // 4, number % 3] += 120
            cv2.imwrite(str(folder / label / f"{index:03}.png"), image)
    return folder
