"""From a checkpoint to published model files: what `fer-export` does."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from fer_export.fp16 import halve_model
from fer_export.gate.accuracy import (
    NUMBER_LIMITS,
    Budget,
    Int64Array,
    budget_checks,
    measure_quality,
    number_checks,
    proof_shortfall,
)
from fer_export.gate.calibration import NOT_CALIBRATED, Calibration, calibrate, calibration_check, fitted_check
from fer_export.gate.coverage import Coverage, cover_units
from fer_export.gate.golden import SEED, calibration_faces
from fer_export.gate.original import Original, original_of
from fer_export.gate.parity import as_outputs, check_parity, guarded, run_shuffled
from fer_export.gate.publish import REPLAY_TOLERANCES, Subject, publish
from fer_export.gate.report import ExportedModel, ExportRefusedError, ExportReport, write_report
from fer_export.gate.timing import Timing, measure_in_turns, speed_check
from fer_export.gate.unfamiliar import unfamiliar_checks, unfamiliarity_of
from fer_export.gate.units import UnitLimits, unit_check
from fer_export.gate.weights import weights_check
from fer_export.graph import DEFAULT_OPSET, export_graph, fix_batch, serialize, set_temperature
from fer_export.int8.known import first_unknown
from fer_export.int8.optimized import integer_check
from fer_export.int8.quantize import LOWEST_OPSET, quantize_model
from fer_export.int8.ranges import observe
from fer_export.int8.stock import quantize_stock
from fer_export.unfamiliar.graph import add_output
from fer_export.unfamiliar.head import FEWEST_FACES, LEAST_AUROC, OperatingPoint, fit_head, fit_threshold, idle_units
from fer_runtime.errors import DataError, ModelFileError, OutputError
from fer_runtime.files import sha256_of
from fer_runtime.metrics import accuracy, best_label_order, confusion_matrix
from fer_runtime.model.find import (
    DEFAULT_MODELS_DIR,
    PRECISIONS,
    Precision,
    checkpoint_path,
    model_path,
    parity_path,
)
from fer_runtime.model.metadata import METADATA_KEY, ModelMetadata, parse_metadata
from fer_runtime.model.onnx_file import read_onnx, read_onnx_file
from fer_runtime.model.parity import Check, FloatArray, Outputs, Uint8Array
from fer_runtime.model.session import open_session, runtime_version
from fer_train.checkpoints import Checkpoint, in_label_order, load_checkpoint
from fer_train.data.dataset import load_splits, load_validation
from fer_train.data.folders import LabelledFaces

_LATENCY_BATCH, _THROUGHPUT_BATCH = 1, 64
_UNIT_FACES = 256  # on which the layers of int8 and fp32 are compared
# Another order of the labels must be better by so much, and by more than chance among all orders explains.
_OTHER_ORDER, _ORDER_CHANCE = 0.02, 0.01


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread, and as before afterwards: beside another busy process two wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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


@one_thread()
def export_model(
    name: str,
    *,
    own_name: str | None = None,
    precisions: Sequence[Precision] = ("fp32",),
    checkpoint: Path | None = None,
    labels: Sequence[str] | None = None,
    data: Path | None = None,
    votes: str | Path | None = None,
    opset: int = DEFAULT_OPSET,
    batch: int | None = None,
    models_dir: Path = DEFAULT_MODELS_DIR,
    budget: Budget = Budget(),  # noqa: B008 - frozen
    keep_anyway: bool = False,
    replace: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> ExportReport:
    """Export a network and publish each file that passes its gate.

    Args:
        name: of the network, such as "v0".
        own_name: what the files are called, such as "mine"; the network's own name by default.
        precisions: which files to write.
        checkpoint: trained weights; the model's own in `models_dir` by default.
        labels: order of the checkpoint's logits, where the file does not say it; None assumes that of EXPRESSIONS.
        data: the dataset's root; without it made-up faces are compared, and there is no int8.
        votes: raters' votes for the faces of `data`, a CSV file or "ferplus"; their strict majority replaces the class
            folders as labels.
        opset: ONNX opset version.
        batch: a fixed batch size, for runtimes that read no dynamic one; None for a dynamic batch.
        models_dir: where files are read and written.
        budget: what int8 may lose.
        keep_anyway: publish int8 and fp16 files that fail, with the verdict in their metadata.
        replace: also over files of another checkpoint, or of another program.
        progress: told what happens.

    Raises:
        CheckpointError: the weights are missing, damaged or of another network.
        DataError: the images are missing or unreadable, or int8 is asked for without them.
        ModelFileError: PyTorch or onnxruntime cannot make or run a model of this opset.
        ExportRefusedError: a file failed its gate; the others are published.
        OutputError: a file cannot be written, or one of another checkpoint stands in its place.
    """
    wanted = [one for one in REPLAY_TOLERANCES if one in precisions]
    subject, fp32 = prepare(
        name,
        own_name=own_name,
        wanted=wanted,
        checkpoint=checkpoint,
        labels=labels,
        data=data,
        votes=votes,
        opset=opset,
        batch=batch,
        models_dir=models_dir,
        budget=budget,
        replace=replace,
        progress=progress,
    )
    return publish_files(
        subject, fp32, wanted=wanted, models_dir=models_dir, keep_anyway=keep_anyway, progress=progress
    )


def publish_files(
    subject: Subject,
    fp32: onnx.ModelProto,
    *,
    wanted: Sequence[Precision],
    models_dir: Path,
    keep_anyway: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> ExportReport:
    """Make a file of each precision, judge it, and publish those that pass.

    Args:
        subject: what the files are judged by.
        fp32: the float32 graph, which the others are made from.
        wanted: precisions to publish, in the order of REPLAY_TOLERANCES.
        models_dir, keep_anyway, progress: as for `export_model`.

    Raises:
        ExportRefusedError: a file failed its gate; the others are published.
        OutputError: a file cannot be written.
    """
    candidates = [make_candidate(subject, "fp32", fp32)]
    for precision in wanted:
        if precision == "fp16":
            candidates.append(make_candidate(subject, "fp16", halve_model(fp32)))
        if precision == "int8" and subject.train is not None:
            candidates.append(_quantized(subject, fp32, subject.train, progress))
    progress("measuring speed")
    named = {str(one.precision): one.content for one in candidates}
    latency = measure_in_turns(named, subject.faces, batch=subject.batch or _LATENCY_BATCH)
    throughput = measure_in_turns(named, subject.faces, batch=subject.batch or _THROUGHPUT_BATCH, rounds=15)

    models: list[ExportedModel] = []
    reference: tuple[Candidate, ExportedModel] | None = None
    for one in candidates:
        progress(f"checking {one.precision}")
        timings = latency[one.precision], throughput[one.precision], latency["fp32"]
        judged = judge(subject, one, reference, models_dir, *timings)
        if one.precision == "fp32":
            reference = one, judged
        if one.precision in wanted:
            # A float file that computes something else is no model of the network at all.
            may_stand = judged.parity.passed or (keep_anyway and one.precision != "fp32")
            if may_stand:
                judged = publish(subject, judged, one.model, one.content)
            models.append(judged)
        elif not judged.parity.passed:
            models.append(judged)
        if one.precision == "fp32" and not judged.parity.passed:
            break
    report = ExportReport(
        name=subject.name,
        models=tuple(models),
        calibration=subject.calibration,
        coverage=subject.coverage,
        path=parity_path(models_dir, subject.file_name),
    )
    write_report(report, subject.checkpoint_sha256)
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
            + (", and --keep-anyway publishes the file with this verdict inside" if may_be_kept else "")
            + (
                "; the float32 file passes: publish it with --precision fp32"
                if may_be_kept and "fp32" not in wanted
                else ""
            ),
            report,
        )
    return report


def prepare(
    name: str,
    *,
    own_name: str | None = None,
    wanted: Sequence[Precision],
    checkpoint: Path | None = None,
    labels: Sequence[str] | None = None,
    data: Path | None = None,
    votes: str | Path | None = None,
    opset: int = DEFAULT_OPSET,
    batch: int | None = None,
    models_dir: Path = DEFAULT_MODELS_DIR,
    budget: Budget = Budget(),  # noqa: B008 - frozen
    replace: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[Subject, onnx.ModelProto]:
    """Read the weights and faces of an export; returns what its files are judged by, and the float32 graph.

    Arguments and errors are those of `export_model`.
    """
    if "int8" in wanted and data is None:
        raise DataError(
            "int8 needs labelled faces to set its ranges and to measure what it loses; "
            "give the dataset's root: fer-export --model " + name + " --precision int8 --data DIR"
        )
    files = own_name or name
    source = checkpoint or checkpoint_path(models_dir, files)
    loaded = load_checkpoint(source, name=name, labels=labels)
    # As class folders are numbered, whose labels the file is judged by.
    trained = in_label_order(loaded, sorted(loaded.expressions))
    sha256 = sha256_of(source)
    check_places([output_path(models_dir, files, one, batch) for one in wanted], sha256, source, replace=replace)
    validation = train = None
    if data is not None:
        # The seed of the training: where a share of train was held out, it is that share again.
        seed = trained.training.get("seed")
        how: dict[str, Any] = {
            "seed": seed if isinstance(seed, int) else 0,
            "classes": trained.expressions,
            "size": trained.size,
            "color": trained.color,
        }
        if "int8" in wanted:
            splits = load_splits(data, **how)
            train, validation = splits.train, splits.validation
        else:
            validation = load_validation(data, **how)
    progress(f"{source}  {name}, " + (f"{len(validation)} labelled faces" if validation else "no labelled faces"))
    if loaded.place:
        progress(f"weights found at {loaded.place}")
    if loaded.labels_assumed:
        progress(f"label order assumed: {', '.join(loaded.expressions)}; another one is set with --labels")
    return prepare_subject(
        original_of(trained),
        lambda calibration: _exported(trained, calibration, opset),
        sha256=sha256,
        file_name=files,
        train=train,
        validation=validation,
        votes=votes,
        opset=opset,
        batch=batch,
        models_dir=models_dir,
        budget=budget,
        progress=progress,
    )


def prepare_subject(
    original: Original,
    make_graph: Callable[[Calibration], onnx.ModelProto],
    *,
    sha256: str,
    file_name: str,
    train: LabelledFaces | None = None,
    validation: LabelledFaces | None = None,
    votes: str | Path | None = None,
    opset: int = DEFAULT_OPSET,
    batch: int | None = None,
    models_dir: Path = DEFAULT_MODELS_DIR,
    budget: Budget = Budget(),  # noqa: B008 - frozen
    temperature: float | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[Subject, onnx.ModelProto]:
    """Everything that the files of one run are judged by, and their float32 graph.

    Args:
        original: what they are held against.
        make_graph: the float32 graph, with the temperature of a calibration.
        sha256: of the checkpoint or the adopted file.
        file_name: what the files are called.
        train: faces that set the ranges of int8.
        validation: labelled faces.
        temperature: where it is not to be fitted.
        votes, opset, batch, models_dir, budget, progress: as for `export_model`.
    """
    judged_labels, truth, labels_from = _labels(validation, votes, len(original.labels))
    labelled = np.zeros((0, *original.face_shape), np.uint8) if validation is None else validation.faces
    labelled_logits = original.logits(labelled)
    if temperature is not None:
        calibration = dataclasses.replace(NOT_CALIBRATED, temperature=temperature)
    else:
        calibration = _calibration(labelled_logits, truth, labels_from, sha256, models_dir, file_name)
    progress(f"exporting at opset {opset}")
    fp32 = make_graph(calibration)
    head = None
    if validation is not None and not original.is_foreign:
        progress("fitting unfamiliarity")
        # The threshold is fitted on faces that the layer has not seen.
        known, others = (train.faces, labelled) if train is not None else (labelled[::2], labelled[1::2])
        head = fit_head(fp32, known, others, uncertain_below=calibration.uncertain_below)
        if head is None:
            progress(
                f"no output unfamiliarity: it needs {FEWEST_FACES} labelled faces of each split, maps before a linear "
                f"layer, and an AUROC of {LEAST_AUROC} against made-up images"
            )
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
        budget=budget,
        batch=batch,
        head=head,
    )
    return subject, fp32


def _quantized(
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


def output_path(models_dir: Path, name: str, precision: Precision, batch: int | None = None) -> Path:
    """The file that an export writes; one of a fixed batch has the batch in its name, `model_0.batch1.onnx`."""
    path = model_path(models_dir, name, precision)
    return path if batch is None else path.with_name(path.name.removesuffix(".onnx") + f".batch{batch}.onnx")


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
            head, fault = None, _first_line(error)
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
            fault = _first_line(error)
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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def check_places(places: Sequence[Path], sha256: str, source: Path, *, replace: bool) -> None:
    """Check that the files can be written, minutes before the first one is.

    Args:
        places: the files, all in one folder.
        sha256: of what they are made from, `source`.
        replace: whatever stands there.

    Raises:
        OutputError: the folder is not writable, or holds models of another origin.
    """
    for folder in {place.parent for place in places}:
        _check_writable(folder)
    for place in places if not replace else ():
        _check_replaceable(place, sha256, source)


def _check_writable(folder: Path) -> None:
    """Raises OutputError where it is not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error


