"""The gate: check that a file computes what the network computes, and that its metadata is true."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import torch

from fer_export.gate.batches import batch_checks, fixed_batch_checks
from fer_export.gate.golden import SEED
from fer_export.gate.interpreters import INTERPRETED_FACES, interpreter_checks
from fer_export.gate.original import Original
from fer_export.gate.roundings import rounding_checks
from fer_export.gate.structure import OPTIONAL, external_data_check, structure_checks
from fer_runtime.errors import ModelFileError, first_line
from fer_runtime.model.find import Precision
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
)
from fer_runtime.model.session import open_session

FP32_TOLERANCE = Tolerance()
_RUN_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """The gate's results for one file."""

    checks: tuple[Check, ...]
    comparison: Comparison | None  # None when the model did not run
    faces: int
    real_faces: int  # of `faces`, those from images; the others are synthetic
    outputs: Outputs | None = field(compare=False, repr=False, default=None)  # for `faces`, in their order
    unproven: tuple[str, ...] = ()  # what these faces cannot show

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
            "unproven": list(self.unproven),
            "checks": [check.to_dict() for check in self.checks],
            "worst": None if self.comparison is None else self.comparison.to_dict(),
        }


def as_outputs(logits: FloatArray, temperature: float) -> Outputs:
    """Logits with their probabilities, through PyTorch's softmax."""
    shares: FloatArray = torch.softmax(torch.from_numpy(logits) / temperature, dim=1).numpy()
    return Outputs(logits=logits, probabilities=shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSpec:
    """The specification that a model file's bytes are checked against.

    Raises:
        ValueError: a fp16 file without its float graph.
    """

    original: Original  # what it was exported from
    precision: Precision = "fp32"  # int8 differs on purpose, so its numbers are judged by accuracy.py
    temperature: float = 1.0  # what the probabilities should have been made with
    opset: int | None = None  # None accepts any
    batch: int | None = None  # None: a dynamic batch
    is_exact: bool = False  # an int8 file of our own quantizer, which every interpreter computes alike
    float_model: onnx.ModelProto | None = None  # of a fp16 file: the judged float32 graph, whose roundings judge it

    def __post_init__(self) -> None:
        if self.precision == "fp16" and self.float_model is None:
            raise ValueError("a fp16 file is judged by its float graph; give float_model")

    @property
    def run_batch(self) -> int:
        """Faces of a call."""
        return self.batch or _RUN_BATCH


def check_parity(
    content: bytes, spec: FileSpec, faces: Uint8Array, *, expected: FloatArray | None = None, real_faces: int = 0
) -> ParityReport:
    """Run the checks that need no labels on a model file.

    Args:
        content: the file's bytes, metadata included.
        spec: what the file is meant to be.
        faces: of its size and colour, uint8; all of them are compared.
        expected: the original's logits for them, float32 (faces, labels); None computes them.
        real_faces: how many of the faces come from images.

    Raises:
        ModelFileError: the bytes are no ONNX model.
    """
    report = ParityReport(checks=(), comparison=None, faces=len(faces), real_faces=real_faces)
    try:
        file = read_onnx(content, source="the exported model")
    except ModelFileError:
        # The reader refuses weights outside the file; here that is a fault of the export with a check of its own.
        if (outside := external_data_check(content)) is None:
            raise
        return replace(report, checks=(outside,))
    original = spec.original
    checks = structure_checks(
        content,
        face_shape=original.face_shape,
        classes=len(original.labels),
        batch=spec.batch,
        foreign=original.is_foreign,
    )
    try:
        session = open_session(content, source="the exported model").session
    except ModelFileError as error:
        checks.append(Check(name="load", passed=False, detail=str(error)))
        return replace(report, checks=tuple(checks))
    checks += [_contract_check(session, spec), *_metadata_checks(file, spec)]
    reference = as_outputs(original.logits(faces) if expected is None else expected, spec.temperature)
    try:
        actual = run_shuffled(session, faces, batch=spec.run_batch)
        comparison = compare_outputs(reference, actual, margin=FP32_TOLERANCE.margin)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        checks.append(
            Check(name="batch", passed=False, detail=f"a batch of {spec.run_batch} fails: {first_line(error)}")
        )
        return replace(report, checks=tuple(checks))
    checks += _number_checks(content, spec, faces, actual, comparison)
    checks += _repeated_runs_checks(content, spec, faces)
    return replace(report, checks=tuple(checks), comparison=comparison, outputs=actual)


def _number_checks(
    content: bytes, spec: FileSpec, faces: Uint8Array, actual: Outputs, comparison: Comparison
) -> list[Check]:
    """Are the file's outputs for `faces` those of the original?"""
    checks = comparison_checks(comparison, FP32_TOLERANCE)
    if spec.precision != "fp32":
        checks = [check for check in checks if check.name == "finite"]
    if spec.precision == "fp16" and (source := spec.float_model) is not None:
        checks += guarded(
            "logits",
            lambda: rounding_checks(
                source,
                onnx.load_model_from_string(content),
                faces,
                actual,
                temperature=spec.temperature,
                batch=spec.run_batch,
            ),
        )
    return [*checks, _softmax_check(actual, spec.temperature)]


def _repeated_runs_checks(content: bytes, spec: FileSpec, faces: Uint8Array) -> list[Check]:
    """Are a face's outputs the same in every batch, and in other interpreters?"""
    precision, batch = spec.precision, spec.batch
    if batch is None:
        checks = guarded("batch", lambda: batch_checks(content, faces, precision=precision))
    else:
        checks = guarded("batch", lambda: fixed_batch_checks(content, faces, precision=precision, batch=batch))
    interpreted = faces[np.random.default_rng(SEED).permutation(len(faces))[:INTERPRETED_FACES]]
    return checks + guarded(
        "interpreters",
        lambda: interpreter_checks(content, interpreted, precision=precision, batch=batch, is_exact=spec.is_exact),
    )


def guarded(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    """The checks; a broken file on which they cannot be made fails them."""
    try:
        return check()
    except Exception as error:  # onnx's, onnxruntime's and numpy's exceptions share no base class
        return [Check(name=name, passed=False, detail=f"cannot be checked: {first_line(error)}")]


def run_shuffled(session: Any, faces: Uint8Array, *, batch: int = 64) -> Outputs:
    """The outputs in the order of `faces`, computed in batches of shuffled faces.

    Labelled faces lie sorted by class. A model that leaks a batch's mean into its faces looks better on such batches
    than on a user's: 68.0 % instead of 64.5 % for a v0 with a tenth of the mean.
    """
    order = np.random.default_rng(SEED).permutation(len(faces))
    shuffled = faces[order]
    # The last batch is filled up with faces that are left out again: a fixed batch needs it.
    count = -(-len(faces) // batch) * batch
    found = run_model(session, np.resize(shuffled, (count, *faces.shape[1:])), batch=batch)
    back = np.argsort(order, kind="stable")
    strange = found.unfamiliarity
    return Outputs(
        logits=found.logits[: len(faces)][back],
        probabilities=found.probabilities[: len(faces)][back],
        unfamiliarity=None if strange is None else strange[: len(faces)][back],
    )


def _contract_check(session: Any, spec: FileSpec) -> Check:
    """Inputs and outputs as every program that reads our files expects them."""
    face_shape, classes, batch = spec.original.face_shape, len(spec.original.labels), spec.batch
    first: int | str = "*" if batch is None else batch
    found = {
        value.name: (value.type, tuple("*" if isinstance(size, str) or size is None else size for size in value.shape))
        for value in (*session.get_inputs(), *session.get_outputs())
    }
    wanted: dict[str, tuple[str, tuple[int | str, ...]]] = {
        "faces": ("tensor(uint8)", (first, *face_shape)),
        "logits": ("tensor(float)", (first, classes)),
        "probabilities": ("tensor(float)", (first, classes)),
    }
    wrong = [f"{name} is {found.get(name, 'missing')}" for name in wanted if found.get(name) != wanted[name]]
    if OPTIONAL in found:
        wanted[OPTIONAL] = ("tensor(float)", (first,))
        wrong += [] if found[OPTIONAL] == wanted[OPTIONAL] else [f"{OPTIONAL} is {found[OPTIONAL]}"]
    wrong += [f"{name} is unexpected" for name in found if name not in wanted]
    return Check(
        name="contract",
        passed=not wrong,
        detail="; ".join(wrong)
        or f"faces uint8 ({batch or 'batch'}, {', '.join(map(str, face_shape))}) to logits and probabilities float32 "
        f"({batch or 'batch'}, {classes})",
    )


def _metadata_checks(file: OnnxFile, spec: FileSpec) -> list[Check]:
    """Is what the file says of itself true?"""
    original, precision, temperature, opset = spec.original, spec.precision, spec.temperature, spec.opset
    try:
        metadata = file.own_metadata(source="the exported model")
    except ModelFileError as error:
        return [Check(name="metadata", passed=False, detail=str(error))]
    same_labels = metadata.labels == original.labels
    same_temperature = math.isclose(metadata.temperature, temperature, rel_tol=1e-6)
    same_faces = (metadata.size, metadata.color) == (original.size, original.color)
    declared = file.opsets.get("", 0)
    return [
        Check(
            name="labels",
            passed=same_labels,
            detail=", ".join(metadata.labels)
            + ("" if same_labels else f"; the original has {', '.join(original.labels)}"),
        ),
        Check(
            name="metadata",
            passed=metadata.name == original.name
            and metadata.precision == precision
            and same_temperature
            and same_faces,
            detail=f"{metadata.name} {metadata.precision}, temperature {metadata.temperature:.4f}"
            + ("" if metadata.precision == precision else f"; the file is {precision}")
            + (
                ""
                if same_faces
                else f"; faces of {metadata.size} pixels in {metadata.color}, not {original.size} {original.color}"
            )
            + ("" if same_temperature else f"; {temperature:.4f} was fitted"),
        ),
        Check(
            name="opset",
            passed=declared == metadata.opset and opset in (None, declared),
            detail=f"opset {declared}"
            + ("" if declared == metadata.opset else f", the metadata says {metadata.opset}")
            + ("" if opset in (None, declared) else f"; opset {opset} was asked for"),
        ),
    ]


def _softmax_check(actual: Outputs, temperature: float) -> Check:
    """Check that the probabilities follow from the file's own logits. This finds a wrong temperature in the graph."""
    difference = float(np.abs(softmax(actual.logits, temperature=temperature) - actual.probabilities).max(initial=0))
    return Check(
        name="temperature",
        # Six float32 roundings of values up to 1.
        passed=bool(difference <= 1e-5),
        detail=f"probabilities differ from softmax(logits / {temperature:.4f}) by {difference:.1e}",
    )
