"""PyTorch eager: what a notebook's model is run with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fer_bench.engines import Run
from fer_train.checkpoints import load_checkpoint
from fer_train.networks.registry import to_network_input


class _Classifier(nn.Module):
    """Faces uint8 (batch, 48, 48) to probabilities, as the model file has it."""

    def __init__(self, network: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, mean, std

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.network(to_network_input(faces, mean=self.mean, std=self.std)), 1)


def load(source: Path, *, model: str, threads: int, batch: int, compiled: bool = False) -> Run:
    """Run the checkpoint's network in eval mode."""
    torch.set_num_threads(threads)
    checkpoint = load_checkpoint(source, name=model)
    classifier: Any = _Classifier(checkpoint.network(), checkpoint.mean, checkpoint.std).eval()
    if compiled:
        classifier = torch.compile(classifier)

    def run(faces: Any) -> Any:
        with torch.inference_mode():
            return classifier(torch.from_numpy(faces)).numpy()

    return run
