"""Checksums of the uint8 tensors inside an int8 file.

Logits hide a wrong weight if its effect is rounded away, or cut off by a ReLU, on each golden face. The integers after
its own layer show it, and they are the same on every machine.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from fer_runtime.errors import ModelFileError
from fer_runtime.model.batches import fill_batch
from fer_runtime.model.inner_tensors import UINT8, with_outputs
from fer_runtime.model.parity import Uint8Array
from fer_runtime.model.session import open_session

_BATCH = 16  # faces of a run, which holds all tensors at once


def integer_checksums(
    content: bytes, names: Sequence[str], faces: Uint8Array, *, threads: int = 1, batch: int | None = None
) -> dict[str, str]:
    """CRC-32 of each tensor's values for all faces, hexadecimal, computed on the CPU.

    Args:
        content: a model file.
        names: of uint8 tensors inside the graph, whose first axis counts the faces.
        faces: uint8, of the model's size and colour.
        threads: intra-op threads.
        batch: the file's fixed batch size; None for a dynamic one.

    Raises:
        ModelFileError: the file does not run, or has no such tensors.
    """
    content = with_outputs(content, names, value_type=UINT8)
    session = open_session(content, threads=threads, source="the model with its inner tensors as outputs").session
    checksums = dict.fromkeys(names, 0)
    size = batch or _BATCH
    for start in range(0, len(faces), size):
        part = faces[start : start + size]
        try:
            values = session.run(list(names), {"faces": fill_batch(part, batch or 0)})
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise ModelFileError(f"the model with its inner tensors as outputs does not run: {error}") from error
        for name, value in zip(names, values, strict=True):
            checksums[name] = zlib.crc32(value[: len(part)].tobytes(), checksums[name])
    return {name: f"{value:08x}" for name, value in checksums.items()}