def _check_replaceable(path: Path, sha256: str, source: Path) -> None:
    """Raises OutputError where `path` holds a model of another checkpoint, or something else."""
    if not path.exists():
        return
    said = _metadata_of(path)
    if said is not None and said.checkpoint_sha256 == sha256:
        return
    what = "is no model of fer-export" if said is None else "was exported from another checkpoint"
    raise OutputError(f"{path} {what} than {source}; add --replace to overwrite it, or give another --models-dir")


def _metadata_of(path: Path) -> ModelMetadata | None:
    try:
        file, _ = read_onnx_file(path)
        return parse_metadata(file.metadata.get(METADATA_KEY), source=str(path))
    except ModelFileError:
        return None


def _calibration(
    logits: FloatArray, truth: FloatArray, labels_from: str, sha256: str, models_dir: Path, name: str
) -> Calibration:
    """Fitted on labelled faces; without them, that of a published file of the same weights, or none."""
    rated = truth.any(1)
    if rated.any():
        return calibrate(logits[rated], truth[rated], labels_from=labels_from)
    for precision in PRECISIONS:
        said = _metadata_of(model_path(models_dir, name, precision))
        if said is None or said.checkpoint_sha256 != sha256 or not said.calibration.get("faces"):
            continue
        known = {
            field.name: said.calibration[field.name]
            for field in dataclasses.fields(Calibration)
            if field.name in said.calibration
        }
        if isinstance(interval := known.get("precision_interval"), list):
            known["precision_interval"] = tuple(interval)
        return Calibration(temperature=said.temperature, uncertain_below=said.uncertain_below, **known)
    return NOT_CALIBRATED


