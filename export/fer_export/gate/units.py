"""Compare each unit of a quantized model with the same unit of the float model, layer by layer.

The outputs of a whole network hide small faults of one layer. Quantization noise is random: over many faces a unit's
slope against the float unit stays near 1 and its mean stays in place. A wrong scale, bias or zero point moves both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from fer_export.int8.scales import STEP
from fer_export.int8.shared import find_shared
from fer_runtime.model.parity import Check, Uint8Array
from fer_runtime.model.session import open_session

_BATCH = 32
_STOCK_SUFFIX = "_QuantizeLinear_Output"  # of the uint8 tensors that onnxruntime's quantizer writes
OUTPUT_LAYERS = ("logits", "unfamiliarity_score")  # layers that compute an output: float in every graph, no units
# Off on most faces, so that regression says little of its units; gate/unfamiliar.py compares each of its weights.
_COMPARED_ELSEWHERE = "unfamiliarity_hidden"
_Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitLimits:
    """How far one unit (a channel, or a neuron) may differ from its float counterpart.

    More than twice what the worst unit of v0 and v3 showed: slope 0.04, shift 0.01, noise 0.11.

    A unit that moves little is rounded to few of its tensor's 256 values. An error spread evenly over a step has the
    root mean square step / sqrt(12); in standard deviations of the unit, call it r. Rounding alone moves the noise by
    r, the mean by r at most (Jensen), and the slope by r at most (Cauchy and Schwarz). It is independent of other
    errors, so each limit is the root of the sum of both squares.
    """

    slope: float = 0.08  # |slope - 1| of the regression on the float unit
    shift: float = 0.05  # |mean difference| in standard deviations of the float unit
    noise: float = 0.25  # root mean square difference in the same standard deviations


def _pairs(fp32: onnx.ModelProto, int8: onnx.ModelProto) -> tuple[dict[str, str], list[str]]:
    """uint8 tensors of the int8 graph by the float tensor that they stand for, and the layers that have none."""
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in fp32.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    tensors = {name for node in int8.graph.node for name in node.output}
    # onnxruntime's quantizer leaves what is no layer in float where that is faster.
    is_stock = any(name.endswith(_STOCK_SUFFIX) for name in tensors)
    constants = {tensor.name for tensor in fp32.graph.initializer}
    pairs: dict[str, str] = {}
    missing: list[str] = []
    for node in fp32.graph.node:
        output = node.output[0]
        is_layer = node.op_type in ("Conv", "Gemm") or (node.op_type == "MatMul" and node.input[1] in constants)
        if (not is_layer and node.op_type not in ("Add", "ReduceMean", "GlobalAveragePool")) or output in (
            *OUTPUT_LAYERS,
            _COMPARED_ELSEWHERE,
        ):
            continue
        following = consumers.get(output, [])
        # A ReLU, and a Clip of onnxruntime's, is absorbed by the zero point.
        if len(following) == 1 and following[0].op_type in (("Relu", "Clip") if is_stock else ("Relu",)):
            output = following[0].output[0]
            following = consumers.get(output, [])
        if is_stock:
            before = node.output[0]
            twin = next(
                (tensor + _STOCK_SUFFIX for tensor in (output, before) if tensor + _STOCK_SUFFIX in tensors), None
            )
            if twin is not None and is_layer:
                pairs[twin.removesuffix(_STOCK_SUFFIX)] = twin
            elif is_layer:
                missing.append(output)
            continue
        if f"{output}_pooled" in tensors:  # the first layer's own layout ends behind its pooling
            pairs[following[0].output[0]] = f"{output}_pooled"
        elif f"{output}_first" in tensors:
            pairs[output] = f"{output}_first"
        elif f"{output}_u8" in tensors:
            pairs[output] = f"{output}_u8"
        else:
            missing.append(output)
    return pairs, missing


def quantized_scales(int8: onnx.ModelProto) -> dict[str, tuple[float, int]]:
    """The float network's value of one step, and the zero point, of each uint8 tensor behind a QuantizeLinear."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    found: dict[str, tuple[float, int]] = {}
    ours: set[str] = set()  # that count steps, with the scale 1
    for node in int8.graph.node:
        if node.op_type == "QuantizeLinear":
            steps = [float(entry.value) for entry in node.metadata_props if entry.key == STEP]
            scale = steps[0] if steps else float(constants[node.input[1]])
            found[node.output[0]] = scale, int(constants[node.input[2]])
            ours |= {node.output[0]} if steps else set()
        elif node.op_type in ("MaxPool", "Transpose", "Reshape") and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
            ours |= {node.output[0]} if node.input[0] in ours else set()
    # A reader of the tensor may claim another scale than its writer used.
    in_sums = {name for node in int8.graph.node if node.op_type == "Add" for name in node.input}
    for node in int8.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in found:
            continue
        scale, zero = float(constants[node.input[1]]), int(constants[node.input[2]])
        if node.input[0] not in ours:
            found[node.input[0]] = scale, zero
        elif node.output[0] not in in_sums:
            found[node.input[0]] = found[node.input[0]][0] * scale, zero
    return found


