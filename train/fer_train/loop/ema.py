"""The exponential moving average (EMA) of a network's weights over the steps of its training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TensorList = tuple[Tensor, ...] | list[Tensor]


def follow(decay: float) -> Callable[[TensorList, TensorList, Tensor | int], None]:
    """An update for torch.optim.swa_utils.AveragedModel: an EMA that stays close to the network in the first steps.

    Args:
        decay: what is left of the average at a step, in the long run.
    """

    @torch.no_grad()
    def update(averages: TensorList, values: TensorList, steps: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # BatchNorm's counters
            torch._foreach_copy_(averages, values)
            return
        done = int(steps)
        torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + done) / (10 + done)))

    return update
