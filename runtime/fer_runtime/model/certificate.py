"""The parity certificate inside a model file: golden faces and the logits computed for them at export."""

from __future__ import annotations

import base64
import math
import re
import zlib
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fer_runtime.errors import ModelFileError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.labels import check_labels
from fer_runtime.model.metadata import ModelMetadata
from fer_runtime.model.parity import FloatArray, Tolerance, Uint8Array
from fer_runtime.text import printable

_VERSION = 1
_CHECKSUM = re.compile("[0-9a-f]{8}")
# A file may not decide how well it is tested. Twelve faces were the fewest that any of our files carried; 4096 of
# 48 x 48 unpack to 9 MB.
MIN_FACES, MAX_FACES = 8, 4096
_MAX_BYTES = 64 << 20  # of all faces, which are larger in some models
# The loosest tolerances that a file may state, by precision: those that fer-export has written.
LOOSEST = {
    "fp32": Tolerance(logits=1e-3, probabilities=1e-3, margin=1e-3),
    "fp16": Tolerance(logits=2e-2, probabilities=1e-2, margin=5e-2),
    "int8": Tolerance(logits=0.05, probabilities=0.03, margin=0.1),
}
# What a float file may differ by where it is computed in another arithmetic, and somebody has allowed that. bf16 has 8
# bits of mantissa: each layer adds rounding of 2^-9 of its values, and the golden faces are chosen to switch on every
# unit, so they show it more than real faces do. docs/devices.md has the accuracy on labelled faces.
ARITHMETIC_TOLERANCES = {"bf16": Tolerance(logits=0.15, probabilities=0.05, margin=0.25)}
MAX_TENSORS = 1024  # that a certificate may name; our int8 files name 4 to 30
_TIGHTEST = 1e-6  # ten steps of float32 at 1: every machine differs by some


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Golden faces with their logits, and the differences between file and network at export."""

    faces: Uint8Array  # (faces, size, size) or (faces, size, size, 3), synthetic
    network_logits: FloatArray  # (faces, classes), the original's in float32 on CPU
    model_logits: FloatArray  # (faces, classes), the file's own at export; a quantized model has other ones
    model_unfamiliarity: FloatArray | None = None  # (faces,), the file's own at export; None: it has no such output
    labels: tuple[str, ...]  # of the logits, as the network was trained
    tolerance: Tolerance  # for replays of the model's own logits on another machine
    measured: dict[str, Any] = field(default_factory=dict)  # worst differences from the network at export
    # Units of the network that the faces switch on, of those that labelled faces switch on.
    coverage: dict[str, Any] = field(default_factory=dict)
    # CRC-32 of each uint8 tensor inside an int8 file for all faces, by the tensor's name; older files have none.
    integers: dict[str, str] = field(default_factory=dict)
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
            **(
                {}
                if self.model_unfamiliarity is None
                else {"model_unfamiliarity": _rows(self.model_unfamiliarity[:, None])}
            ),
            "tolerance": asdict(self.tolerance),
            "measured": self.measured,
            "coverage": self.coverage,
            # A list: the order is the graph's, and JSON objects are sorted.
            **({"integers": [list(entry) for entry in self.integers.items()]} if self.integers else {}),
            "labels": list(self.labels),
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
        if not MIN_FACES <= count <= MAX_FACES:
            raise ValueError(f"{count} golden faces, not {MIN_FACES} to {MAX_FACES}")
        expected_bytes = count * math.prod(metadata.face_shape)
        if expected_bytes > _MAX_BYTES:
            raise ValueError(f"golden faces of {expected_bytes:,} bytes, more than {_MAX_BYTES:,}")
        unpacked = zlib.decompressobj().decompress(
            base64.b64decode(values["faces"]["zlib_base64"], validate=True), expected_bytes
        )
        certificate = Certificate(
            faces=np.frombuffer(unpacked, np.uint8).reshape(count, *metadata.face_shape),
            network_logits=_logits(values["network_logits"]),
            model_logits=_logits(values["model_logits"]),
            model_unfamiliarity=_logits(values["model_unfamiliarity"]).reshape(count)
            if "model_unfamiliarity" in values
            else None,
            tolerance=Tolerance(**values["tolerance"]),
            measured=dict(values["measured"]),
            coverage=dict(values.get("coverage", {})),
            integers=_integers(values.get("integers", [])),
            # Files of schema 1 know no other labels.
            labels=check_labels(values.get("labels", EXPRESSIONS)),
            made_with=dict(values["made_with"]),
            digest=str(values["digest"]),
        )
        wanted = (count, len(metadata.labels))
        if certificate.network_logits.shape != wanted or certificate.model_logits.shape != wanted:
            raise ValueError(f"logits of shape {certificate.model_logits.shape}, not {wanted}")
        if not np.isfinite(certificate.network_logits).all() or not np.isfinite(certificate.model_logits).all():
            raise ValueError("logits that are not finite")
        if certificate.model_unfamiliarity is not None and not np.isfinite(certificate.model_unfamiliarity).all():
            raise ValueError("an unfamiliarity that is not finite")
        if len({face.tobytes() for face in certificate.faces}) < MIN_FACES:
            raise ValueError(f"fewer than {MIN_FACES} different golden faces")
        _check_tolerance(certificate.tolerance, metadata.precision)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, zlib.error) as error:
        raise ModelFileError(
            f"the parity certificate of {source} cannot be read ({printable(repr(error), limit=200)}); "
            "export the model again with fer-export"
        ) from error
    return certificate


def _integers(values: Any) -> dict[str, str]:
    checksums = dict(values)
    if len(checksums) > MAX_TENSORS:
        raise ValueError(f"checksums of {len(checksums):,} tensors, more than {MAX_TENSORS:,}")
    for name, checksum in checksums.items():
        if not name or not isinstance(checksum, str) or not _CHECKSUM.fullmatch(checksum):
            raise ValueError(f"a checksum {checksum!r} of {name!r}")
    return checksums


def tolerance_in(arithmetic: str, precision: str, stated: Tolerance) -> Tolerance:
    """The tolerance of a replay.

    Args:
        arithmetic: of the provider, "fp32" or "bf16".
        precision: of the file; the quantized ones have no other arithmetic.
        stated: the file's own tolerance.
    """
    return ARITHMETIC_TOLERANCES[arithmetic] if arithmetic != "fp32" and precision in ("fp32", "fp16") else stated


def _logits(rows: Any) -> FloatArray:
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        return np.array(rows, np.float32)


def _check_tolerance(tolerance: Tolerance, precision: str) -> None:
    loosest = LOOSEST.get(precision, LOOSEST["fp16"])
    for name in ("logits", "probabilities", "margin"):
        value, most = getattr(tolerance, name), getattr(loosest, name)
        if not isinstance(value, (int, float)) or not _TIGHTEST <= value <= most:
            raise ValueError(f"a tolerance of {value!r} for {name}; {precision} may have {_TIGHTEST:g} to {most:g}")


def _rows(logits: FloatArray) -> list[list[float]]:
    # Nine digits bring every float32 back exactly.
    return [[float(f"{value:.9g}") for value in row] for row in logits]
