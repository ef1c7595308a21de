"""The pieces of an int8 graph, written as QuantizeLinear and DequantizeLinear pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from fer_export.int8.gptq import Int8Array
from fer_export.int8.ranges import ActivationRange
from fer_runtime.model.parity import FloatArray


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A tensor in the integer graph."""

    name: str
    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True)
class IntegerLayer:
    """A layer's parameters in the integer graph."""

    weights: Int8Array
    scales: FloatArray  # (outputs,)
    bias: FloatArray  # (outputs,)


@dataclass(slots=True)
class GraphWriter:
    """The nodes and constants of the integer graph, written front to back."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        # Not ascontiguousarray, which makes scalars one-dimensional: onnxruntime fuses Add for scalar scales only.
        self.constants.setdefault(name, numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def reshape(self, source: str, output: str, shape: Sequence[int]) -> str:
        return self.node("Reshape", [source, self.constant(f"{output}_shape", np.array(shape, np.int64))], output)

    def dequantize(self, tensor: QuantizedTensor) -> str:
        output = f"{tensor.name}_float"
        if not any(node.output[0] == output for node in self.nodes):
            self.node("DequantizeLinear", [tensor.name, *self._scale(tensor)], output)
        return output

    def quantize(self, source: str, output: str, covered: ActivationRange) -> QuantizedTensor:
        tensor = QuantizedTensor(output, covered.scale, covered.zero_point)
        self.node("QuantizeLinear", [source, *self._scale(tensor)], output)
        return tensor

    def _scale(self, tensor: QuantizedTensor) -> tuple[str, str]:
        return (
            self.constant(f"{tensor.name}_scale", np.array(tensor.scale, np.float32)),
            self.constant(f"{tensor.name}_zero", np.array(tensor.zero_point, np.uint8)),
        )

    def parameters(self, name: str, layer: IntegerLayer, input_scale: float, *, axis: int) -> list[str]:
        """Weights and bias behind their DequantizeLinear, as inputs for Conv or Gemm; `axis` counts the outputs."""
        weights = self.node(
            "DequantizeLinear",
            [
                self.constant(name, layer.weights),
                self.constant(f"{name}_scale", layer.scales),
                self.constant(f"{name}_zero", np.zeros(len(layer.scales), np.int8)),
            ],
            f"{name}_float",
            axis=axis,
        )
        # The integer sum counts in steps of input scale times weight scale, and the bias with it.
        scales = (layer.scales.astype(np.float64) * input_scale).astype(np.float32)
        biases = self.node(
            "DequantizeLinear",
            [
                self.constant(f"{name}_bias", np.rint(layer.bias / scales.astype(np.float64)).astype(np.int32)),
                self.constant(f"{name}_bias_scale", scales),
            ],
            f"{name}_bias_float",
            axis=0,
        )
        return [weights, biases]
