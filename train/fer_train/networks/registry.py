"""The architectures: v0, a small CNN; v1, torchvision's ResNet18; v2 and v3, residual networks for small faces."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from fer_runtime.expressions import EXPRESSIONS
from fer_train.networks.face_resnet import FaceResNet
from fer_train.networks.torchvision_import import torchvision_models


class FaceExpressionCNN(nn.Module):
    """v0: three convolution blocks and two linear layers, 319,751 parameters.

    Takes float32 (batch, 3, 48, 48), returns logits float32 (batch, 7). The attribute names are
    those of the project's first version, so that its state dicts load.
    """

    def __init__(self, *, dropout: float = 0.25) -> None:
        super().__init__()
        self.conv_block_1 = _conv_block(3, 16)
        self.conv_block_2 = _conv_block(16, 32)
        self.conv_block_3 = _conv_block(32, 64)
        self.fc_layer = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * 6 * 6, 128),
            nn.Dropout(dropout),
            nn.ReLU(),
            nn.Linear(128, len(EXPRESSIONS)),
        )

    def forward(self, faces: Tensor) -> Tensor:
        features = self.conv_block_3(self.conv_block_2(self.conv_block_1(faces)))
        logits: Tensor = self.fc_layer(features)
        return logits


def _conv_block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


def _resnet18(*, dropout: float = 0.25, classes: int = len(EXPRESSIONS)) -> nn.Module:
    network: nn.Module = torchvision_models().resnet18(weights=None)
    network.fc = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Dropout(dropout), nn.Linear(256, classes))
    return network


# Faces at once, of which nothing is learned.
_EVALUATION_BATCH = 256

# One line registers an architecture.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "v0": FaceExpressionCNN,
    "v1": _resnet18,
    "v2": FaceResNet,
    "v3": partial(FaceResNet, width=2),
}


def create_network(name: str, *, dropout: float = 0.25) -> nn.Module:
    """A network with fresh weights; float32 (batch, 3, 48, 48) to logits float32 (batch, 7).

    Args:
        dropout: share of the hidden layer's values left out of a training step.

    Raises:
        ValueError: `name` is not registered in NETWORKS.
    """
    if name not in NETWORKS:
        raise ValueError(f"no network named {name!r}; one of: {', '.join(NETWORKS)}")
    return NETWORKS[name](dropout=dropout)


def count_parameters(network: nn.Module) -> int:
    """Learned values, without BatchNorm's running statistics."""
    return sum(parameter.numel() for parameter in network.parameters())


def to_network_input(faces: Tensor, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Faces as the network takes them: uint8 (batch, 48, 48) to float32 (batch, 3, 48, 48), (faces / 255 - mean) / std.

    The three channels are views of one plane, without a copy.
    """
    scaled = (faces.to(torch.float32).div_(255.0) - mean) / std
    return scaled[:, None].expand(-1, 3, -1, -1)


def predict_logits(network: nn.Module, faces: Tensor, *, flip: bool = False) -> Tensor:
    """Logits float32 (faces, classes) on CPU, for faces uint8 (faces, size, size) on the network's device.

    Args:
        flip: of the mirrored faces.
    """
    was_training = network.training
    network.eval()
    rows = []
    with torch.inference_mode():
        for batch in torch.split(faces, _EVALUATION_BATCH):
            pictures = to_network_input(batch.flip(-1) if flip else batch)
            rows.append(network(pictures.contiguous(memory_format=torch.channels_last)).float().cpu())
    network.train(was_training)
    return torch.cat(rows)
