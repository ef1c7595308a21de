"""A plain PyTorch loop, as torchvision's documentation classifies an image: transform, model, softmax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fer_train.checkpoints import load_checkpoint
from fer_train.networks.torchvision_import import torchvision_transforms


def load(source: Path, *, model: str, threads: int, batch: int) -> Any:
    """Run the checkpoint's network; threads are PyTorch's default."""
    checkpoint = load_checkpoint(source, name=model)
    network = checkpoint.network().eval()
    transforms: Any = torchvision_transforms()
    preprocess = transforms.Compose(
        [
            transforms.Grayscale(3),
            transforms.ToTensor(),
            transforms.Normalize([checkpoint.mean] * 3, [checkpoint.std] * 3),
        ]
    )

    def run(faces: Any) -> Any:
        answers = []
        with torch.inference_mode():
            for face in faces:
                batch = preprocess(Image.fromarray(face)).unsqueeze(0)
                answers.append(network(batch).squeeze(0).softmax(0).numpy())
        return np.stack(answers)

    return run
