"""The results of an export, and their report on disk."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from fer_export.gate.accuracy import Quality
from fer_export.gate.calibration import Calibration
from fer_export.gate.coverage import Coverage
from fer_export.gate.parity import ParityReport
from fer_export.gate.timing import Timing
from fer_export.unfamiliar.head import OperatingPoint
from fer_runtime import __version__
from fer_runtime.errors import ParityError
from fer_runtime.files import write_atomically
from fer_runtime.model.find import Precision
from fer_runtime.model.session import runtime_version
from fer_runtime.untrusted_json import parse_json

# Asked for while this module is loaded, so that a command says at once that it is missing. PyTorch's exporter loads it,
# half a second; adopted and converted files do without.
_ONNXSCRIPT = version("onnxscript")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """One file, published or refused."""

    precision: Precision
    path: Path
    is_published: bool
    model_bytes: int
    parity: ParityReport  # all checks of the gate
    quality: Quality | None  # on labelled faces; None without them
    agreement: float | None  # fraction of the labelled faces with the same label as fp32
    calibration: Calibration  # fitted on this file's own outputs
    latency: Timing  # at batch 1, in turns with the other files
    throughput: Timing  # at batch 64
    speedup: float  # over fp32 at batch 1, both undisturbed
    quantizer: str = ""  # that made an int8 file, "fer-edge" or "onnxruntime"
    point: OperatingPoint | None = None  # threshold of its unfamiliarity
    # Largest |Δp| from the original on labelled faces; of all compared ones where there are none. Golden faces go to
    # extremes that no real face has.
    difference: float | None = None
    not_proven: str = ""  # why the labelled faces cannot show that the budget holds

    @property
    def outcome(self) -> str:
        """What the gate found: "passed", "not proven" (nothing failed, too few faces), or "failed"."""
        if not self.parity.passed:
            return "failed"
        return "not proven" if self.not_proven else "passed"

    def to_dict(self) -> dict[str, Any]:
        return {
            "precision": self.precision,
            "file": self.path.name,
            "is_published": self.is_published,
            "model_bytes": self.model_bytes,
            "outcome": self.outcome,
            **({"quantizer": self.quantizer} if self.quantizer else {}),
            **self.parity.to_dict(),
            "quality": None if self.quality is None else self.quality.to_dict(),
            "agreement_with_fp32": self.agreement,
            "temperature": self.calibration.temperature,
            "uncertain_below": self.calibration.uncertain_below,
            "calibration": self.calibration.to_dict(),
            "unfamiliar": None if self.point is None else self.point.to_dict(),
            "latency": self.latency.to_dict(),
            "throughput": self.throughput.to_dict(),
            "speedup": self.speedup,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """The files of one export, published or refused."""

    name: str
    models: tuple[ExportedModel, ...]
    calibration: Calibration  # of the network
    coverage: Coverage
    path: Path  # of the report on disk


class ExportRefusedError(ParityError):
    """A file did not pass its gate and was not published; `report` has the details."""

    def __init__(self, message: str, report: ExportReport) -> None:
        super().__init__(message)
        self.report = report


def tool_versions() -> dict[str, str]:
    """Versions of the tools that shape a file."""
    return {
        "fer-edge": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxscript": _ONNXSCRIPT,
        "onnxruntime": runtime_version(),
        "numpy": np.__version__,
    }


def write_report(report: ExportReport, checkpoint_sha256: str, *, batch: int | None = None) -> None:
    """Write the report. Entries of other precisions and batch sizes of the same checkpoint are kept.

    Args:
        batch: the fixed batch size of its files.
    """
    files: dict[str, Any] = {}
    try:
        before = parse_json(report.path.read_text(encoding="utf-8"), finite=False)
        if before["checkpoint_sha256"] == checkpoint_sha256:
            files = dict(before["files"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    suffix = "" if batch is None else f".batch{batch}"
    files |= {f"{model.precision}{suffix}": model.to_dict() for model in report.models}
    content = {
        "model": report.name,
        "checkpoint_sha256": checkpoint_sha256,
        "versions": tool_versions(),
        "calibration": {
            "temperature": report.calibration.temperature,
            "uncertain_below": report.calibration.uncertain_below,
            **report.calibration.to_dict(),
        },
        "coverage": report.coverage.to_dict(),
        "files": files,
    }
    write_atomically(report.path, json.dumps(content, indent=1) + "\n")
