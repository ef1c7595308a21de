"""Check that a file computes the fitted `unfamiliarity`, and that its threshold loses as few faces as stated."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from fer_export.gate.units import quantized_scales
from fer_export.int8.score import channels_last
from fer_export.int8.shared import separate_layer
from fer_export.unfamiliar.head import LOST, OUTPUT, Head, OperatingPoint
from fer_runtime.errors import ParityError
from fer_runtime.metrics import auroc, wilson_interval
from fer_runtime.model.find import Precision
from fer_runtime.model.onnx_file import read_onnx
from fer_runtime.model.parity import Check, FloatArray, Uint8Array, run_model
from fer_runtime.model.session import open_session

# Root mean square difference from the float model's maps and the layer in double precision, as a share of the standard
# deviation over the faces. float32 adds thousands of products in another order. The other two are about three times
# what v0 and v3 showed.
ERRORS: dict[Precision, float] = {"fp32": 1e-4, "fp16": 0.01, "int8": 0.1}
_LESS_AUROC = 0.02  # than the layer itself


def unfamiliarity_of(content: bytes, faces: Uint8Array, *, batch: int | None = None) -> FloatArray:
    """A file's own unfamiliarity of faces, float32 (faces,)."""
    session = open_session(content, source="the exported model").session
    found = run_model(session, faces, batch=batch or 64, pads=batch is not None).unfamiliarity
    if found is None:
        raise ValueError("the file has no output unfamiliarity")
    return found


def weights_fault(model: onnx.ModelProto, head: Head, precision: Precision) -> str:
    """What is wrong with the layers' weights in a file; "" where they are those that were fitted.

    A single weight may weigh on none of the compared images. Float files hold the layers as they were fitted. The
    integers of int8 are each the nearest to their weight, so that none is off by more than half a step.
    """
    is_int8 = precision == "int8"
    if is_int8:
        try:
            model = separate_layer(model, OUTPUT)
        except ParityError as error:
            return str(error)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = head.weights
    if is_int8:
        read = {name for node in model.graph.node if node.output[0] == f"{OUTPUT}_float" for name in node.input}
        if head.maps.flat is not None and f"{head.maps.flat}_u8" in read and len(head.maps.shape) == 3:
            weights = channels_last(weights, head.maps.shape)
    # The layers of int8 count in steps of their inputs and units.
    found = quantized_scales(model) if is_int8 else {}
    step = next((found[name][0] for name in read if name in found), np.nan) if is_int8 else 1.0
    unit_step = found.get(f"{OUTPUT}_units_u8", (np.nan, 0))[0] if is_int8 else 1.0
    parts = (
        ("weights", weights, "weights", ("_scale", "_zero"), unit_step / step),
        ("biases", head.bias, "weights_bias" if is_int8 else "bias", ("_scale",), unit_step),
        ("signs", head.signs[:, None], "signs", ("_scale", "_zero"), 1 / unit_step),
    )
    for noun, fitted, name, ends, stands_for in parts:
        constants = [held.get(f"{OUTPUT}_{name}{end}") for end in ("", *(ends if is_int8 else ()))]
        if any(constant is None for constant in constants):
            return f"the file does not hold its {fitted.size} {noun}"
        own, *steps = (np.asarray(constant, np.float64) for constant in constants)
        if own.shape != fitted.shape or any(scale.size not in (1, fitted.shape[-1]) for scale in steps):
            return f"the file does not hold its {fitted.size} {noun}"
        allowed: Any = 0.0
        if is_int8:
            size = steps[0] * stands_for
            own = (own - (steps[1] if len(steps) > 1 else 0)) * size
            # The division by the step is in float32.
            allowed = 0.5 * np.abs(size) * (1 + 1e-3)
        # Written with "<=" so that NaN counts.
        wrong = int((~(np.abs(own - fitted) <= allowed)).sum())
        if wrong:
            return f"{wrong} of its {fitted.size} {noun} are not the fitted ones"
    return ""


def unfamiliar_checks(
    content: bytes, head: Head, point: OperatingPoint, *, precision: Precision, batch: int | None
) -> list[Check]:
    """Compare a file's output with the layer that was fitted, and try its threshold on faces and other images.

    Args:
        content: the file's bytes.
        head: the layer, with faces and images that it was not fitted on.
        point: what the file's threshold was fitted to.
    """
    faces, real = head.sample, head.sample_faces
    found = unfamiliarity_of(content, faces, batch=batch)
    if found.shape != (len(faces),):
        return [Check(name="unfamiliarity", passed=False, detail=f"of shape {found.shape}, not ({len(faces)},)")]
    spread = max(float(head.expected.std(dtype=np.float64)), 1e-12)
    difference = found.astype(np.float64) - head.expected
    error = float(np.sqrt((difference**2).mean())) / spread
    wrong = weights_fault(onnx.load_model_from_string(content), head, precision)
    metadata = read_onnx(content, source="the exported model").own_metadata(source="it")
    threshold = metadata.unfamiliar_above
    expected_auroc = auroc(head.expected[:real], head.expected[real:])
    own_auroc = auroc(found[:real], found[real:])
    lost = int((~(found[:real] <= point.unfamiliar_above)).sum())
    low, _ = wilson_interval(lost, real)
    faults = []
    if threshold != point.unfamiliar_above:
        faults.append(f"the metadata says {threshold}, but {point.unfamiliar_above:g} was fitted")
    # Written as "not" so that NaN fails.
    if not own_auroc >= expected_auroc - _LESS_AUROC:
        faults.append("it tells faces from other images worse than the layer itself")
    if not low <= LOST:
        faults.append("it loses more faces than it may")
    return [
        Check(
            name="unfamiliarity",
            passed=bool(error <= ERRORS[precision]) and not wrong,
            detail=(f"{wrong}; " if wrong else "")
            + f"differs from the fitted layer by {error:.1e} of its spread on {len(faces)} images "
            f"(allowed {ERRORS[precision]:g})",
        ),
        Check(
            name="unfamiliar",
            passed=not faults,
            detail=("; ".join(faults) + ": " if faults else "")
            + f"AUROC {own_auroc:.3f} ({expected_auroc:.3f} of the layer), {lost} of {real} faces lost "
            f"(fitted to {LOST:.0%}; {point.lost:.1%} of the other half's faces)",
        ),
    ]


def describe(point: OperatingPoint) -> str:
    """The threshold in words, for a terminal."""
    low, high = point.lost_interval
    return (
        f"unfamiliar above {point.unfamiliar_above:g}: loses {point.lost:.1%} ({low:.1%} to {high:.1%}) of "
        f"{point.faces} faces, keeps {point.kept:.1%} of {point.strange} synthetic images, AUROC {point.auroc:.3f}"
    )
