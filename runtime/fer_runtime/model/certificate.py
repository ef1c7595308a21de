"""The parity certificate: golden faces and what was computed for them at export, inside the model file."""

from __future__ import annotations

import base64
import zlib
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fer_runtime.errors import ModelFileError
from fer_runtime.expressions import FACE_SIZE
from fer_runtime.model.metadata import ModelMetadata
from fer_runtime.model.parity import FloatArray, Tolerance, Uint8Array

_VERSION = 1
_MOST_FACES = 4096  # what a damaged or hostile file may unpack to: 9 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Golden faces with their logits, and how far the file lay from the network when it was exported."""

    faces: Uint8Array  # (faces, 48, 48), made up
    network_logits: FloatArray  # (faces, 7), PyTorch's in float32 on CPU
    model_logits: FloatArray  # (faces, 7), the file's own at export; a quantised model has other ones
    tolerance: Tolerance  # for replays of the model's own logits on another machine
    measured: dict[str, Any] = field(default_factory=dict)  # worst differences from the network at export
    made_with: dict[str, str] = field(default_factory=dict)  # onnxruntime, provider, machine, its instruction sets
    digest: str = ""  # content_digest of the file

    def to_dict(self) -> dict[str, Any]:
        """The certificate as the metadata holds it."""
        return {
            "version": _VERSION,
            "faces": {
                "shape": list(self.faces.shape),
                "zlib_base64": base64.b64encode(zlib.compress(self.faces.tobytes(), 9)).decode(),
            },
            "network_logits": _rows(self.network_logits),
            "model_logits": _rows(self.model_logits),
            "tolerance": asdict(self.tolerance),
            "measured": self.measured,
            "made_with": self.made_with,
            "digest": self.digest,
        }


def parse_certificate(metadata: ModelMetadata, *, source: str) -> Certificate:
    """The certificate of a model file.

    Raises:
        ModelFileError: there is none, or it is damaged.
    """
    values = metadata.certificate
    if not values:
        raise ModelFileError(f"{source} carries no parity certificate; export the model again with fer-export")
    try:
        count = int(values["faces"]["shape"][0])
        if not 0 < count <= _MOST_FACES:
            raise ValueError(f"{count} golden faces")
        expected_bytes = count * FACE_SIZE * FACE_SIZE
        unpacked = zlib.decompressobj().decompress(
            base64.b64decode(values["faces"]["zlib_base64"], validate=True), expected_bytes
        )
        certificate = Certificate(
            faces=np.frombuffer(unpacked, np.uint8).reshape(count, FACE_SIZE, FACE_SIZE),
            network_logits=np.array(values["network_logits"], np.float32),
            model_logits=np.array(values["model_logits"], np.float32),
            tolerance=Tolerance(**values["tolerance"]),
            measured=dict(values["measured"]),
            made_with=dict(values["made_with"]),
            digest=str(values["digest"]),
        )
        wanted = (count, len(metadata.expressions))
        if certificate.network_logits.shape != wanted or certificate.model_logits.shape != wanted:
            raise ValueError(f"logits of shape {certificate.model_logits.shape}, not {wanted}")
    except (ValueError, TypeError, KeyError, IndexError, zlib.error) as error:
        raise ModelFileError(
            f"the parity certificate of {source} cannot be read ({error!r}); export the model again with fer-export"
        ) from error
    return certificate


def _rows(logits: FloatArray) -> list[list[float]]:
    # Nine digits bring every float32 back exactly.
    return [[float(f"{value:.9g}") for value in row] for row in logits]
