"""A small network on another network's last maps that tells faces from everything else, and its threshold.

Chosen among the energy of the logits (Liu et al., arXiv 2010.03759), Mahalanobis distances (Lee et al.,
arXiv 1807.03888), nearest faces among the features, and linear layers with and without hidden units. Hidden units
halve the backgrounds that pass for faces.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from fer_export.unfamiliar.images import FROM_FACES, MADE_UP, strange_images
from fer_runtime.expressions import FACE_SIZE
from fer_runtime.metrics import auroc, wilson_interval
from fer_runtime.model.parity import FloatArray, Uint8Array
from fer_runtime.model.session import open_session
from fer_runtime.system import available_cpus

OUTPUT = "unfamiliarity"
LOST = 0.02  # share of real faces that may be called unfamiliar
FEWEST_FACES = 50  # on which a threshold is fitted
_MOST_FACES = 30_000  # that the layers are fitted on
_PER_KIND = 1000  # images of each kind, at most
_FITS = 2  # networks that are added up: a sum varies less than one of them
_UNITS = 16  # of each, between its two layers
_UNSEEN = 50  # images of each kind that the layers do not see
_SAMPLE = 256  # faces on which the gate compares a file with the layer
LEAST_AUROC = 0.9  # of layers that are worth an output
_BATCH = 32
_FITTED_BATCH = 128
_EPOCHS, _FEWEST_STEPS = 6, 300
_LEARNING_RATE, _WEIGHT_DECAY = 2e-3, 0.1
_DROPOUT = 0.4  # share of the features left out of a step
# An image that the network is unsure about has a reason already: it counts so much less than a sure one.
_UNSURE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Maps:
    """The last maps of a float model."""

    tensor: str  # its values are the features
    shape: tuple[int, ...]  # of one face: (channels, rows, columns), or (features,)
    flat: str | None  # the tensor that already holds them in one row, where there is one


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """unfamiliarity = max(features @ weights + bias, 0) @ signs; the threshold stands for a second bias."""

    maps: Maps
    weights: FloatArray  # (features, units), the features in the order of the float model
    bias: FloatArray  # (units,)
    signs: FloatArray  # (units,), 1 or -1
    highest: float  # value of a unit on the images that the layers were fitted on
    fitted_faces: int
    real: Uint8Array = field(repr=False)  # faces that the layer was not fitted on
    strange: Uint8Array = field(repr=False)  # images of the same kinds that it was not fitted on
    sample: Uint8Array = field(repr=False)  # some of `real`, then `strange`: what the gate compares
    sample_faces: int  # of `sample`, those that are real
    expected: FloatArray = field(repr=False)  # the float model's unfamiliarity of `sample`, in double precision
    idle: tuple[int, ...] = ()  # units of the network's layer on these maps that no image switches on


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """A file's threshold, and what it does to faces that it was not fitted on."""

    unfamiliar_above: float
    faces: int  # real ones
    lost: float  # share of them above the threshold that the other half fitted
    lost_interval: tuple[float, float]  # 95 % confidence
    strange: int  # synthetic images
    kept: float  # share of them at or below the threshold
    auroc: float

    def to_dict(self) -> dict[str, Any]:
        """The metadata's `quality`."""
        return {
            "unfamiliar_above": self.unfamiliar_above,
            "method": "two layers on the last maps, faces against made-up images and parts of faces",
            "kinds": [*MADE_UP, *FROM_FACES],
            "faces": self.faces,
            "lost": self.lost,
            "lost_interval": list(self.lost_interval),
            "strange_images": self.strange,
            "kept": self.kept,
            "auroc": self.auroc,
        }


def find_maps(fp32: onnx.ModelProto) -> Maps | None:
    """The maps that a float model pools or flattens for its first linear layer; None where it has no such layer."""
    produced = {node.output[0]: node for node in fp32.graph.node}
    inferred = onnx.shape_inference.infer_shapes(fp32)
    shapes = {
        value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim[1:])
        for value in inferred.graph.value_info
    }
    linear = next((node for node in fp32.graph.node if node.op_type == "Gemm"), None)
    if linear is None:
        return None
    flat: str = linear.input[0]
    source = produced.get(flat)
    if source is None or source.op_type not in ("Reshape", "Flatten"):
        return _maps(flat, shapes, flat)
    maps = source.input[0]
    pooling = produced.get(maps)
    if pooling is not None and pooling.op_type in ("ReduceMean", "GlobalAveragePool"):
        return _maps(pooling.input[0], shapes, None)
    return _maps(maps, shapes, flat)


def _maps(tensor: str, shapes: dict[str, tuple[int, ...]], flat: str | None) -> Maps | None:
    shape = shapes.get(tensor, ())
    return Maps(tensor=tensor, shape=shape, flat=flat) if shape and all(shape) else None


