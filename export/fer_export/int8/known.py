"""Which float graphs the quantizer of int8/quantize.py can rewrite; onnxruntime's takes the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

_BLOCK = 4  # columns that the first convolution takes as channels


def first_unknown(model: onnx.ModelProto) -> str:
    """The first part of a float32 graph that our quantizer does not know, in words; "" if it knows all."""
    try:
        return _Reader(model).first_unknown()
    except (KeyError, IndexError, ValueError, TypeError, StopIteration) as error:
        return f"a form that it cannot read ({error!r})"


class _Reader:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.graph.initializer}
        self.producers = {name: node for node in self.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.planes: str = self.graph.input[0].name

    def first_unknown(self) -> str:
        face = [dimension.dim_value for dimension in self.graph.input[0].type.tensor_type.shape.dim[1:]]
        if len(face) != 2 or face[0] % _BLOCK:
            return f"faces of shape ({', '.join(map(str, face))})"
        for node in self.graph.node:
            attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            check = getattr(self, f"_{node.op_type.lower()}", None)
            reason = check(node, attributes) if check is not None else "the operator"
            if reason:
                return f"{node.op_type} {node.name}" + ("" if reason == "the operator" else f" with {reason}")
        return ""

    def _made_by(self, name: str) -> str:
        return str(self.producers[name].op_type) if name in self.producers else ""

    def _cast(self, node: onnx.NodeProto, _: dict[str, Any]) -> str:
        return self._moves_on(node)

    def _unsqueeze(self, node: onnx.NodeProto, _: dict[str, Any]) -> str:
        return self._moves_on(node)

    def _sub(self, node: onnx.NodeProto, _: dict[str, Any]) -> str:
        offset = self.constants.get(node.input[1])
        if offset is None or offset.size != 1:
            return "more than one number"
        if not 0 <= round(float(offset.reshape(()))) <= 255:
            return f"{float(offset.reshape(())):g}, which is no zero point of uint8"
        return self._moves_on(node)

    def _moves_on(self, node: onnx.NodeProto) -> str:
        if node.input[0] != self.planes or len(self.readers.get(node.output[0], ())) != 1:
            return "the operator"
        self.planes = node.output[0]
        return ""

    def _conv(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> str:
        weights = self.constants[node.input[1]]
        pads, strides = attributes["pads"], attributes["strides"]
        if attributes.get("group", 1) != 1:
            return f"group = {attributes['group']}"
        if weights.ndim != 4 or set(attributes.get("dilations") or [1]) != {1}:
            return "dilations, or another number of dimensions"
        if pads[0] != pads[2] or pads[1] != pads[3]:
            return f"uneven padding {list(pads)}"
        if node.input[0] != self.planes:
            return self._reads_integers(node, 0)
        kernel, side = weights.shape[2:], self.graph.input[0].type.tensor_type.shape.dim[1].dim_value
        stride = strides[0]
        size = (side + 2 * pads[0] - kernel[0]) // stride + 1
        if len({*kernel}) != 1 or len({*pads}) != 1 or len({*strides}) != 1 or weights.shape[1] != 1:
            return "a first window that is no square"
        if stride not in (1, 2) or size * stride != side or size % 2:
            return f"a first step of {stride} pixels to a size of {size}"
        return ""

    def _reads_integers(self, node: onnx.NodeProto, *places: int) -> str:
        kinds = ("Conv", "Relu", "MaxPool", "Add", "ReduceMean", "Reshape", "Gemm")
        outside = [node.input[place] for place in places if self._made_by(node.input[place]) not in kinds]
        return f"an input from {self._made_by(outside[0]) or 'a constant'}" if outside else ""

    def _relu(self, node: onnx.NodeProto, _: dict[str, Any]) -> str:
        alone = len(self.readers[node.input[0]]) == 1 and self._made_by(node.input[0]) in ("Conv", "Gemm", "Add")
        return "" if alone else "an input that others read as well"

    def _maxpool(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> str:
        if attributes.get("ceil_mode") or set(attributes.get("dilations") or [1]) != {1} or "strides" not in attributes:
            return "dilations or ceil_mode"
        return self._reads_integers(node, 0)

    def _add(self, node: onnx.NodeProto, _: dict[str, Any]) -> str:
        return self._reads_integers(node, 0, 1)

    def _reducemean(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> str:
        axes = np.sort(self.constants[node.input[1]].reshape(-1) % 4).tolist()
        if axes != [2, 3] or attributes.get("keepdims", 1) != 1:
            return f"axes {axes}"
        return self._reads_integers(node, 0)

    def _reshape(self, node: onnx.NodeProto, _: dict[str, Any]) -> str:
        following = self.readers.get(node.output[0], [])
        if len(self.constants[node.input[1]]) != 2 or [reader.op_type for reader in following] != ["Gemm"]:
            return "another use than before a linear layer"
        return self._reads_integers(node, 0)

    def _gemm(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> str:
        if attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1:
            return "alpha or beta"
        source = self._made_by(node.input[0])
        linear = source in ("Reshape", "Gemm") or (
            source == "Relu" and self._made_by(self.producers[node.input[0]].input[0]) == "Gemm"
        )
        return "" if linear else f"an input from {source}"

    def _div(self, node: onnx.NodeProto, _: dict[str, Any]) -> str:
        return "" if node.input[0] == "logits" else "another use than the temperature"

    def _softmax(self, node: onnx.NodeProto, _: dict[str, Any]) -> str:
        return "" if "probabilities" in node.output else "another use than the probabilities"
