"""`export_model`, the work of `fer-export`: from a checkpoint to published model files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch

from fer_export.candidates import make_candidate, quantized_candidate
from fer_export.fp16 import halve_model
from fer_export.gate.calibration import Calibration
from fer_export.gate.candidate import Candidate
from fer_export.gate.judge import judge
from fer_export.gate.original import original_of
from fer_export.gate.publish import publish
from fer_export.gate.report import ExportedModel, ExportRefusedError, ExportReport, write_report
from fer_export.gate.subject import Subject, prepare_subject
from fer_export.gate.timing import measure_in_turns
from fer_export.graph import DEFAULT_OPSET, export_graph
from fer_export.options import DEFAULT_OPTIONS, ExportOptions
from fer_export.places import check_places, files_of_another, output_path
from fer_runtime.errors import DataError, FerError, ModelFileError, first_line
from fer_runtime.files import sha256_of
from fer_runtime.model.find import Precision, checkpoint_path, parity_path
from fer_runtime.model.session import open_session, runtime_version
from fer_train.checkpoints import Checkpoint, in_label_order, load_checkpoint
from fer_train.data.dataset import load_splits, load_validation, seed_of_training
from fer_train.data.folders import LabelledFaces
from fer_train.networks.architectures import find_architecture

_LATENCY_BATCH, _THROUGHPUT_BATCH = 1, 64


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch on one thread in the block: beside another busy process, two threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def export_model(
    name: str,
    options: ExportOptions = DEFAULT_OPTIONS,
    *,
    own_name: str | None = None,
    checkpoint: Path | None = None,
    labels: Sequence[str] | None = None,
    opset: int = DEFAULT_OPSET,
) -> ExportReport:
    """Export a network and publish each file that passes its gate.

    Args:
        name: of the network, such as "v0".
        options: which files to write, what they are judged by, and where they go.
        own_name: stem of the file names, such as "mine"; the network's own by default.
        checkpoint: trained weights; the model's own in `options.models_dir` by default.
        labels: order of the checkpoint's logits, if the file does not say it; None assumes that of EXPRESSIONS.
        opset: ONNX opset version.

    Raises:
        CheckpointError: the weights are missing, damaged or of another network.
        DataError: the images are missing or unreadable, or int8 is asked for without them.
        ModelFileError: PyTorch or onnxruntime cannot make or run a model of this opset.
        ExportRefusedError: a file failed its gate; the others are published.
        OutputError: a file cannot be written, or would replace one of another checkpoint.
    """
    subject, fp32 = prepare(name, options, own_name=own_name, checkpoint=checkpoint, labels=labels, opset=opset)
    return publish_files(subject, fp32, options)


def publish_files(subject: Subject, fp32: onnx.ModelProto, options: ExportOptions) -> ExportReport:
    """Make a file of each precision, judge it, and publish those that pass.

    Args:
        subject: what the files are judged by.
        fp32: the float32 graph, which the others are made from.
        options: as for `export_model`.

    Raises:
        ExportRefusedError: a file failed its gate; the others are published.
        OutputError: a file cannot be written.
    """
    wanted = options.wanted
    candidates = _make_candidates(subject, fp32, options)
    options.progress("measuring speed")
    named = {str(candidate.precision): candidate.content for candidate in candidates}
    latency = measure_in_turns(named, subject.faces, batch=subject.batch or _LATENCY_BATCH)
    throughput = measure_in_turns(named, subject.faces, batch=subject.batch or _THROUGHPUT_BATCH, rounds=15)

    models: list[ExportedModel] = []
    reference: tuple[Candidate, ExportedModel] | None = None
    for candidate in candidates:
        options.progress(f"checking {candidate.precision}")
        timings = latency[candidate.precision], throughput[candidate.precision], latency["fp32"]
        judged = judge(subject, candidate, reference, options.models_dir, *timings)
        if candidate.precision == "fp32":
            reference = candidate, judged
        if candidate.precision in wanted:
            # A float file that computes something else is no model of the network at all.
            may_stand = judged.parity.passed or (options.keep_anyway and candidate.precision != "fp32")
            if may_stand:
                judged = publish(subject, judged, candidate.model, candidate.content)
            models.append(judged)
        elif not judged.parity.passed:
            models.append(judged)
        if candidate.precision == "fp32" and not judged.parity.passed:
            break
    report = ExportReport(
        name=subject.name,
        models=tuple(models),
        calibration=subject.calibration,
        coverage=subject.coverage,
        path=parity_path(options.models_dir, subject.file_name),
    )
    write_report(report, subject.checkpoint_sha256, batch=subject.batch)
    if any(model.is_published for model in models):
        for old in files_of_another(
            options.models_dir, subject.file_name, subject.checkpoint_sha256, batch=subject.batch
        ):
            options.progress(
                f"{old} has the same name and is of another checkpoint; export it again, or remove it: programs may "
                "take it for this model"
            )
    if any(not model.is_published for model in models):
        raise _refusal(report, wanted)
    return report


def _make_candidates(subject: Subject, fp32: onnx.ModelProto, options: ExportOptions) -> list[Candidate]:
    """The files to judge: fp32 first, wanted or not, since the others are compared with it."""
    candidates = [make_candidate(subject, "fp32", fp32)]
    for precision in options.wanted:
        if precision == "fp16":
            candidates.append(make_candidate(subject, "fp16", halve_model(fp32)))
        if precision == "int8" and subject.train is not None:
            candidates.append(quantized_candidate(subject, fp32, subject.train, options.progress))
    return candidates


def _refusal(report: ExportReport, wanted: Sequence[Precision]) -> ExportRefusedError:
    """The error that names the unpublished files, the failed checks, and what to do."""
    refused = [model for model in report.models if not model.is_published]
    may_be_kept = all(model.precision != "fp32" for model in refused)
    return ExportRefusedError(
        "; ".join(
            f"{model.path} is not published: "
            + ", ".join(f"{check.name} ({check.detail})" for check in model.parity.failures)
            for model in refused
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


def load_labelled_faces(
    data: Path,
    wanted: Sequence[Precision],
    *,
    size: int,
    color: str,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[LabelledFaces | None, LabelledFaces]:
    """Load the faces that set the ranges of int8 (None if int8 is not wanted), and those that judge the files.

    Arguments and errors are those of `load_splits`.
    """
    how: dict[str, Any] = {"seed": seed, "classes": classes, "size": size, "color": color}
    if "int8" not in wanted:
        return None, load_validation(data, **how)
    splits = load_splits(data, **how)
    return splits.train, splits.validation


def prepare(
    name: str,
    options: ExportOptions = DEFAULT_OPTIONS,
    *,
    own_name: str | None = None,
    checkpoint: Path | None = None,
    labels: Sequence[str] | None = None,
    opset: int = DEFAULT_OPSET,
) -> tuple[Subject, onnx.ModelProto]:
    """Read the weights and faces of an export; returns what its files are judged by, and the float32 graph.

    Arguments and errors are those of `export_model`.
    """
    wanted, data, progress = options.wanted, options.data, options.progress
    if "int8" in wanted and data is None:
        raise DataError(
            "int8 needs labelled faces to set its ranges and to measure what it loses; give the dataset's root: "
            f"fer-export {f'--model {name}' if own_name is None else f'--name {own_name}'} --precision int8 --data DIR"
        )
    files = own_name or name
    source = checkpoint or checkpoint_path(options.models_dir, files)
    loaded = load_checkpoint(source, name=name, labels=labels)
    # As class folders are numbered, whose labels the file is judged by.
    trained = in_label_order(loaded, sorted(loaded.expressions))
    sha256 = sha256_of(source)
    places = [output_path(options.models_dir, files, precision, options.batch) for precision in wanted]
    check_places(places, sha256, source, replace=options.replace)
    validation = train = None
    if data is not None:
        train, validation = load_labelled_faces(
            data,
            wanted,
            seed=seed_of_training(trained.training),
            classes=trained.expressions,
            size=trained.size,
            color=trained.color,
        )
    progress(f"{source}  {name}, " + (f"{len(validation)} labelled faces" if validation else "no labelled faces"))
    if loaded.place:
        progress(f"weights found at {loaded.place}")
    if loaded.labels_assumed:
        progress(f"label order assumed: {', '.join(loaded.expressions)}; another one is set with --labels")
    return prepare_subject(
        dataclasses.replace(
            original_of(trained),
            option_labels=loaded.expressions if loaded.labels_assumed or labels is not None else None,
        ),
        lambda calibration: _exported(trained, calibration, opset),
        options,
        sha256=sha256,
        file_name=files,
        train=train,
        validation=validation,
        opset=opset,
    )


def _exported(trained: Checkpoint, calibration: Calibration, opset: int) -> onnx.ModelProto:
    """The float32 model; an opset that cannot be written or run is the user's error."""
    advice = f"choose another opset: --opset {DEFAULT_OPSET}"
    try:
        model = export_graph(trained, temperature=calibration.temperature, opset=opset)
    except FerError:
        raise
    except Exception as error:  # the exporter's exceptions share no base class
        if opset == DEFAULT_OPSET and find_architecture(trained.name).is_foreign:
            raise ModelFileError(
                f"PyTorch cannot export {trained.name} ({first_line(error.__cause__ or error)}); its forward may not "
                "decide by values of the faces, and torch.export.export shows where it does"
            ) from error
        if opset == DEFAULT_OPSET:
            raise
        raise ModelFileError(f"PyTorch cannot export at opset {opset} ({first_line(error)}); {advice}") from error
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
