"""Made-up faces, the same on every machine, and the sample of real ones that sets the int8 ranges."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fer_runtime.expressions import FACE_SIZE
from fer_train.data.folders import LabelledFaces

Uint8Array = npt.NDArray[np.uint8]

SEED = 0  # of every random choice of faces
GRAY = (FACE_SIZE, FACE_SIZE)
CALIBRATION_FACES = 512  # training faces whose activations set the int8 ranges


def synthetic_faces(shape: tuple[int, ...] = GRAY) -> Uint8Array:
    """Sixteen faces uint8 (16, *shape), the same on every machine: extremes, textures, noise and drawn faces.

    Args:
        shape: of one face, (size, size) or (size, size, 3).
    """
    side = shape[0]
    rows, columns = np.mgrid[0:side, 0:side]
    black = np.zeros((side, side))
    one_pixel = black.copy()
    one_pixel[20 % side, 31 % side] = 255
    checks = ((rows // 4 + columns // 4) % 2) * 255
    random = np.random.Generator(np.random.PCG64(20130412))
    noise = random.integers(0, 256, (2, side, side))
    last = side - 1
    planes = [black, black + 255, black + 128, one_pixel, rows * 255 / last, columns * 255 / last, checks, *noise]
    planes += [_clouds(random, cells, side) for cells in (4, 8, 12)]
    planes += [
        _drawn_face(side, smile=7, brows=0, mouth=1.5, tone=190),  # happy
        _drawn_face(side, smile=-6, brows=3, mouth=1.5, tone=120),  # angry
        _drawn_face(side, smile=0, brows=-2, mouth=6, tone=160),  # surprise
        _drawn_face(side, smile=0, brows=0, mouth=1.2, tone=220),  # neutral
    ]
    stacked = np.stack(planes)
    if len(shape) == 3:
        # Black and white stay; every other face has three different planes, so that no two channels can be exchanged.
        others = [np.roll(stacked[2:], step, axis=0) for step in (0, 5, 9)]
        stacked = np.concatenate([np.repeat(stacked[:2, ..., None], 3, axis=3), np.stack(others, axis=3)])
    faces: Uint8Array = np.clip(np.rint(stacked), 0, 255).astype(np.uint8)
    return faces


def _clouds(random: np.random.Generator, cells: int, side: int = FACE_SIZE) -> npt.NDArray[np.float64]:
    """Smooth noise: random values on a grid of `cells` x `cells`, linear in between."""
    grid = random.uniform(0, 255, (cells + 1, cells + 1))
    at = np.arange(side) * cells / side
    low, share = at.astype(int), at - at.astype(int)
    across = grid[:, low] * (1 - share) + grid[:, low + 1] * share
    blended: npt.NDArray[np.float64] = across[low] * (1 - share[:, None]) + across[low + 1] * share[:, None]
    return blended


def _drawn_face(side: int, *, smile: float, brows: float, mouth: float, tone: float) -> npt.NDArray[np.float64]:
    """A cartoon in 48ths of `side`; `smile` bends the mouth, `brows` tilts the brows, `tone` is its gray."""
    y, x = (np.mgrid[0:side, 0:side] + 0.5) * (FACE_SIZE / side)
    plane = np.full((side, side), 60.0)

    def paint(distance: npt.NDArray[np.float64], gray: float) -> None:
        cover = np.clip(0.5 - distance, 0, 1)  # one pixel of soft edge
        plane[:] = plane * (1 - cover) + gray * cover

    paint((np.hypot((x - 24) / 19, (y - 25) / 23) - 1) * 19, tone)
    for eye in (-1, 1):
        paint((np.hypot((x - 24 - eye * 8) / 4, (y - 20) / 2.2) - 1) * 2.2, 245)
        paint(np.hypot(x - 24 - eye * 8, y - 20) - 1.6, 20)
        along = eye * (x - 24 - eye * 8)
        paint(np.maximum(np.abs(y - 14 + brows * along / 5) - 1.0, np.abs(along) - 5), 40)
    bend = smile * (((x - 24) / 10) ** 2 - 0.5)
    paint(np.maximum(np.abs(y - 37 + bend * 0.6) - mouth, np.abs(x - 24) - 10), 70)
    return plane


def textures(count: int) -> Uint8Array:
    """Smooth and rough noise uint8 (count, 48, 48)."""
    random = np.random.Generator(np.random.PCG64(48))
    planes = [_clouds(random, int(random.integers(2, 25))) for _ in range(count)]
    return np.rint(np.stack(planes)).astype(np.uint8)


def calibration_faces(train: LabelledFaces) -> Uint8Array:
    """The training faces that set the int8 ranges: a seeded sample."""
    return train.faces[np.random.default_rng(SEED).permutation(len(train))[:CALIBRATION_FACES]]


def candidate_faces(count: int, *, seed: int = 0, shape: tuple[int, ...] = GRAY) -> Uint8Array:
    """Drawn faces and smooth noise in turns, uint8 (count, *shape), in sixteen steps so that they compress well."""
    random = np.random.Generator(np.random.PCG64([20130412, seed]))
    planes = []
    for number in range(count):
        if number % 2:
            planes.append(_clouds(random, int(random.integers(2, 13)), shape[0]))
            continue
        smile, brows, mouth, tone = random.uniform((-9, -5, 0.5, 30), (9, 5, 9, 250))
        planes.append(_drawn_face(shape[0], smile=smile, brows=brows, mouth=mouth, tone=tone))
    stacked = np.stack(planes)
    if len(shape) == 3:
        # Each channel is the face with another share of another plane.
        shares = random.uniform(0, 0.6, (3, count, 1, 1))
        channels = [
            (1 - share) * stacked + share * np.roll(stacked, 1 + 2 * place, 0) for place, share in enumerate(shares)
        ]
        stacked = np.stack(channels, axis=3)
    return few_grays(stacked)


def few_grays(planes: npt.NDArray[np.float64]) -> Uint8Array:
    """Planes of any range as uint8 in sixteen steps, 0 to 255."""
    faces: Uint8Array = (np.clip(np.rint(planes / 17), 0, 15) * 17).astype(np.uint8)
    return faces


def mutated_faces(faces: Uint8Array, count: int, random: np.random.Generator) -> Uint8Array:
    """`count` faces, each one or two of `faces` with smooth noise over them, in their shape."""
    planes = []
    for _ in range(count):
        first, second = (faces[int(place)].astype(np.float64) for place in random.integers(len(faces), size=2))
        share = random.uniform() if random.integers(2) else 0.0
        clouds = [
            _clouds(random, int(random.integers(2, 25)), len(first)) - 127.5
            for _ in range(first.size // len(first) ** 2)
        ]
        cloud = np.stack(clouds, axis=-1).reshape(first.shape)
        planes.append(first * (1 - share) + second * share + random.choice((0.1, 0.3, 1.0)) * cloud)
    return few_grays(np.stack(planes))
