"""Networks by name, and what they give for faces."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fer_runtime.registry import load
from fer_train.networks.architectures import ARCHITECTURES

# Faces at once, of which nothing is learned.
_EVALUATION_BATCH = 256


def create_network(name: str, *, dropout: float = 0.25) -> nn.Module:
    """A network with fresh weights; float32 (batch, 3, 48, 48) to logits float32 (batch, 7).

    Args:
        dropout: share of the hidden layer's values left out of a training step.

    Raises:
        ValueError: `name` is not registered in ARCHITECTURES.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"no network named {name!r}; one of: {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    network: nn.Module = load(architecture.build)(dropout=dropout, **architecture.arguments)
    return network


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
            images = to_network_input(batch.flip(-1) if flip else batch)
            rows.append(network(images.contiguous(memory_format=torch.channels_last)).float().cpu())
    network.train(was_training)
    return torch.cat(rows)
