"""Mixed faces against their definition: a image's parts are what its share says, and the loss follows them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch's own documentation uses
from tests.train.images import write_images
from torch import Generator

from fer_train.data.folders import load_faces
from fer_train.data.mixup import mix
from fer_train.loop.distill import FaceAnswers
from fer_train.loop.trainer import Trainer
from fer_train.networks.registry import create_network
from fer_train.recipes import Recipe


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_the_share_is_the_part_of_the_image_that_is_its_own(mixup: float, cutmix: float) -> None:
    # Every face has one gray of its own, so a image's mean says how much of which face it holds.
    own = torch.arange(64, dtype=torch.float32)
    mixed = mix(own[:, None, None, None].repeat(1, 1, 48, 48), Generator().manual_seed(3), mixup=mixup, cutmix=cutmix)
    expected = mixed.share * own + (1 - mixed.share) * own[mixed.partners]
    assert torch.allclose(mixed.images.mean((1, 2, 3)), expected, atol=1e-3)
    assert sorted(mixed.partners.tolist()) == list(range(64))
    assert mixed.share.min() >= 0
    assert mixed.share.max() <= 1


def test_a_pasted_face_is_a_rectangle_at_its_own_place() -> None:
    faces = torch.rand(32, 48, 48, generator=Generator().manual_seed(0))
    mixed = mix(faces[:, None], Generator().manual_seed(1), mixup=0.0, cutmix=1.0)
    for image, face, other in zip(mixed.images[:, 0], faces, faces[mixed.partners], strict=True):
        pasted = image != face
        assert torch.equal(image[pasted], other[pasted])
        rows, columns = pasted.any(1).nonzero()[:, 0], pasted.any(0).nonzero()[:, 0]
        assert int(pasted.sum()) == len(rows) * len(columns)


@pytest.mark.parametrize("parameter", [0.2, 1.0])
def test_a_blends_share_has_the_beta_distribution(parameter: float) -> None:
    share = mix(torch.zeros(40_000, 1, 1, 1), Generator().manual_seed(0), mixup=parameter, cutmix=0.0).share
    assert float(share.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(share.var()) == pytest.approx(1 / (4 * (2 * parameter + 1)), abs=0.005)


def test_the_loss_is_that_of_both_labels_by_their_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "cache"))
    images = write_images(tmp_path / "data", train=6, validation=2)
    faces = load_faces(images, "train"), load_faces(images, "validation")
    teacher = torch.randn(len(faces[0]), 7, generator=Generator().manual_seed(0))
    recipe = Recipe(epochs=1, batch_size=64, optimizer="sgd", lr=0.1, cutmix=1.0, teacher_weight=0.25)
    run = Trainer(
        create_network("v0"), *faces, recipe, device=torch.device("cpu"), seed=0, teachers=FaceAnswers(teacher)
    )
    (batch,) = run._batches(mixed=True)
    assert batch.own is not None
    assert batch.partners is not None
    logits = torch.randn(len(batch.indices), 7, generator=Generator().manual_seed(1))

    labels, others = (torch.from_numpy(faces[0].labels)[indices] for indices in (batch.indices, batch.partners))
    weights = run._weights
    by_label = [F.cross_entropy(logits, targets, weight=weights, reduction="none") for targets in (labels, others)]
    hard = (batch.own * by_label[0] + (1 - batch.own) * by_label[1]).sum()
    hard /= (batch.own * weights[labels] + (1 - batch.own) * weights[others]).sum()
    answers = [F.softmax(teacher[indices] / 2, 1) for indices in (batch.indices, batch.partners)]
    aim = batch.own[:, None] * answers[0] + (1 - batch.own[:, None]) * answers[1]
    soft = F.kl_div(F.log_softmax(logits / 2, 1), aim, reduction="batchmean")
    assert float(run._loss(logits, batch)) == pytest.approx(float(0.75 * hard + 0.25 * 4 * soft), rel=1e-5)


def test_faces_are_mixed_until_the_epoch_that_the_recipe_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "cache"))
    images = write_images(tmp_path / "data", train=3, validation=2)
    faces = load_faces(images, "train"), load_faces(images, "validation")
    recipe = Recipe(epochs=4, batch_size=64, optimizer="sgd", lr=0.01, augmentation="none", mixup=1.0, mix_until=0.5)
    run = Trainer(create_network("v0"), *faces, recipe, device=torch.device("cpu"), seed=0)
    whole = torch.from_numpy(faces[0].faces).float() / 255
    seen = []

    def note(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if run.network.training:
            planes = inputs[0][:, 0]
            seen.append(all(bool((whole == plane).all((1, 2)).any()) for plane in planes))

    run.network.register_forward_pre_hook(note)
    run.run()
    assert seen == [False, False, True, True]
