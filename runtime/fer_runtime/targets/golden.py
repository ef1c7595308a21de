"""`NAME.golden.npz`: the golden faces of a model file, for any runtime."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fer_runtime.errors import ModelFileError
from fer_runtime.labels import check_labels
from fer_runtime.model.certificate import LOOSEST, MAX_FACES, MIN_FACES
from fer_runtime.model.parity import FloatArray, Outputs, Tolerance, Uint8Array, softmax

_MAX_BYTES = 64 << 20  # of the unpacked golden faces
_MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Golden faces and what they are to give."""

    faces: Uint8Array  # (faces, size, size), or with a last axis of 3
    network_logits: FloatArray  # (faces, classes), PyTorch's in float32
    model_logits: FloatArray  # (faces, classes), the ONNX file's own at export
    labels: tuple[str, ...]  # in the order of the logits
    temperature: float

    def expected(self, precision: str) -> Outputs:
        """What a file of this precision is compared with: PyTorch, and for int8 the quantized ONNX file."""
        logits = self.model_logits if precision == "int8" else self.network_logits
        return Outputs(logits=logits, probabilities=softmax(logits, temperature=self.temperature))

    def to_bytes(self) -> bytes:
        """The .npz file; equal contents give equal bytes, and no array needs pickle."""
        arrays = {
            "faces": self.faces,
            "network_logits": self.network_logits,
            "model_logits": self.model_logits,
            "labels": np.array(self.labels),
            "temperature": np.array(self.temperature, np.float64),
            "precisions": np.array(list(LOOSEST)),
            # |Δlogit| / (1 + |logit|), |Δp|, and the margin between the best two logits under which top-1 may change.
            "tolerances": np.array(
                [[tolerance.logits, tolerance.probabilities, tolerance.margin] for tolerance in LOOSEST.values()]
            ),
        }
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, values in arrays.items():
                member = io.BytesIO()
                np.save(member, np.asarray(values, order="C"), allow_pickle=False)
                # Without a date, which would differ between equal files.
                archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), member.getvalue())
        return content.getvalue()


def tolerance_of(precision: str) -> Tolerance:
    """How far another runtime's answers may differ. The file that is tested does not decide it."""
    return LOOSEST.get(precision, LOOSEST["fp16"])


def read_golden(content: bytes, *, source: str) -> Golden:
    """The golden faces in the bytes of an .npz file.

    Raises:
        ModelFileError: it is damaged, or holds too few faces to prove anything.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
                raise ValueError(f"more than {_MAX_BYTES >> 20} MiB")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            golden = Golden(
                faces=arrays["faces"],
                network_logits=arrays["network_logits"],
                model_logits=arrays["model_logits"],
                labels=tuple(str(label) for label in arrays["labels"]),
                temperature=float(arrays["temperature"]),
            )
        shape = (len(golden.faces), len(golden.labels))
        check_labels(list(golden.labels))
        if golden.faces.dtype != np.uint8 or golden.faces.ndim not in (3, 4):
            raise ValueError(f"faces {golden.faces.dtype} {golden.faces.shape}")
        if not MIN_FACES <= len(np.unique(golden.faces.reshape(shape[0], -1), axis=0)) <= MAX_FACES:
            raise ValueError(f"not {MIN_FACES} to {MAX_FACES} different golden faces")
        for logits in (golden.network_logits, golden.model_logits):
            if logits.dtype != np.float32 or logits.shape != shape or not np.isfinite(logits).all():
                raise ValueError(f"logits {logits.dtype} {logits.shape}, not finite float32 {shape}")
        if not 1e-3 <= golden.temperature <= 1e3:
            raise ValueError(f"temperature {golden.temperature}")
    except (ValueError, KeyError, OSError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ModelFileError(
            f"the golden faces of {source} cannot be read ({error}); convert the model again with fer-export"
        ) from error
    return golden


def read_file(path: Path, *, needed_by: Path) -> bytes:
    """The bytes of a file that belongs to another one."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ModelFileError(
                f"{path} has more than {_MAX_FILE_BYTES >> 20} MiB, so it is not from fer-export; convert it again"
            )
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"cannot read {path}, which {needed_by} needs beside it: {error.strerror}; copy it too"
        ) from error
