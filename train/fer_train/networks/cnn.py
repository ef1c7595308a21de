"""v0, a small CNN."""

from __future__ import annotations

from torch import Tensor, nn

from fer_runtime.expressions import EXPRESSIONS, FACE_SIZE


class FaceExpressionCNN(nn.Module):
    """v0: three convolution blocks and two linear layers, 319,751 parameters for seven labels and faces of 48 x 48.

    Takes float32 (batch, 3, size, size), returns logits float32 (batch, classes). The attribute names are
    those of the project's first version, so that its state dicts load.
    """

    def __init__(self, *, dropout: float = 0.25, classes: int = len(EXPRESSIONS), size: int = FACE_SIZE) -> None:
        super().__init__()
        self.conv_block_1 = _conv_block(3, 16)
        self.conv_block_2 = _conv_block(16, 32)
        self.conv_block_3 = _conv_block(32, 64)
        self.fc_layer = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * (size // 8) ** 2, 128),
            nn.Dropout(dropout),
            nn.ReLU(),
            nn.Linear(128, classes),
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
