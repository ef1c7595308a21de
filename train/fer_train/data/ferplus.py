"""FER+: ten raters' votes for FER2013's images, found by what an image looks like.

The votes (Barsoum et al., arXiv 1608.01041; github.com/microsoft/FERPlus) ship with the package under their MIT licence
(ferplus_LICENSE.txt). Copies of FER2013 differ in file names, splits and encoding, so an image is known by its
fingerprint, from which the image cannot be restored.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fer_runtime.errors import DataError
from fer_runtime.expressions import EXPRESSIONS, FACE_SIZE

Uint8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

VOTES_FILE = Path(__file__).with_name("ferplus_votes.npz")
# What the raters could choose beside the seven expressions; votes for these name none of the classes.
OTHERS = ("contempt", "unknown", "not_a_face")

# Bits of a fingerprint, and how many may differ; benchmarks/studies/ferplus_votes.py tests both on re-encoded copies.
BITS = 96
MAX_DIFFERENT_BITS = 4
# Images at once against all fingerprints: 16 MB of distances.
_BLOCK = 512


class FerPlusVotes:
    """The votes that ship with the package.

    Args:
        classes: must be the seven expressions.

    Raises:
        DataError: other classes.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        if tuple(classes) != EXPRESSIONS:
            raise DataError(
                f"FER+ has votes for {', '.join(EXPRESSIONS)}, not for {', '.join(classes)}; give --votes a file"
            )
        with np.load(VOTES_FILE, allow_pickle=False) as content:
            self._fingerprints: Uint8Array = content["fingerprints"]  # (images, BITS / 8)
            self._thresholds: Float32Array = content["thresholds"]  # (BITS,)
            # Of copies of a photo that share a fingerprint but not their votes: which is which, by their pixels.
            crc32: npt.NDArray[np.uint32] = content["crc32"]  # (images,), 0 where the fingerprint is enough
            votes = content["votes"].astype(np.float32) / 2  # stored doubled: the means of two copies are halves
        self._exact = {int(crc32[entry]): int(entry) for entry in np.flatnonzero(crc32)}
        self._votes = np.column_stack([votes[:, : len(EXPRESSIONS)], votes[:, len(EXPRESSIONS) :].sum(1)])

    def of(self, paths: Sequence[str], faces: Uint8Array, *, split: str) -> Float32Array:
        """Votes for faces, uint8 (images, 48, 48), as float32 (images, classes + 1); zeros for unknown images.

        Raises:
            DataError: less than a tenth of the images are known.
        """
        entries = self.find(faces)
        known = entries >= 0
        if known.mean() < 0.1:
            raise DataError(
                f"FER+ has votes for {known.sum()} of these {len(faces)} {split} images: they are not FER2013's; give "
                "--votes a file"
            )
        found: Float32Array = np.where(known[:, None], self._votes[entries], 0).astype(np.float32)
        return found

    def find(self, faces: Uint8Array) -> npt.NDArray[np.int64]:
        """The nearest entry for each face, int64 (images,); -1 where more than MAX_DIFFERENT_BITS bits differ."""
        wanted, known = _signs(fingerprints(faces, self._thresholds)), _signs(self._fingerprints).T
        entries = np.empty(len(faces), np.int64)
        for start in range(0, len(faces), _BLOCK):
            # Of vectors of 1 and -1, the product is the number of equal components minus that of different ones.
            different = (BITS - wanted[start : start + _BLOCK] @ known) / 2
            nearest = different.argmin(1)
            near = different[np.arange(len(nearest)), nearest] <= MAX_DIFFERENT_BITS
            entries[start : start + _BLOCK] = np.where(near, nearest, -1)
        return np.array([self._exact.get(zlib.crc32(face), entry) for face, entry in zip(faces, entries, strict=True)])


def _signs(bits: Uint8Array) -> Float32Array:
    return np.unpackbits(bits, axis=1).astype(np.float32) * 2 - 1


def fingerprints(faces: Uint8Array, thresholds: Float32Array) -> Uint8Array:
    """Bits that say which low frequencies of an image are above their thresholds, uint8 (images, BITS / 8).

    Args:
        faces: uint8 (images, 48, 48).
        thresholds: float32 (BITS,), the medians over FER2013, so that each bit is set for half of the images.
    """
    above = low_frequencies(faces, len(thresholds)) > thresholds
    bits: Uint8Array = np.packbits(above, axis=1)
    return bits


def low_frequencies(faces: Uint8Array, count: int) -> Float32Array:
    """The `count` lowest coefficients of the faces' cosine transform but the mean, float32 (images, count)."""
    positions = np.arange(FACE_SIZE)
    basis = np.cos(np.pi * (positions[None] + 0.5) * positions[:, None] / FACE_SIZE).astype(np.float32)
    order = sorted(np.ndindex(FACE_SIZE, FACE_SIZE), key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair))
    rows, columns = np.array(order[1 : count + 1]).T
    low = basis[: max(rows.max(), columns.max()) + 1]
    found = np.empty((len(faces), count), np.float32)
    for start in range(0, len(faces), _BLOCK):
        transformed = low @ faces[start : start + _BLOCK].astype(np.float32) @ low.T
        found[start : start + _BLOCK] = transformed[:, rows, columns]
    return found
