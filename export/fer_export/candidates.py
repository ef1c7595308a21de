"""The files of an export before their gate: each precision's graph, with what was fitted to its own answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from fer_export.gate.calibration import calibrate
from fer_export.gate.candidate import Candidate
from fer_export.gate.golden import calibration_faces
from fer_export.gate.parity import run_shuffled
from fer_export.gate.subject import Subject
from fer_export.gate.unfamiliar import unfamiliarity_of
from fer_export.graph import fix_batch, serialize, set_temperature
from fer_export.int8.known import first_unknown
from fer_export.int8.quantize import quantize_model
from fer_export.int8.ranges import observe
from fer_export.int8.stock import quantize_stock
from fer_export.unfamiliar.graph import add_output
from fer_export.unfamiliar.head import OperatingPoint, fit_threshold
from fer_runtime.errors import first_line
from fer_runtime.model.find import Precision
from fer_runtime.model.session import open_session
from fer_train.data.folders import LabelledFaces


def make_candidate(subject: Subject, precision: Precision, model: onnx.ModelProto, *, quantizer: str = "") -> Candidate:
    """A file with its own temperature and threshold, fitted on its own answers for the labelled faces."""
    calibration = subject.calibration
    point: OperatingPoint | None = None
    fault = ""
    # onnxruntime's quantizer gives the maps names of its own, and its own integers.
    head = None if quantizer == "onnxruntime" else subject.head
    if head is not None:
        try:
            model = add_output(model, head, precision)
        except Exception as error:  # of a graph that is broken: the gate says what is wrong with it
            head, fault = None, first_line(error)
    rated = subject.truth.any(1)
    if precision != "fp32" and rated.any():
        content = serialize(model, subject.metadata(precision, model, calibration))
        try:
            session = open_session(content, source=f"the {precision} model").session
            logits = run_shuffled(session, subject.faces[: len(subject.truth)][rated]).logits
        except Exception:  # the gate says what is wrong with it
            logits = None
        if (
            logits is not None
            and logits.shape == (rated.sum(), len(subject.original.labels))
            and np.isfinite(logits).all()
        ):
            calibration = calibrate(logits, subject.truth[rated], labels_from=subject.labels_from)
            model = set_temperature(model, calibration.temperature)
    if subject.batch is not None:
        model = fix_batch(model, subject.batch)
    if head is not None:
        content = serialize(model, subject.metadata(precision, model, calibration))
        try:
            real, strange = (
                unfamiliarity_of(content, faces, batch=subject.batch) for faces in (head.real, head.strange)
            )
            point = fit_threshold(real, strange)
        except Exception as error:
            fault = first_line(error)
    content = serialize(model, subject.metadata(precision, model, calibration, point))
    return Candidate(
        precision=precision,
        model=model,
        content=content,
        calibration=calibration,
        point=point,
        quantizer=quantizer,
        fault=fault,
    )


def quantized_candidate(
    subject: Subject, fp32: onnx.ModelProto, train: LabelledFaces, progress: Callable[[str], None]
) -> Candidate:
    """The int8 candidate: by our quantizer where it knows every operator, else by onnxruntime's."""
    faces = calibration_faces(train)
    unknown = first_unknown(fp32)
    progress(
        f"quantizing: calibration ranges from {len(faces)} training faces"
        + (f", by onnxruntime's quantize_static: ours does not know {unknown}" if unknown else "")
    )
    model = quantize_stock(fp32, faces) if unknown else quantize_model(fp32, observe(fp32, faces))
    return make_candidate(subject, "int8", model, quantizer="onnxruntime" if unknown else "fer-edge")
