"""Distillation: the teachers' answers that a student learns from (Hinton et al., arXiv 1503.02531).

`FaceAnswers` are given once for every face and its mirror image, and cost nothing afterwards. `ImageAnswers` are
given for the very images that the student sees, augmented and mixed: such a consistent teacher teaches more, the more
so the longer the training (Beyer et al., arXiv 2106.05237).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch's own documentation uses
from torch import Tensor, nn

from fer_runtime.errors import CheckpointError, ModelFileError, OutputError
from fer_runtime.files import cache_folder, replaced_atomically, sha256_of
from fer_runtime.labels import label_difference
from fer_runtime.recognizer import Recognizer
from fer_train.checkpoints import (
    OtherNetworkError,
    UnregisteredNetworkError,
    in_label_order,
    load_for_training,
    stated_network,
)
from fer_train.data.folders import LabelledFaces
from fer_train.loop.batch import Batch
from fer_train.loop.devices import supports_bf16
from fer_train.networks.architectures import ARCHITECTURES
from fer_train.networks.registry import predict_logits


class Teachers(Protocol):
    """A source of targets for the images of a batch."""

    def probabilities(self, batch: Batch, temperature: float) -> Tensor:
        """The student's targets, float32 (share, classes)."""
        ...


class FaceAnswers:
    """Answers that were given once.

    Args:
        logits: float32 (faces, classes), on the training's device.
    """

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def probabilities(self, batch: Batch, temperature: float) -> Tensor:
        """Of a mixed image, both faces' answers by their shares."""
        answers = F.softmax(self._logits[batch.indices] / temperature, 1)
        if batch.partners is None or batch.own is None:
            return answers
        return torch.lerp(F.softmax(self._logits[batch.partners] / temperature, 1), answers, batch.own[:, None])


class ImageAnswers:
    """Answers to the images themselves: a forward pass of every teacher for all images that have not come before.

    Args:
        networks: on the training's device, in eval mode.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._networks = networks
        self._known: dict[tuple[int, ...], Tensor] = {}

    def probabilities(self, batch: Batch, temperature: float) -> Tensor:
        """Softmax of the teachers' mean logits."""
        logits = None if batch.key is None else self._known.get(batch.key)
        if logits is None:
            logits = self._answer(batch)
            if batch.key is not None:
                self._known[batch.key] = logits
        return F.softmax(logits / temperature, 1)

    def _answer(self, batch: Batch) -> Tensor:
        device = batch.images.device
        # no_grad: tensors of inference_mode cannot take part in the student's backward pass.
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=supports_bf16(device)):
            return torch.stack([network(batch.images).float() for network in self._networks]).mean(0)


class ExportedTeacher(nn.Module):
    """A model that fer-export wrote, among the teachers; in int8 it answers sooner than its checkpoint in PyTorch.

    Takes float32 (batch, 3, size, size), values 0 to 1, and gives the logarithms of the model's probabilities, float32
    (batch, classes): logits at the temperature that the export fitted, so that teachers weigh equally however sure they
    are.

    Args:
        file: an .onnx file of ours.
        faces: that the student learns from; the answers are in the order of their classes.

    Raises:
        ModelFileError: the file is no model of ours, or of other labels, or of faces of another colour.
    """

    def __init__(self, file: Path, faces: LabelledFaces) -> None:
        super().__init__()
        self._recognizer = Recognizer(file, threads=torch.get_num_threads())
        self.size = self._recognizer.size
        labels = self._recognizer.labels
        if fault := label_difference(faces.classes, labels) or _other_color(self._recognizer.color, faces):
            raise ModelFileError(f"{file} cannot be a teacher for {', '.join(faces.classes)}: {fault}")
        self._order = [labels.index(label) for label in faces.classes]

    def forward(self, images: Tensor) -> Tensor:
        planes = images[:, 0] if self._recognizer.color == "gray" else images.permute(0, 2, 3, 1)
        faces = (planes * 255).round().clamp(0, 255).to("cpu", torch.uint8).numpy()
        probabilities = torch.from_numpy(self._recognizer.classify(faces)[:, self._order])
        return probabilities.clamp_min(torch.finfo(torch.float32).tiny).log().to(images.device)


