"""Each form that an exporter may write computes the same after it has been written again for any batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fer_export.canonical import canonical_graph
from fer_export.gate.rows import MORE_RULES, RULES
from fer_runtime.errors import ModelFileError
from fer_runtime.model.session import open_session

_ROW = (4, 6, 6)
Write = Callable[["Graph"], str]


class Graph:
    """A graph that is written front to back; its input is x, (batch, 4, 6, 6)."""

    def __init__(self, opset: int, batch: int | str) -> None:
        self.opset, self.batch = opset, batch
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def c(self, values: Any, kind: type = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def i(self, *values: int) -> str:
        return self.c(list(values), np.int64)

    def w(self, *shape: int) -> str:
        return self.c(self.random.normal(0, 1, shape))

    def n(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"t{len(self.nodes)}_{place}" for place in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"n{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def model(self, output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [self.batch, *_ROW])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        model.ir_version = 8
        return model


def _run(model: onnx.ModelProto, x: Any) -> Any:
    return open_session(model.SerializeToString()).session.run(None, {"x": x})[0]


def _computed_shape(g: Graph) -> str:
    """x.view(x.size(0), -1) of PyTorch's older exporter."""
    first = g.n("Gather", g.n("Shape", "x"), g.c(0, np.int64), axis=0)
    return str(g.n("Reshape", "x", g.n("Concat", g.n("Unsqueeze", first, g.i(0)), g.i(-1), axis=0)))


def _tokens(g: Graph) -> str:
    return str(g.n("Transpose", g.n("Reshape", "x", g.i(0, 4, 36)), perm=[0, 2, 1]))


def _class_token(g: Graph) -> str:
    """A learned token in front of the patches of each image, through Expand."""
    batch = g.n("Slice", g.n("Shape", "x"), g.i(0), g.i(1))
    token = g.n("Expand", g.w(1, 1, 4), g.n("Concat", batch, g.i(1), g.i(1), axis=0))
    return str(g.n("Concat", token, _tokens(g), axis=1))


def _class_token_with_where(g: Graph) -> str:
    """`expand` of PyTorch's older exporter: -1 in a shape stands for the size that is there."""
    batch = g.n("Gather", g.n("Shape", "x"), g.c(0, np.int64))
    shape = g.n("Concat", g.n("Unsqueeze", batch, g.i(0)), g.i(-1), g.i(-1), axis=0)
    ones = g.n("ConstantOfShape", g.i(3), value=numpy_helper.from_array(np.array([1], np.int64)))
    is_free = g.n("Equal", shape, g.n("Mul", ones, g.c(-1, np.int64)))
    token = g.n("Expand", g.w(1, 1, 4), g.n("Where", is_free, ones, shape))
    return str(g.n("Concat", token, _tokens(g), axis=1))


