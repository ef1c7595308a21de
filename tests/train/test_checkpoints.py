"""Checkpoints from here and elsewhere, and files that would run code."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fer_runtime.errors import CheckpointError
from fer_train.checkpoints import FORMAT, Checkpoint, find_weights, load_checkpoint, save_checkpoint, stated_faces
from fer_train.networks.registry import create_network


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU(), nn.MaxPool2d(2))


class FaceExpressionModel(nn.Module):
    """The first version's class, with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_block_1 = _block(3, 16)
        self.conv_block_2 = _block(16, 32)
        self.conv_block_3 = _block(32, 64)
        self.fc_layer = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * 6 * 6, 128), nn.Dropout(0.25), nn.ReLU(), nn.Linear(128, 7)
        )

    def forward(self, faces: torch.Tensor) -> Any:
        return self.fc_layer(self.conv_block_3(self.conv_block_2(self.conv_block_1(faces))))


@pytest.fixture(params=["__main__", "NNmodel.face_expression_model"])
def first_version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A network whose class pickles under the module names of the first version."""
    name = request.param
    module = sys.modules["__main__"] if name == "__main__" else types.ModuleType(name)
    if name != "__main__":
        monkeypatch.setitem(sys.modules, "NNmodel", types.ModuleType("NNmodel"))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(module, "FaceExpressionModel", FaceExpressionModel, raising=False)
    monkeypatch.setattr(FaceExpressionModel, "__module__", name)
    torch.manual_seed(0)
    return FaceExpressionModel().eval()


def test_our_own_file_comes_back_whole(tmp_path: Path) -> None:
    saved = Checkpoint(
        name="v0", state_dict=create_network("v0").state_dict(), mean=0.5, std=0.25, training={"recipe": "first"}
    )
    save_checkpoint(tmp_path / "a.pth", saved)
    loaded = load_checkpoint(tmp_path / "a.pth", name="v0")
    assert (loaded.mean, loaded.std, loaded.training) == (0.5, 0.25, {"recipe": "first"})
    assert all(torch.equal(value, saved.state_dict[key]) for key, value in loaded.state_dict.items())


def test_the_first_versions_whole_module_is_read(
    first_version: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Saved on Apple's GPU: the storages say "mps", which this machine lacks.
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "mps")
    torch.save(first_version, tmp_path / "model_0.pth")
    loaded = load_checkpoint(tmp_path / "model_0.pth", name="v0").network()
    faces = torch.rand(3, 3, 48, 48)
    with torch.inference_mode():
        assert torch.equal(loaded(faces), first_version(faces))


def test_torchvisions_whole_resnet_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create_network("v1").eval()
    torch.save(network, tmp_path / "model_v1.pth")
    loaded = load_checkpoint(tmp_path / "model_v1.pth", name="v1").network()
    faces = torch.rand(2, 3, 48, 48)
    with torch.inference_mode():
        assert torch.equal(loaded(faces), network(faces))


@pytest.mark.parametrize("wrapped", ["plain", "state_dict", "DataParallel", "half"])
def test_plain_state_dicts_are_read(wrapped: str, tmp_path: Path) -> None:
    state: dict[str, Any] = create_network("v0").state_dict()
    content: Any = {
        "plain": state,
        "state_dict": {"state_dict": state, "epoch": 3},
        "DataParallel": {f"module.{key}": value for key, value in state.items()},
        "half": {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
    }[wrapped]
    torch.save(content, tmp_path / "a.pth")
    loaded = load_checkpoint(tmp_path / "a.pth", name="v0").state_dict
    assert loaded.keys() == state.keys()
    assert all(value.dtype in (torch.float32, torch.int64) for value in loaded.values())


class _Touch:
    """Unpickled by a plain torch.load, this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


