"""Everything that the files of one export are judged by: faces, expected logits, labels and golden faces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from fer_export.gate.accuracy import Budget, Int64Array
from fer_export.gate.calibration import NOT_CALIBRATED, Calibration, calibrate
from fer_export.gate.coverage import Coverage, cover_units
from fer_export.gate.original import Original
from fer_export.gate.report import tool_versions
from fer_export.graph import DEFAULT_OPSET
from fer_export.options import DEFAULT_OPTIONS, ExportOptions
from fer_export.places import metadata_of
from fer_export.unfamiliar.graph import add_output
from fer_export.unfamiliar.head import FEWEST_FACES, LEAST_AUROC, Head, OperatingPoint, fit_head, idle_units
from fer_runtime.errors import DataError, ModelFileError
from fer_runtime.model.certificate import LOOSEST, parse_certificate
from fer_runtime.model.find import PRECISIONS, Precision, model_path
from fer_runtime.model.metadata import ModelMetadata
from fer_runtime.model.parity import FloatArray, Uint8Array
from fer_train.data.folders import LabelledFaces


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Everything that the files of one export have in common."""

    name: str  # of the network
    file_name: str  # what the files are called, the network's name or one of its trainer's own
    original: Original
    checkpoint_sha256: str
    opset: int
    calibration: Calibration  # of the network, and of files that are not calibrated on their own
    coverage: Coverage
    faces: Uint8Array  # for the gate: labelled ones first, then synthetic ones
    logits: FloatArray  # the original's for `faces`
    labels: Int64Array  # of the first faces, -1 where the raters have no majority
    truth: FloatArray  # (labelled faces, classes), shares of the raters that name a class, or labels as 0 and 1
    labels_from: str  # "class folders" or the votes file
    train: LabelledFaces | None
    validation: LabelledFaces | None
    head: Head | None = None  # the layer that computes unfamiliarity; None: the files have no such output
    batch: int | None = None  # fixed batch size of the files
    budget: Budget = field(default_factory=Budget)

    @property
    def real_faces(self) -> int:
        return len(self.labels)

    def metadata(
        self,
        precision: Precision,
        model: onnx.ModelProto,
        calibration: Calibration,
        point: OperatingPoint | None = None,
    ) -> ModelMetadata:
        """A file's metadata before it is judged."""
        return ModelMetadata(
            name=self.name,
            labels=self.original.labels,
            precision=precision,
            opset=model.opset_import[0].version,
            temperature=calibration.temperature,
            uncertain_below=calibration.uncertain_below,
            checkpoint_sha256=self.checkpoint_sha256,
            size=self.original.size,
            color=self.original.color,
            training=self.original.training,
            calibration=calibration.to_dict(),
            quality={} if point is None else point.to_dict(),
            versions=tool_versions(),
        )


def prepare_subject(
    original: Original,
    make_graph: Callable[[Calibration], onnx.ModelProto],
    options: ExportOptions = DEFAULT_OPTIONS,
    *,
    sha256: str,
    file_name: str,
    train: LabelledFaces | None = None,
    validation: LabelledFaces | None = None,
    opset: int = DEFAULT_OPSET,
    temperature: float | None = None,
) -> tuple[Subject, onnx.ModelProto]:
    """Everything that the files of one run are judged by, and their float32 graph.

    Args:
        original: what they are compared with.
        make_graph: the float32 graph, with the temperature of a calibration.
        options: as for `export_model`; the faces of `data` are `train` and `validation`.
        sha256: of the checkpoint or the adopted file.
        file_name: what the files are called.
        train: faces that set the ranges of int8.
        validation: labelled faces.
        opset: of the float32 graph.
        temperature: where it is not to be fitted.
    """
    progress = options.progress
    judged_labels, truth, labels_from = _labels(validation, options.votes, len(original.labels))
    labelled = np.zeros((0, *original.face_shape), np.uint8) if validation is None else validation.faces
    labelled_logits = original.logits(labelled)
    if temperature is not None:
        calibration = dataclasses.replace(NOT_CALIBRATED, temperature=temperature)
    else:
        fitted = _calibration(labelled_logits, truth, labels_from)
        calibration = fitted or kept_calibration(original, sha256, options.models_dir, file_name)
    progress(f"exporting at opset {opset}")
    fp32 = make_graph(calibration)
    head = None
    if validation is not None and not original.is_foreign:
        head = _fit_unfamiliarity(fp32, labelled, train, calibration, progress)
    progress("choosing golden faces")
    complete = fp32 if head is None else add_output(fp32, head, "fp32")
    coverage = cover_units(complete, labelled if len(labelled) else None)
    if head is not None:
        on_made_up = idle_units(fp32, head.maps, [coverage.made_up])
        head = dataclasses.replace(head, idle=tuple(unit for unit in head.idle if unit in set(on_made_up)))
    faces = np.concatenate([labelled, coverage.made_up])
    subject = Subject(
        name=original.name,
        file_name=file_name,
        original=original,
        checkpoint_sha256=sha256,
        opset=opset,
        calibration=calibration,
        coverage=coverage,
        faces=faces,
        logits=np.concatenate([labelled_logits, original.logits(coverage.made_up)]),
        labels=judged_labels,
        truth=truth,
        labels_from=labels_from,
        train=train,
        validation=validation,
        budget=options.budget,
        batch=options.batch,
        head=head,
    )
    return subject, fp32


