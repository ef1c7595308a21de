"""The pieces of an int8 graph, written as QuantizeLinear and DequantizeLinear pairs.

Numbers between the pairs count steps: a uint8 tensor is read with the scale 1 (int8/scales.py says why). What a step
stands for in the float network is in the metadata of the node that writes the tensor, under `STEP`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from fer_export.int8.gptq import Int8Array
from fer_export.int8.scales import STEP


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A tensor in the integer graph."""

    name: str
    step: float  # what one stands for in the float network
    zero_point: int


@dataclass(frozen=True, slots=True)
class IntegerLayer:
    """A layer's parameters in the integer graph, for inputs that count steps."""

    weights: Int8Array
    scales: npt.NDArray[np.float64]  # (outputs,), in steps of the output; exact in float32
    bias: npt.NDArray[np.float64]  # (outputs,), in steps of the output


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
        """Read a tensor in its own steps."""
        output = f"{tensor.name}_float"
        if not any(node.output[0] == output for node in self.nodes):
            scale = self.constant(f"{tensor.name}_scale", np.array(1, np.float32))
            self.node("DequantizeLinear", [tensor.name, scale, self._zero(tensor)], output)
        return output

    def dequantize_parts(self, tensor: QuantizedTensor, reader: str, parts: float) -> str:
        """Read a tensor in parts of another step, of which each of its own has so many."""
        output = f"{tensor.name}_{reader}"
        scale = self.constant(f"{output}_parts", np.array(parts, np.float32))
        return self.node("DequantizeLinear", [tensor.name, scale, self._zero(tensor)], output)

    def quantize(self, source: str, tensor: QuantizedTensor, *, parts: float = 1) -> QuantizedTensor:
        """Write `source` as a tensor, of whose step it counts so many parts."""
        end = "scale" if parts == 1 else "parts"
        scale = self.constant(f"{tensor.name}_{end}", np.array(parts, np.float32))
        self.node("QuantizeLinear", [source, scale, self._zero(tensor)], tensor.name)
        self.nodes[-1].metadata_props.add(key=STEP, value=repr(tensor.step))
        return tensor

    def _zero(self, tensor: QuantizedTensor) -> str:
        return self.constant(f"{tensor.name}_zero", np.array(tensor.zero_point, np.uint8))

    def parameters(self, name: str, layer: IntegerLayer, *, axis: int) -> list[str]:
        """Weights and bias behind their DequantizeLinear, as inputs for Conv or Gemm; `axis` counts the outputs."""
        weights = self.node(
            "DequantizeLinear",
            [
                self.constant(name, layer.weights),
                self.constant(f"{name}_scale", layer.scales.astype(np.float32)),
                self.constant(f"{name}_zero", np.zeros(len(layer.scales), np.int8)),
            ],
            f"{name}_float",
            axis=axis,
        )
        bias = np.rint(layer.bias / layer.scales).astype(np.int32)
        if not bias.any():
            # OpenVINO leaves out an addition of zeros, and then divides by the reciprocal of the scale, which is not
            # exact. One of these units is a thousandth of a step.
            bias[0] = 1
        biases = self.node(
            "DequantizeLinear",
            [
                self.constant(f"{name}_bias", bias),
                self.constant(f"{name}_bias_scale", layer.scales.astype(np.float32)),
            ],
            f"{name}_bias_float",
            axis=0,
        )
        return [weights, biases]
