"""Why an answer should not be trusted: the reasons that a face carries in its row.

The thresholds of `small`, `blurred`, `dark` and `turned` are where v3's accuracy has fallen by five points on the faces
of FER2013's validation images, measured by `fer-bench reasons`. Those of `low_confidence` and `unfamiliar` are in the
model's file, fitted by `fer-export --data`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    blurred = (sharpness(faces) < BLURRED_BELOW).tolist()
    dark = (brightness(faces) < DARK_BELOW).tolist()
    strange: Sequence[bool | None] = [None] * len(faces)
    if unfamiliarity is not None and limits.unfamiliarity is not None:
        # Written as "not <=" so that NaN is unfamiliar.
        strange = (~(unfamiliarity <= limits.unfamiliarity)).tolist()
    found = []
    for index, detection in enumerate(detections):
        turned = turn(detection.landmarks)
        answers = (
            is_low(confidences[index], limits.confidence),
            None if turned is None else turned > TURNED_ABOVE,
            min(detection.box[2:]) < SMALL_BELOW,
            blurred[index],
            dark[index],
            strange[index],
        )
        found.append(
            Doubts(
                tuple(name for name, answer in zip(REASONS, answers, strict=True) if answer),
                tuple(name for name, answer in zip(REASONS, answers, strict=True) if answer is None),
            )
        )
    return found


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
    middle = planes[:, 1:-1, 1:-1]
    laplacian = 4 * middle - planes[:, :-2, 1:-1] - planes[:, 2:, 1:-1] - planes[:, 1:-1, :-2] - planes[:, 1:-1, 2:]
    # An even plane has no contrast to divide by, and is not blurred.
    contrast = planes.std((1, 2))
    ratio: FloatArray = np.where(contrast < 1, 1, laplacian.std((1, 2)) / np.maximum(contrast, 1)).astype(np.float32)
    return ratio


def brightness(faces: Uint8Array) -> FloatArray:
    """Mean gray level of each face, 0 to 255, float32 (faces,)."""
    means: FloatArray = _planes(faces).mean((1, 2))
    return means


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


def _planes(faces: Uint8Array) -> FloatArray:
    """Faces as float32 (faces, 48, 48), grayscale: the thresholds were measured at that size."""
    if faces.ndim == 4:
        faces = np.stack([np.asarray(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), np.uint8) for face in faces])
    if faces.shape[1:] != (FACE_SIZE, FACE_SIZE):
        size = (FACE_SIZE, FACE_SIZE)
        resized = [np.asarray(cv2.resize(face, size, interpolation=cv2.INTER_AREA), np.uint8) for face in faces]
        faces = np.stack(resized)
    return faces.astype(np.float32)
