"""The gate: does the file compute what the network computes, and say of itself what is true?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fer_runtime.errors import ModelFileError
from fer_runtime.expressions import FACE_SIZE
from fer_runtime.model.metadata import METADATA_KEY, parse_metadata
from fer_runtime.model.onnx_file import OnnxFile, read_onnx
from fer_runtime.model.parity import (
    Check,
    Comparison,
    FloatArray,
    Outputs,
    Tolerance,
    Uint8Array,
    compare_outputs,
    comparison_checks,
    run_model,
    softmax,
    worst_of,
)
from fer_runtime.model.session import open_session
from fer_train.checkpoints import Checkpoint
from fer_train.networks.registry import to_network_input

# One face, the smallest batch that is a batch, an odd one, and one that fills vector registers.
PARITY_BATCHES = (1, 2, 7, 32)
FP32_TOLERANCE = Tolerance()
# Weights and activations of 11 significant bits, through a dozen layers.
FP16_TOLERANCE = Tolerance(logits=2e-2, probabilities=1e-2, margin=5e-2)
_REFERENCE_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """Everything that the gate found out about one file."""

    checks: tuple[Check, ...]
    comparison: Comparison | None  # None when the model did not run
    faces: int
    real_faces: int  # of `faces`, those from pictures; the others are made up
    batches: tuple[int, ...] = PARITY_BATCHES

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    def to_dict(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "faces": self.faces,
            "real_faces": self.real_faces,
            "batches": list(self.batches),
            "checks": [check.to_dict() for check in self.checks],
            "worst": None if self.comparison is None else self.comparison.to_dict(),
        }


def network_logits(checkpoint: Checkpoint, faces: Uint8Array) -> FloatArray:
    """PyTorch's logits float32 (faces, 7) on CPU in eval mode, through the input path of the training."""
    network = checkpoint.network()
    rows = []
    with torch.inference_mode():
        for batch in torch.split(torch.from_numpy(np.ascontiguousarray(faces)), _REFERENCE_BATCH):
            rows.append(network(to_network_input(batch, mean=checkpoint.mean, std=checkpoint.std)))
    logits: FloatArray = torch.cat(rows).numpy()
    return logits


def network_outputs(checkpoint: Checkpoint, faces: Uint8Array, *, temperature: float = 1.0) -> Outputs:
    """PyTorch's logits and softmax(logits / temperature)."""
    logits = network_logits(checkpoint, faces)
    shares: FloatArray = torch.softmax(torch.from_numpy(logits) / temperature, dim=1).numpy()
    return Outputs(logits=logits, probabilities=shares)


def check_parity(
    content: bytes,
    checkpoint: Checkpoint,
    faces: Uint8Array,
    *,
    real_faces: int = 0,
    temperature: float = 1.0,
    opset: int | None = None,
    tolerance: Tolerance | None = FP32_TOLERANCE,
    batches: Sequence[int] = PARITY_BATCHES,
) -> ParityReport:
    """Put a model file through the gate, in the session that the runtime uses.

    Args:
        content: the file's bytes, metadata included.
        checkpoint: what it was exported from.
        faces: uint8 (faces, 48, 48).
        real_faces: how many of them come from pictures.
        temperature: what the probabilities should have been made with.
        opset: what the file should declare; None accepts any.
        tolerance: None measures the differences without judging them, for models that differ on purpose.
        batches: faces per run.

    Raises:
        ModelFileError: onnxruntime cannot load the file.
    """
    file = read_onnx(content, source="the exported model")
    session = open_session(content, source="the exported model").session
    checks = [_contract_check(session), *metadata_checks(file, checkpoint, temperature=temperature, opset=opset)]
    expected = network_outputs(checkpoint, faces, temperature=temperature)
    margin = (tolerance or FP32_TOLERANCE).margin
    comparisons: list[Comparison] = []
    for batch in batches:
        try:
            actual = run_model(session, faces, batch=batch)
            comparisons.append(compare_outputs(expected, actual, margin=margin))
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            checks.append(Check(name="batch", passed=False, detail=f"a batch of {batch} does not run: {reason}"))
            return _report(checks, None, faces, real_faces, batches)
    checks.append(Check(name="batch", passed=True, detail=f"batches of {', '.join(map(str, batches))} run"))
    worst = worst_of(comparisons)
    compared = comparison_checks(worst, tolerance or FP32_TOLERANCE)
    checks += compared if tolerance is not None else [check for check in compared if check.name == "finite"]
    checks.append(_softmax_check(actual, temperature))
    return _report(checks, worst, faces, real_faces, batches)


