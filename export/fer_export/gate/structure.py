"""What the graph of a file may be: allowed operators, and a proof that every face is answered by itself.

Running a model on some batches cannot show that the next batch is right. The graph can: each operator of the list
below computes row i of its output from row i of its inputs and from constants, whatever the batch size. A file that
consists of them alone cannot mix faces, depend on the batch size, on the position in the batch or on chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from fer_runtime.expressions import FACE_SIZE
from fer_runtime.model.metadata import METADATA_KEY
from fer_runtime.model.parity import Check

_Array = npt.NDArray[Any]
_OUTPUTS = ("logits", "probabilities")


class _NotAllowedError(Exception):
    """An operator, an attribute or a connection that the list does not allow."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """A tensor with one row per face; `shape` is that of one row."""

    shape: tuple[int, ...]


_State = _Rows | _Array  # rows, or a constant
_Rule = Callable[["_Graph", onnx.NodeProto, dict[str, Any]], _State]


def external_data_check(content: bytes) -> Check | None:
    """The failed check of a model whose weights are in another file; None for any other content."""
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError:
        return None
    outside = [one.name for one in _tensors(model.graph) if _is_external(one)]
    return Check(name="container", passed=False, detail=f"external data for {outside[0]}") if outside else None


def structure_checks(content: bytes, *, batch: int | None = None) -> list[Check]:
    """Check the graph of a file that `fer-export` wrote.

    Args:
        content: the file's bytes.
        batch: the fixed batch size that the file should have; None for a dynamic one.
    """
    if (outside := external_data_check(content)) is not None:
        return [outside]
    model = onnx.load_model_from_string(content)
    faults = _container_faults(model, batch)
    checks = [
        Check(
            name="container",
            passed=not faults,
            detail="; ".join(faults[:3]) or "one file: no external data, functions, subgraphs or unused parts",
        )
    ]
    unknown = sorted({_operator_name(node) for node in model.graph.node} - set(_RULES))
    try:
        graph = _Graph(model, batch)
        if not unknown:
            graph.walk()
        wrong = graph.wrong_attributes
    except _NotAllowedError as error:
        graph, wrong, failure = None, [], str(error)
    else:
        failure = ""
    operators = [f"{name} is not on the list of operators" for name in unknown] + wrong
    checks.append(
        Check(
            name="operators",
            passed=not operators,
            detail="; ".join(operators[:3])
            or f"{len({node.op_type for node in model.graph.node})} operators, all on the list with their attributes",
        )
    )
    if unknown and not failure:
        failure = "not shown, because of the operators above"
    checks.append(
        Check(
            name="face by face",
            passed=not failure,
            detail=failure or f"shown for any batch: each of {len(model.graph.node)} nodes keeps faces apart",
        )
    )
    bad = _bad_constants(model)
    checks.append(
        Check(name="weights", passed=not bad, detail="; ".join(bad[:3]) or "all constants finite, all scales positive")
    )
    return checks


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    tensors = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t] if attribute.type == AttributeProto.TENSOR else list(attribute.tensors)
    return tensors


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data))


def _operator_name(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


def _container_faults(model: onnx.ModelProto, batch: int | None) -> list[str]:
    faults: list[str] = []
    domains = [one.domain for one in model.opset_import]
    if domains != [""]:
        faults.append(f"operator sets {', '.join(repr(one) for one in domains)}; only ONNX's own is allowed")
    if len(model.functions):
        faults.append(f"{len(model.functions)} local functions")
    if len(model.training_info):
        faults.append("training information")
    if [entry.key for entry in model.metadata_props] != [METADATA_KEY]:
        faults.append(f"metadata entries {', '.join(entry.key for entry in model.metadata_props) or 'none'}")
    graph = model.graph
    if len(graph.sparse_initializer):
        faults.append("sparse constants")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
                faults.append(f"{node.op_type} {node.name} holds a subgraph")
            if attribute.ref_attr_name:
                faults.append(f"{node.op_type} {node.name} refers to an attribute of a function")
    names = [one.name for one in graph.initializer]
    produced = [name for node in graph.node for name in node.output if name]
    every = [one.name for one in graph.input] + names + produced
    if twice := [name for name in set(every) if every.count(name) > 1][:1]:
        faults.append(f"{twice[0]} is defined twice")
    used = {name for node in graph.node for name in node.input} | {one.name for one in graph.output}
    if idle := [name for name in [*names, *produced] if name not in used]:
        faults.append(f"{idle[0]} is used by nothing")
    faults += _interface_faults(graph, batch)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's and shape inference's exceptions share no base class
        faults.append(f"onnx.checker: {str(error).strip().splitlines()[0]}")
    return faults


def _interface_faults(graph: onnx.GraphProto, batch: int | None) -> list[str]:
    classes = 7
    wanted = {
        "faces": (TensorProto.UINT8, (FACE_SIZE, FACE_SIZE)),
        "logits": (TensorProto.FLOAT, (classes,)),
        "probabilities": (TensorProto.FLOAT, (classes,)),
    }
    if [one.name for one in graph.input] != ["faces"] or [one.name for one in graph.output] != list(_OUTPUTS):
        names = [one.name for one in (*graph.input, *graph.output)]
        return [f"inputs and outputs are {', '.join(names)}; they must be faces, logits, probabilities"]
    faults = []
    for value in (*graph.input, *graph.output):
        tensor = value.type.tensor_type
        kind, row = wanted[value.name]
        dimensions = list(tensor.shape.dim)
        first = dimensions[0] if dimensions else None
        fits = first is not None and (
            first.dim_value == batch if batch is not None else first.HasField("dim_param") and bool(first.dim_param)
        )
        if tensor.elem_type != kind or tuple(one.dim_value for one in dimensions[1:]) != row or not fits:
            sizes = ", ".join(one.dim_param or str(one.dim_value) for one in dimensions)
            faults.append(f"{value.name} is {TensorProto.DataType.Name(tensor.elem_type).lower()} ({sizes})")
    return faults


def _bad_constants(model: onnx.ModelProto) -> list[str]:
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    bad = [f"{name} has values that are not finite" for name, value in constants.items() if not _is_finite(value)]
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale = constants.get(node.input[1])
            if scale is None or not (scale > 0).all():
                bad.append(f"the scale of {node.name} is not positive")
    return bad


def _is_finite(values: _Array) -> bool:
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


class _Graph:
    """The walk through the nodes that shows that rows stay apart."""

    def __init__(self, model: onnx.ModelProto, batch: int | None) -> None:
        self.model = model
        self.batch = batch
        self.states: dict[str, _State] = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
        self.states["faces"] = _Rows((FACE_SIZE, FACE_SIZE))
        self.wrong_attributes: list[str] = []

    def walk(self) -> None:
        for node in self.model.graph.node:
            rule, allowed = _RULES[_operator_name(node)]
            attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
            for name, value in attributes.items():
                if name not in allowed or not allowed[name](value):
                    shown = value.decode(errors="replace") if isinstance(value, bytes) else value
                    self.wrong_attributes.append(f"{node.op_type} {node.name} has {name} = {shown}")
            if len(node.output) != 1:
                raise _NotAllowedError(f"{node.op_type} {node.name} has {len(node.output)} outputs")
            try:
                self.states[node.output[0]] = rule(self, node, attributes)
            except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError) as error:
                raise _NotAllowedError(f"{node.op_type} {node.name} cannot be followed ({error!r})") from error
        for name in _OUTPUTS:
            if self.states.get(name) != _Rows((7,)):
                raise _NotAllowedError(f"{name} is not one row of 7 values per face")

    def rows(self, node: onnx.NodeProto, index: int = 0) -> tuple[int, ...]:
        state = self.states[node.input[index]]
        if not isinstance(state, _Rows):
            raise _NotAllowedError(f"{node.op_type} {node.name} reads a constant where rows of faces should be")
        return state.shape

    def constant(self, node: onnx.NodeProto, index: int) -> _Array:
        state = self.states[node.input[index]]
        if isinstance(state, _Rows):
            raise _NotAllowedError(f"{node.op_type} {node.name} takes its input {index} from the faces")
        return state


def _same(graph: _Graph, node: onnx.NodeProto, _: dict[str, Any]) -> _State:
    for index in range(1, len(node.input)):
        if node.input[index]:
            graph.constant(node, index)
    return _Rows(graph.rows(node))


def _elementwise(graph: _Graph, node: onnx.NodeProto, _: dict[str, Any]) -> _State:
    left, right = (graph.states[name] for name in node.input)
    if isinstance(left, _Rows) and isinstance(right, _Rows):
        if len(left.shape) != len(right.shape):  # numpy's rule would put one's batch beside the other's rows
            raise _NotAllowedError(f"{node.op_type} {node.name} adds tensors of different rank")
        return _Rows(tuple(np.broadcast_shapes(left.shape, right.shape)))
    rows, constant = (left, right) if isinstance(left, _Rows) else (right, left)
    if not isinstance(rows, _Rows) or isinstance(constant, _Rows):
        raise _NotAllowedError(f"{node.op_type} {node.name} has no rows of faces among its inputs")
    shape = constant.shape
    if len(shape) > len(rows.shape) + 1 or (len(shape) == len(rows.shape) + 1 and shape[0] != 1):
        raise _NotAllowedError(f"{node.op_type} {node.name} gives each place in the batch a constant of its own")
    row = tuple(np.broadcast_shapes(rows.shape, shape[1:] if len(shape) == len(rows.shape) + 1 else shape))
    if len(row) != len(rows.shape):
        raise _NotAllowedError(f"{node.op_type} {node.name} changes the number of dimensions")
    return _Rows(row)


def _windows(size: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, Any]) -> tuple[int, ...]:
    axes = len(size)
    pads = attributes.get("pads") or [0] * 2 * axes
    strides = attributes.get("strides") or [1] * axes
    dilations = attributes.get("dilations") or [1] * axes
    return tuple(
        (size[axis] + pads[axis] + pads[axis + axes] - dilations[axis] * (kernel[axis] - 1) - 1) // strides[axis] + 1
        for axis in range(axes)
    )


def _conv(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> _State:
    channels, *size = graph.rows(node)
    weights = graph.constant(node, 1)
    if len(node.input) > 2 and graph.constant(node, 2).shape != weights.shape[:1]:
        raise _NotAllowedError(f"Conv {node.name} has a bias of another size than its weights")
    if weights.shape[1] * attributes.get("group", 1) != channels or not size:
        raise _NotAllowedError(f"Conv {node.name} has weights {weights.shape} for {channels} channels")
    return _Rows((weights.shape[0], *_windows(tuple(size), weights.shape[2:], attributes)))


def _pool(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> _State:
    channels, *size = graph.rows(node)
    if not size:
        raise _NotAllowedError(f"{node.op_type} {node.name} would pool over the faces")
    return _Rows((channels, *_windows(tuple(size), tuple(attributes["kernel_shape"]), attributes)))


def _global_pool(graph: _Graph, node: onnx.NodeProto, _: dict[str, Any]) -> _State:
    channels, *size = graph.rows(node)
    return _Rows((channels, *(1 for _ in size)))


def _gemm(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> _State:
    (inputs,) = graph.rows(node)
    weights = graph.constant(node, 1)
    weights = weights.T if attributes.get("transB") else weights
    if weights.shape[0] != inputs:
        raise _NotAllowedError(f"Gemm {node.name} has weights {weights.shape} for {inputs} inputs")
    if len(node.input) > 2 and graph.constant(node, 2).shape != (weights.shape[1],):
        raise _NotAllowedError(f"Gemm {node.name} has a bias that is not one value per output")
    return _Rows((weights.shape[1],))


def _reshape(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> _State:
    row = graph.rows(node)
    first, *rest = (int(size) for size in graph.constant(node, 1))
    if attributes.get("allowzero") and 0 in (first, *rest):
        raise _NotAllowedError(f"Reshape {node.name} asks for an empty tensor")
    sizes = [row[place] if size == 0 else size for place, size in enumerate(rest)]
    if sizes.count(-1) == 1 and first != -1:
        known = math.prod(size for size in sizes if size > 0)
        sizes = [math.prod(row) // known if size == -1 else size for size in sizes]
    keeps_batch = first in (0, -1) or (graph.batch is not None and first == graph.batch)
    if not keeps_batch or min(sizes, default=1) < 1 or math.prod(sizes) != math.prod(row):
        raise _NotAllowedError(f"Reshape {node.name} to ({', '.join(map(str, [first, *rest]))}) mixes faces")
    return _Rows(tuple(sizes))


def _transpose(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> _State:
    row = graph.rows(node)
    order = list(attributes.get("perm") or range(len(row), -1, -1))
    if order[0] != 0 or sorted(order) != list(range(len(row) + 1)):
        raise _NotAllowedError(f"Transpose {node.name} moves the faces' dimension")
    return _Rows(tuple(row[axis - 1] for axis in order[1:]))


def _flatten(graph: _Graph, node: onnx.NodeProto, _: dict[str, Any]) -> _State:
    return _Rows((math.prod(graph.rows(node)),))


def _unsqueeze(graph: _Graph, node: onnx.NodeProto, _: dict[str, Any]) -> _State:
    row = list(graph.rows(node))
    axes = graph.constant(node, 1).reshape(-1).tolist()
    if len(axes) != 1 or not 1 <= (axis := axes[0] % (len(row) + 2)) <= len(row) + 1:
        raise _NotAllowedError(f"Unsqueeze {node.name} adds a dimension before the faces'")
    row.insert(axis - 1, 1)
    return _Rows(tuple(row))


def _reduce(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> _State:
    row = graph.rows(node)
    axes = graph.constant(node, 1).reshape(-1).tolist() if len(node.input) > 1 and node.input[1] else []
    axes = [axis % (len(row) + 1) for axis in axes]
    if not axes or 0 in axes:
        raise _NotAllowedError(f"{node.op_type} {node.name} averages over faces")
    if attributes.get("keepdims", 1):
        return _Rows(tuple(1 if axis + 1 in axes else size for axis, size in enumerate(row)))
    return _Rows(tuple(size for axis, size in enumerate(row) if axis + 1 not in axes))


def _softmax(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> _State:
    row = graph.rows(node)
    if attributes.get("axis", -1) % (len(row) + 1) != len(row):
        raise _NotAllowedError(f"Softmax {node.name} does not run over the classes")
    return _Rows(row)


def _concat(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> _State:
    rows = [graph.rows(node, index) for index in range(len(node.input))]
    axis = attributes["axis"] % (len(rows[0]) + 1)
    if axis == 0 or any(len(one) != len(rows[0]) for one in rows):
        raise _NotAllowedError(f"Concat {node.name} joins along the faces")
    joined = list(rows[0])
    joined[axis - 1] = sum(one[axis - 1] for one in rows)
    return _Rows(tuple(joined))


def _quantize(graph: _Graph, node: onnx.NodeProto, attributes: dict[str, Any]) -> _State:
    source = graph.states[node.input[0]]
    scale = graph.constant(node, 1)
    zero = graph.constant(node, 2) if len(node.input) > 2 and node.input[2] else None
    if isinstance(source, _Rows):
        if scale.size != 1 and attributes.get("axis", 1) % (len(source.shape) + 1) == 0:
            raise _NotAllowedError(f"{node.op_type} {node.name} gives each place in the batch a scale of its own")
        return source
    if node.op_type != "DequantizeLinear":
        raise _NotAllowedError(f"{node.op_type} {node.name} quantizes a constant")
    if scale.ndim:
        shape = [1] * source.ndim
        shape[attributes.get("axis", 1)] = -1
        scale = scale.reshape(shape)
        zero = None if zero is None else zero.reshape(shape)
    values: _Array = (source.astype(np.int64) - (0 if zero is None else zero.astype(np.int64))) * scale
    return values


def _is(*allowed: Any) -> Callable[[Any], bool]:
    return lambda value: value in allowed


def _anything(value: Any) -> bool:
    return True


def _ones(value: Any) -> bool:
    return all(one == 1 for one in value)


_WINDOW: dict[str, Callable[[Any], bool]] = {
    "auto_pad": _is(b"NOTSET"),
    "dilations": _ones,
    "kernel_shape": _anything,
    "pads": _anything,
    "strides": _anything,
}
_PLAIN: tuple[_Rule, dict[str, Callable[[Any], bool]]] = (_same, {})
# An operator is allowed with these attributes. A new one needs a rule that shows where its rows come from.
_RULES: dict[str, tuple[_Rule, dict[str, Callable[[Any], bool]]]] = {
    "Add": (_elementwise, {}),
    "AveragePool": (_pool, {**_WINDOW, "ceil_mode": _is(0), "count_include_pad": _is(0, 1)}),
    "Cast": (_same, {"to": _is(TensorProto.FLOAT, TensorProto.FLOAT16), "saturate": _is(1)}),
    "Clip": _PLAIN,
    "Concat": (_concat, {"axis": _anything}),
    "Conv": (_conv, {**_WINDOW, "group": _anything}),
    "DequantizeLinear": (_quantize, {"axis": _anything, "block_size": _is(0)}),
    "Div": (_elementwise, {}),
    "Flatten": (_flatten, {"axis": _is(1)}),
    "Gemm": (_gemm, {"alpha": _is(1.0), "beta": _is(1.0), "transA": _is(0), "transB": _is(0, 1)}),
    "GlobalAveragePool": (_global_pool, {}),
    "HardSigmoid": (_same, {"alpha": _anything, "beta": _anything}),
    "HardSwish": _PLAIN,
    "LeakyRelu": (_same, {"alpha": _anything}),
    "MaxPool": (_pool, {**_WINDOW, "ceil_mode": _is(0), "storage_order": _is(0)}),
    "Mul": (_elementwise, {}),
    "QuantizeLinear": (
        _quantize,
        {"axis": _anything, "saturate": _is(1), "block_size": _is(0), "output_dtype": _is(0), "precision": _is(0)},
    ),
    "ReduceMean": (_reduce, {"keepdims": _is(0, 1), "noop_with_empty_axes": _is(0)}),
    "Relu": _PLAIN,
    "Reshape": (_reshape, {"allowzero": _is(0, 1)}),
    "Sigmoid": _PLAIN,
    "Softmax": (_softmax, {"axis": _anything}),
    "Sub": (_elementwise, {}),
    "Tanh": _PLAIN,
    "Transpose": (_transpose, {"perm": _anything}),
    "Unsqueeze": (_unsqueeze, {}),
}
