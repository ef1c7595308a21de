"""Robustness: accuracy on faces degraded as by a camera, such as shifted, dark, noisy or blurred."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from fer_runtime.expressions import FACE_SIZE
from fer_runtime.faces import prepare_face
from fer_runtime.images import Uint8Array
from fer_runtime.metrics import wilson_interval

Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
# Takes faces uint8 (faces, size, size) or (faces, size, size, 3), returns probabilities float32 (faces, classes).
Classify = Callable[[Uint8Array], FloatArray]
# Takes such faces, a level and a generator, returns faces of the same shape.
Degrade = Callable[[Uint8Array, float, np.random.Generator], Uint8Array]

DEFAULT_FACES = 1000  # gives a 95 % interval of ±3 points at an accuracy of 60 %
DEFAULT_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One way to degrade a face, at several levels."""

    name: str
    title: str
    unit: str
    levels: tuple[float, ...]  # from left to right of the curve, or from best to worst
    neutral: float | None  # the level that leaves faces unchanged; None if every level changes them
    degrade: Degrade


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustnessPoint:
    """Accuracy of one model under one condition."""

    model: str
    precision: str
    condition: str
    level: float
    accuracy: float
    low: float  # 95 % interval
    high: float
    faces: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """The levels of a condition at which a model loses a tenth of its accuracy; None if no level does that."""

    condition: str
    below: float | None  # towards smaller values, interpolated linearly
    above: float | None  # towards larger values


def _crop_margin(faces: Uint8Array, level: float, random: np.random.Generator) -> Uint8Array:
    """Enlarge the box at each edge by `level` per cent of its side (shrink it if negative)."""
    size = faces.shape[1]
    margin = round(size * level / 100)
    side = size + 2 * margin
    return np.stack([_prepared(face, size, (-margin, -margin, side, side)) for face in faces])


def _prepared(face: Uint8Array, size: int, box: tuple[int, int, int, int] | None = None) -> Uint8Array:
    """A face as the runtime crops and resizes it."""
    if face.ndim == 2:
        return prepare_face(face, box, size=size)
    return prepare_face(np.ascontiguousarray(face[..., ::-1]), box, size=size, color="rgb")  # which it takes in BGR


def _warp(face: Uint8Array, matrix: npt.NDArray[np.float64]) -> Uint8Array:
    # The border is repeated, as in the runtime for a box at the image's edge.
    turned: Any = cv2.warpAffine(face, matrix, face.shape[:2], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    warped: Uint8Array = turned
    return warped


def _shift(faces: Uint8Array, level: float, random: np.random.Generator) -> Uint8Array:
    """Shift the box by `level` per cent of its side, in a random direction per face."""
    directions = random.uniform(0, 2 * math.pi, len(faces))
    distance = faces.shape[1] * level / 100
    matrices = [
        np.array([[1, 0, distance * math.cos(angle)], [0, 1, distance * math.sin(angle)]]) for angle in directions
    ]
    return np.stack([_warp(face, matrix) for face, matrix in zip(faces, matrices, strict=True)])


def _rotation(faces: Uint8Array, level: float, random: np.random.Generator) -> Uint8Array:
    """Rotate the face clockwise by `level` degrees."""
    centre = ((faces.shape[1] - 1) / 2, (faces.shape[1] - 1) / 2)
    matrix = np.asarray(cv2.getRotationMatrix2D(centre, -level, 1.0), np.float64)
    return np.stack([_warp(face, matrix) for face in faces])


def _brightness(faces: Uint8Array, level: float, random: np.random.Generator) -> Uint8Array:
    """Change the exposure by `level` stops: each doubles the light, and overexposed values are clipped."""
    # Images store light with a gamma of 1 / 2.2, so a stop is a factor on the decoded value.
    light = (np.arange(256) / 255) ** 2.2 * 2**level
    table = np.rint(np.clip(light, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8)
    exposed: Uint8Array = table[faces]
    return exposed


def _noise(faces: Uint8Array, level: float, random: np.random.Generator) -> Uint8Array:
    """Add Gaussian noise with a standard deviation of `level` gray levels (0 to 255)."""
    grain = random.standard_normal(faces.shape, np.float32)
    return np.clip(np.rint(faces + level * grain), 0, 255).astype(np.uint8)


def _blur(faces: Uint8Array, level: float, random: np.random.Generator) -> Uint8Array:
    """Blur with a Gaussian of standard deviation `level` pixels of the 48 x 48 face."""
    if level == 0:
        return faces
    deviation = level * faces.shape[1] / FACE_SIZE
    return np.stack([np.asarray(cv2.GaussianBlur(face, (0, 0), deviation), np.uint8) for face in faces])


def _jpeg(faces: Uint8Array, level: float, random: np.random.Generator) -> Uint8Array:
    """Compress as JPEG of quality `level` and decode."""
    stored = [cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, int(level)])[1] for face in faces]
    flag = cv2.IMREAD_GRAYSCALE if faces.ndim == 3 else cv2.IMREAD_COLOR
    return np.stack([np.asarray(cv2.imdecode(jpeg, flag), np.uint8) for jpeg in stored])


