"""One process's share of a training step's faces."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Augmented images, and where they come from."""

    images: Tensor  # float32 (share, 3, size, size), channels last
    targets: Tensor  # float32 (share, classes), mixed like the images
    indices: Tensor  # int64 (share,), of the faces
    faces: int  # in the whole batch
    weight: Tensor  # sum of the class weights of the whole batch
    partners: Tensor | None = None  # int64 (share,), of the faces that these are mixed with
    own: Tensor | None = None  # float32 (share,), how much of each image is its own face
    key: tuple[int, ...] | None = None  # equal where the same images come again; None: they come once