class _Evaluate(_Touch):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize(("hostile", "named"), [(_Touch, "system"), (_Evaluate, "eval")])
def test_a_hostile_pickle_is_named_and_does_not_run(hostile: type[_Touch], named: str, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    torch.save({"state_dict": create_network("v0").state_dict(), "extra": hostile(planted)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"{named}.*was not run"):
        load_checkpoint(tmp_path / "a.pth", name="v0")
    assert not planted.exists()
    # The file is as dangerous as it looks: whoever loads it plainly runs it.
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert planted.exists()


class _Unknown:
    pass


def test_any_other_class_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "extra": _Unknown()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="_Unknown"):
        load_checkpoint(tmp_path / "a.pth", name="v0")


def test_another_network_is_told_by_its_layers(tmp_path: Path) -> None:
    torch.save(create_network("v1").state_dict(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"conv_block_1\.0\.weight is missing.*use --model v1"):
        load_checkpoint(tmp_path / "a.pth", name="v0")
    save_checkpoint(tmp_path / "b.pth", Checkpoint(name="v0", state_dict=create_network("v0").state_dict()))
    with pytest.raises(CheckpointError, match="use --model v0"):
        load_checkpoint(tmp_path / "b.pth", name="v1")


def test_another_number_of_classes_is_told_by_shapes(tmp_path: Path) -> None:
    state = create_network("v0").state_dict()
    state["fc_layer.4.weight"], state["fc_layer.4.bias"] = torch.zeros(8, 128), torch.zeros(8)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"fc_layer\.4\.weight has shape \(8, 128\), not \(7, 128\).*7 classes"):
        load_checkpoint(tmp_path / "a.pth", name="v0")


@pytest.mark.parametrize("kept", [0, 10, 5000, 600_000])
def test_cut_files_are_named(kept: int, tmp_path: Path) -> None:
    torch.save(create_network("v0").state_dict(), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"cut\.pth.*(empty|cut short)"):
        load_checkpoint(tmp_path / "cut.pth", name="v0")


def test_weights_of_a_shipped_name_are_the_checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = find_weights("models/model_0.pth")
    assert Path(shipped) == Path(__file__).parents[2] / "models" / "model_0.pth"
    assert find_weights("models/mine.pth") == "models/mine.pth"
    monkeypatch.setattr("fer_train.checkpoints.packaged_models_dir", lambda: tmp_path)
    with pytest.raises(CheckpointError, match="repository"):
        find_weights("models/model_0.pth")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/model_0.pth").touch()
    assert find_weights("models/model_0.pth") == "models/model_0.pth"


def test_an_onnx_file_is_named_as_one() -> None:
    file = Path(__file__).parents[2] / "models" / "model_0.onnx"
    with pytest.raises(CheckpointError, match=r"model_0\.onnx is an ONNX file; --weights .* \(\.pth\).*--teacher"):
        stated_faces(file)


def test_a_checkpoint_without_weights_is_refused(tmp_path: Path) -> None:
    for content in ({"epoch": 3}, [1, 2], torch.zeros(3), {}, {1: torch.zeros(2)}):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match="holds no weights"):
            load_checkpoint(tmp_path / "a.pth", name="v0")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mean": None}, r"a\.pth is a damaged checkpoint.*train again"),
        ({"state_dict": "weights"}, "holds no weights"),
        ({"expressions": ["angry", "happy"]}, r"has shape \(7, 128\), not \(2, 128\)"),
        ({"std": 0.0}, "std must be positive, got 0"),
        ({"std": float("nan")}, "std is not a finite number"),
        ({"mean": 10**400}, "damaged checkpoint"),
        ({"name": "v9"}, "network 'v9', which this fer-edge does not know; it knows v0"),
        ({"name": ["v0"]}, "name is not a text"),
        ({"expressions": [[1]]}, "expressions is not a list of texts"),
        ({"training": {"lr": {1: 2}}}, "a key that is not a text"),
        ({"training": {"lr": float("inf")}}, "something other than texts and numbers"),
    ],
)
def test_a_checkpoint_of_ours_that_was_changed_is_told(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", Checkpoint(name="v0", state_dict=create_network("v0").state_dict()))
    torch.save(torch.load(tmp_path / "a.pth") | change, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(tmp_path / "a.pth", name="v0")


def test_a_checkpoint_without_its_settings_is_told(tmp_path: Path) -> None:
    torch.save({"format": FORMAT, "name": "v0"}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"damaged checkpoint \('mean' is missing\)"):
        load_checkpoint(tmp_path / "a.pth", name="v0")
