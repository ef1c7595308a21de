"""From a picture file to a label, through the training's readers and through the runtime's: do they agree?

A graph that computes the same from the same pixels can still answer differently when the pixels differ.
Counted apart are the labels that change because PIL (torchvision's reader) and OpenCV decode a file
differently, and those that change because network and model differ on equal pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fer_export.gate.parity import network_logits
from fer_runtime.errors import DataError
from fer_runtime.expressions import FACE_SIZE
from fer_runtime.faces import prepare_face
from fer_runtime.images import read_image
from fer_runtime.model.parity import Uint8Array, run_model
from fer_runtime.model.session import open_session
from fer_train.checkpoints import Checkpoint
from fer_train.networks.torchvision_import import torchvision_transforms


@dataclass(frozen=True, slots=True, kw_only=True)
class FileParity:
    """Two ways from the same files to labels."""

    files: int
    files_with_other_pixels: int  # decoded differently by PIL and OpenCV
    max_pixel_difference: int  # gray levels
    labels_changed_by_reading: int  # the network on PIL's pixels against the network on OpenCV's
    labels_changed_by_graph: int  # the network against the model, both on OpenCV's pixels
    labels_changed: int  # the whole way: PIL and network against OpenCV and model

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.files} picture files: {self.labels_changed} labels change between training and runtime "
            f"({self.labels_changed_by_reading} by reading, {self.labels_changed_by_graph} by the graph); "
            f"{self.files_with_other_pixels} files decode differently, by up to {self.max_pixel_difference} gray levels"
        )


def compare_files(paths: Sequence[Path], checkpoint: Checkpoint, model: bytes) -> FileParity:
    """Label `paths` both ways.

    Args:
        paths: face crops.
        checkpoint: the network.
        model: the exported file's bytes.

    Raises:
        DataError: a picture cannot be read by PIL.
        ImageError: a picture cannot be read by OpenCV.
    """
    through_training = np.stack([read_like_torchvision(path) for path in paths])
    through_runtime = np.stack([prepare_face(read_image(path)) for path in paths])
    differences = np.abs(through_training.astype(np.int16) - through_runtime).reshape(len(paths), -1).max(1)
    trained = network_logits(checkpoint, through_training).argmax(1)
    same_pixels = trained.copy()
    others = differences > 0
    if others.any():
        same_pixels[others] = network_logits(checkpoint, through_runtime[others]).argmax(1)
    shipped = run_model(open_session(model, source="the exported model").session, through_runtime).logits.argmax(1)
    return FileParity(
        files=len(paths),
        files_with_other_pixels=int(others.sum()),
        max_pixel_difference=int(differences.max(initial=0)),
        labels_changed_by_reading=int((trained != same_pixels).sum()),
        labels_changed_by_graph=int((same_pixels != shipped).sum()),
        labels_changed=int((trained != shipped).sum()),
    )


def read_like_torchvision(path: Path) -> Uint8Array:
    """A face uint8 (48, 48) as torchvision's ImageFolder and transforms give it: PIL decodes, torchvision shrinks.

    Raises:
        DataError: PIL cannot read the file.
    """
    from PIL import Image

    functional = torchvision_transforms().functional
    try:
        with Image.open(path) as picture:
            tensor = functional.pil_to_tensor(picture.convert("L"))
    except OSError as error:
        raise DataError(f"{path} cannot be decoded as a picture; remove it or repair it") from error
    if tensor.shape[-2:] != (FACE_SIZE, FACE_SIZE):
        tensor = functional.resize(tensor, [FACE_SIZE, FACE_SIZE], antialias=True)
    face: Uint8Array = tensor[0].numpy()
    return face
