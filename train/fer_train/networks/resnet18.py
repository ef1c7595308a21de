"""v1, torchvision's ResNet18 with a head for expressions."""

from __future__ import annotations

from torch import nn

from fer_runtime.expressions import EXPRESSIONS
from fer_train.networks.torchvision_import import torchvision_models


def resnet18(*, dropout: float = 0.25, classes: int = len(EXPRESSIONS)) -> nn.Module:
    """A ResNet18 with fresh weights; float32 (batch, 3, size, size) to logits float32 (batch, classes)."""
    network: nn.Module = torchvision_models().resnet18(weights=None)
    network.fc = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Dropout(dropout), nn.Linear(256, classes))
    return network