def features_of(fp32: onnx.ModelProto, maps: Maps, faces: Uint8Array) -> tuple[FloatArray, FloatArray]:
    """The maps as features, float32 (faces, features), and the highest probabilities, float32 (faces,).

    Args:
        faces: uint8, in the size and colour of the model.
    """
    shown = onnx.ModelProto()
    shown.CopyFrom(fp32)
    shown.graph.output.append(helper.make_tensor_value_info(maps.tensor, TensorProto.FLOAT, None))
    session = open_session(shown.SerializeToString(), source="the float model").session
    batches = [faces[start : start + _BATCH] for start in range(0, len(faces), _BATCH)]
    rows, confidences = [np.zeros((0, int(np.prod(maps.shape))), np.float32)], [np.zeros(0, np.float32)]
    # Each run has one thread, so the numbers do not depend on how many batches are computed at a time.
    with ThreadPoolExecutor(available_cpus()) as pool:
        for found, probabilities in pool.map(
            lambda batch: session.run([maps.tensor, "probabilities"], {"faces": batch}), batches
        ):
            rows.append(found.reshape(len(found), -1))
            confidences.append(probabilities.max(1))
    return np.concatenate(rows), np.concatenate(confidences)


def fit_head(
    fp32: onnx.ModelProto, faces: Uint8Array, others: Uint8Array, *, uncertain_below: float | None = None
) -> Head | None:
    """Fit the layers on real faces of the model's size and colour.

    Args:
        fp32: the float model.
        faces: to fit on.
        others: real faces too, for the threshold and for what is said of it.
        uncertain_below: confidence below which an answer is doubted anyway; None weighs all images alike.

    Returns:
        None where the model has no maps, there are too few faces, or the layers do not tell them from other images.
    """
    maps = find_maps(fp32)
    if maps is None or min(len(faces), len(others)) < FEWEST_FACES:
        return None
    random = np.random.default_rng(0)
    faces = faces[random.permutation(len(faces))[:_MOST_FACES]]
    count = min(_PER_KIND, -(-len(faces) // 4))
    strange = strange_images(_gray(faces), count)
    found, confidences = features_of(fp32, maps, _like(strange, faces))
    counts = np.ones(len(found)) if uncertain_below is None else _UNSURE + (confidences >= uncertain_below)
    weights, bias, signs, highest = _separate(features_of(fp32, maps, faces)[0], found, counts.astype(np.float32))
    unseen = _like(strange_images(_gray(others), max(8, min(count // 8, _UNSEEN)), seed=1), faces)
    sampled = others[random.permutation(len(others))[:_SAMPLE]]
    sample = np.concatenate([sampled, unseen])
    units = np.maximum(features_of(fp32, maps, sample)[0].astype(np.float64) @ weights.astype(np.float64) + bias, 0)
    scores = (units @ signs.astype(np.float64)).astype(np.float32)
    if auroc(scores[: len(sampled)], scores[len(sampled) :]) < LEAST_AUROC:
        return None
    return Head(
        maps=maps,
        weights=weights,
        bias=bias,
        signs=signs,
        highest=highest,
        fitted_faces=len(faces),
        real=others,
        strange=unseen,
        sample=sample,
        sample_faces=len(sampled),
        expected=scores,
        idle=idle_units(fp32, maps, (faces, others, _like(strange, faces), unseen)),
    )


def idle_units(fp32: onnx.ModelProto, maps: Maps, images: Sequence[Uint8Array]) -> tuple[int, ...]:
    """Units of the network's hidden layer on the maps that none of the images switches on, if it has such a layer.

    Args:
        fp32: the float model.
        images: arrays of faces of its size and colour.
    """
    layers = [node.output[0] for node in fp32.graph.node if node.op_type == "Gemm" and node.input[0] == maps.flat]
    units = [node.output[0] for node in fp32.graph.node if node.op_type == "Relu" and node.input[0] in layers]
    if len(units) != 1:
        return ()
    shown = onnx.ModelProto()
    shown.CopyFrom(fp32)
    shown.graph.output.append(helper.make_tensor_value_info(units[0], TensorProto.FLOAT, None))
    session = open_session(shown.SerializeToString(), source="the float model").session
    parts = [part[start : start + _BATCH] for part in images for start in range(0, len(part), _BATCH)]
    on = np.logical_or.reduce([(session.run(units, {"faces": part})[0] > 0).any(0) for part in parts])
    return tuple(np.flatnonzero(~on).tolist())


def _gray(faces: Uint8Array) -> Uint8Array:
    """Faces as uint8 (faces, 48, 48), grayscale."""
    planes = []
    for face in faces:
        plane = face if face.ndim == 2 else cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(plane, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA)
        planes.append(np.asarray(small, np.uint8))
    return np.stack(planes)


def _like(images: Uint8Array, faces: Uint8Array) -> Uint8Array:
    """Gray images of 48 x 48 in the size and colour of `faces`."""
    side = faces.shape[1]
    if side != FACE_SIZE:
        resized = [
            np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8) for image in images
        ]
        images = np.stack(resized)
    return images if faces.ndim == 3 else np.repeat(images[..., None], 3, axis=-1)


def _separate(
    real: FloatArray, others: FloatArray, counts: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, float]:
    """Fit two layers whose result is larger for `others`.

    Args:
        real, others: features, float32 (images, features).
        counts: how much each of `others` counts, (images,).

    Returns:
        weights (features, units), bias and signs (units,) as in Head, and the highest value of a unit.
    """
    center = real.mean(0, dtype=np.float64)
    # A feature that faces hardly ever switch on must not weigh without limit.
    spread = real.std(0, dtype=np.float64) + 0.1 * real.std(dtype=np.float64) + 1e-6
    rows = torch.from_numpy(np.concatenate([real, others]))
    rows.sub_(torch.from_numpy(center.astype(np.float32))).div_(torch.from_numpy(spread.astype(np.float32)))
    target = torch.cat([torch.zeros(len(real)), torch.ones(len(others))])
    # Faces and others count alike.
    share = torch.cat([torch.full((len(real),), 0.5 / len(real)), torch.from_numpy(counts) * (0.5 / counts.sum())])
    share *= len(rows)
    fits = [_fit(rows, target, share, seed=seed) for seed in range(_FITS)]
    first, bias, last = (torch.cat(parts) for parts in zip(*fits, strict=True))
    # max(x, 0) times a positive number is max of the product and 0: the last layer keeps only its signs.
    size = last.abs().double().numpy()
    signs = np.where(last.numpy() < 0, -1, 1).astype(np.float32)
    raw = first.double().numpy() / spread
    weights: FloatArray = np.ascontiguousarray((raw * size[:, None]).T, np.float32)
    offsets = ((bias.double().numpy() - raw @ center) * size).astype(np.float32)
    units = torch.relu(rows @ first.T + bias) * last.abs()
    return weights, offsets, signs, max(float(units.max()), 1e-6)


def _fit(
    rows: torch.Tensor, target: torch.Tensor, share: torch.Tensor, *, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fit one network of two layers.

    Args:
        rows: standardized features, (images, features).
        target: 1 for images that are no faces.
        share: how much each image counts.

    Returns:
        First layer (units, features), its bias (units,), and last layer (units,).
    """
    random = torch.Generator().manual_seed(seed)

    def start(outputs: int, inputs: int) -> torch.Tensor:
        values: torch.Tensor = (2 * torch.rand(outputs, inputs, generator=random) - 1) / inputs**0.5
        values.requires_grad_()
        return values

    first, last = start(_UNITS, rows.shape[1]), start(1, _UNITS)
    bias, end = torch.zeros(_UNITS, requires_grad=True), torch.zeros(1, requires_grad=True)
    parameters = [first, bias, last, end]
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    each = max(1, len(rows) // _FITTED_BATCH)
    steps = max(_EPOCHS * each, _FEWEST_STEPS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps + 1)
    order = torch.zeros(0, dtype=torch.int64)
    for step in range(steps):
        if step % each == 0:
            order = torch.randperm(len(rows), generator=random)
        chosen = order[step % each * _FITTED_BATCH :][:_FITTED_BATCH]
        kept = torch.rand(len(chosen), rows.shape[1], generator=random) >= _DROPOUT
        features = rows[chosen] * kept / (1 - _DROPOUT)
        scores = torch.relu(features @ first.T + bias) @ last[0] + end
        errors = torch.nn.functional.binary_cross_entropy_with_logits(scores, target[chosen], reduction="none")
        optimizer.zero_grad()
        (errors * share[chosen]).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return first.detach(), bias.detach(), last.detach()[0]


def fit_threshold(real: FloatArray, strange: FloatArray) -> OperatingPoint:
    """The threshold above which a share of LOST of the real faces lies.

    Args:
        real: a file's own unfamiliarity of faces that the layer was not fitted on, (faces,).
        strange: of images that are no faces.
    """
    halves = real[::2], real[1::2]
    lost = sum(
        int((measured > _quantile(fitted)).sum())
        for fitted, measured in (halves, halves[::-1])
        if len(fitted) and len(measured)
    )
    threshold = _quantile(real)
    low, high = wilson_interval(lost, len(real))
    return OperatingPoint(
        unfamiliar_above=threshold,
        faces=len(real),
        lost=round(lost / len(real), 6),
        lost_interval=(round(low, 6), round(high, 6)),
        strange=len(strange),
        kept=round(float((strange <= threshold).mean()), 6),
        auroc=round(auroc(real, strange), 6),
    )


def _quantile(values: FloatArray) -> float:
    return float(f"{np.quantile(values.astype(np.float64), 1 - LOST):.6g}")
