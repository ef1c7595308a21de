"""PyTorch, eager or compiled with Inductor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fer_train.checkpoints import load_checkpoint, stated_network
from fer_train.networks.architectures import ARCHITECTURES
from fer_train.networks.registry import to_network_input

if TYPE_CHECKING:
    from fer_bench.engines import Run


class _Classifier(nn.Module):
    """Faces uint8 to probabilities, like the exported model."""

    def __init__(self, network: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, mean, std

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.network(to_network_input(faces, mean=self.mean, std=self.std)), 1)


def load(source: Path, *, model: str, threads: int, batch: int) -> Run:
    """Run the checkpoint's network in eval mode."""
    return _run(_classifier(source, model=model, threads=threads))


def load_compiled(source: Path, *, model: str, threads: int, batch: int) -> Run:
    """Run the checkpoint's network, compiled on its first faces; needs a C++ compiler."""
    return _run(torch.compile(_classifier(source, model=model, threads=threads)))


def _classifier(source: Path, *, model: str, threads: int) -> nn.Module:
    torch.set_num_threads(threads)
    # A model of one's own has the name of its files; its checkpoint says of which network it is.
    checkpoint = load_checkpoint(source, name=model if model in ARCHITECTURES else stated_network(source))
    return _Classifier(checkpoint.network(), checkpoint.mean, checkpoint.std).eval()


def _run(classifier: Any) -> Run:
    def run(faces: Any) -> Any:
        with torch.inference_mode():
            return classifier(torch.from_numpy(faces)).numpy()

    return run
