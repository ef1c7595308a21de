"""Augmentation of whole batches of faces: a few tensor operations instead of a loop over images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch's own documentation uses
from torch import Generator, Tensor

from fer_train.networks.torchvision_import import torchvision_transforms

# Takes faces uint8 (batch, size, size), returns float32 of the same shape in [0, 1].
Augmentation = Callable[[Tensor, Generator], Tensor]


def no_augmentation(faces: Tensor, generator: Generator) -> Tensor:
    """The faces as they are, scaled to [0, 1]."""
    return faces.to(torch.float32).div_(255.0)


def light(faces: Tensor, generator: Generator) -> Tensor:
    """Flips and small affine changes, brightness and contrast."""
    return _faces(faces, generator, degrees=10.0, scale=0.1, shift=0.06, light=0.15, erased=0.0)


def faces(faces: Tensor, generator: Generator) -> Tensor:
    """Flips, affine changes, brightness and contrast, and a random rectangle erased in every fourth face."""
    return _faces(faces, generator, degrees=12.0, scale=0.12, shift=0.08, light=0.2, erased=0.25)


def _uniform(count: int, low: float, high: float, like: Tensor, generator: Generator) -> Tensor:
    # Drawn on the generator's device (CPU) so that every device sees the same numbers.
    return torch.empty(count).uniform_(low, high, generator=generator).to(like.device)


def _faces(
    faces: Tensor, generator: Generator, *, degrees: float, scale: float, shift: float, light: float, erased: float
) -> Tensor:
    """Args in the units of a face: `degrees` of rotation, `scale` and `shift` as fractions of its side."""
    count, size = faces.shape[0], faces.shape[1]
    images = faces.to(torch.float32).div_(255.0)[:, None]

    angle = _uniform(count, -degrees, degrees, faces, generator) * (math.pi / 180)
    zoom = 1 / (1 + _uniform(count, -scale, scale, faces, generator))
    mirror = torch.where(_uniform(count, 0, 1, faces, generator) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    # affine_grid spans [-1, 1], so a shift of the fraction s of the side is 2 s.
    right = _uniform(count, -2 * shift, 2 * shift, faces, generator)
    down = _uniform(count, -2 * shift, 2 * shift, faces, generator)
    theta = torch.stack([torch.stack([cos * mirror, -sin, right], 1), torch.stack([sin * mirror, cos, down], 1)], 1)
    grid = F.affine_grid(theta, [count, 1, size, size], align_corners=False)
    # FER2013 crops are tight: repeating the border shows the network less nonsense than black corners.
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)

    gain = 1 + _uniform(count, -light, light, faces, generator)[:, None, None]
    offset = _uniform(count, -light, light, faces, generator)[:, None, None]
    planes = images[:, 0]
    mean = planes.mean((1, 2), keepdim=True)
    planes = ((planes - mean) * gain + mean + offset).clamp_(0.0, 1.0)
    if erased > 0:
        planes = _erase(planes, generator, probability=erased)
    return planes


def _erase(planes: Tensor, generator: Generator, *, probability: float) -> Tensor:
    """Random erasing (Zhong et al., arXiv 1708.04896): one gray rectangle of 4 to 20 % of the face."""
    count, size = planes.shape[0], planes.shape[1]
    hit = _uniform(count, 0, 1, planes, generator) < probability
    area = _uniform(count, 0.04, 0.2, planes, generator) * size * size
    aspect = torch.exp(_uniform(count, -1.0, 1.0, planes, generator))
    height, width = (area * aspect).sqrt().clamp(max=size), (area / aspect).sqrt().clamp(max=size)
    top = _uniform(count, 0, 1, planes, generator) * (size - height)
    left = _uniform(count, 0, 1, planes, generator) * (size - width)
    value = _uniform(count, 0, 1, planes, generator)
    pixels = torch.arange(size, device=planes.device)[None]
    rows = (pixels >= top[:, None]) & (pixels < (top + height)[:, None])
    columns = (pixels >= left[:, None]) & (pixels < (left + width)[:, None])
    mask = rows[:, :, None] & columns[:, None, :] & hit[:, None, None]
    return torch.where(mask, value[:, None, None], planes)


# AutoAugment's ImageNet policy (Cubuk et al., arXiv 1805.09501), as torchvision has it: 25 pairs of
# (operation, probability, magnitude 0-9).
_POLICIES: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
    (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
)
_SIGNED = {"Rotate", "Contrast", "Sharpness", "ShearX"}


def autoaugment(faces: Tensor, generator: Generator) -> Tensor:
    """AutoAugment with a policy drawn for every face; faces of one policy are changed together.

    Saturation ("Color") does nothing to grayscale and is left out.
    """
    functional = torchvision_transforms().functional
    count = faces.shape[0]
    changed = faces.clone()
    policy = torch.randint(len(_POLICIES), (count,), generator=generator)
    chance = torch.rand((2, count), generator=generator)
    negative = torch.rand((2, count), generator=generator) < 0.5
    for number, operations in enumerate(_POLICIES):
        members = policy == number
        for step, (operation, probability, magnitude) in enumerate(operations):
            if operation == "Color":
                continue
            hit = members & (chance[step] < probability)
            groups = (hit & ~negative[step], hit & negative[step]) if operation in _SIGNED else (hit,)
            for sign, group in zip((1, -1), groups, strict=False):
                indices = group.nonzero()[:, 0].to(faces.device)
                if len(indices):
                    chosen = changed[indices][:, None]
                    changed[indices] = _apply(functional, operation, magnitude, sign, chosen)[:, 0]
    return changed.to(torch.float32).div_(255.0)


def _apply(functional: Any, operation: str, magnitude: int, sign: int, faces: Tensor) -> Tensor:
    """One operation with torchvision's scale of magnitudes (torchvision.transforms.v2.AutoAugment)."""
    fraction = magnitude / 9
    if operation == "Posterize":
        result = functional.posterize(faces, bits=8 - round(magnitude / (9 / 4)))
    elif operation == "Solarize":
        result = functional.solarize(faces, threshold=255.0 * (1 - fraction))
    elif operation == "AutoContrast":
        result = functional.autocontrast(faces)
    elif operation == "Equalize":
        result = functional.equalize(faces)
    elif operation == "Invert":
        result = functional.invert(faces)
    elif operation == "Contrast":
        result = functional.adjust_contrast(faces, 1.0 + sign * 0.9 * fraction)
    elif operation == "Sharpness":
        result = functional.adjust_sharpness(faces, 1.0 + sign * 0.9 * fraction)
    elif operation == "Rotate":
        result = functional.rotate(faces, sign * 30.0 * fraction)
    elif operation == "ShearX":
        degrees = math.degrees(math.atan(sign * 0.3 * fraction))
        result = functional.affine(faces, angle=0.0, translate=[0, 0], scale=1.0, shear=[degrees, 0.0], center=[0, 0])
    else:
        raise ValueError(f"no operation {operation!r}")
    changed: Tensor = result
    return changed
