"""The reference of an export, which its files are compared with: a trained network, or an adopted file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fer_runtime.expressions import FACE_SIZE
from fer_runtime.model.parity import FloatArray, Uint8Array
from fer_train.checkpoints import Checkpoint
from fer_train.networks.architectures import find_architecture
from fer_train.networks.registry import to_network_input

_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """The reference: its logits are those that every file of the export must have."""

    name: str  # of the network
    labels: tuple[str, ...]  # in the order of the logits
    logits: Callable[[Uint8Array], FloatArray] = field(repr=False)  # of faces uint8, in float32 on the CPU
    size: int = FACE_SIZE
    color: str = "gray"
    training: dict[str, Any] = field(default_factory=dict)  # summary for the metadata
    program: str = "PyTorch"  # that computes the logits, for messages
    option_labels: tuple[str, ...] | None = None  # `labels` in the order of --labels; None: the file says its own
    is_foreign: bool = False  # its graph may have the operators of gate.rows.MORE_RULES

    @property
    def face_shape(self) -> tuple[int, ...]:
        return (self.size, self.size) if self.color == "gray" else (self.size, self.size, 3)


def original_of(checkpoint: Checkpoint) -> Original:
    """A trained network: PyTorch's logits on CPU in eval mode, through the input path of the training."""
    return Original(
        name=checkpoint.name,
        labels=checkpoint.expressions,
        logits=lambda faces: network_logits(checkpoint, faces),
        size=checkpoint.size,
        color=checkpoint.color,
        training=checkpoint.training,
        is_foreign=find_architecture(checkpoint.name).is_foreign,
    )


def network_logits(checkpoint: Checkpoint, faces: Uint8Array) -> FloatArray:
    """PyTorch's logits float32 (faces, classes) on CPU in eval mode, through the input path of the training."""
    network = checkpoint.network()
    rows = [torch.empty(0, len(checkpoint.expressions))]
    with torch.inference_mode():
        writable = torch.from_numpy(np.require(faces, requirements=["C", "W"]))  # PyTorch warns of others
        # Some networks cannot take an empty batch.
        for batch in torch.split(writable, _BATCH) if len(faces) else ():
            rows.append(network(to_network_input(batch, mean=checkpoint.mean, std=checkpoint.std)))
    logits: FloatArray = torch.cat(rows).numpy()
    return logits
