"""A linear layer on a network's last maps that tells faces from everything else, and its threshold.

Chosen among the energy of the logits (Liu et al., arXiv 2010.03759), Mahalanobis distances (Lee et al.,
arXiv 1807.03888), nearest faces among the features, and linear layers: the only one that tells both noise and
photographs from faces.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from fer_export.unfamiliar.images import FROM_FACES, MADE_UP, strange_images
from fer_runtime.expressions import FACE_SIZE
from fer_runtime.metrics import wilson_interval
from fer_runtime.model.parity import FloatArray, Uint8Array
from fer_runtime.model.session import open_session

OUTPUT = "unfamiliarity"
LOST = 0.02  # share of real faces that may be called unfamiliar
FEWEST_FACES = 50  # on which a threshold is fitted
_MOST_FACES = 3000  # that the layer is fitted on
_PER_KIND = 250  # images of each kind, at most
_PENALTY = 1e-3  # of the squared weights, against standardized features
_SAMPLE = 256  # faces on which the gate compares a file with the layer
LEAST_AUROC = 0.9  # of a layer that is worth an output
_BATCH = 32
_STEPS = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class Maps:
    """The last maps of a float model."""

    tensor: str  # its values are the features
    shape: tuple[int, ...]  # of one face: (channels, rows, columns), or (features,)
    flat: str | None  # the tensor that already holds them in one row, where there is one


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """unfamiliarity = features @ weights; the threshold stands for a bias."""

    maps: Maps
    weights: FloatArray  # (features,), in the order of the float model
    fitted_faces: int
    real: Uint8Array = field(repr=False)  # faces that the layer was not fitted on
    strange: Uint8Array = field(repr=False)  # images of the same kinds that it was not fitted on
    sample: Uint8Array = field(repr=False)  # some of `real`, then `strange`: what the gate compares
    sample_faces: int  # of `sample`, those that are real
    expected: FloatArray = field(repr=False)  # the float model's unfamiliarity of `sample`, in double precision


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """A file's threshold, and what it does to faces that it was not fitted on."""

    unfamiliar_above: float
    faces: int  # real ones
    lost: float  # share of them above the threshold that the other half fitted
    lost_interval: tuple[float, float]  # 95 % confidence
    strange: int  # made-up images
    kept: float  # share of them at or below the threshold
    auroc: float

    def to_dict(self) -> dict[str, Any]:
        """The metadata's `quality`."""
        return {
            "unfamiliar_above": self.unfamiliar_above,
            "method": "linear layer on the last maps, faces against made-up images and parts of faces",
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
        one.name: tuple(size.dim_value for size in one.type.tensor_type.shape.dim[1:])
        for one in inferred.graph.value_info
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


def features_of(fp32: onnx.ModelProto, maps: Maps, faces: Uint8Array) -> FloatArray:
    """The values of the maps for faces of the model's size, float32 (faces, features)."""
    shown = onnx.ModelProto()
    shown.CopyFrom(fp32)
    shown.graph.output.append(helper.make_tensor_value_info(maps.tensor, TensorProto.FLOAT, None))
    session = open_session(shown.SerializeToString(), source="the float model").session
    rows = [np.zeros((0, int(np.prod(maps.shape))), np.float32)]
    for start in range(0, len(faces), _BATCH):
        (found,) = session.run([maps.tensor], {"faces": faces[start : start + _BATCH]})
        rows.append(found.reshape(len(found), -1))
    return np.concatenate(rows)


def fit_head(fp32: onnx.ModelProto, faces: Uint8Array, others: Uint8Array) -> Head | None:
    """Fit the layer on real faces of the model's size and colour.

    Args:
        fp32: the float model.
        faces: to fit on.
        others: real faces too, for the threshold and for what is said of it.

    Returns:
        None where the model has no maps, there are too few faces, or the layer does not tell them from other images.
    """
    maps = find_maps(fp32)
    if maps is None or min(len(faces), len(others)) < FEWEST_FACES:
        return None
    random = np.random.default_rng(0)
    faces = faces[random.permutation(len(faces))[:_MOST_FACES]]
    count = min(_PER_KIND, -(-len(faces) // 4))
    gray = _gray(faces)
    strange = strange_images(gray, count)
    weights = _separate(features_of(fp32, maps, faces), features_of(fp32, maps, _like(strange, faces)))
    unseen = _like(strange_images(_gray(others), max(8, count // 8), seed=1), faces)
    some = others[random.permutation(len(others))[:_SAMPLE]]
    sample = np.concatenate([some, unseen])
    scores = (features_of(fp32, maps, sample).astype(np.float64) @ weights.astype(np.float64)).astype(np.float32)
    if auroc(scores[: len(some)], scores[len(some) :]) < LEAST_AUROC:
        return None
    return Head(
        maps=maps,
        weights=weights,
        fitted_faces=len(faces),
        real=others,
        strange=unseen,
        sample=sample,
        sample_faces=len(some),
        expected=scores,
    )


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
        resized = [np.asarray(cv2.resize(one, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8) for one in images]
        images = np.stack(resized)
    return images if faces.ndim == 3 else np.repeat(images[..., None], 3, axis=-1)


def _separate(real: FloatArray, others: FloatArray) -> FloatArray:
    """Logistic regression: weights whose result is larger for `others`."""
    center = real.mean(0, dtype=np.float64)
    # A feature that faces hardly ever switch on must not weigh without limit.
    spread = real.std(0, dtype=np.float64) + 0.1 * real.std(dtype=np.float64) + 1e-6
    rows = torch.from_numpy(((np.concatenate([real, others]) - center) / spread).astype(np.float32))
    target = torch.cat([torch.zeros(len(real)), torch.ones(len(others))])
    # Faces and others count alike.
    balance = torch.where(target > 0, len(rows) / (2 * len(others)), len(rows) / (2 * len(real)))
    weights = torch.zeros(rows.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=_STEPS, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = rows @ weights + bias
        errors = torch.nn.functional.binary_cross_entropy_with_logits(scores, target, reduction="none")
        value = (errors * balance).mean() + _PENALTY * (weights**2).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    raw: FloatArray = (weights.detach().numpy() / spread).astype(np.float32)
    return raw


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


def auroc(real: FloatArray, strange: FloatArray) -> float:
    """The chance that one of `strange` lies above one of `real`; ties count half (Mann and Whitney, 1947)."""
    order = np.concatenate([real, strange]).astype(np.float64)
    _, inverse, counts = np.unique(order, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    above = ranks[len(real) :].sum() - len(strange) * (len(strange) + 1) / 2
    return float(above / (len(real) * len(strange)))
