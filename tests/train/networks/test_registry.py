"""The architectures: what they take and give, and their published sizes."""

from __future__ import annotations

import pytest
import torch

from fer_runtime.model.find import MODEL_NAMES
from fer_train.networks.architectures import ARCHITECTURES
from fer_train.networks.registry import create_network
from fer_train.recipes import RECIPES


def test_every_named_model_has_a_network_and_its_recipes() -> None:
    assert set(ARCHITECTURES) >= set(MODEL_NAMES)
    assert all(ARCHITECTURES[name].recipe(recipe).epochs for name in ARCHITECTURES for recipe in RECIPES)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # 448 + 4640 + 18496 of the convolutions, 224 of BatchNorm, 295040 + 903 of the linear layers.
        ("v0", 319_751),
        # torchvision's 11,689,512 without its 513,000 of the last layer, and 131328 + 1799 of ours.
        ("v1", 11_309_639),
        # Stem 720; blocks 10464, 32544, 41664, 129600, 166272, 517248; last layer 1351.
        ("v2", 899_863),
        # Stem 1440; blocks 41664, 129600, 166272, 517248, 664320, 2066688; last layer 2695.
        ("v3", 3_589_927),
    ],
)
def test_a_network_has_its_published_size(name: str, parameters: int) -> None:
    network = create_network(name).eval()
    assert sum(values.numel() for values in network.parameters()) == parameters
    assert network(torch.zeros(2, 3, 48, 48)).shape == (2, 7)
