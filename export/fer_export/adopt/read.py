"""Somebody else's ONNX classifier as a model of ours: `fer-export --adopt FILE`.

Only the file's graph is used, and only after the checks for files from strangers. Its logits, computed by ONNX Runtime
and confirmed by ONNX's reference evaluator, are what the published files are compared with.
"""

from __future__ import annotations

import ast
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from fer_export.adopt.foreign import ForeignFile, confirm
from fer_export.adopt.inputs import FaceInput, Row
from fer_export.adopt.wrap import wrapped_graph
from fer_export.affine import fold_affine
from fer_export.canonical import REWRITTEN, canonical_graph
from fer_export.gate.original import Original
from fer_export.gate.rows import MORE_RULES, RULES
from fer_runtime.errors import ModelFileError
from fer_runtime.labels import check_labels
from fer_runtime.model.metadata import METADATA_KEY
from fer_runtime.model.onnx_file import OnnxFile, read_model_bytes, read_onnx
from fer_runtime.model.structure import check_operators, check_work
from fer_runtime.text import printable
from fer_runtime.untrusted_json import parse_json

_LABEL_KEYS = ("labels", "names", "classes", "class_names", "id2label")
_MAX_LABEL_TEXT = 64 << 10
# Behind the scores these change no number.
_SILENT = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout", "Cast")
_NO_SCORES = ("Sigmoid", "HardSigmoid")
_ADVICE = "fer-export --adopt takes classifiers with operators that answer each face by itself"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """A foreign file, read and understood."""

    original: Original
    graph: onnx.ModelProto  # float32, with our inputs and outputs, temperature 1
    sha256: str  # of the foreign file
    notes: tuple[str, ...]  # what was found in the file and assumed, for the user


def adopt_file(
    path: Path, *, name: str, faces: FaceInput, labels: Sequence[str] | None = None, scores: str | None = None
) -> Adopted:
    """Read a classifier of another program.

    Args:
        path: an .onnx file with all weights inside.
        name: what the model will be called.
        faces: what its network takes; no file says it.
        labels: in the order of its scores; None reads them from the file's metadata.
        scores: the output with the scores, where the file has several.

    Raises:
        ModelFileError: the file cannot be adopted, with the operator, input or shape that is in the way.
    """
    source = str(path)
    content = read_model_bytes(path, advice="give the path of an .onnx file")
    model, file = _read_checked(content, source)
    shape = _input_shape(file, faces, source)
    output = _score_output(file, scores, source)
    logits_name, softmax_name = _logits_of(file, output, source)
    row = _row_of(shape, faces, source)
    core = canonical_graph(
        _with_softmax(model, logits_name), row.shape, outputs=[logits_name], source=source, batch=row.batch
    )
    count = math.prod(dimension.dim_value for dimension in core.graph.output[0].type.tensor_type.shape.dim[1:])
    names, notes = _labels(labels, file, count, source)
    graph = fold_affine(wrapped_graph(core, faces, row, count))
    check_work(read_onnx(graph.SerializeToString(), source=source), source=source)
    foreign = ForeignFile(
        model=model,
        softmax=output if softmax_name else None,
        faces=faces,
        row=row,
        input=file_input(file),
        logits=logits_name,
        count=count,
    )
    confirm(foreign, faces, source)
    notes += [
        f"input {foreign.input} {'x'.join(map(str, row.shape))} {row.layout.upper()}, "
        + ("any batch" if row.batch is None else f"a fixed batch of {row.batch}"),
        f"output {output}: {count} scores, " + (f"through the file's {softmax_name}" if softmax_name else "no softmax"),
    ]
    original = Original(
        name=name,
        labels=names,
        option_labels=names,
        logits=foreign.scores,
        size=faces.size,
        color="gray" if faces.color == "gray" else "rgb",
        program="the original file",
        is_foreign=True,
        training={
            "adopted": {
                "producer": printable(file.producer, limit=100),
                "opset": file.opsets.get("", file.opsets.get("ai.onnx", 0)),
                "input": faces.to_dict(),
                "layout": row.layout,
            }
        },
    )
    return Adopted(
        original=original,
        graph=graph,
        sha256=hashlib.sha256(content).hexdigest(),
        notes=tuple(printable(note) for note in notes),
    )


