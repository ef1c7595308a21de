"""Calibration ranges and statistics of a float model over real faces, from which its integer form is made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import helper

from fer_export.int8.gptq import InputStatistics
from fer_runtime.model.parity import FloatArray, Uint8Array
from fer_runtime.model.session import open_session

_OBSERVED_BATCH = 32
_PATCHES_PER_FACE = 48


@dataclass(frozen=True, slots=True)
class ActivationRange:
    """The calibration range of a tensor."""

    low: float
    high: float

    @property
    def step(self) -> float:
        """The smallest step for which uint8 around the zero point covers the range and 0."""
        return self._step(self.zero_point)

    @property
    def zero_point(self) -> int:
        """The integer of 0.

        It is even, so that half a step rounded to an even number is the same before and after it is added: ONNX Runtime
        rounds before, OpenVINO after.
        """
        if self.low >= 0:
            return 0
        nearest = int(-self.low / (max(self.high, 0.0) - self.low) * 255) // 2 * 2
        return min((zero for zero in (nearest, nearest + 2) if 2 <= zero <= 254), key=self._step)

    def _step(self, zero: int) -> float:
        return max(-self.low / zero if zero else 0.0, self.high / (255 - zero), 1e-8 / 255)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """Ranges and statistics of a float model over calibration faces."""

    ranges: dict[str, ActivationRange]  # of each tensor
    # Of each convolution and linear layer, by the node's name; one that is missing has its weights rounded one by one.
    inputs: dict[str, InputStatistics]


def observe(model: onnx.ModelProto, faces: Uint8Array) -> Observations:
    """Run the float32 `model` on calibration faces uint8 (faces, 48, 48) and record every layer.

    Ranges are from the smallest to the largest value: leaving out even one in ten thousand cost more on v0
    and v1 than the finer steps gained.
    """
    kinds = {"Conv", "Relu", "Add", "Gemm", "MaxPool", "ReduceMean", "GlobalAveragePool"}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    ranged = [name for node in model.graph.node if node.op_type in kinds for name in node.output]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    shown = {output.name for output in watched.graph.output}
    names = list(dict.fromkeys([*ranged, *(node.input[0] for node in layers)]))
    for name in names:
        if name not in shown:
            watched.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = open_session(watched.SerializeToString(), source="the model being calibrated").session
    random = np.random.default_rng(0)
    low = dict.fromkeys(ranged, 0.0)
    high = dict.fromkeys(ranged, 0.0)
    inputs: dict[str, InputStatistics] = {}
    for start in range(0, len(faces), _OBSERVED_BATCH):
        answers = session.run(names, {"faces": faces[start : start + _OBSERVED_BATCH]})
        values = dict(zip(names, answers, strict=True))
        for name in ranged:
            low[name] = min(low[name], float(values[name].min()))
            high[name] = max(high[name], float(values[name].max()))
        for node in layers:
            rows = _layer_rows(node, values[node.input[0]], random)
            inputs.setdefault(node.name, InputStatistics(rows.shape[1])).add(rows)
    return Observations(
        ranges={name: ActivationRange(low[name], high[name]) for name in ranged},
        inputs=inputs,
    )


def _layer_rows(node: onnx.NodeProto, values: FloatArray, random: np.random.Generator) -> FloatArray:
    """The inputs of a layer, float32 (rows, inputs): of a convolution, some of its patches, one per row."""
    if node.op_type == "Gemm":
        return values
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    patches: FloatArray = (
        torch.nn.functional.unfold(
            torch.from_numpy(values),
            kernel_size=attributes["kernel_shape"],
            padding=attributes["pads"][:2],
            stride=attributes["strides"],
        )
        .transpose(1, 2)
        .numpy()
    )
    # Neighbouring patches overlap, so a few of a face say as much as all.
    if patches.shape[1] > _PATCHES_PER_FACE:
        patches = patches[:, random.permutation(patches.shape[1])[:_PATCHES_PER_FACE]]
    return patches.reshape(-1, patches.shape[-1])
