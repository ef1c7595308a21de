"""From a checkpoint to published model files: what `fer-export` does."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxscript
import torch

from fer_export.accuracy import Budget, Quality, budget_checks, measure_quality
from fer_export.calibration import NOT_CALIBRATED, Calibration, calibrate
from fer_export.faces import golden_faces, synthetic_faces, textures
from fer_export.file_parity import FileParity, compare_files
from fer_export.graph import DEFAULT_OPSET, export_graph, serialize
from fer_export.half import halve_model
from fer_export.parity import FP16_TOLERANCE, FP32_TOLERANCE, ParityReport, check_parity, network_logits
from fer_export.quantization import integer_check, observe, quantize_model
from fer_export.rounding import PAIR_LIMIT, WEIGHT_LIMIT
from fer_export.timing import Timing, TimingReport, measure_in_turns
from fer_runtime import __version__
from fer_runtime.certificate import Certificate
from fer_runtime.comparison import Check, FloatArray, Tolerance, Uint8Array, run_model
from fer_runtime.errors import DataError, ModelFileError, ParityError
from fer_runtime.files import replaced_atomically, sha256_of, write_atomically
from fer_runtime.metadata import METADATA_KEY, ModelMetadata, parse_metadata
from fer_runtime.models import (
    DEFAULT_MODELS_DIR,
    Precision,
    checkpoint_path,
    model_path,
    parity_path,
)
from fer_runtime.onnx_file import content_digest, read_onnx_file
from fer_runtime.self_test import run_self_test
from fer_runtime.session import open_session
from fer_train.checkpoints import Checkpoint, load_checkpoint
from fer_train.data import LabelledFaces, load_faces

SEED = 0  # of every random choice of faces
PARITY_FACES = 256  # real faces that the gate compares; more find no other fault
CALIBRATION_FACES = 512  # training faces whose activations set the int8 ranges
_FILES_COMPARED = 512
_LATENCY_BATCH, _THROUGHPUT_BATCH = 1, 64

# How far a replay of the golden faces may lie from the export's own answers on another machine. Floats
# are summed in another order there. Integers came out equal on AVX2, AVX-512 and ARM; the room is for
# providers that round halves differently. Sums cut off in 16 bits moved logits by 6.
_REPLAY_TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": FP32_TOLERANCE,
    "fp16": FP16_TOLERANCE,
    "int8": Tolerance(logits=0.05, probabilities=0.03, margin=0.1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """One file, published or refused."""

    precision: Precision
    path: Path
    is_published: bool
    model_bytes: int
    parity: ParityReport  # all checks of the gate, whatever they ask
    quality: Quality | None  # on labelled faces; None without them
    agreement: float | None  # fraction of the labelled faces with the same label as fp32
    latency: Timing  # at batch 1, in turns with the other files
    throughput: Timing  # at batch 64
    speedup: float  # over fp32 at batch 1

    def to_dict(self) -> dict[str, Any]:
        return {
            "precision": self.precision,
            "file": self.path.name,
            "is_published": self.is_published,
            "model_bytes": self.model_bytes,
            **self.parity.to_dict(),
            "quality": None if self.quality is None else self.quality.to_dict(),
            "agreement_with_fp32": self.agreement,
            "latency": self.latency.to_dict(),
            "throughput": self.throughput.to_dict(),
            "speedup": self.speedup,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """Everything that one run compared."""

    name: str
    models: tuple[ExportedModel, ...]
    calibration: Calibration
    file_parity: FileParity | None  # None without pictures
    path: Path  # of the report on disk


class ExportRefusedError(ParityError):
    """A file did not pass its gate and was not published; `report` has the whole story."""

    def __init__(self, message: str, report: ExportReport) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What all files of one run have in common."""

    name: str
    trained: Checkpoint
    checkpoint_sha256: str
    opset: int
    calibration: Calibration
    faces: Uint8Array  # for the parity gate
    real_faces: int
    train: LabelledFaces | None
    validation: LabelledFaces | None
    budget: Budget = field(default_factory=Budget)


