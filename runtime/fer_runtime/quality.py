"""Why an answer should not be trusted: the reasons that a face carries in its row.

The thresholds of `small`, `blurred`, `dark` and `turned` are where v3's accuracy has fallen by five points on the faces
of FER2013's validation images, measured by `fer-bench reasons`. Those of `low_confidence` and `unfamiliar` are in the
model's file, fitted by `fer-export --data`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from fer_runtime.detectors import Detection, Point
from fer_runtime.expressions import FACE_SIZE
from fer_runtime.images import Uint8Array

FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

REASONS = ("low_confidence", "turned", "small", "blurred", "dark", "unfamiliar")

# Each is the value at which `fer-bench reasons` counts five points less accuracy.
SMALL_BELOW = 29  # pixels, the shorter side of the face's box
BLURRED_BELOW = 0.27  # of `sharpness`
DARK_BELOW = 34.0  # of `brightness`
TURNED_ABOVE = 0.3  # of `turn`

_LANDMARKS = 5  # that YuNet gives


class Limits(NamedTuple):
    """What a model's file and the user say; None where nothing is said."""

    confidence: float | None = None  # less is `low_confidence`
    unfamiliarity: float | None = None  # more is `unfamiliar`


class Doubts(NamedTuple):
    """The reasons against an answer, and those that could not be looked for."""

    reasons: tuple[str, ...]  # out of REASONS
    not_checked: tuple[str, ...]  # out of REASONS: not known for this face


def find_doubts(
    detections: Sequence[Detection],
    faces: Uint8Array,
    confidences: Sequence[float],
    unfamiliarity: FloatArray | None,
    limits: Limits,
) -> list[Doubts]:
    """The reasons against each face's answer.

    Args:
        detections: the faces in their images.
        faces: the same as the model takes them, uint8 (faces, size, size) or (faces, size, size, 3).
        confidences: of the answers, 0 to 1.
        unfamiliarity: the model's output of that name, float32 (faces,); None where it has none.
        limits: of the model.
    """
    planes = _planes(faces)
    levels, contrasts = _mean_and_deviation(planes)
    blurred = (_sharpness(planes, contrasts) < BLURRED_BELOW).tolist()
    dark = (levels < DARK_BELOW).tolist()
    strange: Sequence[bool | None] = [None] * len(faces)
    if unfamiliarity is not None and limits.unfamiliarity is not None:
        # Written as "not <=" so that NaN is unfamiliar.
        strange = (~(unfamiliarity <= limits.unfamiliarity)).tolist()
    found = []
    for index, detection in enumerate(detections):
        turned = turn(detection.landmarks)
        found.append(
            _doubts(
                is_low(confidences[index], limits.confidence),
                None if turned is None else turned > TURNED_ABOVE,
                min(detection.box[2:]) < SMALL_BELOW,
                blurred[index],
                dark[index],
                strange[index],
            )
        )
    return found


@cache
def _doubts(*answers: bool | None) -> Doubts:
    """The doubts of a face, by the answers in the order of REASONS; None where nothing is known."""
    return Doubts(
        tuple(name for name, answer in zip(REASONS, answers, strict=True) if answer),
        tuple(name for name, answer in zip(REASONS, answers, strict=True) if answer is None),
    )


def is_low(confidence: float, limit: float | None) -> bool | None:
    """Whether a confidence is below the limit; None without one."""
    return None if limit is None else confidence < limit


def sharpness(faces: Uint8Array) -> FloatArray:
    """Standard deviation of the Laplacian over that of the face itself, float32 (faces,); about 0.8 for a sharp face.

    The Laplacian's variance measures focus (Pech-Pacheco et al., ICPR 2000); divided by the face's own contrast, it
    does not change with the light.

    Args:
        faces: uint8 (faces, size, size), or (faces, size, size, 3) in RGB.
    """
    planes = _planes(faces)
    return _sharpness(planes, _mean_and_deviation(planes)[1])


def _sharpness(planes: Uint8Array, contrasts: Float64Array) -> FloatArray:
    if not len(planes):
        return np.zeros(0, np.float32)
    # One call for all faces, one below the other: without its border, a face's Laplacian depends on that face alone.
    column = np.ascontiguousarray(planes).reshape(-1, FACE_SIZE)
    edges = np.asarray(cv2.Laplacian(column, cv2.CV_16S), np.int16).reshape(planes.shape)
    _, deviations = _mean_and_deviation(edges[:, 1:-1, 1:-1])
    # An even plane has no contrast to divide by, and is not blurred.
    ratio: FloatArray = np.where(contrasts < 1, 1, deviations / np.maximum(contrasts, 1)).astype(np.float32)
    return ratio


def _mean_and_deviation(planes: npt.NDArray[np.integer[Any]]) -> tuple[Float64Array, Float64Array]:
    """Mean and standard deviation of each plane; the sums are of integers, and exact."""
    values = planes.astype(np.float64).reshape(len(planes), -1)
    count = values.shape[1]
    means: Float64Array = values.sum(1) / count
    squares: Float64Array = np.vecdot(values, values) / count
    return means, np.sqrt(np.maximum(squares - means**2, 0))


def brightness(faces: Uint8Array) -> FloatArray:
    """Mean gray level of each face, 0 to 255, float32 (faces,)."""
    return _mean_and_deviation(_planes(faces))[0].astype(np.float32)


def turn(landmarks: Sequence[Point]) -> float | None:
    """How far the nose lies beside the middle of the eyes, in distances between the eyes; None without landmarks.

    0 for a face that looks into the camera. The nose's tip lies about half an eye distance before the eyes, so a head
    that is turned by 30 degrees has about 0.5 * tan(30) = 0.3.
    """
    if len(landmarks) < _LANDMARKS:
        return None
    (right_x, right_y), (left_x, left_y), (nose_x, nose_y) = landmarks[:3]
    across, down = left_x - right_x, left_y - right_y
    distance = math.hypot(across, down)
    if not distance > 0:
        return math.inf  # one eye hides the other: a profile
    along = (nose_x - (right_x + left_x) / 2) * across + (nose_y - (right_y + left_y) / 2) * down
    return abs(along) / distance**2


def _planes(faces: Uint8Array) -> Uint8Array:
    """Faces as uint8 (faces, 48, 48), grayscale: the thresholds were measured at that size."""
    if faces.ndim == 4:
        faces = np.stack([np.asarray(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), np.uint8) for face in faces])
    if faces.shape[1:] != (FACE_SIZE, FACE_SIZE):
        size = (FACE_SIZE, FACE_SIZE)
        resized = [np.asarray(cv2.resize(face, size, interpolation=cv2.INTER_AREA), np.uint8) for face in faces]
        faces = np.stack(resized)
    return faces
