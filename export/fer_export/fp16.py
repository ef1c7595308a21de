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
    # The nodes behind the logits are the temperature and the softmax.
    last = next(place for place, node in enumerate(graph.node) if "logits" in node.output)
    weights = {name for node in graph.node[: last + 1] for name in node.input}
    for tensor in graph.initializer:
        if tensor.name in weights and tensor.data_type == TensorProto.FLOAT:
            with np.errstate(over="ignore"):  # an upper limit of 3.4e38 becomes infinite, and is none
                values = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in graph.node[: last + 1]:
        if node.op_type == "Cast":  # of the faces, which others may have transposed before
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT16))
    graph.node[last].output[0] = "logits_fp16"
    if graph.node[last].name == "logits":  # as in networks of others; no two nodes may have one name
        graph.node[last].name = "logits_fp16"
    graph.node.insert(
        last + 1, helper.make_node("Cast", ["logits_fp16"], ["logits"], name="logits", to=TensorProto.FLOAT)
    )
    onnx.checker.check_model(halved)
    return halved