def export_model(
    name: str,
    *,
    precisions: Sequence[Precision] = ("fp32",),
    checkpoint: Path | None = None,
    data: Path | None = None,
    opset: int = DEFAULT_OPSET,
    models_dir: Path = DEFAULT_MODELS_DIR,
    budget: Budget = Budget(),  # noqa: B008 - frozen
    keep_anyway: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> ExportReport:
    """Export a network and publish each file that passes its gate.

    Args:
        name: "v0" or "v1".
        precisions: which files to write.
        checkpoint: trained weights; the model's own in `models_dir` by default.
        data: the dataset's root; without it made-up faces are compared, and there is no int8.
        opset: ONNX opset version.
        models_dir: where files are read and written.
        budget: what int8 may lose.
        keep_anyway: publish int8 and fp16 files that fail, with the verdict in their metadata.
        progress: told what happens.

    Raises:
        CheckpointError: the weights are missing, damaged or of another network.
        DataError: the pictures are missing or unreadable, or int8 is asked for without them.
        ModelFileError: PyTorch or onnxruntime cannot make or run a model of this opset.
        ExportRefusedError: a file failed its gate; the others are published.
        OutputError: a file cannot be written.
    """
    wanted = [one for one in _REPLAY_TOLERANCES if one in precisions]
    if "int8" in wanted and data is None:
        raise DataError(
            "int8 needs labelled faces to set its ranges and to measure what it loses; "
            "give the dataset's root: fer-export --model " + name + " --precision int8 --data DIR"
        )
    source = checkpoint or checkpoint_path(models_dir, name)
    trained = load_checkpoint(source, name=name)
    sha256 = sha256_of(source)
    validation = load_faces(data, "validation") if data is not None else None
    train = load_faces(data, "train") if data is not None and "int8" in wanted else None
    progress(f"{source}  {name}, " + (f"{len(validation)} labelled faces" if validation else "no labelled faces"))
    calibration = _calibration(trained, validation, sha256, model_path(models_dir, name))
    faces, real_faces = parity_faces(validation)
    subject = _Subject(
        name=name,
        trained=trained,
        checkpoint_sha256=sha256,
        opset=opset,
        calibration=calibration,
        faces=faces,
        real_faces=real_faces,
        train=train,
        validation=validation,
        budget=budget,
    )
    progress(f"exporting at opset {opset}")
    fp32 = _exported(subject)
    candidates: dict[Precision, bytes] = {"fp32": serialize(fp32, _metadata(subject, "fp32"))}
    for precision in wanted:
        if precision == "fp16":
            candidates["fp16"] = serialize(halve_model(fp32), _metadata(subject, "fp16"))
        if precision == "int8" and train is not None:
            progress(f"quantising: watching {CALIBRATION_FACES} training faces")
            quantized = quantize_model(fp32, observe(fp32, calibration_faces(train)), mean=trained.mean)
            candidates["int8"] = serialize(quantized, _metadata(subject, "int8"))
    progress("measuring speed")
    named = {str(precision): content for precision, content in candidates.items()}
    latency = measure_in_turns(named, faces, batch=_LATENCY_BATCH)
    throughput = measure_in_turns(named, faces, batch=_THROUGHPUT_BATCH, rounds=15)

    models: list[ExportedModel] = []
    reference: FloatArray | None = None
    for precision, content in candidates.items():
        progress(f"checking {precision}")
        judged, logits = _judge(subject, precision, content, reference, latency, throughput, models_dir)
        reference = logits if precision == "fp32" else reference
        if precision in wanted:
            # A float file that computes something else is no model of the network at all.
            may_stand = judged.parity.passed or (keep_anyway and precision != "fp32")
            if may_stand:
                judged = _publish(subject, judged, fp32 if precision == "fp32" else onnx.load_from_string(content))
            models.append(judged)
        elif not judged.parity.passed:
            models.append(judged)
        if precision == "fp32" and not judged.parity.passed:
            break
    report = ExportReport(
        name=name,
        models=tuple(models),
        calibration=calibration,
        file_parity=_file_parity(subject, candidates["fp32"]),
        path=parity_path(models_dir, name),
    )
    _write_report(report, sha256)
    refused = [one for one in models if not one.is_published]
    if refused:
        raise ExportRefusedError(
            "; ".join(
                f"{one.path} is not published: "
                + ", ".join(f"{check.name} ({check.detail})" for check in one.parity.failures)
                for one in refused
            )
            + f"; the whole report is {report.path}",
            report,
        )
    return report


def parity_faces(validation: LabelledFaces | None) -> tuple[Uint8Array, int]:
    """Faces for the gate, uint8 (faces, 48, 48), and how many of them are real."""
    if validation is None:
        return np.concatenate([textures(PARITY_FACES), synthetic_faces()]), 0
    chosen = np.random.default_rng(SEED).permutation(len(validation))[:PARITY_FACES]
    real = validation.faces[np.sort(chosen)]
    made_up = [synthetic_faces()] if len(real) >= PARITY_FACES else [textures(PARITY_FACES), synthetic_faces()]
    return np.concatenate([real, *made_up]), len(real)


def calibration_faces(train: LabelledFaces) -> Uint8Array:
    """The training faces that set the int8 ranges, uint8 (faces, 48, 48): a seeded sample."""
    return train.faces[np.random.default_rng(SEED).permutation(len(train))[:CALIBRATION_FACES]]


def tool_versions() -> dict[str, str]:
    """Versions of what shapes the file."""
    return {
        "fer-edge": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxscript": onnxscript.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }


def _calibration(trained: Checkpoint, validation: LabelledFaces | None, sha256: str, published: Path) -> Calibration:
    """Fitted on labelled faces; without them, that of the published file of the same weights, or none."""
    if validation is not None:
        return calibrate(network_logits(trained, validation.faces), validation.labels)
    try:
        file, _ = read_onnx_file(published)
        metadata = parse_metadata(file.metadata.get(METADATA_KEY), source=str(published))
    except ModelFileError:
        return NOT_CALIBRATED
    if metadata.checkpoint_sha256 != sha256 or not metadata.calibration.get("faces"):
        return NOT_CALIBRATED
    known = {
        key: metadata.calibration.get(key) for key in ("faces", "ece_before", "ece_after", "precision", "coverage")
    }
    return Calibration(temperature=metadata.temperature, uncertain_below=metadata.uncertain_below, **known)  # type: ignore[arg-type]


def _exported(subject: _Subject) -> onnx.ModelProto:
    """The float32 model; an opset that cannot be written or run is the user's to put right."""
    advice = f"choose another opset: --opset {DEFAULT_OPSET}"
    try:
        model = export_graph(subject.trained, temperature=subject.calibration.temperature, opset=subject.opset)
    except Exception as error:  # the exporter's exceptions share no base class
        if subject.opset == DEFAULT_OPSET:
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelFileError(f"PyTorch cannot export at opset {subject.opset} ({reason}); {advice}") from error
    written = model.opset_import[0].version
    if written != subject.opset:  # the exporter only warns when it cannot convert
        raise ModelFileError(f"PyTorch wrote opset {written}, not opset {subject.opset} as asked; {advice}")
    try:
        open_session(model.SerializeToString(), source="the exported model")
    except ModelFileError as error:
        raise ModelFileError(
            f"onnxruntime {onnxruntime.__version__} cannot run a model of opset {subject.opset} ({error}); {advice}"
        ) from error
    return model


def _metadata(subject: _Subject, precision: Precision) -> ModelMetadata:
    return ModelMetadata(
        name=subject.name,
        expressions=subject.trained.expressions,
        precision=precision,
        opset=subject.opset,
        temperature=subject.calibration.temperature,
        uncertain_below=subject.calibration.uncertain_below,
        checkpoint_sha256=subject.checkpoint_sha256,
        training=subject.trained.training,
        calibration=subject.calibration.to_dict(),
        versions=tool_versions(),
    )


def _judge(
    subject: _Subject,
    precision: Precision,
    content: bytes,
    reference: FloatArray | None,
    latency: TimingReport,
    throughput: TimingReport,
    models_dir: Path,
) -> tuple[ExportedModel, FloatArray | None]:
    """Put one candidate through its gate; also returns its logits for the labelled faces."""
    report = check_parity(
        content,
        subject.trained,
        subject.faces,
        real_faces=subject.real_faces,
        temperature=subject.calibration.temperature,
        opset=subject.opset,
        tolerance={"fp32": FP32_TOLERANCE, "fp16": FP16_TOLERANCE, "int8": None}[precision],
    )
    checks: list[Check] = list(report.checks)
    logits: FloatArray | None = None
    quality = agreement = None
    if subject.validation is not None and report.comparison is not None:
        session = open_session(content, source="the exported model").session
        logits = run_model(session, subject.validation.faces).logits
        quality = measure_quality(logits, subject.validation.labels)
        if reference is not None:
            agreement = float((logits.argmax(1) == reference.argmax(1)).mean())
            if precision == "int8":
                fp32_quality = measure_quality(reference, subject.validation.labels)
                checks += budget_checks(quality, fp32_quality, subject.budget)
    ratio = latency.ratios[precision]
    if precision == "int8":
        checks.append(integer_check(content))
        checks.append(
            Check(
                name="speed",
                passed=ratio < 1,
                detail=f"{1 / ratio:.2f} times as fast as fp32 at batch 1 "
                f"({latency.timings['int8'].p50_ms:.3f} ms, fp32 {latency.timings['fp32'].p50_ms:.3f} ms)",
            )
        )
    return (
        ExportedModel(
            precision=precision,
            path=model_path(models_dir, subject.name, precision),
            is_published=False,
            model_bytes=len(content),
            parity=dataclasses.replace(report, checks=tuple(checks)),
            quality=quality,
            agreement=agreement,
            latency=latency.timings[precision],
            throughput=throughput.timings[precision],
            speedup=1 / ratio,
        ),
        logits,
    )


def _publish(subject: _Subject, judged: ExportedModel, model: onnx.ModelProto) -> ExportedModel:
    """Write the file with verdict and certificate, replay it from the disk, and only then give it its name."""
    sealed = _sealed(subject, judged, model)
    with replaced_atomically(judged.path) as partial:
        partial.write_bytes(sealed)
        replayed = run_self_test(partial)
        if not replayed.passed:
            raise ParityError(
                f"{judged.path} is not published: what was written does not pass its own self-test: "
                + "; ".join(str(check) for check in replayed.checks if not check.passed)
            )
    return dataclasses.replace(judged, is_published=True, model_bytes=len(sealed))


def _sealed(subject: _Subject, judged: ExportedModel, model: onnx.ModelProto) -> bytes:
    golden = golden_faces()
    metadata = _metadata(subject, judged.precision)
    own = run_model(open_session(serialize(model, metadata), source="the exported model").session, golden)
    certificate = Certificate(
        faces=golden,
        network_logits=network_logits(subject.trained, golden),
        model_logits=own.logits,
        tolerance=_REPLAY_TOLERANCES[judged.precision],
        measured={} if judged.parity.comparison is None else judged.parity.comparison.to_dict(),
        made_with={"onnxruntime": onnxruntime.__version__, "provider": "CPU", "machine": platform.machine()},
    )
    metadata = dataclasses.replace(metadata, verdict=_verdict(subject, judged), certificate=certificate.to_dict())
    digest = content_digest(serialize(model, metadata))
    return serialize(model, dataclasses.replace(metadata, certificate={**metadata.certificate, "digest": digest}))


def _verdict(subject: _Subject, judged: ExportedModel) -> dict[str, Any]:
    """What the gate found, without times: equal exports give equal bytes. Only a refusal for speed names them."""
    verdict: dict[str, Any] = {
        "passed": judged.parity.passed,
        "failures": [f"{check.name}: {check.detail}" for check in judged.parity.failures],
        "checks": [check.name for check in judged.parity.checks],
        "faces": judged.parity.faces,
        "real_faces": judged.parity.real_faces,
        "labelled_faces": 0,
    }
    if judged.quality is not None and subject.validation is not None:
        verdict |= {
            "labelled_faces": judged.quality.faces,
            "labelled_faces_fingerprint": subject.validation.fingerprint,
            "accuracy": round(judged.quality.accuracy, 6),
            "macro_f1": round(judged.quality.macro_f1, 6),
            "worst_recall": round(judged.quality.worst_recall, 6),
            "agreement_with_fp32": None if judged.agreement is None else round(judged.agreement, 6),
        }
    if judged.precision == "int8":
        verdict["budget_points"] = dataclasses.asdict(subject.budget)
        verdict["quantization"] = {
            "activations": "uint8",
            "weights": f"int8 per channel, up to {WEIGHT_LIMIT}, neighbours together up to {PAIR_LIMIT}",
            "calibration_faces": CALIBRATION_FACES,
            "seed": SEED,
        }
    return verdict


def _file_parity(subject: _Subject, model: bytes) -> FileParity | None:
    if subject.validation is None:
        return None
    every = max(1, len(subject.validation) // _FILES_COMPARED)
    paths = [subject.validation.folder / path for path in subject.validation.paths[::every][:_FILES_COMPARED]]
    return compare_files(paths, subject.trained, model)


def _write_report(report: ExportReport, checkpoint_sha256: str) -> None:
    """Write the report; what it says of other precisions of the same checkpoint stays."""
    files: dict[str, Any] = {}
    try:
        before = json.loads(report.path.read_text(encoding="utf-8"))
        if before["checkpoint_sha256"] == checkpoint_sha256:
            files = dict(before["files"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    files |= {one.precision: one.to_dict() for one in report.models}
    content = {
        "model": report.name,
        "checkpoint_sha256": checkpoint_sha256,
        "versions": tool_versions(),
        "calibration": {
            "temperature": report.calibration.temperature,
            "uncertain_below": report.calibration.uncertain_below,
            **report.calibration.to_dict(),
        },
        "file_parity": None if report.file_parity is None else report.file_parity.to_dict(),
        "files": files,
    }
    write_atomically(report.path, json.dumps(content, indent=1) + "\n")
