"""Run an adopted file unchanged, in ONNX Runtime and in ONNX's reference evaluator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from fer_export.adopt.inputs import FaceInput, Row
from fer_export.gate.golden import synthetic_faces
from fer_runtime.errors import ModelFileError
from fer_runtime.model.parity import FloatArray, Uint8Array, softmax
from fer_runtime.model.session import open_session
from fer_runtime.text import printable

_BATCH = 16  # of the original, where it takes any
_REFERENCE_FACES = 2  # plain numpy takes seconds for one
_AGREEMENT = 1e-3  # relative |Δlogit| between ONNX Runtime and the reference evaluator: float32 in another order


class ForeignFile:
    """The original, run as its own program would run it."""

    def __init__(
        self,
        *,
        model: onnx.ModelProto,
        softmax: str | None,
        faces: FaceInput,
        row: Row,
        input: str,
        logits: str,
        count: int,
    ) -> None:
        self.faces, self.row, self.input, self.logits, self.count = faces, row, input, logits, count
        self.softmax = softmax  # the output with their softmax, if there is one
        # Logits behind a softmax are shown. What neither needs is left out: nobody knows how much work it is.
        self.model = _with_outputs(model, [logits] if softmax is None else [logits, softmax])
        self.session = open_session(self.model.SerializeToString(), source="the file").session

    def prepared(self, faces: Uint8Array) -> Any:
        """Faces as the file takes them, computed in double precision by numpy."""
        gray = faces.ndim == 3
        planes = faces[..., None] if gray else (faces[..., ::-1] if self.faces.color == "bgr" else faces)
        if gray and self.row.channels == 3:
            planes = np.repeat(planes, 3, axis=3)
        if self.row.dtype == "float32":
            factor, shift = self.faces.factor_and_shift(self.row.channels)
            planes = (planes * factor + shift).astype(np.float32)
        return np.ascontiguousarray(planes if self.row.layout == "nhwc" else planes.transpose(0, 3, 1, 2))

    def run(self, faces: Uint8Array, name: str) -> FloatArray:
        """One output, float32 (faces, count), in batches that the file takes."""
        size = self.row.batch or _BATCH
        rows = []
        for start in range(0, len(faces), size):
            part = faces[start : start + size]
            filled = np.resize(part, (size, *part.shape[1:])) if self.row.batch else part
            answer = self.session.run([name], {self.input: self.prepared(filled)})[0]
            rows.append(np.asarray(answer, np.float32).reshape(len(filled), -1)[: len(part)])
        found: FloatArray = np.concatenate(rows) if rows else np.zeros((0, self.count), np.float32)
        return found

    def scores(self, faces: Uint8Array) -> FloatArray:
        """The logits, float32 (faces, count)."""
        return self.run(faces, self.logits)

    def evaluated(self, faces: Uint8Array) -> FloatArray:
        """The logits by ONNX's reference evaluator."""
        evaluator = _reference_evaluator(self.model)
        size = self.row.batch or 1
        rows = []
        for face in faces:
            given = np.repeat(face[None], size, axis=0)
            answer = evaluator.run([self.logits], {self.input: self.prepared(given)})[0]
            rows.append(np.asarray(answer, np.float32).reshape(size, -1)[:1])
        return np.concatenate(rows)


def _reference_evaluator(model: onnx.ModelProto) -> Any:
    """ONNX's evaluator, with the standard's BatchNormalization.

    Below opset 14 the evaluator (onnx 1.23) mixes the batch's own mean and variance in, although a node with one output
    is in inference mode: https://onnx.ai/onnx/operators/onnx__BatchNormalization.html.
    """
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class BatchNormalization(OpRun):
        op_domain = ""

        def _run(self, x: Any, scale: Any, bias: Any, mean: Any, variance: Any, **attributes: Any) -> tuple[Any]:
            shape = (1, -1, *([1] * (x.ndim - 2)))
            epsilon = attributes.get("epsilon") or 1e-5
            factor = scale / np.sqrt(variance + epsilon)
            return ((x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)).astype(x.dtype),)

    return ReferenceEvaluator(model, new_ops=[BatchNormalization])


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy with these outputs, and the nodes and constants that they need, as they are in the file."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    graph, needed, kept = shown.graph, set(names), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept[::-1])
    stated = {output.name: output for output in model.graph.output}
    del graph.output[:]
    graph.output.extend(
        stated.get(name) or helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    constants = {tensor.name for tensor in model.graph.initializer}
    for values in (graph.initializer, graph.input):  # old files list their constants among the inputs
        used = [value for value in values if value.name in needed or value.name not in constants]
        del values[:]
        values.extend(used)
    return shown


def confirm(foreign: ForeignFile, faces: FaceInput, source: str) -> None:
    """Check that two interpreters agree on the file, before it can be a reference.

    Raises:
        ModelFileError: they do not, the file does not run, or its scores are something other than logits.
    """
    shape = (faces.size, faces.size) if faces.color == "gray" else (faces.size, faces.size, 3)
    made_up = synthetic_faces(shape)
    try:
        expected = foreign.scores(made_up)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        reason = printable(str(error).strip().partition("\n")[0], limit=300)
        raise ModelFileError(f"{source} does not run in ONNX Runtime: {reason}") from error
    if expected.shape != (len(made_up), foreign.count) or not np.isfinite(expected).all():
        raise ModelFileError(f"{source} gives scores {expected.shape} for synthetic faces, or some that are not finite")
    if foreign.softmax is not None:
        shares = foreign.run(made_up, foreign.softmax)
        shares = np.exp(shares) if (shares <= 0).all() else shares  # LogSoftmax
        if not np.abs(shares - softmax(expected)).max() <= _AGREEMENT:
            raise ModelFileError(f"{source}: its softmax runs over something other than the {foreign.count} scores")
    elif (expected >= 0).all() and np.abs(expected.sum(1) - 1).max() < _AGREEMENT:
        raise ModelFileError(
            f"{source}: its scores are probabilities, and it does not end in a Softmax that can be taken off; export "
            "it again without"
        )
    if np.ptp(expected, axis=0).max() == 0:
        raise ModelFileError(
            f"{source} answers all synthetic faces with the same scores; are --input and --range right?"
        )
    chosen = made_up[9:13:2][:_REFERENCE_FACES]
    found = _evaluated(foreign.evaluated, chosen, source)
    difference = float((np.abs(found - foreign.scores(chosen)) / (1 + np.abs(found))).max())
    if not difference <= _AGREEMENT:
        raise ModelFileError(
            f"{source}: ONNX Runtime and ONNX's reference evaluator compute different results: relative |Δlogit| "
            f"{difference:.1e} (allowed {_AGREEMENT:g})"
        )


def _evaluated(evaluate: Callable[[Uint8Array], FloatArray], faces: Uint8Array, source: str) -> FloatArray:
    try:
        return evaluate(faces)
    except Exception as error:  # a Python traceback of any operator
        reason = printable(str(error).strip().partition("\n")[0] or type(error).__name__, limit=300)
        raise ModelFileError(f"{source} cannot be run by ONNX's reference evaluator: {reason}") from error
