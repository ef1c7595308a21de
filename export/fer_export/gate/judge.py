"""All checks on one file, in order: what the gate of `fer-export` finds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from fer_export.gate.accuracy import (
    NUMBER_LIMITS,
    Int64Array,
    budget_checks,
    measure_quality,
    number_checks,
    proof_shortfall,
)
from fer_export.gate.calibration import Calibration, calibration_check, fitted_check
from fer_export.gate.coverage import Coverage
from fer_export.gate.golden import SEED, calibration_faces
from fer_export.gate.parity import as_outputs, check_parity, guarded
from fer_export.gate.publish import Subject
from fer_export.gate.report import ExportedModel
from fer_export.gate.timing import Timing, speed_check
from fer_export.gate.unfamiliar import unfamiliar_checks
from fer_export.gate.units import UnitLimits, unit_check
from fer_export.gate.weights import weights_check
from fer_export.graph import free_batch
from fer_export.int8.optimized import integer_check
from fer_export.int8.quantize import LOWEST_OPSET
from fer_export.places import output_path
from fer_export.unfamiliar.head import OperatingPoint
from fer_runtime.metrics import accuracy, best_label_order, confusion_matrix
from fer_runtime.model.find import Precision
from fer_runtime.model.metadata import METADATA_KEY, parse_metadata
from fer_runtime.model.onnx_file import read_onnx
from fer_runtime.model.parity import Check, FloatArray, Outputs, Uint8Array

_UNIT_FACES = 256  # on which the layers of int8 and fp32 are compared
# Another order of the labels must be better by so much, and by more than chance among all orders explains.
_OTHER_ORDER, _ORDER_CHANCE = 0.02, 0.01


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


@np.errstate(invalid="ignore", over="ignore")  # what a broken file computes is told by the checks
def judge(
    subject: Subject,
    candidate: Candidate,
    reference: tuple[Candidate, ExportedModel] | None,
    models_dir: Path,
    latency: Timing,
    throughput: Timing,
    fp32_latency: Timing,
) -> ExportedModel:
    """Run the gate on one candidate.

    Args:
        reference: the fp32 candidate and what the gate found; None for fp32 itself.
    """
    precision = candidate.precision
    # What was judged is what `publish` writes: every check looks at the bytes.
    model = onnx.load_model_from_string(candidate.content)
    is_ours = precision == "int8" and candidate.quantizer != "onnxruntime"
    report = check_parity(
        candidate.content,
        subject.original,
        subject.faces,
        expected=subject.logits,
        real_faces=subject.real_faces,
        temperature=candidate.calibration.temperature,
        # ONNX's reference evaluator reads int8 from opset 19 on.
        opset=subject.opset if precision != "int8" else max(subject.opset, LOWEST_OPSET),
        precision=precision,
        batch=subject.batch,
        is_exact=is_ours,
        float_model=reference[0].model if reference is not None and precision == "fp16" else None,
    )
    checks = list(report.checks)
    head, point = subject.head, candidate.point
    if candidate.fault:
        checks.append(Check(name="unfamiliarity", passed=False, detail=f"cannot be computed: {candidate.fault}"))
    if head is not None and point is not None:
        checks += guarded(
            "unfamiliar",
            lambda: unfamiliar_checks(candidate.content, head, point, precision=precision, batch=subject.batch),
        )
    quality = agreement = None
    not_proven = ""
    outputs = report.outputs
    if outputs is not None and candidate.calibration.faces and (shared := np.flatnonzero(subject.truth.any(1))).size:
        fitted = Outputs(logits=outputs.logits[shared], probabilities=outputs.probabilities[shared])
        shares = subject.truth[shared]
        checks += guarded("fitted", lambda: [_fitted_check(candidate.content, fitted, shares)])
    difference = None
    if outputs is not None:
        # Made-up faces leave the ranges that real ones set.
        real = slice(0, subject.real_faces or None)
        expected = as_outputs(subject.logits[real], subject.calibration.temperature)
        found = Outputs(logits=outputs.logits[real], probabilities=outputs.probabilities[real])
        difference = float(np.abs(found.probabilities - expected.probabilities).max(initial=0))
        if precision != "fp32" and subject.real_faces:
            checks += number_checks(expected, found, NUMBER_LIMITS[precision], subject.original.program)
    if outputs is not None and (rated := np.flatnonzero(subject.labels >= 0)).size:
        truth = subject.labels[rated]
        quality = measure_quality(outputs.logits[rated], truth, subject.original.labels)
        if precision == "fp32":
            checks.append(order_check(outputs.logits[rated], truth, subject.original.labels))
        elif reference is not None and reference[1].parity.outputs is not None and reference[1].quality is not None:
            before = reference[1].parity.outputs.logits[rated]
            agreement = float((outputs.logits[rated].argmax(1) == before.argmax(1)).mean())
            checks += budget_checks(quality, reference[1].quality, subject.budget) if precision == "int8" else []
            checks.append(calibration_check(candidate.calibration, reference[0].calibration))
            if precision == "int8":
                not_proven = proof_shortfall(quality, subject.budget)
    if precision == "int8":
        if reference is not None and subject.real_faces:
            some = _unit_faces(subject)
            fp32, limits = reference[0].model, UnitLimits()
            checks += guarded("units", lambda: [unit_check(free_batch(fp32), free_batch(model), some, limits)])
            if is_ours:
                checks += guarded("int8 weights", lambda: [weights_check(fp32, model)])
        checks += guarded("integers", lambda: [integer_check(candidate.content)])
        checks.append(speed_check(latency, fp32_latency))
    unproven = _unproven(subject, outputs)
    return ExportedModel(
        precision=precision,
        path=output_path(models_dir, subject.file_name, precision, subject.batch),
        is_published=False,
        model_bytes=len(candidate.content),
        parity=dataclasses.replace(report, checks=tuple(checks), unproven=unproven),
        quality=quality,
        agreement=agreement,
        calibration=candidate.calibration,
        quantizer=candidate.quantizer,
        point=candidate.point,
        latency=latency,
        throughput=throughput,
        speedup=fp32_latency.undisturbed_ms / latency.undisturbed_ms,
        difference=difference,
        not_proven=not_proven,
    )


def _fitted_check(content: bytes, outputs: Outputs, truth: FloatArray) -> Check:
    """Fit temperature and threshold again, on the outputs of the file, and compare with its metadata."""
    said = parse_metadata(read_onnx(content, source="the file").metadata.get(METADATA_KEY), source="the file")
    faces = said.calibration.get("faces")
    return fitted_check(
        outputs,
        truth,
        temperature=said.temperature,
        uncertain_below=said.uncertain_below,
        faces=faces if isinstance(faces, int) else 0,
    )


def order_check(logits: FloatArray, labels: Int64Array, names: Sequence[str]) -> Check:
    """Check whether the network would be right more often with the labels in another order.

    The best of all orders of a weak network is better by chance. Of the faces about which the two orders differ, the
    other one must be right about more than z standard deviations beyond half: by Chernoff's bound exp(-z^2 / 2) and the
    union bound, some order of n! passes with probability _ORDER_CHANCE where none is right.
    """
    answers = logits.argmax(1)
    confusion = confusion_matrix(labels, answers, classes=len(names))
    order = best_label_order(confusion)
    moved = np.array(order)[answers]
    gained, lost = int((moved == labels).sum()), int((answers == labels).sum())
    differing = int(((moved == labels) != (answers == labels)).sum())
    present, other = accuracy(confusion), gained / max(len(labels), 1)
    bound = math.sqrt(2 * (math.lgamma(len(names) + 1) - math.log(_ORDER_CHANCE)))
    fits = other <= present + _OTHER_ORDER or gained - lost <= bound * math.sqrt(max(differing, 1))
    better = ",".join(names[label] for label in order)
    return Check(
        name="label order",
        passed=fits,
        detail=f"accuracy {present:.2%} in this order of the labels"
        + (
            "; no other is better" + (" beyond chance" if gained > lost else "")
            if fits
            else f", {other:.2%} as {better}; if that is the order, add --labels {better}"
        ),
    )


def _unit_faces(subject: Subject) -> Uint8Array:
    """Real faces on which layers are compared: labelled ones, and training faces where those are few.

    A unit that ten faces hardly switch on has no spread to hold its rounding against.
    """
    chosen = np.random.default_rng(SEED).permutation(subject.real_faces)[:_UNIT_FACES]
    faces = [subject.faces[chosen]]
    if len(chosen) < _UNIT_FACES and subject.train is not None:
        faces.append(calibration_faces(subject.train)[: _UNIT_FACES - len(chosen)])
    return np.concatenate(faces)


def _unproven(subject: Subject, outputs: Outputs | None) -> tuple[str, ...]:
    """Say what the compared faces cannot show."""
    found = []
    answered = set() if outputs is None else set(outputs.logits.argmax(1).tolist())
    if missing := [name for place, name in enumerate(subject.original.labels) if place not in answered]:
        found.append(f"no face is answered with {', '.join(missing)}")
    coverage: Coverage = subject.coverage
    if coverage.covered < coverage.live:
        found.append(f"{coverage.live - coverage.covered} of {coverage.live} live units are in no golden face")
    if not coverage.is_measured and coverage.live < coverage.units:
        found.append(f"{coverage.units - coverage.live} of {coverage.units} units are switched on by no made-up face")
    return tuple(found)
