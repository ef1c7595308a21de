"""The input of an adopted network: colour, size and normalization, from the options and the file."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from fer_runtime.model.metadata import MAX_SIZE, MIN_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceInput:
    """The input of the file's network. A pixel of 0 to 255 becomes (low + (high - low) pixel / 255 - mean) / std."""

    color: str  # "gray", "rgb" or "bgr", the order of the channels
    size: int  # pixels, side of the faces
    low: float = 0.0  # black
    high: float = 1.0  # white
    mean: tuple[float, ...] = (0.0,)  # one, or one a channel in the order of `color`
    std: tuple[float, ...] = (1.0,)
    layout: str | None = None  # "nchw" or "nhwc"; None where the file's shape tells it

    def __post_init__(self) -> None:
        numbers = (self.low, self.high, *self.mean, *self.std)
        if strange := [number for number in numbers if not math.isfinite(number)]:
            raise ValueError(f"range, mean and std need finite numbers, got {strange[0]:g}")
        if self.low == self.high:
            raise ValueError(f"black and white need two different numbers, got {self.low:g} and {self.high:g}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {min(self.std):g}")
        channels = 1 if self.color == "gray" else 3
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels) and not (self.color == "gray" and len(values) == 3):
                raise ValueError(f"{name} has {len(values)} numbers, and the faces have {channels} channels")

    def factor_and_shift(self, channels: int) -> tuple[Any, Any]:
        """float64 (channels,) each: input = pixel * factor + shift."""
        mean, std = (np.broadcast_to(np.array(values), channels) for values in (self.mean, self.std))
        return (self.high - self.low) / 255 / std, (self.low - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """For the metadata."""
        return {
            "color": self.color,
            "size": self.size,
            "range": [self.low, self.high],
            "mean": list(self.mean),
            "std": list(self.std),
        }


def parse_input(text: str) -> tuple[str, int]:
    """Colour and size of "gray64", "rgb112" or "bgr224".

    Raises:
        ValueError: it is none of these.
    """
    found = re.fullmatch(r"(gray|rgb|bgr)(\d{1,4})", text.strip().lower())
    if found is None or not MIN_SIZE <= int(found[2]) <= MAX_SIZE:
        raise ValueError(
            f"{text!r} is not a colour and size such as gray64, rgb112 or bgr224 ({MIN_SIZE} to {MAX_SIZE})"
        )
    return found[1], int(found[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One face as the file takes it."""

    shape: tuple[int, ...]
    channels: int
    layout: str
    batch: int | None  # fixed by the file
    dtype: str
