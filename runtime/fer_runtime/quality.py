"""Reasons to doubt an answer: the field `reasons` of a face.

The thresholds of `small`, `blurred`, `dark` and `turned` are where v3's accuracy has fallen by five points on the faces
of FER2013's validation images, measured by `fer-bench reasons`. Those of `low_confidence` and `unfamiliar` are in the
model's file, fitted by `fer-export --data`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from fer_runtime.detectors import Detection, Point
from fer_runtime.expressions import FACE_SIZE
from fer_runtime.images import Uint8Array

FloatArray = npt.NDArray[np.float32]

REASONS = ("low_confidence", "turned", "small", "blurred", "dark", "unfamiliar")

# Each is the value at which `fer-bench reasons` counts five points less accuracy.
SMALL_BELOW = 29  # pixels, the shorter side of the face's box
BLURRED_BELOW = 0.27  # of `sharpness`
DARK_BELOW = 34.0  # of `brightness`
TURNED_ABOVE = 0.3  # of `turn`

_LANDMARKS = 5  # that YuNet gives
_MIDDLE = slice(17, 31)  # rows of a face of 48: eyes and nose, with one more at both ends for the Laplacian
_MIDDLE_EDGES = 12 * (FACE_SIZE - 2)  # values of the Laplacian there


class Limits(NamedTuple):
    """The thresholds of a model's file or the user; None without one."""

    confidence: float | None = None  # less is `low_confidence`
    unfamiliarity: float | None = None  # more is `unfamiliar`


class Doubts(NamedTuple):
    """The reasons to doubt an answer, and those that could not be checked."""

    reasons: tuple[str, ...]  # out of REASONS
    not_checked: tuple[str, ...]  # out of REASONS: not known for this face


def find_doubts(
    detections: Sequence[Detection],
    faces: Uint8Array,
    confidences: Sequence[float],
    unfamiliarity: FloatArray | None,
    limits: Limits,
) -> list[Doubts]:
    """Find the reasons to doubt each face's answer.

    Args:
        detections: the faces in their images.
        faces: the same as the model takes them, uint8 (faces, size, size) or (faces, size, size, 3).
        confidences: of the answers, 0 to 1.
        unfamiliarity: the model's output of that name, float32 (faces,); None where it has none.
        limits: of the model.
    """
    planes = _planes(faces)
    sums, squares = _sums(planes)
    blurred = _blurred(planes, sums, squares)
    strange: Sequence[bool | None] = [None] * len(faces)
    if unfamiliarity is not None and limits.unfamiliarity is not None:
        # Written as "not <=" so that NaN is unfamiliar.
        strange = (~(unfamiliarity <= limits.unfamiliarity)).tolist()
    least = limits.confidence
    found = []
    darkest = DARK_BELOW * FACE_SIZE**2
    last, is_turned, is_small = None, None, False
    for detection, confidence, is_blurred, level, is_strange in zip(
        detections, confidences, blurred, sums, strange, strict=True
    ):
        if detection is not last:  # crops of one size share theirs
            last = detection
            turned = turn(detection.landmarks)
            is_turned = None if turned is None else turned > TURNED_ABOVE
            _, _, width, height = detection.box
            is_small = width < SMALL_BELOW or height < SMALL_BELOW
        found.append(
            _doubts(
                None if least is None else confidence < least,
                is_turned,
                is_small,
                is_blurred,
                level < darkest,
                is_strange,
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
    return _sharpness(planes, *_sums(planes))


def _sharpness(planes: Uint8Array, sums: Sequence[int], squares: Sequence[int]) -> FloatArray:
    count, edges = FACE_SIZE**2, (FACE_SIZE - 2) ** 2
    found = []
    for total, square, (edge, edge_square) in zip(sums, squares, zip(*_edge_sums(planes), strict=True), strict=True):
        contrast = (square - total * total / count) / count
        # An even plane has no contrast to divide by, and is not blurred.
        spread = max(edge_square - edge * edge / edges, 0.0) / edges
        found.append(1.0 if contrast < 1 else math.sqrt(spread / contrast))
    return np.array(found, np.float32)


def _blurred(planes: Uint8Array, sums: Sequence[int], squares: Sequence[int]) -> list[bool]:
    """Whether each face's sharpness is below BLURRED_BELOW.

    Values never differ less from their mean than a part of them from its own: where the middle of a face alone has
    edges enough, the rest is not computed. That is so for 93 % of FER2013.
    """
    # Faces without contrast, and those above by more than float64 and float32 round, are not blurred.
    count, edges = FACE_SIZE**2, (FACE_SIZE - 2) ** 2
    factor = (1.001 * BLURRED_BELOW) ** 2 * edges / count
    doubted = []
    middle = zip(*_edge_sums(planes[:, _MIDDLE]), strict=True)
    for index, (total, square, (edge, edge_square)) in enumerate(zip(sums, squares, middle, strict=True)):
        spread = square - total * total / count
        if spread >= count and edge_square - edge * edge / _MIDDLE_EDGES <= factor * spread:
            doubted.append(index)
    found = [False] * len(planes)
    if doubted:
        low = _sharpness(planes[doubted], [sums[index] for index in doubted], [squares[index] for index in doubted])
        for index, is_blurred in zip(doubted, (low < BLURRED_BELOW).tolist(), strict=True):
            found[index] = is_blurred
    return found


# Few calls over all faces, and plain numbers for each: behind a model's run, a call of numpy costs as much as a face.
def _sums(planes: Uint8Array) -> tuple[list[int], list[int]]:
    """The sum of each plane's values, and of their squares."""
    if not len(planes):
        return [], []
    values = np.ascontiguousarray(planes).reshape(len(planes), -1)
    return (
        cv2.reduce(values, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel().tolist(),
        cv2.reduce(values, 1, cv2.REDUCE_SUM2, dtype=cv2.CV_32S).ravel().tolist(),
    )


def _edge_sums(planes: Uint8Array) -> tuple[list[float], list[float]]:
    """The sum of the values of each plane's Laplacian, and of their squares: integers, exact in float64."""
    count, rows, columns = planes.shape
    if not count:
        return [], []
    # One call for all planes, one below the other: without its border, a plane's Laplacian depends on that plane alone.
    edges = np.asarray(cv2.Laplacian(np.ascontiguousarray(planes).reshape(-1, columns), cv2.CV_16S))
    values = edges.reshape(count, rows, columns)[:, 1:-1, 1:-1].astype(np.float64).reshape(count, -1)
    return values.sum(1).tolist(), np.vecdot(values, values).tolist()


def brightness(faces: Uint8Array) -> FloatArray:
    """Mean gray level of each face, 0 to 255, float32 (faces,)."""
    return (np.array(_sums(_planes(faces))[0]) / FACE_SIZE**2).astype(np.float32)


def turn(landmarks: Sequence[Point]) -> float | None:
    """Distance of the nose from the middle of the eyes, in distances between the eyes; None without landmarks.

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