def _read_checked(content: bytes, source: str) -> tuple[onnx.ModelProto, OnnxFile]:
    """A foreign file as onnx reads it and as our own reader does, with operators that can be adopted.

    Raises:
        ModelFileError: it is no such file, or one of ours.
    """
    file = read_onnx(content, source=source, advice="copy it again, or export it again with its own program")
    if METADATA_KEY in file.metadata:
        raise ModelFileError(f"{source} is a model of fer-export already; use it as it is: fer-infer --model {source}")
    known = (RULES.keys() | MORE_RULES.keys() | REWRITTEN) - {"QuantizeLinear", "DequantizeLinear"}
    check_operators(file, source=source, allowed=known, advice=_ADVICE)
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ModelFileError(f"{source} cannot be read as an ONNX model: {error}") from error
    # Programs may read a field that occurs twice in different ways: what onnx has read is checked as well.
    file = read_onnx(model.SerializeToString(), source=source)
    check_operators(file, source=source, allowed=known, advice=_ADVICE)
    return model, file


def file_input(file: OnnxFile) -> str:
    """The one input that is no constant."""
    return next(value.name for value in file.inputs if value.name not in file.tensors)


def _input_shape(file: OnnxFile, faces: FaceInput, source: str) -> Any:
    inputs = [value for value in file.inputs if value.name not in file.tensors]
    if len(inputs) != 1:
        names = ", ".join(printable(value.name, limit=40) for value in inputs[:5])
        raise ModelFileError(f"{source} has {len(inputs)} inputs ({names or 'none'}); a classifier of faces has one")
    (value,) = inputs
    if value.dtype not in ("float32", "uint8"):
        raise ModelFileError(f"{source} takes {value.dtype}; float32 and uint8 can be adopted")
    plain = (faces.low, faces.high, faces.mean, faces.std) == (0.0, 255.0, (0.0,), (1.0,))
    if value.dtype == "uint8" and not plain:
        raise ModelFileError(f"{source} takes uint8, so it needs --range 0..255 without --mean and --std")
    if len(value.shape) != 4:
        raise ModelFileError(
            f"{source} takes {printable(value.name, limit=40)} of shape {_shown(value.shape)}; an image has four "
            "dimensions, (batch, channels, height, width) or (batch, height, width, channels)"
        )
    return value


def _shown(shape: Sequence[int | str]) -> str:
    return "(" + ", ".join(printable(str(size), limit=20) for size in shape) + ")"


def _row_of(value: Any, faces: FaceInput, source: str) -> Row:
    """Layout, channels and batch, from the file's own shape and what the user says."""
    first, *rest = value.shape
    channels = (1, 3) if faces.color == "gray" else (3,)  # gray faces may be wanted three times
    fits = []
    for layout, place in (("nchw", 0), ("nhwc", 2)):
        sizes = [size for axis, size in enumerate(rest) if axis != place]
        count = rest[place]
        may_be = [number for number in channels if not isinstance(count, int) or count == number]
        if may_be and all(not isinstance(size, int) or size == faces.size for size in sizes):
            fits.append((layout, may_be[0]))
    if faces.layout is not None:
        fits = [fit for fit in fits if fit[0] == faces.layout]
    if not fits:
        wanted = f"{faces.color}{faces.size}" + (f" in {faces.layout.upper()}" if faces.layout else "")
        raise ModelFileError(
            f"{source} takes {printable(value.name, limit=40)} of shape {_shown(value.shape)}, which is not {wanted}; "
            "give its colour and size: --input gray64, rgb112, bgr224, ..."
        )
    if len(fits) > 1:
        raise ModelFileError(
            f"{source} takes {printable(value.name, limit=40)} of shape {_shown(value.shape)}, which may be NCHW or "
            "NHWC; say it: --layout nchw"
        )
    layout, count = fits[0]
    size = faces.size
    if (numbers := max(len(faces.mean), len(faces.std))) > count:
        raise ModelFileError(
            f"{source} takes {printable(value.name, limit=40)} of shape {_shown(value.shape)}, with one channel, and "
            f"--mean or --std has {numbers} numbers; give one"
        )
    return Row(
        shape=(count, size, size) if layout == "nchw" else (size, size, count),
        channels=count,
        layout=layout,
        batch=first if isinstance(first, int) and first > 0 else None,
        dtype=value.dtype,
    )


