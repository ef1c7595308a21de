"""The fp16 model: the float model with weights and arithmetic of 16 bits."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def halve_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """The fp16 form of a float32 model that `export_graph` wrote; faces, logits and probabilities keep their types.

    Everything between the pixels and the logits is float16; the softmax stays float32, where small
    probabilities are not rounded to nothing.
    """
    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    graph = halved.graph
    weights = {name for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul") for name in node.input[1:]}
    for tensor in graph.initializer:
        if tensor.name in weights or (tensor.data_type == TensorProto.FLOAT and _feeds(graph, tensor.name, "Sub")):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] == "faces":
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT16))
    last = next(node for node in graph.node if "logits" in node.output)
    last.output[0] = "logits_fp16"
    position = list(graph.node).index(last) + 1
    graph.node.insert(
        position, helper.make_node("Cast", ["logits_fp16"], ["logits"], name="logits", to=TensorProto.FLOAT)
    )
    onnx.checker.check_model(halved)
    return halved


def _feeds(graph: onnx.GraphProto, name: str, op_type: str) -> bool:
    return any(node.op_type == op_type and name in node.input for node in graph.node)
