"""The moving average of the weights, against a loop over single tensors and against torch's own class."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from fer_train.loop.ema import MovingAverage
from fer_train.networks.registry import create_network

DECAY = 0.7


def _moved(network: torch.nn.Module, seed: int) -> None:
    """Other values in every tensor, as a step of training leaves them."""
    torch.manual_seed(seed)
    for value in (*network.parameters(), *network.buffers()):
        value.data = value + (torch.randn_like(value) if value.is_floating_point() else 1)


def test_it_is_the_formula_bit_by_bit() -> None:
    network = create_network("v0")
    average = MovingAverage(network, DECAY)
    expected: dict[str, torch.Tensor] = {}
    for step in range(20):
        _moved(network, step)
        average.update(network)
        # By hand: the first step is copied, then the decay rises as (1 + n) / (10 + n) to its value.
        for name, value in network.state_dict().items():
            if step == 0 or not value.is_floating_point():
                expected[name] = value.clone()
            else:
                expected[name] = torch.lerp(expected[name], value, 1 - min(DECAY, (1 + step) / (10 + step)))
        assert all(torch.equal(value, expected[name]) for name, value in average.network.state_dict().items())


def test_a_state_of_the_former_class_is_gone_on_with() -> None:
    def follow(averages: Any, values: Any, steps: Any) -> None:
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - min(DECAY, (1 + float(steps)) / (10 + float(steps))))
            else:
                average.copy_(value)

    network = create_network("v0")
    former = AveragedModel(network, multi_avg_fn=follow, use_buffers=True)
    for step in range(4):
        _moved(network, step)
        former.update_parameters(network)
    average = MovingAverage(network, DECAY)
    average.load_state_dict(former.state_dict())
    _moved(network, 4)
    former.update_parameters(network)
    average.update(network)
    state = former.state_dict()
    assert list(average.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in average.state_dict().items())