def _size(faces: Uint8Array, level: float, random: np.random.Generator) -> Uint8Array:
    """Shrink the face to `level` pixels, then enlarge it as the runtime does."""
    side = int(level)
    small = [cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA) for face in faces]
    return np.stack([_prepared(np.asarray(face, np.uint8), faces.shape[1]) for face in small])


CONDITIONS = (
    Condition(
        name="crop_margin",
        title="Crop margin",
        unit="% of the face's side, at each edge",
        levels=(-25, -17, -8, 0, 8, 17, 25, 33),
        neutral=0,
        degrade=_crop_margin,
    ),
    Condition(
        name="shift",
        title="Shift",
        unit="% of the face's side",
        levels=(0, 4, 8, 12, 16, 20, 30),
        neutral=0,
        degrade=_shift,
    ),
    Condition(
        name="rotation",
        title="Rotation",
        unit="degrees clockwise",
        levels=(-45, -30, -20, -10, 0, 10, 20, 30, 45),
        neutral=0,
        degrade=_rotation,
    ),
    Condition(
        name="brightness",
        title="Exposure",
        unit="stops",
        levels=(-5, -4, -3, -2, -1, 0, 1, 2, 3),
        neutral=0,
        degrade=_brightness,
    ),
    Condition(
        name="noise",
        title="Noise",
        unit="standard deviation, gray levels",
        levels=(0, 5, 10, 20, 30, 45, 60),
        neutral=0,
        degrade=_noise,
    ),
    Condition(
        name="blur",
        title="Blur",
        unit="standard deviation, pixels of 48",
        levels=(0, 0.5, 1, 1.5, 2, 3, 4),
        neutral=0,
        degrade=_blur,
    ),
    Condition(
        name="jpeg_quality",
        title="JPEG quality",
        unit="quality, 100 is best",
        levels=(90, 70, 50, 30, 20, 10, 5),
        neutral=None,
        degrade=_jpeg,
    ),
    Condition(
        name="size",
        title="Face size",
        unit="pixels in the image",
        levels=(48, 36, 30, 24, 18, 12, 8),
        neutral=48,
        degrade=_size,
    ),
)
CONDITION_NAMES = tuple(condition.name for condition in CONDITIONS)


