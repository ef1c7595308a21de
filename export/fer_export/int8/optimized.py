"""The graph that onnxruntime runs: a model after its own optimization on this machine."""

from __future__ import annotations

from collections import Counter

from fer_runtime.model.onnx_file import Node, read_onnx
from fer_runtime.model.parity import Check
from fer_runtime.model.session import optimized_model


def integer_check(content: bytes) -> Check:
    """Check that onnxruntime computes every convolution and product of the file in integers.

    A pattern that it does not recognize runs in float without a warning, slower than fp32.
    """
    file = read_onnx(content, source="the int8 model")
    # Weights come from constants, through DequantizeLinear; MatMul also multiplies tensors of the faces.
    weights = {node.outputs[0] for node in file.nodes if node.inputs and node.inputs[0] in file.tensors}
    before = Counter(node.op_type for node in file.nodes if node.op_type != "MatMul" or node.inputs[1] in weights)
    after = Counter(node.op_type for node in optimized_nodes(content))
    linear = before["Gemm"] + before["MatMul"]
    integers = after["QGemm"] + min(after["QLinearMatMul"], before["MatMul"])
    float_layers = sum(after[name] for name in ("Conv", "FusedConv", "Gemm", "FusedGemm"))
    return Check(
        name="integers",
        passed=after["QLinearConv"] == before["Conv"] and integers == linear and not float_layers,
        detail=f"{after['QLinearConv']} of {before['Conv']} convolutions and {integers} of {linear} linear layers run "
        "in integers",
    )


def optimized_nodes(content: bytes) -> tuple[Node, ...]:
    """The nodes that onnxruntime runs after its own optimization of a model, on this machine."""
    return read_onnx(optimized_model(content), source="the optimized model").nodes
