"""A model file before the gate judges it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from fer_export.gate.calibration import Calibration
from fer_export.unfamiliar.head import OperatingPoint
from fer_runtime.model.find import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A file before its gate."""

    precision: Precision
    model: onnx.ModelProto
    content: bytes  # with metadata, without verdict and certificate
    calibration: Calibration
    quantizer: str = ""  # of an int8 file, "fer-edge" or "onnxruntime"
    point: OperatingPoint | None = None  # threshold of its unfamiliarity
    fault: str = ""  # why it could not be given its unfamiliarity

    @property
    def is_our_int8(self) -> bool:
        """Whether it is an int8 file of our quantizer, which every interpreter computes alike."""
        return self.precision == "int8" and self.quantizer != "onnxruntime"
