"""Mixup and CutMix: blend two faces into one image that has both labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """A batch of faces in pairs."""

    images: Tensor  # float32 (batch, channels, size, size)
    partners: Tensor  # int64 (batch,), place in the batch of each face's second half
    share: Tensor  # float32 (batch,), how much of each image is its own face


def mix(images: Tensor, generator: Generator, *, mixup: float, cutmix: float) -> Mixed:
    """Mix every face with another one of the batch.

    Args:
        images: float32 (batch, channels, size, size).
        mixup: parameter of the Beta(a, a) that a blend's share is drawn from (Zhang et al., arXiv 1710.09412); 0: none.
        cutmix: the same of a pasted rectangle's area (Yun et al., arXiv 1905.04899); 0: none. With both, a coin
            decides for every batch.
    """
    count, size = images.shape[0], images.shape[-1]
    partners = torch.randperm(count, generator=generator).to(images.device)
    cut = bool(cutmix) and (not mixup or float(torch.rand((), generator=generator)) < 0.5)
    share = _beta(cutmix if cut else mixup, count, generator).to(images.device)
    others = images[partners]
    if not cut:
        return Mixed(images=torch.lerp(others, images, share[:, None, None, None]), partners=partners, share=share)
    pasted = _rectangles(1 - share, size, generator)
    # A rectangle is cut off at the border: what counts is the area that was really pasted.
    return Mixed(
        images=torch.where(pasted[:, None], others, images),
        partners=partners,
        share=1 - pasted.float().mean(dim=(1, 2)),
    )


def _beta(parameter: float, count: int, generator: Generator) -> Tensor:
    # Two Gamma draws: torch.distributions takes no generator, and a resumed run must draw the same numbers.
    gamma = torch._standard_gamma(torch.full((2, count), parameter, dtype=torch.float32), generator=generator)
    share: Tensor = gamma[0] / gamma.sum(0).clamp_min(torch.finfo(torch.float32).tiny)
    return share


def _rectangles(areas: Tensor, size: int, generator: Generator) -> Tensor:
    """Bool (batch, size, size): a square of each area (fraction of the face) round a random pixel."""
    count, device = areas.shape[0], areas.device
    half = areas.sqrt()[:, None] * size / 2
    centre = torch.randint(size, (2, count, 1), generator=generator).to(device) + 0.5
    pixels = torch.arange(size, device=device)[None] + 0.5
    rows: Tensor = (pixels - centre[0]).abs() < half
    columns: Tensor = (pixels - centre[1]).abs() < half
    return rows[:, :, None] & columns[:, None, :]
