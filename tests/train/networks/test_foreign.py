"""Networks of others: timm's, and functions of installed packages."""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from fer_runtime.errors import CheckpointError, DownloadError
from fer_train.networks.architectures import find_architecture, may_be_named_by_file
from fer_train.networks.foreign import adapted
from fer_train.networks.registry import NetworkShape, create_network, last_layer, predict_logits


@pytest.fixture(scope="module")
def timm() -> object:
    from fer_train.networks.torchvision_import import torchvision_models

    torchvision_models()
    return pytest.importorskip("timm", reason="needs the extra `timm`: pip install 'fer-edge[timm]'")


@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_timms_networks_get_their_own_mean_and_std(color: str, timm: object) -> None:
    shape = NetworkShape(classes=3, size=64, color=color)
    torch.manual_seed(0)
    network = create_network("timm:mobilenetv4_conv_small", shape).eval()
    assert last_layer("timm:mobilenetv4_conv_small", shape) == ("classifier.weight", "classifier.bias")
    torch.manual_seed(0)
    plain: nn.Module = timm.create_model(  # type: ignore[attr-defined]
        "mobilenetv4_conv_small", num_classes=3, in_chans=1 if color == "gray" else 3, drop_rate=0.25
    ).eval()
    plain.load_state_dict(network.state_dict())  # under timm's own names
    faces = torch.randint(0, 256, (4, 64, 64) if color == "gray" else (4, 64, 64, 3), dtype=torch.uint8)
    # ImageNet's mean and std, as timm's configurations have them; of a gray face, their mean over the colours.
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    if color == "gray":
        images = (faces[:, None] / 255 - mean.mean()) / std.mean()
    else:
        images = (faces.permute(0, 3, 1, 2) / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.inference_mode():
        # float32 in another order
        assert torch.allclose(predict_logits(network, faces), plain(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", ["mobilenetv4_conv_small", "test_efficientnet", "test_vit"])
@pytest.mark.parametrize("classes", [2, 7])
def test_training_of_a_fresh_timm_network_begins_near_chance(network: str, classes: int, timm: object) -> None:
    torch.manual_seed(0)
    made = create_network(f"timm:{network}", NetworkShape(classes=classes)).train()
    faces = torch.rand(32, 3, 48, 48)
    labels = torch.arange(32) % classes
    with torch.inference_mode():
        loss = nn.functional.cross_entropy(made(faces), labels).item()
    # Logits that know nothing lose ln(classes) nats, and a quarter of a nat for their spread.
    assert loss < math.log(classes) + 0.25


def test_names_that_timm_does_not_have_are_refused(timm: object) -> None:
    for name in ("timm:no_such_network", "timm:hf-hub:somebody/something"):
        with pytest.raises(CheckpointError, match="has no network"):
            create_network(name, NetworkShape(classes=2))


def test_weights_that_cannot_be_fetched_say_how_to_give_them(timm: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from fer_train.networks import foreign

    def refuse(*arguments: object, **settings: object) -> object:
        if settings.get("pretrained"):
            raise RuntimeError("no route to host")
        raise AssertionError("not reached")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(DownloadError, match=r"no route to host.*timm/mobilenetv4_conv_small\..*--weights FILE"):
        foreign.timm_pretrained("mobilenetv4_conv_small", classes=2, size=64, color="rgb")


def test_an_entry_point_of_an_installed_package_is_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_package.py").write_text(
        "from torch import nn\n"
        "def make(classes, size, color):\n"
        "    assert (size, color) == (32, 'rgb')\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, classes))\n"
    )
    information = tmp_path / "their_package-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[fer_edge.networks]\ntheirs = their_package:make\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    shape = NetworkShape(classes=5, size=32, color="rgb")
    network = create_network("theirs", shape)
    assert predict_logits(network, torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).shape == (2, 5)
    assert find_architecture("theirs").is_foreign
    assert not may_be_named_by_file("theirs")  # a checkpoint may not choose what code is run
    assert not may_be_named_by_file("timm:hf-hub:somebody/something")
    assert "their_package" in sys.modules
    with pytest.raises(ValueError, match="no network named 'nobodys'"):
        find_architecture("nobodys")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("mean", [], r"the network's mean is \[\]; give one number, or three"),
        ("mean", [0.4, 0.5], r"the network's mean is \[0\.4, 0\.5\]"),
        ("mean", "0.5", ""),  # no number at all: an attribute of another meaning
        ("mean", ["0.5"], r"the network's mean is \['0\.5'\]"),
        ("std", 0.0, r"the network's std is 0\.0; give one number, or three for the colours, above 0"),
        ("std", [float("nan")], r"the network's std is \[nan\]"),
        ("std", [0.2, 0.3, 0.4], ""),
    ],
)
def test_a_mean_or_std_that_is_none_is_named(key: str, value: object, told: str) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48 * 48, 2))
    setattr(network, key, value)
    with pytest.raises(CheckpointError, match=told) if told else nullcontext():
        adapted(network, source="own:flat", classes=2, size=48, color="gray")
