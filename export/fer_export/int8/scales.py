"""Scales with which every runtime rounds alike.

An int8 graph rounds after each layer. Runtimes compute what is rounded in different orders: in integers, or in float32
with a division or a multiplication behind. Where a value is half a step from two integers, the last bit decides, and
one value in a million decided v3's logits by 0.1. Two rules leave nothing to the last bit:

- **A layer counts in steps.** A convolution or linear layer reads and writes uint8 tensors with the scale 1; its weight
  scales hold what a step of its input and of its output stand for. They have few significant bits, so that products and
  sums below 2^24 are exact in float32, in any order. A value at exactly half a step is rounded to even, as ONNX says.
- **A sum or a mean never ends at half a step.** Its output's step is an odd number of its inputs' smallest unit, so
  that all results keep a distance from half, far beyond float32's error.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx

from fer_export.int8.ranges import ActivationRange

STEP = "fer.step"  # metadata of the node that writes a uint8 tensor: what a step stands for in the float network
SUM_PARTS = 127  # of a sum's step that its inputs' steps are multiples of; odd
_EXACT = 2.0**24  # integers that float32 holds
_MOST_BITS = 4
_MEAN_BITS = 6
_Array = npt.NDArray[np.float64]


def short_scales(scales: _Array, sums: _Array) -> _Array:
    """The next larger scales of the form j * 2^e with a small integer j, float64 (outputs,).

    Args:
        scales: the smallest allowed, (outputs,).
        sums: how large the integer sums of each output get, (outputs,); j times that stays below 2^24.
    """
    bits = np.clip(np.floor(np.log2(_EXACT / np.maximum(sums, 1))), 1, _MOST_BITS)
    unit = np.exp2(np.floor(np.log2(scales)) - bits + 1)
    found: _Array = np.ceil(scales / unit) * unit
    return found


def plan_steps(model: onnx.ModelProto, ranges: dict[str, ActivationRange]) -> dict[str, float]:
    """The float value of one step of each tensor in and behind a sum, by name; the others take their range's own.

    Args:
        model: the float graph.
        ranges: of its tensors.
    """
    producers = {node.output[0]: node for node in model.graph.node}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    steps: dict[str, float] = {}
    # From back to front: the last sum of a chain sets its step, and those of its inputs are parts of that.
    for node in reversed(model.graph.node):
        if node.op_type != "Add" or any(name not in producers for name in node.input):
            continue
        output = behind_relu(node.output[0], consumers)
        whole = steps.setdefault(output, ranges[output].step)
        for name in dict.fromkeys(_quantized_source(source, producers) for source in node.input):
            if name in ranges:
                parts = max(int(np.ceil(ranges[name].step / whole * SUM_PARTS)), 1)
                steps.setdefault(name, whole * parts / SUM_PARTS)
    return steps


def mean_step(range_scale: float, input_step: float, values: int) -> float:
    """The step behind a mean of `values` uint8 values: at least `range_scale`, and no mean ends at half of it.

    The sum of the values, k / 2^m of their step being the output's, is at half a step where it equals
    k * values * (2 n + 1) / 2^(m + 1). With k odd that is no integer as long as 2^(m + 1) does not divide `values`.
    """
    ratio = range_scale / input_step
    twos = (values & -values).bit_length() - 1
    halvings = max(_MEAN_BITS - 1 - int(np.floor(np.log2(ratio))), twos)
    odd = int(np.ceil(ratio * 2.0**halvings)) | 1
    return input_step * odd / 2.0**halvings


def behind_relu(output: str, consumers: dict[str, list[onnx.NodeProto]]) -> str:
    """The name of a layer's output behind a Relu that alone reads it."""
    following = consumers.get(output, [])
    alone = len(following) == 1 and following[0].op_type == "Relu"
    return str(following[0].output[0]) if alone else output


def _quantized_source(name: str, producers: dict[str, onnx.NodeProto]) -> str:
    """The tensor whose scale `name` has: pooling for the maximum keeps it."""
    while name in producers and producers[name].op_type == "MaxPool":
        name = producers[name].input[0]
    return name