def _report(
    checks: Sequence[Check],
    comparison: Comparison | None,
    faces: Uint8Array,
    real_faces: int,
    batches: Sequence[int],
) -> ParityReport:
    return ParityReport(
        checks=tuple(checks), comparison=comparison, faces=len(faces), real_faces=real_faces, batches=tuple(batches)
    )


def _contract_check(session: Any) -> Check:
    """Inputs and outputs as every program that reads our files expects them."""
    found = {
        one.name: (one.type, tuple("*" if isinstance(size, str) or size is None else size for size in one.shape))
        for one in (*session.get_inputs(), *session.get_outputs())
    }
    wanted: dict[str, tuple[str, tuple[int | str, ...]]] = {
        "faces": ("tensor(uint8)", ("*", FACE_SIZE, FACE_SIZE)),
        "logits": ("tensor(float)", ("*", 7)),
        "probabilities": ("tensor(float)", ("*", 7)),
    }
    wrong = [f"{name} is {found.get(name, 'missing')}" for name in wanted if found.get(name) != wanted[name]]
    wrong += [f"{name} is unexpected" for name in found if name not in wanted]
    return Check(
        name="contract",
        passed=not wrong,
        detail="; ".join(wrong) or "faces uint8 (batch, 48, 48) to logits and probabilities float32 (batch, 7)",
    )


def metadata_checks(
    file: OnnxFile, checkpoint: Checkpoint, *, temperature: float, opset: int | None = None
) -> list[Check]:
    """Does the file say of itself what is true?"""
    try:
        said = parse_metadata(file.metadata.get(METADATA_KEY), source="the exported model")
    except ModelFileError as error:
        return [Check(name="metadata", passed=False, detail=str(error))]
    same_labels = said.expressions == checkpoint.expressions
    same_temperature = math.isclose(said.temperature, temperature, rel_tol=1e-6)
    declared = file.opsets.get("", 0)
    return [
        Check(
            name="labels",
            passed=same_labels,
            detail=", ".join(said.expressions)
            + ("" if same_labels else f"; the network was trained with {', '.join(checkpoint.expressions)}"),
        ),
        Check(
            name="metadata",
            passed=said.name == checkpoint.name and same_temperature,
            detail=f"{said.name} {said.precision}, temperature {said.temperature:.4f}"
            + ("" if same_temperature else f"; fitted was {temperature:.4f}"),
        ),
        Check(
            name="opset",
            passed=declared == said.opset and opset in (None, declared),
            detail=f"opset {declared}"
            + ("" if declared == said.opset else f", the metadata says {said.opset}")
            + ("" if opset in (None, declared) else f", asked for was {opset}"),
        ),
    ]


def _softmax_check(actual: Outputs, temperature: float) -> Check:
    """Do the file's probabilities follow from its own logits? This finds a wrong temperature in the graph."""
    difference = float(np.abs(softmax(actual.logits, temperature=temperature) - actual.probabilities).max(initial=0))
    return Check(
        name="temperature",
        # Six float32 roundings of values up to 1.
        passed=bool(difference <= 1e-5),
        detail=f"probabilities differ from softmax(logits / {temperature:.4f}) by {difference:.1e}",
    )
