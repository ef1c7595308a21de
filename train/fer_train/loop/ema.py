"""The moving average of a network's weights over the steps of its training."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn


class MovingAverage:
    """A copy of a network that follows it: an exponential moving average, close behind it in the first steps.

    The counter of steps is Python's: torch's AveragedModel keeps it in a tensor that a GPU would be waited for, twice
    in every step.

    Args:
        network: on its device; its buffers are averaged, too.
        decay: what is left of the average at a step, in the long run.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = deepcopy(network)
        self._decay = decay
        self._steps = 0
        self._averages, self._counters = _tensors(self.network)

    def update(self, network: nn.Module) -> None:
        """Follow `network`, whose tensors have the names and shapes of the first one."""
        values, counters = _tensors(network)
        with torch.no_grad():
            if self._steps == 0:
                torch._foreach_copy_(self._averages, values)
            else:
                weight = 1 - min(self._decay, (1 + self._steps) / (10 + self._steps))
                torch._foreach_lerp_(self._averages, values, weight)
            if counters:
                torch._foreach_copy_(self._counters, counters)
        self._steps += 1

    def state_dict(self) -> dict[str, Tensor]:
        """The state under the names that AveragedModel gave it, which resume checkpoints hold."""
        named = {f"module.{name}": value for name, value in self.network.state_dict().items()}
        return {"n_averaged": torch.tensor(self._steps), **named}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state_dict()`."""
        self._steps = int(state["n_averaged"])
        self.network.load_state_dict(
            {name.removeprefix("module."): value for name, value in state.items() if name != "n_averaged"}
        )


def _tensors(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and buffers: those of real numbers, and the counters."""
    everything = [value.detach() for value in (*network.parameters(), *network.buffers())]
    return (
        [value for value in everything if value.is_floating_point()],
        [value for value in everything if not value.is_floating_point()],
    )