def _exported(trained: Checkpoint, calibration: Calibration, opset: int) -> onnx.ModelProto:
    """The float32 model; an opset that cannot be written or run is the user's to put right."""
    advice = f"choose another opset: --opset {DEFAULT_OPSET}"
    try:
        model = export_graph(trained, temperature=calibration.temperature, opset=opset)
    except Exception as error:  # the exporter's exceptions share no base class
        if opset == DEFAULT_OPSET:
            raise
        raise ModelFileError(f"PyTorch cannot export at opset {opset} ({_first_line(error)}); {advice}") from error
    written = model.opset_import[0].version
    if written != opset:  # the exporter only warns when it cannot convert
        raise ModelFileError(f"PyTorch wrote opset {written}, not opset {opset} as asked; {advice}")
    try:
        open_session(model.SerializeToString(), source="the exported model")
    except ModelFileError as error:
        raise ModelFileError(
            f"onnxruntime {runtime_version()} cannot run a model of opset {opset} ({error}); {advice}"
        ) from error
    return model


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
    real = slice(0, subject.real_faces)  # made-up faces leave the ranges that real ones set
    if outputs is not None and precision != "fp32" and subject.real_faces:
        expected = as_outputs(subject.logits[real], subject.calibration.temperature)
        found = Outputs(logits=outputs.logits[real], probabilities=outputs.probabilities[real])
        checks += number_checks(expected, found, NUMBER_LIMITS[precision], subject.original.program)
    if outputs is not None and (rated := np.flatnonzero(subject.labels >= 0)).size:
        truth = subject.labels[rated]
        quality = measure_quality(outputs.logits[rated], truth, subject.original.labels)
        if precision == "fp32":
            checks.append(_order_check(outputs.logits[rated], truth, subject.original.labels))
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
            checks += guarded("units", lambda: [unit_check(fp32, model, some, limits)])
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


def _order_check(logits: FloatArray, labels: Int64Array, names: Sequence[str]) -> Check:
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
