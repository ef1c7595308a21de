"""`narrow`, an architecture for tests: v0 with few channels, and smaller maps after its first block.

It is exported in a tenth of v0's time.

It is registered as a plugin's is: import this module, or name it in FER_EDGE_PLUGINS. Its weights have v0's names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fer_train.networks.architectures import ARCHITECTURES, Architecture

if TYPE_CHECKING:
    from torch import nn

ARCHITECTURES.register(Architecture(name="narrow", help="v0 with fewer channels", build="tests.export.narrow:narrow"))

CHANNELS = 4, 4, 8  # of the three convolutions
HIDDEN = 112
MAP = 3  # pixels of a side of the last maps


def narrow(*, classes: int, dropout: float) -> nn.Module:
    """The network, for faces of 48 x 48."""
    from torch import nn

    network = nn.Sequential()
    before = 3
    for place, channels in enumerate(CHANNELS, 1):
        convolution = nn.Conv2d(before, channels, 3, padding=1, stride=2 if place == 2 else 1)
        layers = convolution, nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2)
        network.add_module(f"conv_block_{place}", nn.Sequential(*layers))
        before = channels
    linear = nn.Linear(before * MAP * MAP, HIDDEN), nn.Dropout(dropout), nn.ReLU(), nn.Linear(HIDDEN, classes)
    network.add_module("fc_layer", nn.Sequential(nn.Flatten(), *linear))
    return network
