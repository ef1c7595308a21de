"""Run the same faces without ONNX Runtime's optimizer, and in ONNX's reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from fer_runtime.model.find import Precision
from fer_runtime.model.parity import Check, FloatArray, Uint8Array, run_model
from fer_runtime.model.session import open_session

INTERPRETED_FACES = 32
_REFERENCE_FACES = 2  # plain numpy takes a tenth of a second a face
# |Δp|. Float32 sums in another order: roundings. float16 rounds each sum to 11 bits. An int8 graph without fusion is
# float arithmetic between rounded values: in a file of ONNX Runtime's quantizer a sum at half a step may be rounded the
# other way, a step of 1 / 255 of a layer's range. Ours round alike everywhere (int8/scales.py).
_TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.05}


def interpreter_checks(content: bytes, faces: Uint8Array, *, precision: Precision, batch: int | None) -> list[Check]:
    """Compare ONNX Runtime's optimized graph with other interpreters of the same file.

    A file that means something else to another runtime shows here: a Dropout left in training mode is removed by
    the optimizer and by nothing else.

    Args:
        content: the file's bytes.
        faces: uint8 (faces, 48, 48).
        precision: of the file.
        batch: the file's fixed batch size, None for a dynamic one.
    """
    faces = faces[: len(faces) - len(faces) % (batch or 1)] if batch else faces
    size = batch or len(faces)
    expected = run_model(open_session(content, source="the exported model").session, faces, batch=size).probabilities
    plain = open_session(content, source="the exported model", optimize=False).session
    checks = [
        _check(
            "unoptimized", [run_model(plain, faces, batch=size).probabilities for _ in range(2)], expected, precision
        )
    ]
    if precision != "fp16":  # numpy adds float16 in float16, which no runtime does
        checks.append(_reference_check(content, faces, expected, precision, batch))
    return checks


def _reference_check(
    content: bytes, faces: Uint8Array, expected: FloatArray, precision: Precision, batch: int | None
) -> Check:
    from onnx.reference import ReferenceEvaluator

    size = batch or min(_REFERENCE_FACES, len(faces))
    try:
        evaluator = ReferenceEvaluator(onnx.load_model_from_string(content))
        answers: list[Any] = [evaluator.run(["probabilities"], {"faces": faces[:size]}) for _ in range(2)]
        found = [np.asarray(one[0]) for one in answers]
    except Exception as error:  # a Python traceback of any operator
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return Check(name="reference", passed=False, detail=f"ONNX's reference evaluator cannot run it: {reason}")
    return _check("reference", found, expected[:size], precision)


def _check(name: str, found: list[FloatArray], expected: FloatArray, precision: Precision) -> Check:
    who = "without the optimizer" if name == "unoptimized" else "ONNX's reference evaluator"
    if any(one.shape != expected.shape for one in found):
        return Check(name=name, passed=False, detail=f"{who} answers with shape {found[0].shape}")
    difference = max(float(np.abs(one - expected).max(initial=0)) for one in found)
    allowed = _TOLERANCES[precision]
    repeats = np.array_equal(found[0], found[1])
    return Check(
        name=name,
        # Written as "<=" so that NaN fails.
        passed=bool(difference <= allowed) and repeats,
        detail=f"{who}: max |Δp| {difference:.1e} on {len(expected)} faces (allowed {allowed:g})"
        + ("" if repeats else "; two runs differ"),
    )
