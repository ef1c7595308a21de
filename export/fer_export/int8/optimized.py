"""The graph that onnxruntime runs: a model after its own optimization on this machine."""

from __future__ import annotations

from collections import Counter

from fer_runtime.model.onnx_file import Node, read_onnx
from fer_runtime.model.parity import Check
from fer_runtime.model.session import optimized_model


def integer_check(content: bytes) -> Check:
    """Check that onnxruntime computes every convolution and product of the file in integers.

    A pattern that it does not recognise runs in float, slower than fp32, and says nothing.
    """
    before = Counter(node.op_type for node in read_onnx(content, source="the int8 model").nodes)
    after = Counter(node.op_type for node in optimized_nodes(content))
    wanted = before["Conv"] + before["Gemm"]
    found = after["QLinearConv"] + after["QGemm"]
    left = sum(after[name] for name in ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"))
    return Check(
        name="integers",
        passed=found == wanted and not left,
        detail=f"{after['QLinearConv']} of {before['Conv']} convolutions and {after['QGemm']} of {before['Gemm']} "
        "linear layers run in integers",
    )


def optimized_nodes(content: bytes) -> tuple[Node, ...]:
    """The nodes that onnxruntime runs after its own optimization of a model, on this machine."""
    return read_onnx(optimized_model(content), source="the optimized model").nodes
