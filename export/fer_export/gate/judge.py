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
    Quality,
    budget_checks,
    measure_quality,
    number_checks,
    proof_shortfall,
)
from fer_export.gate.calibration import calibration_check, fitted_check
from fer_export.gate.candidate import Candidate
from fer_export.gate.coverage import Coverage
from fer_export.gate.golden import SEED, calibration_faces
from fer_export.gate.parity import FileSpec, ParityReport, as_outputs, check_parity, guarded
from fer_export.gate.report import ExportedModel
from fer_export.gate.subject import Subject
from fer_export.gate.timing import Timing, speed_check
from fer_export.gate.unfamiliar import unfamiliar_checks
from fer_export.gate.units import UnitLimits, unit_check
from fer_export.gate.weights import weights_check
from fer_export.graph import free_batch
from fer_export.int8.optimized import integer_check
from fer_export.int8.quantize import LOWEST_OPSET
from fer_export.places import output_path
from fer_runtime.metrics import accuracy, best_label_order, confusion_matrix
from fer_runtime.model.find import Precision
from fer_runtime.model.onnx_file import read_onnx
from fer_runtime.model.parity import Check, FloatArray, Outputs, Uint8Array

_UNIT_FACES = 256  # on which the layers of int8 and fp32 are compared
# Another order of the labels must be better by so much, and by more than chance among all orders explains.
_OTHER_ORDER, _ORDER_CHANCE = 0.02, 0.01


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
        latency, throughput: of the candidate.
        fp32_latency: what its speed is measured against.
    """
    precision = candidate.precision
    report = _check_parity(subject, candidate, reference)
    outputs = report.outputs
    checks = [*report.checks, *_unfamiliarity_checks(subject, candidate)]
    difference, labelled = None, _LabelledJudgement()
    if outputs is not None:
        checks += _calibration_checks(subject, candidate, outputs)
        difference, numbers = _compare_numbers(subject, precision, outputs)
        checks += numbers
        labelled = _judge_on_labels(subject, candidate, reference, outputs)
        checks += labelled.checks
    if precision == "int8":
        checks += _integer_checks(subject, candidate, reference)
        checks.append(speed_check(latency, fp32_latency))
    return ExportedModel(
        precision=precision,
        path=output_path(models_dir, subject.file_name, precision, subject.batch),
        is_published=False,
        model_bytes=len(candidate.content),
        parity=dataclasses.replace(report, checks=tuple(checks), unproven=_unproven(subject, outputs)),
        quality=labelled.quality,
        agreement=labelled.agreement,
        calibration=candidate.calibration,
        quantizer=candidate.quantizer,
        point=candidate.point,
        latency=latency,
        throughput=throughput,
        speedup=fp32_latency.undisturbed_ms / latency.undisturbed_ms,
        difference=difference,
        not_proven=labelled.not_proven,
    )


def _check_parity(
    subject: Subject, candidate: Candidate, reference: tuple[Candidate, ExportedModel] | None
) -> ParityReport:
    """The checks that need no labels."""
    precision = candidate.precision
    spec = FileSpec(
        original=subject.original,
        precision=precision,
        temperature=candidate.calibration.temperature,
        # ONNX's reference evaluator reads int8 from opset 19 on.
        opset=subject.opset if precision != "int8" else max(subject.opset, LOWEST_OPSET),
        batch=subject.batch,
        is_exact=candidate.is_our_int8,
        float_model=reference[0].model if reference is not None and precision == "fp16" else None,
    )
    return check_parity(candidate.content, spec, subject.faces, expected=subject.logits, real_faces=subject.real_faces)


def _unfamiliarity_checks(subject: Subject, candidate: Candidate) -> list[Check]:
    checks = []
    head, point = subject.head, candidate.point
    if candidate.fault:
        checks.append(Check(name="unfamiliarity", passed=False, detail=f"cannot be computed: {candidate.fault}"))
    if head is not None and point is not None:
        checks += guarded(
            "unfamiliar",
            lambda: unfamiliar_checks(
                candidate.content, head, point, precision=candidate.precision, batch=subject.batch
            ),
        )
    return checks


def _calibration_checks(subject: Subject, candidate: Candidate, outputs: Outputs) -> list[Check]:
    """Is the calibration in the metadata that of these outputs? A file calibrated on no faces has no such check."""
    shared = np.flatnonzero(subject.truth.any(1))  # the faces that it is fitted on
    if not candidate.calibration.faces or not shared.size:
        return []
    fitted = Outputs(logits=outputs.logits[shared], probabilities=outputs.probabilities[shared])
    shares = subject.truth[shared]
    return guarded("fitted", lambda: [_fitted_check(candidate.content, fitted, shares)])


def _compare_numbers(subject: Subject, precision: Precision, outputs: Outputs) -> tuple[float, list[Check]]:
    """The largest |Δp| from the original, and the checks of a file that is not exact, both on real faces.

    Made-up faces leave the ranges that real ones set; they are compared where there are no others.
    """
    real = slice(0, subject.real_faces or None)
    expected = as_outputs(subject.logits[real], subject.calibration.temperature)
    found = Outputs(logits=outputs.logits[real], probabilities=outputs.probabilities[real])
    difference = float(np.abs(found.probabilities - expected.probabilities).max(initial=0))
    if precision == "fp32" or not subject.real_faces:
        return difference, []
    return difference, number_checks(expected, found, NUMBER_LIMITS[precision], subject.original.program)


@dataclass(frozen=True, slots=True, kw_only=True)
class _LabelledJudgement:
    """The results of a file on labelled faces; empty without them."""

    quality: Quality | None = None
    agreement: float | None = None  # fraction of the faces that the fp32 file answers alike
    not_proven: str = ""  # of an int8 file, as `proof_shortfall` says it
    checks: tuple[Check, ...] = ()


def _judge_on_labels(
    subject: Subject, candidate: Candidate, reference: tuple[Candidate, ExportedModel] | None, outputs: Outputs
) -> _LabelledJudgement:
    rated = np.flatnonzero(subject.labels >= 0)
    if not rated.size:
        return _LabelledJudgement()
    logits, labels = outputs.logits[rated], subject.labels[rated]
    quality = measure_quality(logits, labels, subject.original.labels)
    if candidate.precision == "fp32":
        return _LabelledJudgement(
            quality=quality,
            checks=(order_check(logits, labels, subject.original.labels, subject.original.option_labels),),
        )
    if reference is None or reference[1].parity.outputs is None or reference[1].quality is None:
        return _LabelledJudgement(quality=quality)
    fp32_logits = reference[1].parity.outputs.logits[rated]
    is_int8 = candidate.precision == "int8"
    budget = budget_checks(quality, reference[1].quality, subject.budget) if is_int8 else []
    return _LabelledJudgement(
        quality=quality,
        agreement=float((logits.argmax(1) == fp32_logits.argmax(1)).mean()),
        not_proven=proof_shortfall(quality, subject.budget) if is_int8 else "",
        checks=(*budget, calibration_check(candidate.calibration, reference[0].calibration)),
    )


def _integer_checks(
    subject: Subject, candidate: Candidate, reference: tuple[Candidate, ExportedModel] | None
) -> list[Check]:
    """The checks of what only an int8 file has: rounded weights, and integers between its layers."""
    checks: list[Check] = []
    if reference is not None and subject.real_faces:
        # What was judged is what `publish` writes, so the bytes are read again.
        model = onnx.load_model_from_string(candidate.content)
        faces = _unit_faces(subject)
        fp32, limits = reference[0].model, UnitLimits()
        checks += guarded("units", lambda: [unit_check(free_batch(fp32), free_batch(model), faces, limits)])
        if candidate.is_our_int8:
            checks += guarded("int8 weights", lambda: [weights_check(fp32, model)])
    return checks + guarded("integers", lambda: [integer_check(candidate.content)])


def _fitted_check(content: bytes, outputs: Outputs, truth: FloatArray) -> Check:
    """Fit temperature and threshold again, on the outputs of the file, and compare with its metadata."""
    metadata = read_onnx(content, source="the file").own_metadata(source="the file")
    faces = metadata.calibration.get("faces")
    return fitted_check(
        outputs,
        truth,
        temperature=metadata.temperature,
        uncertain_below=metadata.uncertain_below,
        faces=faces if isinstance(faces, int) else 0,
    )


def order_check(
    logits: FloatArray, labels: Int64Array, names: Sequence[str], option_labels: Sequence[str] | None = None
) -> Check:
    """Check whether the network would be right more often with the labels in another order.

    The best of all orders of a weak network is better by chance. Of the faces about which the two orders differ, the
    other one must be right about more than z standard deviations beyond half: by Chernoff's bound exp(-z^2 / 2) and the
    union bound, some order of n! passes with probability _ORDER_CHANCE where none is right.

    Args:
        names: in the order of the logits.
        option_labels: the same in the order that --labels takes; None where the checkpoint says its own order.
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
    better = dict(zip(names, (names[label] for label in order), strict=True))
    advice = (
        "; the checkpoint says the order of its labels, so look whether the class folders of --data have other names"
        if option_labels is None
        else f"; if that is the order, give --labels {','.join(better[name] for name in option_labels)}"
    )
    return Check(
        name="label order",
        passed=fits,
        detail=f"accuracy {present:.2%} in this order of the labels"
        + (
            "; no other is better" + (" beyond chance" if gained > lost else "")
            if fits
            else f", {other:.2%} as {','.join(better.values())}{advice}"
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
        found.append(f"{coverage.units - coverage.live} of {coverage.units} units are switched on by no synthetic face")
    return tuple(found)
