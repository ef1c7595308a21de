"""From a checkpoint to published model files: what `fer-export` does."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch

from fer_export.fp16 import halve_model
from fer_export.gate.accuracy import Budget, budget_checks, measure_quality
from fer_export.gate.calibration import NOT_CALIBRATED, Calibration, calibrate
from fer_export.gate.file_parity import FileParity, compare_files
from fer_export.gate.golden import CALIBRATION_FACES, calibration_faces, parity_faces
from fer_export.gate.parity import FP16_TOLERANCE, FP32_TOLERANCE, check_parity, network_logits
from fer_export.gate.publish import REPLAY_TOLERANCES, Subject, publish
from fer_export.gate.report import ExportedModel, ExportRefusedError, ExportReport, write_report
from fer_export.gate.timing import Timing, measure_in_turns, speed_check
from fer_export.graph import DEFAULT_OPSET, export_graph, serialize
from fer_export.int8.optimized import integer_check
from fer_export.int8.quantize import quantize_model
from fer_export.int8.ranges import observe
from fer_runtime.errors import DataError, ModelFileError, OutputError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.files import sha256_of
from fer_runtime.model.find import DEFAULT_MODELS_DIR, Precision, checkpoint_path, model_path, parity_path
from fer_runtime.model.metadata import METADATA_KEY, parse_metadata
from fer_runtime.model.onnx_file import read_onnx_file
from fer_runtime.model.parity import FloatArray, run_model
from fer_runtime.model.session import open_session, runtime_version
from fer_train.checkpoints import Checkpoint, in_label_order, load_checkpoint
from fer_train.data.folders import LabelledFaces, load_faces

_FILES_COMPARED = 512
_LATENCY_BATCH, _THROUGHPUT_BATCH = 1, 64


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch on one thread, and as before afterwards: beside another busy process two wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def export_model(
    name: str,
    *,
    precisions: Sequence[Precision] = ("fp32",),
    checkpoint: Path | None = None,
    labels: Sequence[str] | None = None,
    data: Path | None = None,
    opset: int = DEFAULT_OPSET,
    models_dir: Path = DEFAULT_MODELS_DIR,
    budget: Budget = Budget(),  # noqa: B008 - frozen
    keep_anyway: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> ExportReport:
    """Export a network and publish each file that passes its gate.

    Args:
        name: of the network, such as "v0".
        precisions: which files to write.
        checkpoint: trained weights; the model's own in `models_dir` by default.
        labels: order of the checkpoint's logits, where the file does not say it; None assumes that of EXPRESSIONS.
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
    wanted = [one for one in REPLAY_TOLERANCES if one in precisions]
    if "int8" in wanted and data is None:
        raise DataError(
            "int8 needs labelled faces to set its ranges and to measure what it loses; "
            "give the dataset's root: fer-export --model " + name + " --precision int8 --data DIR"
        )
    source = checkpoint or checkpoint_path(models_dir, name)
    loaded = load_checkpoint(source, name=name, labels=labels)
    trained = in_label_order(loaded, EXPRESSIONS)
    _check_writable(models_dir)
    sha256 = sha256_of(source)
    validation = load_faces(data, "validation") if data is not None else None
    train = load_faces(data, "train") if data is not None and "int8" in wanted else None
    progress(f"{source}  {name}, " + (f"{len(validation)} labelled faces" if validation else "no labelled faces"))
    if loaded.place:
        progress(f"weights found at {loaded.place}")
    if loaded.labels_assumed:
        progress(f"label order assumed: {', '.join(loaded.expressions)}; another one is set with --labels")
    calibration = _calibration(trained, validation, sha256, model_path(models_dir, name))
    faces, real_faces = parity_faces(validation)
    subject = Subject(
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
    candidates: dict[Precision, bytes] = {"fp32": serialize(fp32, subject.metadata("fp32"))}
    for precision in wanted:
        if precision == "fp16":
            candidates["fp16"] = serialize(halve_model(fp32), subject.metadata("fp16"))
        if precision == "int8" and train is not None:
            progress(f"quantising: watching {CALIBRATION_FACES} training faces")
            quantized = quantize_model(fp32, observe(fp32, calibration_faces(train)), mean=trained.mean)
            candidates["int8"] = serialize(quantized, subject.metadata("int8"))
    progress("measuring speed")
    named = {str(precision): content for precision, content in candidates.items()}
    latency = measure_in_turns(named, faces, batch=_LATENCY_BATCH)
    throughput = measure_in_turns(named, faces, batch=_THROUGHPUT_BATCH, rounds=15)

    models: list[ExportedModel] = []
    reference: FloatArray | None = None
    for precision, content in candidates.items():
        progress(f"checking {precision}")
        timings = latency[precision], throughput[precision]
        judged, logits = _judge(subject, precision, content, reference, models_dir, *timings, latency["fp32"])
        reference = logits if precision == "fp32" else reference
        if precision in wanted:
            # A float file that computes something else is no model of the network at all.
            may_stand = judged.parity.passed or (keep_anyway and precision != "fp32")
            if may_stand:
                judged = publish(subject, judged, fp32 if precision == "fp32" else onnx.load_from_string(content))
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
    write_report(report, sha256)
    refused = [one for one in models if not one.is_published]
    may_be_kept = bool(refused) and all(one.precision != "fp32" for one in refused)
    if refused:
        raise ExportRefusedError(
            "; ".join(
                f"{one.path} is not published: "
                + ", ".join(f"{check.name} ({check.detail})" for check in one.parity.failures)
                for one in refused
            )
            + f"; the whole report is {report.path}"
            + (", and --keep-anyway publishes the file with this verdict inside" if may_be_kept else ""),
            report,
        )
    return report


def _check_writable(folder: Path) -> None:
    """Minutes before the first file is written.

    Raises:
        OutputError: it is not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error


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


def _exported(subject: Subject) -> onnx.ModelProto:
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
            f"onnxruntime {runtime_version()} cannot run a model of opset {subject.opset} ({error}); {advice}"
        ) from error
    return model


def _judge(
    subject: Subject,
    precision: Precision,
    content: bytes,
    reference: FloatArray | None,
    models_dir: Path,
    latency: Timing,
    throughput: Timing,
    fp32_latency: Timing,
) -> tuple[ExportedModel, FloatArray | None]:
    """Put one candidate through its gate; also returns its logits for the labelled faces.

    Args:
        reference: the fp32 model's logits for the labelled faces; None for fp32 itself and without such faces.
    """
    report = check_parity(
        content,
        subject.trained,
        subject.faces,
        real_faces=subject.real_faces,
        temperature=subject.calibration.temperature,
        opset=subject.opset,
        tolerance={"fp32": FP32_TOLERANCE, "fp16": FP16_TOLERANCE, "int8": None}[precision],
    )
    checks = list(report.checks)
    logits: FloatArray | None = None
    quality = agreement = None
    if subject.validation is not None and report.comparison is not None:
        session = open_session(content, source="the exported model").session
        logits = run_model(session, subject.validation.faces).logits
        quality = measure_quality(logits, subject.validation.labels)
        if reference is not None:
            agreement = float((logits.argmax(1) == reference.argmax(1)).mean())
            if precision == "int8":
                checks += budget_checks(quality, measure_quality(reference, subject.validation.labels), subject.budget)
    if precision == "int8":
        checks += [integer_check(content), speed_check(latency, fp32_latency)]
    return (
        ExportedModel(
            precision=precision,
            path=model_path(models_dir, subject.name, precision),
            is_published=False,
            model_bytes=len(content),
            parity=dataclasses.replace(report, checks=tuple(checks)),
            quality=quality,
            agreement=agreement,
            latency=latency,
            throughput=throughput,
            speedup=fp32_latency.undisturbed_ms / latency.undisturbed_ms,
        ),
        logits,
    )


def _file_parity(subject: Subject, model: bytes) -> FileParity | None:
    if subject.validation is None:
        return None
    every = max(1, len(subject.validation) // _FILES_COMPARED)
    paths = [subject.validation.folder / path for path in subject.validation.paths[::every][:_FILES_COMPARED]]
    return compare_files(paths, subject.trained, model)
