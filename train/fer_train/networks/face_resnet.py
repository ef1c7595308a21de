"""v2 and v3: residual networks that keep the maps large, where a face's expression is; v3 is twice as wide as v2."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - the name that PyTorch's own documentation uses
from torch import Tensor, nn

from fer_runtime.expressions import EXPRESSIONS

# Channels (of v2) and blocks of the four stages, at 24 x 24, 12 x 12, 6 x 6 and 3 x 3. The ResNet18 is at 12 x 12 where
# these begin, and spends a third of its arithmetic at 2 x 2.
_STAGES = ((24, 1), (48, 2), (96, 2), (192, 1))


class FaceResNet(nn.Module):
    """Takes float32 (batch, 3, size, size) of any size, returns logits float32 (batch, classes).

    Residual blocks of two 3 x 3 convolutions (He et al., arXiv 1512.03385) behind one convolution and a pooling.

    Args:
        width: multiple of v2's channels; 1 has 0.90 M parameters and 33 M multiply-accumulates.
        dropout: share of the pooled features left out of a training step.
    """

    def __init__(self, *, width: int = 1, dropout: float = 0.25, classes: int = len(EXPRESSIONS)) -> None:
        super().__init__()
        channels = width * _STAGES[0][0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, kernel_size=3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2)
        )
        blocks: list[nn.Module] = []
        for stage, (narrow, count) in enumerate(_STAGES):
            for block in range(count):
                blocks.append(_Block(channels, width * narrow, stride=2 if stage and not block else 1))
                channels = width * narrow
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels, classes)
        )

    def forward(self, faces: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.blocks(self.stem(faces)))
        return logits


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.first = _convolution(channels_in, channels_out, size=3, stride=stride)
        self.second = _convolution(channels_out, channels_out, size=3)
        self.shortcut = (
            nn.Identity()
            if channels_in == channels_out and stride == 1
            else _convolution(channels_in, channels_out, size=1, stride=stride)
        )

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(maps))) + self.shortcut(maps))


def _convolution(channels_in: int, channels_out: int, *, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(channels_out)
    )