class Resizing(nn.Module):
    """A teacher of faces of another size than the student's, which are resized for it.

    Args:
        network: takes float32 (batch, channels, size, size).
        size: pixels, side of the faces that it takes.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network = network
        self._size = size
        self.train(network.training)

    def forward(self, images: Tensor) -> Tensor:
        # As fer_runtime.faces does it: shrinking averages what it drops, enlarging has nothing to average.
        mode = "area" if self._size < images.shape[-1] else "bilinear"
        logits: Tensor = self.network(F.interpolate(images, (self._size, self._size), mode=mode))
        return logits


def load_teachers(files: Sequence[Path], faces: LabelledFaces, device: torch.device, *, views: str) -> Teachers:
    """The teachers in `files`, checkpoints of any network or models that fer-export wrote.

    Args:
        faces: that the student learns from.
        views: "faces" asks the teachers about every face once, "images" about every image that the student sees.

    Raises:
        CheckpointError: a checkpoint cannot be read.
        ModelFileError: an .onnx file cannot.
    """
    if views == "images":
        return ImageAnswers([_load(path, faces, device) for path in files])
    return FaceAnswers(face_logits(files, faces, device).to(device))


def face_logits(files: Sequence[Path], faces: LabelledFaces, device: torch.device) -> Tensor:
    """Mean logits of the teachers over each face and its mirror image, float32 (faces, classes), cached.

    Raises:
        CheckpointError: a checkpoint cannot be read.
        ModelFileError: an .onnx file cannot.
    """
    total = torch.zeros(len(faces), len(faces.classes))
    for file in files:
        key = hashlib.sha256((sha256_of(file) + faces.fingerprint).encode()).hexdigest()
        cached = cache_folder() / "teachers" / f"{key}.npy"
        try:
            logits = torch.from_numpy(np.load(cached, allow_pickle=False))
        except (OSError, ValueError, EOFError):
            network = _load(file, faces, device)
            images = torch.from_numpy(faces.faces).to(device)
            logits = (predict_logits(network, images) + predict_logits(network, images, flip=True)) / 2
            # A cache folder that cannot be written costs the next run a pass, this one nothing.
            with suppress(OSError, OutputError), replaced_atomically(cached) as partial, partial.open("wb") as stream:
                np.save(stream, logits.numpy())
        total += logits
    return total / len(files)


def _load(path: Path, faces: LabelledFaces, device: torch.device) -> nn.Module:
    network, size = _open(path, faces)
    network = network if size == faces.size else Resizing(network, size)
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _open(path: Path, faces: LabelledFaces) -> tuple[nn.Module, int]:
    """A teacher, and the size of the faces that it takes."""
    if path.suffix == ".onnx":
        exported = ExportedTeacher(path, faces)
        return exported, exported.size
    names = list(ARCHITECTURES)
    try:
        names = [stated_network(path)]
    except UnregisteredNetworkError as error:
        raise CheckpointError(
            f"{path} is of the network {error.network}, whose code only you can name: register it in a module that "
            "FER_EDGE_PLUGINS names (see CONTRIBUTING.md), or give the model that fer-export makes of the checkpoint"
        ) from error
    except CheckpointError:  # of another program: it may be any of them
        pass
    errors = []
    for name in names:
        try:
            checkpoint = load_for_training(path, name=name)
        except OtherNetworkError as error:
            errors.append(error)
            continue
        fault = label_difference(faces.classes, checkpoint.expressions)
        if fault := fault or _other_color(checkpoint.color, faces):
            raise CheckpointError(f"{path} cannot be a teacher for {', '.join(faces.classes)}: {fault}")
        return in_label_order(checkpoint, faces.classes).network(), checkpoint.size
    raise errors[0]


def _other_color(color: str, faces: LabelledFaces) -> str:
    """In words, how the colour of a teacher's faces differs from the student's; "" where it does not."""
    return "" if color == faces.color else f"it takes {color} faces, the student {faces.color} ones"
