"""Weights that a network starts from: ImageNet's, or a file that `--pretrain` wrote."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fer_runtime.errors import DownloadError
from fer_runtime.files import write_atomically
from fer_train.networks.torchvision_import import torchvision_models


def imagenet_weights() -> dict[str, Tensor]:
    """ResNet18's ImageNet weights, downloaded by torchvision on first use and kept in torch's cache.

    Raises:
        DownloadError: they are not there and cannot be fetched.
    """
    weights = torchvision_models().ResNet18_Weights.IMAGENET1K_V1
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise DownloadError(
            f"cannot fetch the ImageNet weights from {weights.url} ({error}); put that file into {folder}, "
            "or start without them: --weights none, or --weights FILE from fer-train --pretrain"
        ) from error
    return state


def save_weights(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    """Write a plain state dict, atomically."""
    buffer = io.BytesIO()
    torch.save({key: value.detach().cpu().contiguous() for key, value in state_dict.items()}, buffer)
    write_atomically(path, buffer.getvalue())
