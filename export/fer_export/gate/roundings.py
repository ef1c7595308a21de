"""Check a fp16 file against the rounding errors of 16-bit floats.

A float16 has 11 significant bits: rounding a number moves it by up to u = 2^-11 (0.05 %) of itself, in two places:

- **Weights** are rounded once, to the nearest. Their effect is not chance: the float graph with the same rounded
  weights, computed in float32, has it exactly. It is the larger part. In v0 it moves one logit in 36,000 by 0.029 and
  all by 0.0045 (root mean square), and ONNX Runtime on x86, which computes in float32, adds nothing to it.
- **Results** of operators are rounded where the runtime stores them in 16 bits, as GPUs do. These errors are the last
  bits of unrelated numbers. A float graph whose results are rounded to 11 bits on other grids (multiplied by a random
  number, rounded, divided again) draws other errors of the same distribution: 0.00077 in v0, 0.00061 in v3.

So a file is compared with the float graph of rounded weights, and may differ by what the second kind makes of this
network and these faces. Weights and operators are compared one by one as well.

The measure is |Δlogit| / (1 + the largest |logit| of the face). A logit is a sum of products that cancel; its rounding
error has the size of the products, and the logit itself may be 0. Relative to it a right file has no bound: v0's worst
logit lies 0.0290 from PyTorch's -0.17.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from fer_runtime.model.parity import Check, FloatArray, Outputs, Uint8Array, softmax
from fer_runtime.model.session import open_session

RUNS = 4  # that draw roundings of results
FACES = 1024  # in each of them
# Times the worst that the runs show. Four whole runs of v0 on 5,127 faces had worst faces of 0.00077 to 0.00105 (1.6 u
# to 2.1 u), so chance makes 1.4; a runtime that rounds a sum and its bias apart has twice the variance, 1.4 again.
WORST = 2.0
# Times the root mean square, of which chance makes 1.01: the variance twice as large, and a little.
MEAN = 1.5
_FLOAT32 = 1e-5  # sums in another order, relative like the rest; measured 1e-6
_SEED = 16
# Operators that give the numbers that they read, or 0: nothing is rounded.
_EXACT = {
    *("Abs", "Cast", "Clip", "Concat", "Flatten", "Gather", "Identity", "Max", "MaxPool", "Min", "Neg", "Pad", "Relu"),
    *("Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Where"),
}


def rounding_checks(
    fp32: onnx.ModelProto, fp16: onnx.ModelProto, faces: Uint8Array, actual: Outputs, *, temperature: float, batch: int
) -> list[Check]:
    """Compare a fp16 file's outputs, weights and operators with the float graph that it was made from.

    Args:
        fp32: a float graph that has passed its own gate.
        fp16: the file.
        faces: uint8, all that were run.
        actual: the file's outputs for them.
        temperature: of the file.
        batch: to run at.
    """
    expected = _logits(rounded(fp32), faces, batch)
    chosen = np.random.default_rng(_SEED).permutation(len(faces))[:FACES]
    drawn = [_logits(perturbed(fp32, seed), faces[chosen], batch) for seed in range(RUNS)]
    return [*_number_checks(expected, actual, [expected[chosen], *drawn], temperature), graph_check(fp32, fp16)]


def _number_checks(
    expected: FloatArray, actual: Outputs, drawn: Sequence[FloatArray], temperature: float
) -> list[Check]:
    """Args: expected: logits of rounded weights; drawn: some of them, then the runs with rounded results."""
    rounded_logits, runs = drawn[0], drawn[1:]
    largest = 1 + np.abs(expected).max(1)
    difference = np.abs(actual.logits.astype(np.float64) - expected)
    by_face = difference.max(1) / largest
    worst = float(by_face.max())
    unit = max(float((np.abs(run - rounded_logits).max(1) / (1 + np.abs(rounded_logits).max(1))).max()) for run in runs)
    allowed = WORST * unit + _FLOAT32
    shares = softmax(expected, temperature=temperature)
    share = float(np.abs(actual.probabilities - shares).max())
    rounded_shares = softmax(rounded_logits, temperature=temperature)
    moved = max(float(np.abs(softmax(run, temperature=temperature) - rounded_shares).max()) for run in runs)
    allowed_share = WORST * moved + _FLOAT32
    mean = float(np.sqrt((difference**2).mean()))
    chance = float(np.sqrt(np.mean([(run.astype(np.float64) - rounded_logits) ** 2 for run in runs])))
    flipped = expected.argmax(1) != actual.logits.argmax(1)
    best_two = np.sort(expected, axis=1)[:, -2:]
    flips = int((flipped & (best_two[:, 1] - best_two[:, 0] > 2 * allowed * largest)).sum())
    # Written with "<=" so that NaN fails.
    return [
        Check(
            name="logits",
            passed=bool(worst <= allowed),
            detail=f"|Δlogit| from rounded weights in float32 at most {worst:.1e} of the face's largest logit + 1; "
            f"rounded results make {unit:.1e} (allowed {allowed:.1e})",
        ),
        Check(
            name="probabilities",
            passed=bool(share <= allowed_share),
            detail=f"max |Δp| from the same {share:.1e} (allowed {allowed_share:.1e})",
        ),
        Check(
            name="top-1",
            passed=flips == 0,
            detail=f"{flips} of {len(expected)} faces change their expression beyond a tie of these roundings",
        ),
        Check(
            name="logit error",
            passed=bool(mean <= MEAN * chance + _FLOAT32),
            detail=f"root mean square {mean:.1e}; rounded results make {chance:.1e} (allowed {MEAN:g} times that)",
        ),
    ]


def rounded(fp32: onnx.ModelProto) -> onnx.ModelProto:
    """The float graph up to logits, with constants that have 11 significant bits."""
    model = _up_to_logits(fp32)
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    for tensor in kept:
        if tensor.data_type == TensorProto.FLOAT:
            values = _half(numpy_helper.to_array(tensor)).astype(np.float32)
            tensor = numpy_helper.from_array(values, tensor.name)
        model.graph.initializer.append(tensor)
    return model


def perturbed(fp32: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same, with each operator's result rounded to 11 bits after multiplication by a random number."""
    model = rounded(fp32)
    random = np.random.default_rng(seed)
    inferred = onnx.shape_inference.infer_shapes(model)
    floats = {
        value.name
        for value in (*inferred.graph.value_info, *inferred.graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for number, node in enumerate(nodes):
        model.graph.node.append(node)
        if node.op_type in _EXACT:
            continue
        for place, name in enumerate(node.output):
            if name not in floats:
                continue
            # Up to 1, so that nothing leaves the range of float16.
            factor = np.float32(2 ** random.uniform(-1, 0))
            end = f"{number}_{place}"
            model.graph.node[-1].output[place] = f"exact_{end}"
            for constant, value in (("factor", factor), ("inverse", np.float32(1) / factor)):
                model.graph.initializer.append(numpy_helper.from_array(value, f"{constant}_{end}"))
            model.graph.node.extend(
                [
                    helper.make_node("Mul", [f"exact_{end}", f"factor_{end}"], [f"moved_{end}"]),
                    helper.make_node("Cast", [f"moved_{end}"], [f"half_{end}"], to=TensorProto.FLOAT16),
                    helper.make_node("Cast", [f"half_{end}"], [f"rounded_{end}"], to=TensorProto.FLOAT),
                    helper.make_node("Mul", [f"rounded_{end}", f"inverse_{end}"], [name]),
                ]
            )
    return model


def graph_check(fp32: onnx.ModelProto, fp16: onnx.ModelProto) -> Check:
    """Compare operators and constants up to the logits, one by one and exactly."""
    faults = list(_differences(_up_to_logits(fp32), _up_to_logits(fp16)))
    constants = sum(tensor.data_type == TensorProto.FLOAT16 for tensor in fp16.graph.initializer)
    return Check(
        name="fp16 graph",
        passed=not faults,
        detail="; ".join(faults[:3]) or f"{constants} constants are the nearest to float32's, operators the same",
    )


def _differences(fp32: onnx.ModelProto, fp16: onnx.ModelProto) -> Iterator[str]:
    expected, found = _operators(fp32), _operators(fp16)
    cast = ("Cast", "", ("logits_fp16",), ("logits",), (("to", TensorProto.FLOAT),))
    expected = [_halved(operator) for operator in expected] + [cast]
    if expected != found:
        wrong = next((operator for operator, other in zip(found, expected, strict=False) if operator != other), None)
        yield f"operator {wrong[0]} differs" if wrong else f"{len(found)} operators, not {len(expected)}"
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in fp16.graph.initializer}
    for tensor in fp32.graph.initializer:
        values = numpy_helper.to_array(tensor)
        wanted = _half(values) if values.dtype == np.float32 else values
        own = held.get(tensor.name)
        if own is None or own.dtype != wanted.dtype or own.shape != wanted.shape:
            yield f"{tensor.name} is not in the file as {wanted.dtype} of shape {wanted.shape}"
        elif wrong_values := int((own != wanted).sum()):  # a NaN differs from itself
            yield f"{wrong_values} of {wanted.size} values of {tensor.name} are not the nearest"


_Operator = tuple[str, str, tuple[str, ...], tuple[str, ...], tuple[tuple[str, object], ...]]


def _operators(model: onnx.ModelProto) -> list[_Operator]:
    return [
        (
            node.op_type,
            node.domain,
            tuple(node.input),
            tuple(node.output),
            tuple(
                (
                    attribute.name,
                    attribute.i
                    if attribute.type == onnx.AttributeProto.INT
                    else attribute.SerializeToString(deterministic=True),
                )
                for attribute in sorted(node.attribute, key=lambda attribute: attribute.name)
            ),
        )
        for node in model.graph.node
    ]


def _halved(operator: _Operator) -> _Operator:
    """As a fp16 file has it: pixels become float16, and float16 logits float32 in an operator of their own."""
    name, domain, inputs, outputs, attributes = operator
    if name == "Cast":  # of the pixels, which an adopted file may have transposed before
        attributes = (("to", TensorProto.FLOAT16),)
    return (
        name,
        domain,
        inputs,
        tuple("logits_fp16" if output == "logits" else output for output in outputs),
        attributes,
    )


def _up_to_logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """The part of a graph that computes logits, as its only output."""
    makers = {name: node for node in model.graph.node for name in node.output}
    needed, waiting = set(), ["logits"]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += makers[name].input if name in makers else ()
    part = onnx.ModelProto()
    part.CopyFrom(model)
    kept = [node for node in part.graph.node if needed.intersection(node.output)]
    del part.graph.node[:]
    part.graph.node.extend(kept)
    outputs = [output for output in part.graph.output if output.name == "logits"]
    del part.graph.output[:]
    part.graph.output.extend(outputs)
    constants = [tensor for tensor in part.graph.initializer if tensor.name in needed]
    del part.graph.initializer[:]
    part.graph.initializer.extend(constants)
    del part.graph.value_info[:]
    return part


def _half(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):  # an upper limit of 3.4e38 becomes infinite, and is none
        return values.astype(np.float16)


def _logits(model: onnx.ModelProto, faces: Uint8Array, batch: int) -> FloatArray:
    session = open_session(model.SerializeToString(), source="the float model with rounded weights").session
    count = -(-len(faces) // batch) * batch
    filled = np.resize(faces, (count, *faces.shape[1:]))  # a fixed batch has to be full
    runs = [session.run(["logits"], {"faces": filled[start : start + batch]})[0] for start in range(0, count, batch)]
    logits: FloatArray = np.concatenate(runs)[: len(faces)]
    return logits
