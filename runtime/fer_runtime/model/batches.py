"""Fill a batch of faces for a model with a fixed batch size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Uint8Array = npt.NDArray[np.uint8]


def fill_batch(faces: Uint8Array, size: int) -> Uint8Array:
    """The faces and as many copies of the first one as make `size`; all of them where there are more.

    Args:
        faces: uint8 (faces, size, size) or (faces, size, size, 3), at least one.
        size: faces of a batch.
    """
    missing = size - len(faces)
    return np.concatenate([faces, np.repeat(faces[:1], missing, axis=0)]) if missing > 0 else faces
