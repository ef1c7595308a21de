"""Check that a face's outputs depend on the face alone: compare it alone with batches of every size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fer_runtime.errors import first_line
from fer_runtime.model.parity import Check, FloatArray, Outputs, Uint8Array, run_model
from fer_runtime.model.session import open_session

# Every small size, then sizes at, between and beside the powers of two. structure.py shows that no size is special;
# these runs hold onnxruntime's kernels to it.
BATCHES = (*range(2, 34), 40, 48, 50, 63, 64, 65, 96, 100, 127, 128, 129, 200, 256, 257)
_FACES = 128  # that are run alone
_ROTATED = (3, 16)  # batches in which each face takes each place
_REPEATS, _REPEATED = 50, 32  # runs, and faces of each
# Faces that a file of a fixed batch takes one at a time, each in a batch of copies of itself.
_FIXED_FACES, _FEWEST = 1024, 8
_ORDERS = 8  # shuffled orders of a fixed batch
# Logits of a face in another batch, as a share of 1 + |logit|. Kernels for other batch sizes add the same products in
# another order: some float32 roundings (measured up to 3e-6). The integers are the same, and so is what follows them.
# float16 arithmetic rounds each sum to 11 bits, and a rounding at half a step may go the other way.
SAME_ANSWER = {"fp32": 1e-4, "int8": 1e-6, "fp16": 2e-2}


def batch_checks(content: bytes, faces: Uint8Array, *, precision: str, batches: Sequence[int] = BATCHES) -> list[Check]:
    """Compare each face alone with batches of many sizes, in shuffled order and at other places.

    Args:
        content: a model file with a dynamic batch.
        faces: uint8 (faces, 48, 48), at least two that differ.
        precision: "fp32", "int8" or "fp16", which says how far equal answers may lie apart.
        batches: sizes to try.
    """
    session = open_session(content, source="the exported model").session
    tolerance = SAME_ANSWER[precision]
    faces = faces[np.random.default_rng(0).permutation(len(faces))[:_FACES]]
    try:
        alone = run_model(session, faces, batch=1)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        return [Check(name="batch", passed=False, detail=f"a batch of 1 does not run: {first_line(error)}")]
    random = np.random.default_rng(0)
    worst, where, runs = 0.0, "", 0
    orders = [random.permutation(np.resize(random.permutation(len(faces)), size)) for size in batches]
    for size in _ROTATED:
        first = random.permutation(len(faces))[:size]
        orders += [np.roll(first, places) for places in range(len(first))]
    for order in orders:
        try:
            together = _run(session, faces[order])
        except Exception as error:
            detail = f"a batch of {len(order)} does not run: {first_line(error)}"
            return [Check(name="batch", passed=False, detail=detail)]
        runs += 1
        found, place = _largest_difference(_rows(alone, order), together)
        # Written as "not <=" so that a NaN difference counts.
        if not found <= worst:
            worst, where = found, f" at place {place} of a batch of {len(order)}"
            if found != found:
                break
    sizes = f"{runs} batches of 2 to {max(len(order) for order in orders)} faces, shuffled"
    return [
        Check(
            name="batch",
            passed=bool(worst <= tolerance),
            detail=f"each face alone against {sizes}: relative |Δlogit| {worst:.1e}{where} (allowed {tolerance:g})",
        ),
        _repeat_check(content, session, faces[:_REPEATED]),
    ]


def fixed_batch_checks(content: bytes, faces: Uint8Array, *, precision: str, batch: int) -> list[Check]:
    """Compare each face in a batch of copies of itself with other neighbours, other places and another order of calls.

    Args:
        content: a model file that takes exactly `batch` faces.
        faces: uint8 (faces, 48, 48), at least two that differ.
        precision: as for `batch_checks`.
        batch: of the file.
    """
    session = open_session(content, source="the exported model").session
    tolerance = SAME_ANSWER[precision]
    random = np.random.default_rng(0)
    faces = faces[random.permutation(len(faces))[: max(_FEWEST, min(_FACES, _FIXED_FACES // batch))]]
    alone = _joined([_rows(_run(session, np.repeat(face[None], batch, axis=0)), [0]) for face in faces])
    worst, where, runs = 0.0, "", 0
    first = np.resize(random.permutation(len(faces)), batch)
    orders = [np.roll(first, places) for places in range(min(batch, max(_ROTATED)))]
    for _ in range(_ORDERS):
        order = random.permutation(len(faces))
        orders += [np.take(order, range(at, at + batch), mode="wrap") for at in range(0, len(faces), batch)]
    for order in orders:
        runs += 1
        found, place = _largest_difference(_rows(alone, order), _run(session, faces[order]))
        # Written as "not <=" so that a NaN difference counts.
        if not found <= worst:
            worst, where = found, f" at place {place} of run {runs}"
            if found != found:
                break
    return [
        Check(
            name="batch",
            passed=bool(worst <= tolerance),
            detail=f"{len(faces)} faces, each among copies of itself, against {runs} other batches of {batch}: "
            f"relative |Δlogit| {worst:.1e}{where} (allowed {tolerance:g})",
        ),
        _repeat_check(content, session, np.resize(faces, (batch, *faces.shape[1:]))),
    ]


def _joined(parts: Sequence[Outputs]) -> Outputs:
    strange = [part.unfamiliarity for part in parts if part.unfamiliarity is not None]
    return Outputs(
        logits=np.concatenate([part.logits for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        unfamiliarity=np.concatenate(strange) if len(strange) == len(parts) else None,
    )


def _repeat_check(content: bytes, session: Any, faces: Uint8Array) -> Check:
    """Run the same faces repeatedly, in one session and in a new session."""
    first = _run(open_session(content, source="the exported model").session, faces)
    differing = sum(not _equal(first, _run(session, faces)) for _ in range(_REPEATS))
    return Check(
        name="repeat",
        passed=differing == 0,
        detail=f"{differing} of {_REPEATS} runs of the same faces differ from a fresh session's, bit by bit",
    )


def _run(session: Any, faces: Uint8Array) -> Outputs:
    return run_model(session, faces, batch=len(faces))


def _rows(outputs: Outputs, order: Any) -> Outputs:
    strange = outputs.unfamiliarity
    return Outputs(
        logits=outputs.logits[order],
        probabilities=outputs.probabilities[order],
        unfamiliarity=None if strange is None else strange[order],
    )


def _equal(left: Outputs, right: Outputs) -> bool:
    pairs = [(left.logits, right.logits), (left.probabilities, right.probabilities)]
    if left.unfamiliarity is not None and right.unfamiliarity is not None:
        pairs.append((left.unfamiliarity, right.unfamiliarity))
    return all(np.array_equal(values, other) for values, other in pairs)


def _largest_difference(alone: Outputs, together: Outputs) -> tuple[float, int]:
    if together.logits.shape != alone.logits.shape or together.probabilities.shape != alone.probabilities.shape:
        return float("nan"), 0
    by_face: FloatArray = np.maximum(
        (np.abs(together.logits - alone.logits) / (1 + np.abs(alone.logits))).max(1),
        np.abs(together.probabilities - alone.probabilities).max(1),
    )
    if alone.unfamiliarity is not None and together.unfamiliarity is not None:
        if together.unfamiliarity.shape != alone.unfamiliarity.shape:
            return float("nan"), 0
        strange = np.abs(together.unfamiliarity - alone.unfamiliarity) / (1 + np.abs(alone.unfamiliarity))
        by_face = np.maximum(by_face, strange)
    place = int(np.argmax(np.where(np.isfinite(by_face), by_face, np.inf)))
    return float(by_face[place]), place
