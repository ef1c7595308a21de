"""The fused block against PyTorch's own four modules: same function, same gradients, same statistics."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fer_train.loop.fused_blocks import fuse_blocks
from fer_train.networks.registry import create_network


def _block() -> nn.Sequential:
    block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    norm: Any = block[1]
    with torch.no_grad():
        # Rising and falling lines, and shifts that leave some windows at zero and others above.
        norm.weight.copy_(torch.tensor([1.0, -1.0, 0.5, -2.0, 0.02, 1.5, -0.1, 3.0]))
        norm.bias.copy_(torch.linspace(-1, 1, 8))
    # float64: in float32 the order of a sum decides near-ties of MaxPool and ReLU, differently on each processor.
    return block.double().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _step(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    inputs = images.clone(memory_format=torch.preserve_format).requires_grad_()
    result = network(inputs)
    torch.manual_seed(5)
    (result * torch.randn_like(result)).sum().backward()
    assert inputs.grad is not None
    return result.detach(), inputs.grad


@pytest.mark.parametrize("size", [8, 7])  # an odd last row and column belong to no window, but to the statistics
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_block_trains_as_its_four_modules_do(size: int, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    plain = _block()
    fused = copy.deepcopy(plain)
    fuse_blocks(nn.Sequential(fused))
    assert type(fused) is not type(plain)
    for _ in range(3):  # the running statistics move on
        images = torch.randn(5, 3, size, size, dtype=torch.float64).contiguous(memory_format=layout)
        (expected, of_input), (result, fused_of_input) = _step(plain, images), _step(fused, images)
        # Sums of at most 5 x 8 x 8 x 27 products in float64; its epsilon is 2e-16.
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(fused_of_input, of_input, rtol=1e-9, atol=1e-9)
    for (name, parameter), other in zip(plain.named_parameters(), fused.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-9, atol=1e-9, msg=name)
    for buffer, of_fused in zip(plain.buffers(), fused.buffers(), strict=True):
        torch.testing.assert_close(of_fused, buffer)
    plain.eval()
    fused.eval()
    assert torch.equal(plain(images), fused(images).detach())


def test_the_blocks_of_v0_and_the_stems_of_v2_and_v3_are_fused() -> None:
    for name, blocks in (("v0", 3), ("v1", 0), ("v2", 1), ("v3", 1)):
        network = create_network(name)
        kinds = [type(part) for part in network.modules()]
        keys = list(network.state_dict())
        fuse_blocks(network)
        assert sum(type(part) is not kind for part, kind in zip(network.modules(), kinds, strict=True)) == blocks
        assert list(network.state_dict()) == keys
