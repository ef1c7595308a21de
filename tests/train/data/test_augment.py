"""Augmentation: the AutoAugment table and operations are torchvision's; the affine one keeps what it must."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from fer_runtime.registry import load
from fer_train.data import augment
from fer_train.data.augmentations import AUGMENTATIONS
from fer_train.networks.torchvision_import import torchvision_transforms


def _random_faces(count: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 48, 48), dtype=torch.uint8, generator=Generator().manual_seed(seed))


def test_the_policies_are_those_of_torchvision() -> None:
    theirs = torchvision_transforms().AutoAugment()._policies
    ours = [tuple((name, p, m) for name, p, m in pair) for pair in augment._POLICIES]
    assert ours == [tuple((name, p, m or 0) for name, p, m in pair) for pair in theirs]


@pytest.mark.parametrize(
    ("operation", "magnitude"),
    [
        ("Posterize", 5),
        ("Posterize", 8),
        ("Solarize", 3),
        ("Solarize", 8),
        ("Equalize", 0),
        ("AutoContrast", 0),
        ("Invert", 0),
        ("Contrast", 8),
        ("Sharpness", 7),
        ("Rotate", 9),
        ("ShearX", 5),
    ],
)
def test_each_operation_is_torchvisions_on_rgb(operation: str, magnitude: int) -> None:
    transforms = torchvision_transforms()
    reference = transforms.AutoAugment()
    faces = _random_faces(3)
    table = reference._AUGMENTATION_SPACE[operation][0](10, 48, 48)
    value = 0.0 if table is None else float(table[magnitude])
    expected = reference._apply_image_or_video_transform(
        faces[:, None].expand(-1, 3, -1, -1),
        operation,
        value,
        interpolation=transforms.InterpolationMode.NEAREST,
        fill={},
    )
    actual = augment._apply(transforms.functional, operation, magnitude, 1, faces[:, None])[:, 0]
    # Contrast blends with the mean of an RGB-to-gray conversion whose weights add up to 0.9999: one level.
    difference = (actual.int() - expected[:, 0].int()).abs().max()
    assert difference <= 1


def test_autoaugment_changes_most_faces_and_keeps_their_range() -> None:
    faces = _random_faces(200)
    changed = augment.autoaugment(faces, Generator().manual_seed(1))
    assert changed.dtype == torch.float32
    assert changed.shape == faces.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    same = (changed == faces / 255.0).flatten(1).all(1).float().mean()
    assert 0.02 < same < 0.5


def test_the_same_seed_gives_the_same_images() -> None:
    faces = _random_faces(20)
    for name, entry in AUGMENTATIONS.items():
        augmentation = load(entry.apply)
        first = augmentation(faces, Generator().manual_seed(7))
        again = augmentation(faces, Generator().manual_seed(7))
        assert torch.equal(first, again), name


def test_affine_changes_mirror_half_of_the_faces_and_keep_a_flat_face_flat() -> None:
    left_white = torch.zeros(400, 48, 48, dtype=torch.uint8)
    left_white[:, :, :24] = 255
    planes = augment.light(left_white, Generator().manual_seed(3))
    mirrored = (planes[:, :, 36:].mean((1, 2)) > planes[:, :, :12].mean((1, 2))).float().mean()
    assert 0.4 < mirrored < 0.6
    flat = torch.full((10, 48, 48), 128, dtype=torch.uint8)
    assert augment.light(flat, Generator().manual_seed(3)).flatten(1).std(1).max() < 1e-5


def test_erasing_covers_its_share_of_the_faces() -> None:
    # A bright flat face stays flat under everything but the erased rectangle.
    flat = torch.full((1000, 48, 48), 128, dtype=torch.uint8)
    planes = augment.faces(flat, Generator().manual_seed(5))
    erased = planes.flatten(1).std(1) > 1e-4
    assert 0.2 < erased.float().mean() < 0.3
    middle = planes[erased].flatten(1).median(1).values[:, None, None]
    # Bilinear weights sum to 1 within float32's epsilon of 6e-8, on some processors exactly.
    covered = ((planes[erased] - middle).abs() > 1e-4).float().mean((1, 2))
    assert covered.max() < 0.25