def _score_output(file: OnnxFile, scores: str | None, source: str) -> str:
    names = [value.name for value in file.outputs]
    shown = ", ".join(printable(name, limit=40) for name in names[:10])
    if scores is not None:
        if scores not in names:
            raise ModelFileError(f"{source} has no output {printable(scores, limit=40)!r}; it has {shown}")
        return scores
    if len(names) != 1:
        raise ModelFileError(f"{source} has {len(names)} outputs ({shown}); say which has the scores: --scores NAME")
    return names[0]


def _logits_of(file: OnnxFile, output: str, source: str) -> tuple[str, str]:
    """The tensor with the logits behind an output, and the softmax between them; "" where there is none."""
    producers = {name: node for node in file.nodes for name in node.outputs}
    name = output
    for _ in file.nodes:
        node = producers.get(name)
        if node is None or not node.inputs:
            break
        if node.op_type in ("Softmax", "LogSoftmax"):
            return node.inputs[0], node.op_type
        if node.op_type in _NO_SCORES:
            raise ModelFileError(
                f"{source} ends in {node.op_type}, which judges each label by itself; a model whose labels exclude "
                "each other has a softmax or none"
            )
        if node.op_type not in _SILENT:
            break
        name = node.inputs[0]
    return output, ""


def _with_softmax(model: onnx.ModelProto, logits: str) -> onnx.ModelProto:
    """A copy that ends in Softmax where `model` ends in LogSoftmax: it is checked in the same way, and taken off."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type == "LogSoftmax" and node.input[:1] == [logits]:
            node.op_type = "Softmax"
    return copy


def _labels(given: Sequence[str] | None, file: OnnxFile, count: int, source: str) -> tuple[tuple[str, ...], list[str]]:
    """The labels in the order of the scores, and where they are from."""
    notes = []
    if given is None:
        key, given = _labels_in(file.metadata)
        if given is None:
            raise ModelFileError(
                f"{source} has {count} scores and no labels in its metadata; name them in their order: --labels A,B,..."
            )
        notes.append(f"labels from the file's metadata entry {key}: {', '.join(given)}")
    if len(given) != count:
        raise ModelFileError(f"{source} has {count} scores, but {len(given)} labels are named: {', '.join(given)}")
    return tuple(given), notes


def _labels_in(metadata: Mapping[str, str]) -> tuple[str, tuple[str, ...] | None]:
    """Labels that other programs leave in metadata: a list, or a mapping from index to name."""
    for key in _LABEL_KEYS:
        text = metadata.get(key, "")
        if not text or len(text) > _MAX_LABEL_TEXT:
            continue
        values: Any = None
        for read in (parse_json, ast.literal_eval):  # Ultralytics writes Python's notation; no code runs
            try:
                values = read(text)
                break
            except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
                continue
        if isinstance(values, dict):
            try:
                values = [values[place] for place in sorted(values, key=int)]
            except (ValueError, TypeError, OverflowError):  # int() of an infinite number
                continue
        try:
            return key, check_labels(values)
        except ValueError:
            continue
    return "", None
