"""The int8 model: a float model's graph rewritten so that integers flow from the pixels to the last layer.

Activations are uint8 and weights int8 (per output channel, symmetric), written as QuantizeLinear and
DequantizeLinear pairs that onnxruntime fuses into integer operators. Pixels are uint8 already, so nothing
is quantized at the input: the first convolution reads them with the scale 1 (its weights hold the 1/255).
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from fer_export.int8.gptq import round_weights, trim_pairs, weight_scales
from fer_export.int8.qdq import GraphWriter, IntegerLayer, QuantizedTensor
from fer_export.int8.ranges import Observations
from fer_export.int8.scales import SUM_PARTS, behind_relu, mean_step, plan_steps, short_scales

# ONNX's reference evaluator has no DequantizeLinear below; onnxruntime fuses the pairs of both in the same way.
LOWEST_OPSET = 19
_BLOCK = 4  # columns that the first convolution takes as channels
_Number = TypeVar("_Number", bound=np.generic)


def quantize_model(model: onnx.ModelProto, observations: Observations) -> onnx.ModelProto:
    """The int8 form of a float32 model that `export_graph` wrote.

    Args:
        model: the float32 model, of which `known.first_unknown` knows everything.
        observations: of the same model on calibration faces.
    """
    return _Quantizer(model, observations).run()


class _Quantizer:
    def __init__(self, model: onnx.ModelProto, observations: Observations) -> None:
        self.model = model
        self.ranges = observations.ranges
        self.inputs = observations.inputs
        self.offset = 0.0  # what the graph subtracts from the pixels
        self.initializers = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.outputs = {output.name for output in model.graph.output}
        self.steps = plan_steps(model, self.ranges)
        self.writer = GraphWriter()
        self.quantized: dict[str, QuantizedTensor] = {}
        self.spatial: dict[str, tuple[int, int, int]] = {}  # channels, height, width of each quantized tensor
        self.done: set[str] = set()  # names of nodes that an earlier one took with it

    def run(self) -> onnx.ModelProto:
        for node in self.model.graph.node:
            if node.name in self.done:
                continue
            if node.op_type in ("Cast", "Unsqueeze", "Sub"):
                self.planes = node.output[0]
                if node.op_type == "Sub":
                    self.offset = float(self.initializers[node.input[1]].reshape(()))
                continue
            handler = getattr(self, f"_{node.op_type.lower()}", None)
            if handler is not None and node.input[0] in {*self.quantized, self.planes}:
                handler(node)
            else:
                self._float(node)
        graph = helper.make_graph(
            self.writer.nodes,
            "int8",
            list(self.model.graph.input),
            list(self.model.graph.output),
            list(self.writer.constants.values()),
        )
        opset = max(self.model.opset_import[0].version, LOWEST_OPSET)
        quantized = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="fer-edge")
        quantized.ir_version = self.model.ir_version
        onnx.checker.check_model(quantized)
        return quantized

    def _float(self, node: onnx.NodeProto) -> None:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        for index, name in enumerate(node.input):
            if name in self.quantized:
                copied.input[index] = self.writer.dequantize(self.quantized[name])
            elif name in self.initializers:
                self.writer.constant(name, self.initializers[name])
        self.writer.nodes.append(copied)

    def _with_relu(self, node: onnx.NodeProto) -> str:
        """The output's name; a Relu behind it is absorbed, because uint8 with the zero point 0 cuts at 0 as well."""
        output = behind_relu(node.output[0], self.consumers)
        if output != node.output[0]:
            self.done.add(self.consumers[node.output[0]][0].name)
        return output

    def _tensor(self, output: str, step: float | None = None) -> QuantizedTensor:
        """The uint8 tensor of a float one, before it is written."""
        covered = self.ranges[output]
        step = step or self.steps.get(output, covered.step)
        return QuantizedTensor(f"{output}_u8", step, covered.zero_point)

    def _layer(self, node: onnx.NodeProto, input_step: float, output_step: float) -> IntegerLayer:
        """The integer parameters of a Conv or Gemm, in the float model's layout with the outputs first."""
        weights = self.initializers[node.input[1]]
        if node.op_type == "Gemm" and not any(
            attribute.name == "transB" and attribute.i for attribute in node.attribute
        ):
            weights = weights.T
        bias = self.initializers[node.input[2]] if len(node.input) > 2 else np.zeros(len(weights), np.float32)
        flat = weights.reshape(len(weights), -1)
        statistics = self.inputs.get(node.name)
        smallest = weight_scales(self._as_in_memory(node, weights)).astype(np.float64)
        # A bias is counted in steps of input times weight scale; a channel with tiny weights and a large bias would
        # leave the integers that float32 holds.
        smallest = np.maximum(smallest, np.abs(bias) / (input_step * 2.0**22))
        inputs = np.full(flat.shape[1], 128.0) if statistics is None else statistics.magnitudes / input_step
        sums = 2 * np.abs(flat) @ inputs / smallest + np.abs(bias) / (input_step * smallest)
        scales = short_scales(smallest * input_step / output_step, sums)
        weight_steps = (scales * output_step / input_step).astype(np.float32)
        integers, correction = round_weights(flat, weight_steps, statistics)
        ordered = trim_pairs(self._as_in_memory(node, integers.reshape(weights.shape)))
        return IntegerLayer(
            weights=self._from_memory(node, ordered),
            scales=scales,
            bias=(bias + correction).astype(np.float64) / output_step,
        )

    def _as_in_memory(self, node: onnx.NodeProto, weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Weights with their inputs in the order in which the integer kernels multiply them: channels last.

        The first convolution's channels will be its neighbouring columns.
        """
        if node.op_type == "Conv":
            return weights if node.input[0] == self.planes else weights.transpose(0, 2, 3, 1)
        channels, height, width = self.spatial[node.input[0]]
        turned: npt.NDArray[Any] = weights.reshape(len(weights), channels, height, width).transpose(0, 2, 3, 1)
        return turned

    def _from_memory(self, node: onnx.NodeProto, weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The inverse for Conv, whose ONNX weights have the channels first; Gemm's stay as the kernels read them."""
        if node.op_type == "Gemm":
            return weights.reshape(len(weights), -1)
        return weights if node.input[0] == self.planes else weights.transpose(0, 3, 1, 2)

    def _conv(self, node: onnx.NodeProto) -> None:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.input[0] == self.planes:
            self._first_conv(node, attributes)
            return
        source = self.quantized[node.input[0]]
        output = self._with_relu(node)
        tensor = self._tensor(output)
        layer = self._layer(node, source.step, tensor.step)
        parameters = self.writer.parameters(node.input[1], layer, axis=0)
        kept = {key: attributes[key] for key in ("kernel_shape", "pads", "strides")}
        raw = self.writer.node("Conv", [self.writer.dequantize(source), *parameters], f"{output}_raw", **kept)
        self.quantized[output] = self.writer.quantize(raw, tensor)
        _, height, width = self.spatial[node.input[0]]
        self.spatial[output] = (
            len(layer.scales),
            (height + 2 * kept["pads"][0] - kept["kernel_shape"][0]) // kept["strides"][0] + 1,
            (width + 2 * kept["pads"][1] - kept["kernel_shape"][1]) // kept["strides"][1] + 1,
        )

    def _first_conv(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
        kernel, pad, stride = attributes["kernel_shape"][0], attributes["pads"][0], attributes["strides"][0]
        output = self._with_relu(node)
        side = self.model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
        size = (side + 2 * pad - kernel) // stride + 1
        whole = self._tensor(output)
        layer = self._layer(node, 1.0, whole.step)
        channels = len(layer.scales)
        # A zero point is a whole number. The bias makes up for the rest, exactly but beside the border.
        zero_point = round(self.offset)
        sums = layer.weights.reshape(channels, -1).sum(1, dtype=np.float64) * layer.scales
        bias = layer.bias + (zero_point - self.offset) * sums
        pool = self._following_pool(output)
        rows = 2 if pool is not None else 1
        blocked, before, after = blocked_weights(layer.weights[:, 0], stride=stride, pad=pad, rows=rows)
        columns = self.writer.reshape("faces", "columns", (0, side, side // _BLOCK, _BLOCK))
        planes = self.writer.node("Transpose", [columns], "planes", perm=(0, 3, 1, 2))
        source = QuantizedTensor(planes, 1.0, zero_point)
        copies = len(blocked) // channels
        every = IntegerLayer(blocked, np.tile(layer.scales, copies), np.tile(bias, copies))
        parameters = self.writer.parameters(node.input[1], every, axis=0)
        raw = self.writer.node(
            "Conv",
            [self.writer.dequantize(source), *parameters],
            f"{output}_raw",
            kernel_shape=blocked.shape[2:],
            pads=(pad, before, pad, after),
            strides=(stride * rows, 1),
        )
        self.writer.quantize(raw, whole)
        last = self.writer.node("Transpose", [whole.name], f"{output}_last", perm=(0, 2, 3, 1))
        if pool is None:
            wide = self.writer.reshape(last, f"{output}_wide", (0, size, size, channels))
            first = self.writer.node("Transpose", [wide], f"{output}_first", perm=(0, 3, 1, 2))
            self.quantized[output] = QuantizedTensor(first, whole.step, whole.zero_point)
            self.spatial[output] = (channels, size, size)
            return
        self.done.add(pool.name)
        half = size // 2
        pairs = _BLOCK // stride // 2
        wide = self.writer.reshape(last, f"{output}_wide", (0, half * half // pairs, 4, pairs * channels))
        first = self.writer.node("Transpose", [wide], f"{output}_first", perm=(0, 3, 1, 2))
        pooled = self.writer.node("MaxPool", [first], f"{output}_pool", kernel_shape=(1, 4), strides=(1, 4))
        back = self.writer.node("Transpose", [pooled], f"{output}_back", perm=(0, 2, 3, 1))
        square = self.writer.reshape(back, f"{output}_square", (0, half, half, channels))
        final = self.writer.node("Transpose", [square], f"{output}_pooled", perm=(0, 3, 1, 2))
        self.quantized[pool.output[0]] = QuantizedTensor(final, whole.step, whole.zero_point)
        self.spatial[pool.output[0]] = (channels, half, half)

    def _following_pool(self, output: str) -> onnx.NodeProto | None:
        """The 2 x 2 pooling behind `output`, if that is all there is."""
        following = self.consumers.get(output, [])
        if len(following) != 1 or following[0].op_type != "MaxPool":
            return None
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in following[0].attribute}
        plain = attributes["kernel_shape"] == [2, 2] and attributes["strides"] == [2, 2]
        return following[0] if plain and not any(attributes.get("pads", [])) else None

    def _maxpool(self, node: onnx.NodeProto) -> None:
        source = self.quantized[node.input[0]]
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        kept = {key: attributes[key] for key in ("kernel_shape", "pads", "strides") if key in attributes}
        name = self.writer.node("MaxPool", [source.name], f"{node.output[0]}_u8", **kept)
        self.quantized[node.output[0]] = QuantizedTensor(name, source.step, source.zero_point)
        channels, height, width = self.spatial[node.input[0]]
        pads = kept.get("pads", [0, 0, 0, 0])
        self.spatial[node.output[0]] = (
            channels,
            (height + pads[0] + pads[2] - kept["kernel_shape"][0]) // kept["strides"][0] + 1,
            (width + pads[1] + pads[3] - kept["kernel_shape"][1]) // kept["strides"][1] + 1,
        )

    def _add(self, node: onnx.NodeProto) -> None:
        output = self._with_relu(node)
        tensor = self._tensor(output)
        terms = []
        for place, name in enumerate(node.input):
            source = self.quantized[name]
            if source.name == f"{name}_u8" and len(self.consumers[name]) == 1:
                # OpenVINO fuses a convolution with the sum behind it, and leaves out the rounding between them. Pooling
                # of single values keeps them apart.
                copied = self.writer.node(
                    "MaxPool", [source.name], f"{name}_alone", kernel_shape=(1, 1), strides=(1, 1)
                )
                source = QuantizedTensor(copied, source.step, source.zero_point)
            parts = source.step / tensor.step * SUM_PARTS
            # Whole but for the last bits, where the plan could have it so.
            whole = round(parts) if abs(parts - round(parts)) < 1e-6 * parts else parts
            terms.append(self.writer.dequantize_parts(source, f"{output}_{place}", whole))
        raw = self.writer.node("Add", terms, f"{output}_raw")
        self.quantized[output] = self.writer.quantize(raw, tensor, parts=SUM_PARTS)
        self.spatial[output] = self.spatial[node.input[0]]

    def _reducemean(self, node: onnx.NodeProto) -> None:
        source, output = self.quantized[node.input[0]], node.output[0]
        channels, height, width = self.spatial[node.input[0]]
        tensor = self._tensor(output, mean_step(self.ranges[output].step, source.step, height * width))
        raw = self.writer.node("GlobalAveragePool", [self.writer.dequantize(source)], f"{output}_raw")
        self.quantized[output] = self.writer.quantize(raw, tensor, parts=tensor.step / source.step)
        self.spatial[output] = (channels, 1, 1)

    def _reshape(self, node: onnx.NodeProto) -> None:
        # Integer convolutions keep the channels last, so flattening in that order moves nothing; the
        # next layer's weights are put into the same order.
        source = self.quantized[node.input[0]]
        channels, height, width = self.spatial[node.input[0]]
        # Written even where height and width are 1: it cancels the transposition that integer layers end with.
        last = self.writer.node("Transpose", [source.name], f"{node.output[0]}_last", perm=(0, 2, 3, 1))
        flat = self.writer.reshape(last, f"{node.output[0]}_u8", (0, channels * height * width))
        self.quantized[node.output[0]] = QuantizedTensor(flat, source.step, source.zero_point)
        self.spatial[node.output[0]] = (channels, height, width)

    def _gemm(self, node: onnx.NodeProto) -> None:
        source = self.quantized[node.input[0]]
        output = self._with_relu(node)
        tensor = None if output in self.outputs else self._tensor(output)
        layer = self._layer(node, source.step, 1.0 if tensor is None else tensor.step)
        # (in, out) and no transB: the form that onnxruntime packs once, when the session opens.
        turned = IntegerLayer(np.ascontiguousarray(layer.weights.T), layer.scales, layer.bias)
        inputs = [self.writer.dequantize(source), *self.writer.parameters(node.input[1], turned, axis=1)]
        if tensor is None:
            self.writer.node("Gemm", inputs, output)
            return
        self.quantized[output] = self.writer.quantize(self.writer.node("Gemm", inputs, f"{output}_raw"), tensor)
        self.spatial[output] = (len(layer.scales), 1, 1)


def blocked_weights(
    weights: npt.NDArray[_Number], *, stride: int, pad: int, rows: int = 1, block: int = _BLOCK
) -> tuple[npt.NDArray[_Number], int, int]:
    """A convolution over one plane as one over `block` channels, which are `block` neighbouring columns.

    An integer convolution over one channel spends its time gathering single bytes; the same pixels read as
    (48, 12, 4) come in fours, and the plane is not moved. One position of the new convolution gives all
    results of its four columns (and of `rows` rows), as so many times more channels.

    Args:
        weights: (channels, kernel, kernel).
        stride: of the original convolution.
        pad: zeros on every side of the plane.
        rows: 1, or 2 for the channel order (row, column in the pair, pair of columns, channel), in which a
            2 x 2 pooling finds its four values one after the other.

    Returns:
        The weights, in their type (rows * block / stride * channels, block, kernel rows, kernel columns), and the
        columns of padding before and after.
    """
    channels, kernel, _ = weights.shape
    outputs = block // stride
    first = (-pad) // block
    last = ((outputs - 1) * stride + kernel - 1 - pad) // block
    shape = outputs, rows, channels, block, kernel + (rows - 1) * stride, last - first + 1
    blocked = np.zeros(shape, weights.dtype)
    for output in range(outputs):
        for row in range(rows):
            for column in range(kernel):
                place, inside = divmod(output * stride + column - pad, block)
                blocked[output, row, :, inside, row * stride : row * stride + kernel, place - first] = weights[
                    :, :, column
                ]
    if rows == 2:
        pairs = blocked.reshape(outputs // 2, 2, *blocked.shape[1:])
        blocked = np.ascontiguousarray(pairs.transpose(2, 1, 0, 3, 4, 5, 6))
    return blocked.reshape(-1, *blocked.shape[-3:]), -first, last