def _fit_unfamiliarity(
    fp32: onnx.ModelProto,
    labelled: Uint8Array,
    train: LabelledFaces | None,
    calibration: Calibration,
    progress: Callable[[str], None],
) -> Head | None:
    """The layer that computes unfamiliarity; None where it cannot be fitted, which `progress` is told."""
    progress("fitting unfamiliarity")
    # The threshold is fitted on faces that the layer has not seen.
    known, others = (train.faces, labelled) if train is not None else (labelled[::2], labelled[1::2])
    head = fit_head(fp32, known, others, uncertain_below=calibration.uncertain_below)
    if head is None:
        progress(
            f"no output unfamiliarity: it needs {FEWEST_FACES} labelled faces of each split, maps before a linear "
            f"layer, and an AUROC of {LEAST_AUROC} against synthetic images"
        )
    return head


def _labels(
    validation: LabelledFaces | None, votes: str | Path | None, classes: int
) -> tuple[Int64Array, FloatArray, str]:
    """What counts as right, and where it comes from.

    Returns:
        labels for the accuracy, int64 (faces,), -1 for a face that counts for nothing; shares for the calibration,
        float32 (faces, classes), zeros for such a face.
    """
    if votes is not None and validation is None:
        raise DataError("--votes holds labels of the faces of --data; give the dataset's root, too: --data DIR")
    if validation is None:
        return np.zeros(0, np.int64), np.zeros((0, classes), np.float32), ""
    if votes is None:
        shares = np.eye(len(validation.classes), dtype=np.float32)[validation.labels]
        return validation.labels, shares, "class folders"
    from fer_train.data.votes import distributions, open_votes, strict_majority, usable

    source = open_votes(votes, validation.classes)
    found = source.of(validation.paths, validation.small_gray(), split=validation.folder.name)
    majority = strict_majority(found)
    if not (majority >= 0).any():
        raise DataError(f"{votes} has no strict majority for any validation image; give the votes of this dataset")
    shares = np.where(usable(found)[:, None], distributions(found), 0).astype(np.float32)
    return majority, shares, f"votes {Path(votes).name}: shares of the raters, their strict majority for the accuracy"


def _calibration(logits: FloatArray, truth: FloatArray, labels_from: str) -> Calibration | None:
    """Fitted on labelled faces; None without them."""
    rated = truth.any(1)
    return calibrate(logits[rated], truth[rated], labels_from=labels_from) if rated.any() else None


def kept_calibration(original: Original, sha256: str, models_dir: Path, name: str) -> Calibration:
    """That of a published file of the same weights, or none."""
    for precision in PRECISIONS:
        path = model_path(models_dir, name, precision)
        metadata = metadata_of(path)
        if metadata is None or metadata.checkpoint_sha256 != sha256 or not metadata.calibration.get("faces"):
            continue
        if not _computes_what_was_certified(original, metadata, path):
            continue
        known = {
            field.name: metadata.calibration[field.name]
            for field in dataclasses.fields(Calibration)
            if field.name in metadata.calibration
        }
        if isinstance(interval := known.get("precision_interval"), list):
            known["precision_interval"] = tuple(interval)
        return Calibration(temperature=metadata.temperature, uncertain_below=metadata.uncertain_below, **known)
    return NOT_CALIBRATED


def _computes_what_was_certified(original: Original, metadata: ModelMetadata, path: Path) -> bool:
    """Whether the original answers the golden faces of a file of the same weights as it did then: the order of the
    labels and the pixels' range may be other ones now.
    """
    try:
        certificate = parse_certificate(metadata, source=str(path))
    except ModelFileError:
        return False
    if certificate.labels != original.labels or certificate.faces.shape[1:] != original.face_shape:
        return False
    difference = np.abs(original.logits(certificate.faces) - certificate.network_logits)
    return bool((difference <= LOOSEST["fp32"].logits * (1 + np.abs(certificate.network_logits))).all())
