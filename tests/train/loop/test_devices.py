"""Which arithmetic trains a network fast."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fer_train.loop import devices


@pytest.mark.parametrize(("groups", "bf16_on_cpu"), [(1, True), (8, False)])
def test_grouped_convolutions_train_in_float32_on_a_cpu(
    groups: int, bf16_on_cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3, groups=groups)))
    monkeypatch.setattr(devices, "supports_bf16", lambda device: True)
    assert devices.trains_in_bf16(network, torch.device("cpu")) == bf16_on_cpu
    assert devices.trains_in_bf16(network, torch.device("cuda"))
    monkeypatch.setattr(devices, "supports_bf16", lambda device: False)
    assert not devices.trains_in_bf16(network, torch.device("cpu"))
