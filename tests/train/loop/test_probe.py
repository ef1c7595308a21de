"""The layer that gives the logits, which a probe fits and a logit adjustment shifts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.train.images import write_images
from torch import Tensor, nn

from fer_runtime.errors import CheckpointError
from fer_train.data.folders import load_faces
from fer_train.loop.probe import last_linear
from fer_train.loop.trainer import Trainer
from fer_train.recipes import FIRST


class _WithAuxiliary(nn.Module):
    """Its last Linear by name is another head, which gives no logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head, self.auxiliary = nn.Linear(3, 7), nn.Linear(7, 7), nn.Linear(7, 7)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images.mean((2, 3)))
        self.auxiliary(features)
        answer: Tensor = self.head(features)
        return answer


def test_the_layer_is_found_by_its_answer_not_by_its_place() -> None:
    network, faces = _WithAuxiliary(), torch.full((2, 48, 48), 100, dtype=torch.uint8)
    name, layer = last_linear(network, faces, needed_by="a test", setting="none")
    assert (name, layer) == ("head", network.head)


@pytest.mark.parametrize(
    "head",
    [[nn.Conv2d(3, 7, 3), nn.AdaptiveAvgPool2d(1)], [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 7, False)]],
)
def test_networks_without_last_biases_are_refused_before_they_train(
    head: list[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "cache"))
    data = write_images(tmp_path / "data", train=1, validation=1)
    faces = load_faces(data, "train"), load_faces(data, "validation")
    network, recipe = nn.Sequential(*head, nn.Flatten()), FIRST.with_settings("logit_adjustment=-0.25")
    with pytest.raises(CheckpointError, match=r"logit_adjustment needs a network .* --set logit_adjustment=0"):
        Trainer(network, *faces, recipe, device=torch.device("cpu"), seed=0)