def sample_indices(labels: Int64Array, count: int, *, seed: int = DEFAULT_SEED) -> Int64Array:
    """Indices of a stratified random sample of `count` faces, sorted; all faces if there are no more.

    Args:
        labels: class of each face, shape (faces,).
        count: faces wanted, at least 1. Shares are rounded by largest remainder, so they add up.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    if count >= len(labels):
        return np.arange(len(labels), dtype=np.int64)
    random = np.random.Generator(np.random.PCG64(seed))
    classes, sizes = np.unique(labels, return_counts=True)
    shares = sizes * count / len(labels)
    quotas = np.floor(shares).astype(int)
    quotas[np.argsort(quotas - shares, kind="stable")[: count - quotas.sum()]] += 1
    chosen = [
        random.choice(np.flatnonzero(labels == label), quota, replace=False)
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def degrade_faces(faces: Uint8Array, condition: Condition, level: float, *, seed: int = DEFAULT_SEED) -> Uint8Array:
    """Faces under `condition` at `level`; equal arguments give equal faces.

    Every level uses the same random numbers, so a curve shows the level and not the sample.
    """
    random = np.random.Generator(np.random.PCG64([seed, CONDITION_NAMES.index(condition.name)]))
    return condition.degrade(faces, level, random)


def measure_robustness(
    models: Mapping[tuple[str, str], Classify],
    faces: Uint8Array,
    labels: Int64Array,
    *,
    conditions: Sequence[Condition] = CONDITIONS,
    seed: int = DEFAULT_SEED,
    faces_of: Mapping[tuple[str, str], Uint8Array] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[RobustnessPoint]:
    """Measure every model at every level of every condition, all on the same degraded faces.

    Args:
        models: by (model, precision).
        faces: uint8 (faces, 48, 48).
        labels: true class of each, shape (faces,).
        faces_of: the same faces for models of another size or colour, which are degraded there.
        progress: called with (levels done, total).

    Raises:
        ValueError: the number of faces and labels differs, or there are none.
    """
    if len(faces) != len(labels) or len(faces) == 0:
        raise ValueError(f"{len(faces)} faces and {len(labels)} labels; need equally many, at least one")
    steps = [(condition, level) for condition in conditions for level in condition.levels]
    points = []
    for step, (condition, level) in enumerate(steps):
        if progress is not None:
            progress(step, len(steps))
        degraded = degrade_faces(faces, condition, level, seed=seed)
        for (model, precision), classify in models.items():
            given = (faces_of or {}).get((model, precision))
            own = degraded if given is None else degrade_faces(given, condition, level, seed=seed)
            right = int((classify(own).argmax(1) == labels).sum())
            low, high = wilson_interval(right, len(faces))
            points.append(
                RobustnessPoint(
                    model=model,
                    precision=precision,
                    condition=condition.name,
                    level=float(level),
                    accuracy=right / len(faces),
                    low=low,
                    high=high,
                    faces=len(faces),
                )
            )
    if progress is not None:
        progress(len(steps), len(steps))
    # Grouped by model, as in the file and the plots.
    order = {key: rank for rank, key in enumerate(models)}
    return sorted(points, key=lambda point: order[point.model, point.precision])


def find_reach(
    levels: Sequence[float], accuracies: Sequence[float], *, neutral: float, reference: float, keep: float = 0.9
) -> tuple[float | None, float | None]:
    """The levels below and above `neutral` where accuracy first falls under `keep` times `reference`.

    Interpolated linearly between measured levels; None if that never happens.
    """
    floor = keep * reference
    reached: list[float | None] = []
    for side in (-1, 1):
        points = sorted(
            ((level, value) for level, value in zip(levels, accuracies, strict=True) if side * (level - neutral) > 0),
            key=lambda point: side * point[0],
        )
        found = None
        last_level, last_value = neutral, max(reference, floor)
        for level, value in points:
            if value < floor:
                found = last_level + (level - last_level) * (last_value - floor) / (last_value - value)
                break
            last_level, last_value = level, value
        reached.append(found)
    return reached[0], reached[1]


def find_reaches(points: Sequence[RobustnessPoint], *, reference: float) -> list[Reach]:
    """One model's reach under every condition in `points`.

    Args:
        points: of one model.
        reference: its accuracy on the unchanged faces.
    """
    reaches = []
    for condition in CONDITIONS:
        mine = [point for point in points if point.condition == condition.name]
        if not mine:
            continue
        # A condition without a neutral level starts at its best level.
        neutral = condition.levels[0] if condition.neutral is None else condition.neutral
        below, above = find_reach(
            [point.level for point in mine],
            [point.accuracy for point in mine],
            neutral=neutral,
            reference=reference,
        )
        reaches.append(Reach(condition=condition.name, below=below, above=above))
    return reaches


def clean_accuracy(points: Sequence[RobustnessPoint]) -> float | None:
    """One model's accuracy at the first neutral level in `points`, or None."""
    neutral = {condition.name: condition.neutral for condition in CONDITIONS}
    return next((point.accuracy for point in points if point.level == neutral.get(point.condition)), None)


def format_robustness(points: Sequence[RobustnessPoint]) -> str:
    """A table per condition: levels across, models down, accuracy in per cent."""
    lines = []
    for condition in CONDITIONS:
        mine = [point for point in points if point.condition == condition.name]
        if not mine:
            continue
        lines.append(f"\n{condition.title} ({condition.unit})")
        lines.append(f"{'':14}" + "".join(f"{level:>7g}" for level in condition.levels))
        for model, precision in dict.fromkeys((point.model, point.precision) for point in mine):
            row = [point for point in mine if (point.model, point.precision) == (model, precision)]
            lines.append(f"{model + ' ' + precision:14}" + "".join(f"{100 * point.accuracy:>7.1f}" for point in row))
    return "\n".join(lines).lstrip("\n")