def unit_check(fp32: onnx.ModelProto, int8: onnx.ModelProto, faces: Uint8Array, limits: UnitLimits) -> Check:
    """Compare the units of each layer on faces, uint8."""
    pairs, missing = _pairs(fp32, int8)
    shared = find_shared(int8, "unfamiliarity")
    scales = quantized_scales(int8)
    missing += [name for name, twin in pairs.items() if twin not in scales]
    if missing:
        detail = f"{missing[0]} of the float graph has no counterpart in the int8 graph"
        return Check(name="units", passed=False, detail=detail)
    # The logits are the last layer's units, in float in both graphs.
    last = ["logits"] if any(output.name == "logits" for output in int8.graph.output) else []
    names, twins = [*pairs, *last], [*pairs.values(), *last]
    steps = [*(scales[twin][0] for twin in pairs.values()), *(0.0 for _ in last)]
    scales["logits"] = 1.0, 0
    float_session = open_session(_showing(fp32, names, TensorProto.FLOAT), source="the float model").session
    int8_session = open_session(_showing(int8, twins, TensorProto.UINT8), source="the int8 model").session
    sums: list[_Array | None] = [None] * len(names)
    counts = [0] * len(names)
    for start in range(0, len(faces), _BATCH):
        batch = {"faces": faces[start : start + _BATCH]}
        answers = zip(float_session.run(names, batch), int8_session.run(twins, batch), strict=True)
        for index, (expected, actual) in enumerate(answers):
            if shared is not None and twins[index] == shared.output:
                left_out = np.delete(expected, shared.units, axis=1) > 0
                if left_out.any():
                    detail = f"{names[index]} has units that the int8 graph leaves out and faces switch on"
                    return Check(name="units", passed=False, detail=detail)
                expected, actual = shared.kept(expected, axis=1), actual[:, list(shared.places)]
            if expected.size != actual.size:
                return Check(name="units", passed=False, detail=f"{names[index]} has another shape in the int8 graph")
            scale, zero = scales[twins[index]]
            if expected.ndim == 3:  # of a MatMul: its units come last
                expected, actual = expected.transpose(0, 2, 1), actual.transpose(0, 2, 1)
            x = expected.reshape(*expected.shape[:2], -1).astype(np.float64)
            y = (actual.reshape(x.shape).astype(np.float64) - zero) * scale
            part = np.stack(
                [x.sum((0, 2)), y.sum((0, 2)), (x * x).sum((0, 2)), (x * y).sum((0, 2)), (y * y).sum((0, 2))]
            )
            before = sums[index]
            sums[index] = part if before is None else before + part
            counts[index] += x.shape[0] * x.shape[2]
    return _verdict(names, sums, counts, steps, limits)


def _verdict(
    names: list[str], sums: list[_Array | None], counts: list[int], steps: list[float], limits: UnitLimits
) -> Check:
    own = {"slope": limits.slope, "shift": limits.shift, "noise": limits.noise}
    worst = {key: (0.0, 0.0, limit, "") for key, limit in own.items()}  # as a share of what is allowed, and both
    units = idle = 0
    for name, total, count, step in zip(names, sums, counts, steps, strict=True):
        assert total is not None
        x, y, xx, xy, yy = total / count
        variance, covariance = xx - x * x, xy - x * y
        # Units that (almost) no face switches on have no spread to compare with.
        live = variance > 1e-3 * variance.mean()
        units += len(live)
        idle += int((~live).sum())
        spread = np.sqrt(np.where(live, variance, 1))
        figures = {
            "slope": np.abs(covariance / np.where(live, variance, 1) - 1),
            "shift": np.abs(y - x) / spread,
            "noise": np.sqrt(np.maximum(xx - 2 * xy + yy, 0)) / spread,
        }
        rounding = step / math.sqrt(12) / spread
        for key, values in figures.items():
            allowed = np.hypot(own[key], rounding)
            shares = np.where(live, values / allowed, 0)
            place = int(np.argmax(np.where(np.isfinite(shares), shares, np.inf)))
            # Written so that NaN counts, and that a later layer does not replace it.
            if worst[key][0] == worst[key][0] and not shares[place] <= worst[key][0]:
                where = f" ({name}, unit {place})"
                worst[key] = float(shares[place]), float(values[place]), float(allowed[place]), where
    return Check(
        name="units",
        passed=all(share <= 1 for share, *_ in worst.values()),
        detail=f"{units - idle} live units in {len(names)} layers; "
        + ", ".join(
            f"{key} {value:.2f}{where if not share <= 1 else ''} (allowed {limit:.2g})"
            for key, (share, value, limit, where) in worst.items()
        ),
    )


def _showing(model: onnx.ModelProto, names: list[str], kind: int) -> bytes:
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    known = {output.name for output in shown.graph.output}
    for name in names:
        if name not in known:
            shown.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    content: bytes = shown.SerializeToString()
    return content
