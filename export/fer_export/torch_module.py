"""A float32 ONNX file as a PyTorch module, for converters that take PyTorch and for gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from fer_runtime.errors import ModelFileError


class OnnxModule(nn.Module):
    """Computes the graph node by node: faces (batch, ...), uint8 or float, to the tensors of those names.

    Raises:
        ModelFileError: the graph has an operator that is not among those of float32 files of fer-export.
    """

    def __init__(self, model: onnx.ModelProto, outputs: Sequence[str] = ("logits", "probabilities")) -> None:
        super().__init__()
        self.outputs = tuple(outputs)
        self.nodes = [
            (node.op_type, tuple(node.input), node.output[0], _attributes(node))
            for node in _needed_nodes(model, self.outputs)
        ]
        if unknown := sorted({kind for kind, *_ in self.nodes} - set(_OPERATORS)):
            raise ModelFileError(f"the graph has {', '.join(unknown)}, which this conversion does not know")
        self.names: dict[str, str] = {}  # of buffers; names of ONNX have points
        self.shapes: dict[str, list[int]] = {}  # constants that are arguments, not tensors
        for number, tensor in enumerate(model.graph.initializer):
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.int64:
                self.shapes[tensor.name] = values.reshape(-1).tolist()
            else:
                self.names[tensor.name] = f"constant_{number}"
                self.register_buffer(f"constant_{number}", torch.from_numpy(values.copy()))

    def forward(self, faces: Tensor) -> tuple[Tensor, ...]:
        values: dict[str, Any] = {"faces": faces, **self.shapes}
        for name, buffer in self.names.items():
            values[name] = getattr(self, buffer)
        for kind, inputs, output, attributes in self.nodes:
            values[output] = _OPERATORS[kind]([values[name] for name in inputs if name], attributes)
        return tuple(values[name] for name in self.outputs)


def _needed_nodes(model: onnx.ModelProto, outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that the outputs need, in order."""
    wanted = set(outputs)
    kept = []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _conv(values: list[Any], attributes: dict[str, Any]) -> Tensor:
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        raise ModelFileError("a convolution pads its sides unequally, which this conversion does not know")
    weighted: Any = functional.conv2d
    convolved: Tensor = weighted(
        *values,
        stride=attributes.get("strides", [1, 1]),
        padding=(top, left),
        dilation=attributes.get("dilations", [1, 1]),
        groups=attributes.get("group", 1),
    )
    return convolved


def _max_pool(values: list[Any], attributes: dict[str, Any]) -> Tensor:
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right) or attributes.get("ceil_mode", 0):
        raise ModelFileError("a pooling pads its sides unequally, which this conversion does not know")
    return functional.max_pool2d(
        values[0], attributes["kernel_shape"], stride=attributes.get("strides"), padding=(top, left)
    )


def _gemm(values: list[Any], attributes: dict[str, Any]) -> Tensor:
    if attributes.get("transA") or attributes.get("alpha", 1) != 1 or attributes.get("beta", 1) != 1:
        raise ModelFileError("a linear layer has factors, which this conversion does not know")
    weights = values[1] if attributes.get("transB") else values[1].T
    return functional.linear(values[0], weights, *values[2:])


def _clip(values: list[Any], attributes: dict[str, Any]) -> Tensor:
    if len(values) != 3:
        raise ModelFileError("a Clip has one bound, which this conversion does not know")
    return torch.clamp(*values)


def _reshape(values: list[Any], attributes: dict[str, Any]) -> Tensor:
    tensor, shape = values
    # 0 keeps the dimension of that place.
    return torch.reshape(tensor, [tensor.shape[place] if size == 0 else size for place, size in enumerate(shape)])


def _reduce_mean(values: list[Any], attributes: dict[str, Any]) -> Tensor:
    axes = values[1] if len(values) > 1 else attributes["axes"]
    mean: Tensor = values[0].mean(dim=axes, keepdim=bool(attributes.get("keepdims", 1)))
    return mean


def _unsqueeze(values: list[Any], attributes: dict[str, Any]) -> Tensor:
    tensor: Tensor = values[0]
    for axis in sorted(values[1]):
        tensor = tensor.unsqueeze(axis)
    return tensor


_OPERATORS: dict[str, Callable[[list[Any], dict[str, Any]], Tensor]] = {
    "Add": lambda values, _: values[0] + values[1],
    "Cast": lambda values, _: values[0].to(torch.float32),
    "Clip": _clip,
    "Conv": _conv,
    "Div": lambda values, _: values[0] / values[1],
    "Flatten": lambda values, _: torch.flatten(values[0], 1),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda values, _: values[0].mean(dim=(2, 3), keepdim=True),
    "MaxPool": _max_pool,
    "Mul": lambda values, _: values[0] * values[1],
    "ReduceMean": _reduce_mean,
    "Relu": lambda values, _: torch.relu(values[0]),
    "Reshape": _reshape,
    "Softmax": lambda values, _: torch.softmax(values[0], dim=-1),
    "Sub": lambda values, _: values[0] - values[1],
    "Transpose": lambda values, attributes: values[0].permute(attributes["perm"]),
    "Unsqueeze": _unsqueeze,
}
