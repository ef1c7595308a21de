"""Trained weights on disk: a state dict with its settings, read without running code."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fer_runtime.errors import CheckpointError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.files import write_atomically
from fer_train.networks import create_network

FORMAT = "fer-edge checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Weights and what is needed to use them right."""

    name: str  # "v0" or "v1"
    state_dict: dict[str, Tensor]
    mean: float = 0.0  # input = (faces / 255 - mean) / std, one number for all channels
    std: float = 1.0
    expressions: tuple[str, ...] = EXPRESSIONS  # in the order of the logits
    training: dict[str, Any] = field(default_factory=dict)  # summary: recipe, data, accuracy

    def network(self) -> nn.Module:
        """The network with these weights, on CPU in eval mode."""
        network = create_network(self.name)
        network.load_state_dict(self.state_dict)
        return network.eval()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` atomically, tensors on CPU; equal weights and settings give equal bytes."""
    content = {
        "format": FORMAT,
        "name": checkpoint.name,
        "state_dict": {key: value.detach().cpu().contiguous() for key, value in checkpoint.state_dict.items()},
        "mean": checkpoint.mean,
        "std": checkpoint.std,
        "expressions": list(checkpoint.expressions),
        "training": checkpoint.training,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path, *, name: str) -> Checkpoint:
    """Read the checkpoint of the network `name`.

    Raises:
        CheckpointError: the file is missing, damaged, holds code, or is of another network.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {path}; train one with: fer-train --model {name}") from error
    except Exception as error:  # torch.load raises a dozen types for damaged files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"cannot read the checkpoint {path}: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of fer-train; train one with: fer-train --model {name}")
    if content["name"] != name:
        raise CheckpointError(f"{path} holds {content['name']}, not {name}; use --model {content['name']}")
    return Checkpoint(
        name=content["name"],
        state_dict=content["state_dict"],
        mean=content["mean"],
        std=content["std"],
        expressions=tuple(content["expressions"]),
        training=content["training"],
    )
