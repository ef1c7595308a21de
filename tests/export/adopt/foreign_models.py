"""ONNX classifiers as other programs write them, made with onnx.helper: small, with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FERPLUS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")


class Builder:
    """Nodes and constants of a graph, with weights from one seed."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def weights(self, name: str, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
        return self.constant(name, self.random.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32))

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{kind}{len(self.nodes)}_Output_0"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{kind}{len(self.nodes)}", **attributes))
        return output

    def model(
        self,
        shape: list[Any],
        output: str,
        classes: int,
        *,
        opset: int,
        kind: int = TensorProto.FLOAT,
        lists_constants: bool = False,
        metadata: dict[str, str] | None = None,
    ) -> onnx.ModelProto:
        """Args: lists_constants: also as inputs, as files before IR version 4 do."""
        inputs = [helper.make_tensor_value_info("Input3", kind, shape)]
        if lists_constants:
            inputs += [
                helper.make_tensor_value_info(constant.name, constant.data_type, list(constant.dims))
                for constant in self.constants
            ]
        graph = helper.make_graph(
            self.nodes,
            "foreign",
            inputs,
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [shape[0], classes])],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="CNTK")
        model.ir_version = 3 if lists_constants else 8
        for key, value in (metadata or {}).items():
            model.metadata_props.add(key=key, value=value)
        onnx.checker.check_model(model)
        return model


def ferplus_like(batch: int | str = 1) -> onnx.ModelProto:
    """The form of the ONNX Model Zoo's emotion-ferplus-8: opset 7, float (1, 1, 64, 64) of 0-255, eight scores.

    CNTK writes the scaling into the graph, bias as Plus, "same" padding, Dropout, and the batch into each Reshape.
    """
    build = Builder()
    x = build.node("Sub", ["Input3", build.constant("mean", np.array([127.5], np.float32))])
    x = build.node("Div", [x, build.constant("scale", np.array([64.0], np.float32))])
    channels = 1
    for place, wide in enumerate((8, 12, 16)):
        weights = build.weights(f"W{place}", wide, channels, 3, 3)
        x = build.node("Conv", [x, weights], kernel_shape=[3, 3], strides=[1, 1], auto_pad="SAME_UPPER", group=1)
        bias = build.random.normal(0, 0.1, (wide, 1, 1)).astype(np.float32)
        x = build.node("Relu", [build.node("Add", [x, build.constant(f"B{place}", bias)])])
        x = build.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 0, 0])
        x = build.node("Dropout", [x], ratio=0.25)
        channels = wide
    x = build.node("Reshape", [x, build.constant("flat", np.array([batch if batch == 1 else -1, 16 * 8 * 8]))])
    for place, (given, wide) in enumerate(((16 * 8 * 8, 24), (24, 8))):
        x = build.node("MatMul", [x, build.weights(f"F{place}", given, wide)])
        bias = build.random.normal(0, 0.1, (1, wide)).astype(np.float32)
        x = build.node("Add", [x, build.constant(f"C{place}", bias)])
        if place == 0:
            x = build.node("Dropout", [build.node("Relu", [x])], ratio=0.5)
    return build.model([batch, 1, 64, 64], x, 8, opset=7, lists_constants=True)


def mobilefacenet_like(size: int = 112, *, softmax: bool = True) -> onnx.ModelProto:
    """The form of a MobileFaceNet classifier: RGB, BatchNormalization, PRelu, depthwise convolutions, any batch."""
    build = Builder(1)

    def layer(x: str, name: str, given: int, wide: int, kernel: int, stride: int, group: int = 1) -> str:
        weights = build.weights(f"{name}.weight", wide, given // group, kernel, kernel)
        pad = kernel // 2
        x = build.node(
            "Conv", [x, weights], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, group=group
        )
        random = build.random
        numbers = (
            random.uniform(0.5, 1.5, wide),
            random.normal(0, 0.2, wide),
            random.normal(0, 0.2, wide),
            random.uniform(0.5, 1.5, wide),
        )
        names = [build.constant(f"{name}.bn{place}", number.astype(np.float32)) for place, number in enumerate(numbers)]
        return build.node("BatchNormalization", [x, *names], epsilon=1e-5)

    def prelu(x: str, name: str, wide: int) -> str:
        slope = build.random.uniform(0.1, 0.4, (wide, 1, 1)).astype(np.float32)
        return build.node("PRelu", [x, build.constant(f"{name}.slope", slope)])

    x = prelu(layer("Input3", "first", 3, 8, 3, 2), "first", 8)
    x = prelu(layer(x, "deep", 8, 8, 3, 2, group=8), "deep", 8)
    for place in range(2):
        wide = prelu(layer(x, f"expand{place}", 8, 16, 1, 1), f"expand{place}", 16)
        wide = prelu(layer(wide, f"depth{place}", 16, 16, 3, 1, group=16), f"depth{place}", 16)
        x = build.node("Add", [layer(wide, f"project{place}", 16, 8, 1, 1), x])
    x = build.node("GlobalAveragePool", [x])
    # A shape that is computed while the model runs, as PyTorch's older exporter writes x.view(x.size(0), -1).
    first = build.node("Gather", [build.node("Shape", [x]), build.constant("zero", np.array(0))], axis=0)
    rows = build.node("Unsqueeze", [first, build.constant("axes", np.array([0]))])
    shape = build.node("Concat", [rows, build.constant("rest", np.array([-1]))], axis=0)
    x = build.node("Reshape", [x, shape])
    bias = build.constant("head.bias", build.random.normal(0, 0.1, 7).astype(np.float32))
    weights = build.constant("head.weight", build.random.normal(0, 0.1, (7, 8)).astype(np.float32))
    x = build.node("Gemm", [x, weights, bias], transB=1)
    if softmax:
        x = build.node("Softmax", [x], axis=1)
    return build.model(["batch", 3, size, size], x, 7, opset=13)