def _attention(g: Graph) -> str:
    """Query, key and value stacked in front of the faces, and taken apart by Gather."""
    qkv = g.n("Reshape", g.n("MatMul", _tokens(g), g.w(4, 24)), g.i(0, 36, 3, 2, 4))
    stacked = g.n("Transpose", qkv, perm=[2, 0, 3, 1, 4])
    q, k, v = (g.n("Gather", stacked, g.c(place, np.int64), axis=0) for place in range(3))
    weights = g.n("Softmax", g.n("MatMul", q, g.n("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    mixed = g.n("Transpose", g.n("MatMul", weights, v), perm=[0, 2, 1, 3])
    return str(g.n("Reshape", mixed, g.i(0, 36, 8)))


def _merged_heads(g: Graph) -> str:
    """Faces and heads in one dimension, as a batched product takes them, and apart again."""
    heads = g.n("Reshape", _tokens(g), g.i(0, 36, 2, 2))
    first = g.n("Transpose", heads, perm=[0, 2, 1, 3])
    turned = g.n("Transpose", g.n("Reshape", first, g.i(-1, 36, 2)), perm=[0, 2, 1])
    batch = g.n("Slice", g.n("Shape", "x"), g.i(0), g.i(1))
    return str(g.n("Reshape", turned, g.n("Concat", batch, g.i(2), g.i(2), g.i(36), axis=0)))


def _batch_normalization(g: Graph, x: str, channels: int, **attributes: Any) -> str:
    numbers = (
        np.linspace(0.5, 1.5, channels),
        np.linspace(-1, 1, channels),
        np.linspace(-0.5, 0.5, channels),
        np.linspace(0.5, 2, channels),
    )
    return str(g.n("BatchNormalization", x, *(g.c(number) for number in numbers), **attributes))


_FORMS: dict[str, tuple[int, Write]] = {
    "a shape computed from the batch": (13, _computed_shape),
    "a class token": (18, _class_token),
    "a class token through Where": (13, _class_token_with_where),
    "attention": (17, _attention),
    "merged heads": (17, _merged_heads),
    "bias as an addition": (7, lambda g: g.n("Add", g.n("Conv", "x", g.w(5, 4, 3, 3), pads=[1] * 4), g.w(5, 1, 1))),
    "bias in front": (7, lambda g: g.n("Add", g.w(1, 5, 1, 1), g.n("Conv", "x", g.w(5, 4, 1, 1)))),
    "a map of biases": (7, lambda g: g.n("Add", g.n("Conv", "x", g.w(5, 4, 1, 1)), g.w(5, 6, 6))),
    "bias of a linear layer": (13, lambda g: g.n("Add", g.n("MatMul", g.n("Flatten", "x"), g.w(144, 7)), g.w(7))),
    "folded BatchNormalization": (9, lambda g: _batch_normalization(g, g.n("Conv", "x", g.w(5, 4, 3, 3)), 5)),
    "BatchNormalization by itself": (14, lambda g: _batch_normalization(g, "x", 4, epsilon=1e-3)),
    "BatchNormalization behind Gemm": (
        15,
        lambda g: _batch_normalization(g, g.n("Gemm", g.n("Flatten", "x"), g.w(144, 5)), 5),
    ),
    "BatchNormalization of a tensor that others read": (
        15,
        lambda g: (lambda x: g.n("Add", _batch_normalization(g, x, 5), x))(g.n("Conv", "x", g.w(5, 4, 1, 1))),
    ),
    "same padding above": (11, lambda g: g.n("Conv", "x", g.w(5, 4, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2])),
    "same padding below": (11, lambda g: g.n("Conv", "x", g.w(5, 4, 2, 2), auto_pad="SAME_LOWER")),
    "no padding": (11, lambda g: g.n("Conv", "x", g.w(4, 1, 3, 3), auto_pad="VALID", group=4, dilations=[2, 2])),
    "maxima rounded up": (10, lambda g: g.n("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)),
    "maxima rounded up with padding": (
        10,
        lambda g: g.n("MaxPool", "x", kernel_shape=[3, 3], strides=[4, 4], pads=[1] * 4, ceil_mode=1),
    ),
    "means rounded up": (10, lambda g: g.n("AveragePool", "x", kernel_shape=[2, 2], strides=[4, 4], ceil_mode=1)),
    "means with padding": (
        10,
        lambda g: g.n("AveragePool", "x", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
    ),
    "means without padding": (7, lambda g: g.n("AveragePool", "x", kernel_shape=[3, 3], pads=[1] * 4)),
    "global mean": (7, lambda g: g.n("GlobalAveragePool", "x")),
    "global maximum": (7, lambda g: g.n("GlobalMaxPool", "x")),
    "limits as attributes": (7, lambda g: g.n("Clip", "x", min=-0.5, max=0.7)),
    "an upper limit alone": (13, lambda g: g.n("Clip", "x", "", g.c(0.7))),
    "softmax of old": (11, lambda g: g.n("Softmax", "x", axis=2)),
    "softmax of the channels": (13, lambda g: g.n("Softmax", "x", axis=1)),
    "axes as attributes": (
        11,
        lambda g: g.n("Squeeze", g.n("ReduceMean", "x", axes=[2, -1], keepdims=1), axes=[2, 3]),
    ),
    "Unsqueeze of old": (11, lambda g: g.n("Unsqueeze", g.n("Flatten", "x"), axes=[1, 3])),
    "the largest of rows": (18, lambda g: g.n("ReduceMax", "x", g.i(-1), keepdims=0)),
    "length one": (13, lambda g: g.n("Div", "x", g.n("ReduceL2", "x", axes=[1], keepdims=1))),
    "two parts": (11, lambda g: g.n("Concat", *g.n("Split", "x", outputs=2, axis=1, split=[1, 3])[::-1], axis=1)),
    "parts of equal size": (13, lambda g: g.n("Mul", *g.n("Split", "x", outputs=2, axis=1))),
    "a slice of old": (9, lambda g: g.n("Slice", "x", starts=[1, -3], ends=[3, 1000], axes=[1, 3])),
    "every second row": (13, lambda g: g.n("Slice", "x", g.i(0, 1), g.i(2**40, 6), g.i(2, 3), g.i(2, 2))),
    "mirrored": (13, lambda g: g.n("Slice", "x", g.i(-1), g.i(-(2**40)), g.i(3), g.i(-1))),
    "all faces": (13, lambda g: g.n("Slice", "x", g.i(0, 1), g.i(2**62, 3), g.i(0, 1))),
    "channels in another order": (13, lambda g: g.n("Gather", "x", g.i(2, 1, 0, -1), axis=1)),
    "one channel": (13, lambda g: g.n("Gather", "x", g.c(2, np.int64), axis=1)),
    "padding of old": (2 + 7, lambda g: g.n("Pad", "x", pads=[0, 1, 0, 2, 0, 0, 1, 0], value=0.5)),
    "padding of named axes": (18, lambda g: g.n("Pad", "x", g.i(1, 2), g.c(0.25), g.i(3), mode="constant")),
    "mirrored borders": (13, lambda g: g.n("Pad", "x", g.i(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")),
    "a sum of three": (8, lambda g: g.n("Sum", "x", g.n("Relu", "x"), g.n("Neg", "x"))),
    "the larger of two": (13, lambda g: g.n("Max", "x", g.c(0.1), g.n("Neg", "x"))),
    "factors of a linear layer": (
        11,
        lambda g: g.n("Gemm", g.n("Flatten", "x"), g.w(5, 144), g.w(1, 5), alpha=0.5, beta=2.0, transB=1),
    ),
    "Gelu": (20, lambda g: g.n("Gelu", "x")),
    "Mish": (18, lambda g: g.n("Mish", "x")),
    "channel by channel": (16, lambda g: g.n("PRelu", "x", g.w(4, 1, 1))),
    "LayerNormalization": (17, lambda g: g.n("LayerNormalization", "x", g.w(6), g.w(6), axis=-1, epsilon=1e-3)),
    "a constant product": (13, lambda g: g.n("MatMul", g.w(6, 6), "x")),
    "constants of a constant": (13, lambda g: g.n("Mul", "x", g.n("Div", g.c(1.0), g.c(4.0)))),
    "what does nothing": (12, lambda g: g.n("Dropout", g.n("Identity", g.n("Relu", "x")), g.c(0.5), g.c(False, bool))),
    "neighbours normalised": (13, lambda g: g.n("LRN", "x", size=3)),
}


@pytest.mark.parametrize("form", _FORMS)
def test_a_form_computes_the_same_for_any_batch(form: str) -> None:
    opset, write = _FORMS[form]
    graph = Graph(opset, "N")
    output = write(graph)
    model = graph.model(output)
    written = canonical_graph(model, _ROW, outputs=[output], source="file")
    onnx.checker.check_model(written, full_check=True)
    assert {node.op_type for node in written.graph.node} <= RULES.keys() | MORE_RULES.keys()
    x = np.random.default_rng(1).normal(0, 1, (5, *_ROW)).astype(np.float32)
    expected = _run(model, x)
    # Sums of up to 144 products in another order, of values up to about 30.
    assert np.allclose(_run(written, x), expected, rtol=1e-4, atol=1e-4)
    assert np.allclose(_run(written, x[2:3]), expected[2:3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["bias of a linear layer", "a shape computed from the batch", "attention"])
def test_a_fixed_batch_of_one_becomes_any(form: str) -> None:
    opset, write = _FORMS[form]
    graph = Graph(opset, 1)
    output = write(graph)
    model = graph.model(output)
    written = canonical_graph(model, _ROW, outputs=[output], source="file", batch=1)
    x = np.random.default_rng(1).normal(0, 1, (5, *_ROW)).astype(np.float32)
    expected = np.concatenate([_run(model, row[None]) for row in x])
    assert np.allclose(_run(written, x), expected, rtol=1e-4, atol=1e-4)


_REFUSED: dict[str, tuple[int, int | str, Write, str]] = {
    "a mean over faces": (13, "N", lambda g: g.n("ReduceMean", "x", axes=[0], keepdims=1), "ReduceMean .*over faces"),
    "softmax over faces": (13, "N", lambda g: g.n("Softmax", "x", axis=0), "Softmax n0 runs over the faces"),
    "faces in another order": (
        13,
        "N",
        lambda g: g.n("Slice", "x", g.i(-1), g.i(-99), g.i(0), g.i(-1)),
        "Slice n0 cuts",
    ),
    "the first face": (13, "N", lambda g: g.n("Gather", "x", g.c(0, np.int64), axis=0), "Gather n0 picks faces"),
    "faces as channels": (
        13,
        "N",
        lambda g: g.n("Transpose", "x", perm=[1, 0, 2, 3]),
        "is not computed from the input",
    ),
    "a batch of two": (13, 2, lambda g: g.n("Reshape", "x", g.i(4, 72)), r"Reshape n0 to \(4, 72\) does not keep"),
    "the batch lost": (13, 1, lambda g: g.n("Reshape", "x", g.i(144)), r"Reshape n0 to \(144\) does not keep"),
    "all dimensions squeezed": (11, 1, lambda g: g.n("Squeeze", "x"), "Squeeze n0 names no axes"),
    "a constant for each face": (13, 2, lambda g: g.n("Add", "x", g.w(2, 4, 6, 6)), "Add .*each place in the batch"),
    "random answers": (
        12,
        "N",
        lambda g: g.n("Dropout", "x", g.c(0.5), g.c(True, bool)),
        "Dropout n0 is in training mode",
    ),
    "faces that normalise each other": (
        15,
        "N",
        lambda g: _batch_normalization(g, "x", 4, training_mode=1),
        "BatchNormalization n0 is in training mode",
    ),
    "an old opset": (6, "N", lambda g: g.n("Relu", "x"), "has opset 6; opset 7 and above"),
    "half precision": (13, "N", lambda g: g.n("Cast", "x", to=TensorProto.FLOAT16), "Cast n0 makes float16"),
    "double precision": (13, "N", lambda g: g.n("Cast", "x", to=TensorProto.DOUBLE), "Cast n0 makes double"),
    "an operator without a rule": (13, "N", lambda g: g.n("Sin", "x"), "Sin n0 is not among the operators"),
    "a shape from the pixels": (
        13,
        "N",
        lambda g: g.n("Reshape", "x", g.n("Cast", g.n("ReduceMean", "x", axes=[0, 1, 2]), to=TensorProto.INT64)),
        "ReduceMean .*over faces",
    ),
    "a huge constant": (13, "N", lambda g: g.n("Add", "x", g.n("Expand", g.c(1.0), g.i(2**31, 2**31))), "too large"),
    "a huge range": (
        13,
        "N",
        lambda g: g.n("Gather", "x", g.n("Range", g.c(0, np.int64), g.c(2**40, np.int64), g.c(1, np.int64)), axis=1),
        "too large",
    ),
    "a huge choice": (
        13,
        "N",
        lambda g: g.n(
            "Add", "x", g.n("Gather", g.n("Reshape", _many(g), g.i(1, 1 << 22)), _many(g, TensorProto.INT64))
        ),
        "Gather .*too large",
    ),
    "a huge join": (13, "N", lambda g: g.n("Add", "x", g.n("Concat", *[_many(g)] * 20, axis=0)), "Concat .*too large"),
    "a power of sizes": (13, "N", lambda g: g.n("Add", "x", g.n("Pow", _sizes(g), g.i(1 << 62))), "Pow .*to a power"),
    "sizes without end": (13, "N", lambda g: g.n("Add", "x", _squared(g, _sizes(g), 30)), "Mul .*more than 64 bits"),
    "no input": (13, "N", lambda g: g.n("Identity"), "Identity n0 cannot be read"),
    "a huge padding": (13, "N", lambda g: g.n("Pad", "x", g.i(0, 0, 0, 0, 0, 0, 0, 2**40)), "more than"),
    "faces cut off": (13, "N", lambda g: g.n("Pad", "x", g.i(-1, 0, 0, 0, 0, 0, 0, 0)), "Pad .*cuts off faces"),
}


def _many(g: Graph, kind: int = TensorProto.FLOAT) -> str:
    """As many zeros as a constant may have: a few bytes in the file."""
    name: str = g.n("Cast", g.n("Expand", g.c([0.0]), g.i(1 << 22)), to=kind)
    return name


def _sizes(g: Graph) -> str:
    """(4, 6, 6), out of a shape with the batch in it: Python's integers."""
    name: str = g.n("Slice", g.n("Shape", "x"), g.i(1), g.i(4))
    return name


def _squared(g: Graph, name: str, times: int) -> str:
    for _ in range(times):
        name = g.n("Mul", name, name)
    return name


def test_constants_that_are_computed_take_no_more_than_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph(13, "N")
    column, row = graph.w(6, 1), graph.w(1, 6)
    for _ in range(100):
        output = graph.n("Add", "x", graph.n("Add", column, row))
    model = graph.model(output)
    canonical_graph(model, _ROW, outputs=[output], source="file")
    monkeypatch.setattr("fer_export.canonical.writer.MAX_FOLDED_BYTES", 100 * 6 * 6 * 4 - 1)
    with pytest.raises(ModelFileError, match=r"Add n198 is one of too many large constants"):
        canonical_graph(model, _ROW, outputs=[output], source="file")


@pytest.mark.parametrize("case", _REFUSED)
def test_what_has_no_such_form_is_refused_by_its_name(case: str) -> None:
    opset, batch, write, message = _REFUSED[case]
    graph = Graph(opset, batch)
    output = write(graph)
    fixed = batch if isinstance(batch, int) else None
    with pytest.raises(ModelFileError, match=message):
        canonical_graph(graph.model(output), _ROW, outputs=[output], source="file", batch=fixed)
