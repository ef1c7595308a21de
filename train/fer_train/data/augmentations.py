"""The registry of augmentations. This module imports no PyTorch, so that settings are checked without it."""

from __future__ import annotations

from dataclasses import dataclass

from fer_runtime.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentationEntry:
    """A change of training faces that keeps their label."""

    name: str  # as --set augmentation=NAME takes it
    # "module:function": takes faces uint8 (batch, size, size) and a torch.Generator, returns float32 of the same shape
    # in [0, 1].
    apply: str


AUGMENTATIONS = Registry[AugmentationEntry](
    "augmentation",
    AugmentationEntry(name="none", apply="fer_train.data.augment:no_augmentation"),
    AugmentationEntry(name="light", apply="fer_train.data.augment:light"),
    AugmentationEntry(name="faces", apply="fer_train.data.augment:faces"),
    AugmentationEntry(name="autoaugment", apply="fer_train.data.augment:autoaugment"),
)
