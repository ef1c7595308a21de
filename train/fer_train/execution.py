"""Device and processes of a training, and whether it continues or replaces an earlier one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fer_train.loop.distributed import ALONE, World
from fer_train.loop.trainer import Progress

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """The device and the processes of a training, and what it does with files of an earlier run."""

    device: torch.device = _CPU
    world: World = ALONE  # this process among those that train together; only the writer leaves files
    resume: bool = False  # continue a killed run of the same settings
    finish: bool = False  # write what a killed run of the same settings has reached, without training on
    replace: bool = False  # overwrite a finished checkpoint, and drop a stopped run
    progress: Progress | None = None  # told of each batch and epoch


ON_CPU = Execution()
