"""int8 models by onnxruntime's `quantize_static`, for networks that our quantizer does not know; same gate."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from fer_export.int8.quantize import LOWEST_OPSET
from fer_runtime.model.parity import Uint8Array
from fer_runtime.model.session import quantization_tools

_BATCH = 16
# Layers with weights, and what can stay in integers between them. Softmax, normalization and the like keep float32.
_QUANTIZED = (
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "Conv",
    "Gemm",
    "MatMul",
    "MaxPool",
    "Relu",
    "Reshape",
    "Transpose",
)


def quantize_stock(model: onnx.ModelProto, faces: Uint8Array) -> onnx.ModelProto:
    """The int8 form of a float32 model by `quantize_static`: QDQ, uint8 activations, int8 weights per channel.

    Weights have 7 bits: no two neighbouring products leave 16 bits then, so that AVX2, VNNI and ARM compute the same.

    Args:
        model: the float32 model.
        faces: that set the ranges, from the smallest to the largest value.
    """
    tools = quantization_tools()
    kept = _kept_in_float(model)
    given = onnx.ModelProto()
    given.CopyFrom(model)  # quantize_static moves the weights out of what it is given
    with tempfile.TemporaryDirectory() as folder, _no_advice():
        path = Path(folder) / "int8.onnx"
        tools.quantize_static(
            given,
            path,
            _reader(tools, faces),
            quant_format=tools.QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTIZED),
            per_channel=True,
            reduce_range=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            nodes_to_exclude=kept,
            calibrate_method=tools.CalibrationMethod.MinMax,
        )
        quantized = onnx.load(path)
    _tidy(quantized, model)
    onnx.checker.check_model(quantized)
    return quantized


@contextmanager
def _no_advice() -> Iterator[None]:
    """quantize_static advises, through the root logger, to fold BatchNormalization first: that is done already."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def _kept_in_float(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that stay in float32.

    These are the temperature and the softmax, products of two tensors of the faces (attention), and, in networks with
    LayerNormalization, additions: their sum over all layers spreads too wide for eight bits.
    """
    nodes = list(model.graph.node)
    last = next(place for place, node in enumerate(nodes) if "logits" in node.output)
    constants = {tensor.name for tensor in model.graph.initializer}
    normalizes = any(node.op_type == "LayerNormalization" for node in nodes)
    kept = nodes[last + 1 :]
    kept += [node for node in nodes if node.op_type == "MatMul" and node.input[1] not in constants]
    kept += [node for node in nodes if node.op_type == "Add" and normalizes]
    return [node.name for node in kept]


def _reader(tools: Any, faces: Uint8Array) -> Any:
    class Reader(tools.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Uint8Array] = iter(np.split(faces, range(_BATCH, len(faces), _BATCH)))

        def get_next(self) -> dict[str, Uint8Array] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"faces": batch}

    return Reader()


def _tidy(quantized: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Bring the file into our form: one operator set, named nodes, nothing beside the graph."""
    del quantized.opset_import[:]
    version = max(model.opset_import[0].version, LOWEST_OPSET)
    quantized.opset_import.append(helper.make_opsetid("", version))
    quantized.producer_name = "fer-edge"
    quantized.ir_version = model.ir_version
    del quantized.metadata_props[:]
    graph = quantized.graph
    del graph.value_info[:]
    del graph.metadata_props[:]
    graph.doc_string = ""
    for number, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
        node.doc_string = ""
    used = {name for node in graph.node for name in node.input}
    for tensor in [constant for constant in graph.initializer if constant.name not in used]:
        graph.initializer.remove(tensor)
