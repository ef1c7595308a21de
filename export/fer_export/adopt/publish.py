"""From somebody else's file to published model files: what `fer-export --adopt` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fer_export.adopt.inputs import FaceInput
from fer_export.adopt.read import adopt_file
from fer_export.canonical import OPSET
from fer_export.gate.report import ExportReport
from fer_export.gate.subject import prepare_subject
from fer_export.graph import set_temperature
from fer_export.options import DEFAULT_OPTIONS, ExportOptions
from fer_export.pipeline import load_labelled_faces, one_thread, publish_files
from fer_export.places import check_places, output_path
from fer_runtime.errors import DataError, OutputError
from fer_train.data.folders import LabelledFaces


@one_thread()
def adopt_model(
    path: Path,
    options: ExportOptions = DEFAULT_OPTIONS,
    *,
    name: str,
    faces: FaceInput,
    labels: Sequence[str] | None = None,
    scores: str | None = None,
    temperature: float | None = None,
) -> ExportReport:
    """Publish somebody else's classifier as a model of ours.

    Args:
        path: the .onnx file.
        options: which files to write, what they are judged by, and where they go.
        name: of the model, and stem of its file names.
        faces: the input of its network: colour, size and normalization.
        labels: in the order of its scores; None reads them from the file's metadata.
        scores: the output with the scores, if the file has several.
        temperature: divides its logits before the softmax; None fits it to `options.data`, or takes 1 without.

    Raises:
        ModelFileError: the file cannot be adopted; the message names the operator, input or shape.
        DataError: the images are missing, unreadable, or of a label that the model does not have.
        ExportRefusedError: a file failed its gate; the others are published.
        OutputError: a file cannot be written, or would replace one of another origin.
    """
    wanted, data, progress = options.wanted, options.data, options.progress
    if "int8" in wanted and data is None:
        raise DataError(
            "int8 needs labelled faces to set its ranges and to measure what it loses; give the dataset's root: "
            f"fer-export --adopt {path} --precision int8 --data DIR"
        )
    places = [output_path(options.models_dir, name, precision, options.batch) for precision in wanted]
    if any(place.exists() and place.samefile(path) for place in places if path.exists()):
        raise OutputError(f"{path} would be replaced by its own adoption; choose another --name or --models-dir")
    adopted = adopt_file(path, name=name, faces=faces, labels=labels, scores=scores)
    check_places(places, adopted.sha256, path, replace=options.replace)
    for note in adopted.notes:
        progress(note)
    validation = train = None
    if data is not None:
        train, validation = load_labelled_faces(data, wanted, size=faces.size, color=adopted.original.color)
        validation = _with_labels(validation, adopted.original.labels, data)
        progress(f"{path}  {len(validation)} labelled faces")
    subject, fp32 = prepare_subject(
        adopted.original,
        lambda calibration: set_temperature(adopted.graph, calibration.temperature),
        options,
        sha256=adopted.sha256,
        file_name=name,
        train=train,
        validation=validation,
        opset=OPSET,
        temperature=temperature,
    )
    return publish_files(subject, fp32, options)


def _with_labels(found: LabelledFaces, labels: tuple[str, ...], data: Path) -> LabelledFaces:
    """Faces whose labels count as the model's do; it may have more labels than there are folders.

    Raises:
        DataError: a folder has another name than the model's labels.
    """
    if unknown := [name for name in found.classes if name not in labels]:
        raise DataError(
            f"{data} has a class folder {', '.join(unknown)}, and the model's labels are {', '.join(labels)}; rename "
            "the folder, or name the labels as the folders are: --labels A,B,..."
        )
    order = np.array([labels.index(name) for name in found.classes])
    return dataclasses.replace(found, labels=order[found.labels], classes=labels)
