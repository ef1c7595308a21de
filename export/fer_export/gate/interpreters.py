"""Run the same faces without ONNX Runtime's optimizer, and in ONNX's reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from fer_runtime.errors import first_line
from fer_runtime.model.find import Precision
from fer_runtime.model.parity import Check, Outputs, Uint8Array, run_model
from fer_runtime.model.session import open_session

INTERPRETED_FACES = 32
_REFERENCE_FACES = 2  # plain numpy takes a tenth of a second a face
# |Δp|. Float32 sums in another order: roundings. float16 rounds each sum to 11 bits. An int8 graph without fusion is
# float arithmetic between rounded values: in a file of ONNX Runtime's quantizer a sum at half a step may be rounded the
# other way, a step of 1 / 255 of a layer's range.
_TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.05}
# Of an int8 file of ours, relative to 1 + |logit| for logits. Its sums and products are exact in float32, and no value
# lies half a step from two integers (int8/scales.py): every interpreter has the same logits. Only the softmax is left
# to rounding: exp, the sum over n labels and the division are off by some n * 2^-24, 6e-6 for a hundred labels.
_EXACT = 1e-5


def interpreter_checks(
    content: bytes, faces: Uint8Array, *, precision: Precision, batch: int | None, is_exact: bool = False
) -> list[Check]:
    """Compare ONNX Runtime's optimized graph with other interpreters of the same file.

    A file that means something else to another runtime shows here: a Dropout left in training mode is removed by
    the optimizer and by nothing else.

    Args:
        content: the file's bytes.
        faces: uint8 (faces, 48, 48).
        precision: of the file.
        batch: the file's fixed batch size, None for a dynamic one.
        is_exact: an int8 file of our own quantizer, which every interpreter computes alike.
    """
    size = batch or len(faces)
    # A fixed batch is filled up, also where it is larger than the faces are many.
    faces = np.resize(faces, (-(-len(faces) // size) * size, *faces.shape[1:]))
    allowed = _EXACT if is_exact else _TOLERANCES[precision]
    expected = run_model(open_session(content, source="the exported model").session, faces, batch=size)
    plain = open_session(content, source="the exported model", optimize=False).session
    answers = [run_model(plain, faces, batch=size) for _ in range(2)]
    checks = [_check("unoptimized", answers, expected, allowed, with_logits=is_exact or precision == "fp32")]
    if precision != "fp16":  # numpy adds float16 in float16, which no runtime does
        count = batch or min(_REFERENCE_FACES, len(faces))
        first = Outputs(logits=expected.logits[:count], probabilities=expected.probabilities[:count])
        checks.append(_reference_check(content, faces[:count], first, allowed, with_logits=is_exact))
    return checks


def _reference_check(
    content: bytes, faces: Uint8Array, expected: Outputs, allowed: float, *, with_logits: bool
) -> Check:
    from onnx.reference import ReferenceEvaluator

    names = ["logits", "probabilities"]
    try:
        evaluator = ReferenceEvaluator(onnx.load_model_from_string(content))
        # Its MaxPool pads with NaN, also by nothing and among integers, where numpy warns of the cast. What a wrong
        # graph makes of its numbers is compared below.
        with np.errstate(all="ignore"):
            answers: list[Any] = [evaluator.run(names, {"faces": faces}) for _ in range(2)]
        found = [Outputs(logits=np.asarray(answer[0]), probabilities=np.asarray(answer[1])) for answer in answers]
    except Exception as error:  # a Python traceback of any operator
        return Check(
            name="reference", passed=False, detail=f"ONNX's reference evaluator cannot run it: {first_line(error)}"
        )
    return _check("reference", found, expected, allowed, with_logits=with_logits)


def _check(name: str, found: list[Outputs], expected: Outputs, allowed: float, *, with_logits: bool) -> Check:
    who = "without the optimizer" if name == "unoptimized" else "ONNX's reference evaluator"
    shapes = expected.logits.shape, expected.probabilities.shape
    if any((outputs.logits.shape, outputs.probabilities.shape) != shapes for outputs in found):
        return Check(name=name, passed=False, detail=f"{who} answers with shape {found[0].logits.shape}")
    with np.errstate(all="ignore"):  # NaN fails below
        shares = max(float(np.abs(outputs.probabilities - expected.probabilities).max(initial=0)) for outputs in found)
        scale = 1 + np.abs(expected.logits)
        logits = max(float((np.abs(outputs.logits - expected.logits) / scale).max(initial=0)) for outputs in found)
    repeats = all(
        np.array_equal(getattr(found[0], name), getattr(found[1], name)) for name in ("logits", "probabilities")
    )
    return Check(
        name=name,
        # Written as "<=" so that NaN fails.
        passed=bool(shares <= allowed) and (bool(logits <= allowed) or not with_logits) and repeats,
        detail=f"{who}: max |Δp| {shares:.1e}"
        + (f", relative |Δlogit| {logits:.1e}" if with_logits else "")
        + f" on {len(expected.logits)} faces (allowed {allowed:g})"
        + ("" if repeats else "; two runs differ"),
    )
