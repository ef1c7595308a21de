"""Read all images of class folders for an audit: a small face and a digest each, or the reason for a failure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fer_runtime.errors import NO_MEMORY, ImageError
from fer_runtime.faces import prepare_face
from fer_runtime.images import Uint8Array, decode_image, read_bytes
from fer_train.data.placing import in_threads
from fer_train.data.source_folders import SourceImage


@dataclass(frozen=True, slots=True)
class ReadImage:
    """An image of a class folder, or why it could not be read."""

    image: SourceImage
    small: Uint8Array | None  # (48, 48), grayscale: to compare images
    face: Uint8Array | None  # as a model takes it, where that is asked for
    sha256: str  # of the file
    reason: str  # "" where it could be read


def read_images(
    images: Sequence[SourceImage],
    *,
    size: int | None = None,
    color: str = "gray",
    progress: Callable[[int], None] = lambda done: None,
) -> list[ReadImage]:
    """Every image, in order.

    Args:
        size: also give each face in this size and `color`, for a model.
        progress: called with the number of images so far.
    """

    def read(image: SourceImage) -> ReadImage:
        try:
            content = read_bytes(image.path)
            pixels = decode_image(content)
            face = None if size is None else prepare_face(pixels, size=size, color=color)
            return ReadImage(image, prepare_face(pixels), face, hashlib.sha256(content).hexdigest(), "")
        except ImageError as error:
            return ReadImage(image, None, None, "", str(error))
        except MemoryError:
            return ReadImage(image, None, None, "", NO_MEMORY)

    found = []
    for done, entry in enumerate(in_threads(read, images), start=1):
        progress(done)
        found.append(entry)
    return found


def small_faces(read: Sequence[ReadImage]) -> Uint8Array:
    """The small faces of images that could be read, (images, 48, 48)."""
    faces = [entry.small for entry in read if entry.small is not None]
    return np.stack(faces) if faces else np.zeros((0, 48, 48), np.uint8)
