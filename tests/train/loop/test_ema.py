"""The EMA of the weights, against its formula worked out tensor by tensor."""

from __future__ import annotations

import torch
from torch.optim.swa_utils import AveragedModel

from fer_train.loop.ema import follow
from fer_train.networks.registry import create_network

DECAY = 0.7


def test_it_is_the_formula_bit_by_bit() -> None:
    network = create_network("v0")
    average = AveragedModel(network, multi_avg_fn=follow(DECAY), use_buffers=True)
    expected: dict[str, torch.Tensor] = {}
    for step in range(20):
        torch.manual_seed(step)
        for value in (*network.parameters(), *network.buffers()):
            value.data = value + (torch.randn_like(value) if value.is_floating_point() else 1)
        average.update_parameters(network)
        # By hand: the first step is copied, then the decay rises as (1 + n) / (10 + n) to its value.
        for name, value in network.state_dict().items():
            if step == 0 or not value.is_floating_point():
                expected[name] = value.clone()
            else:
                expected[name] = torch.lerp(expected[name], value, 1 - min(DECAY, (1 + step) / (10 + step)))
        assert all(torch.equal(value, expected[name]) for name, value in average.module.state_dict().items())
