"""Checks of a file's graph: allowed operators, and a proof that each face is computed on its own.

Running a model on some batches cannot show that the next batch is right. The graph can: each operator of the list
below computes row i of its output from row i of its inputs and from constants, whatever the batch size. A file that
consists of them alone cannot mix faces, depend on the batch size, on the position in the batch or on chance.
"""

from __future__ import annotations

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, numpy_helper

from fer_export.gate.rows import MORE_RULES, RULES, Array, NotAllowedError, Rows, RowWalk, operator_name
from fer_export.int8.scales import STEP
from fer_runtime.errors import first_line
from fer_runtime.expressions import EXPRESSIONS, FACE_SIZE
from fer_runtime.model.metadata import METADATA_KEY
from fer_runtime.model.parity import Check

_OUTPUTS = ("logits", "probabilities")
OPTIONAL = "unfamiliarity"  # the last output, where there is one


def external_data_check(content: bytes) -> Check | None:
    """The failed check of a model whose weights are in another file; None for any other content."""
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError:
        return None
    outside = [tensor.name for tensor in _tensors(model.graph) if _is_external(tensor)]
    return Check(name="container", passed=False, detail=f"external data for {outside[0]}") if outside else None


def structure_checks(
    content: bytes,
    *,
    face_shape: tuple[int, ...] = (FACE_SIZE, FACE_SIZE),
    classes: int = len(EXPRESSIONS),
    batch: int | None = None,
    foreign: bool = False,
) -> list[Check]:
    """Check the graph of a file that `fer-export` wrote.

    Args:
        content: the file's bytes.
        face_shape: of the faces that the file should take, (size, size) or (size, size, 3).
        classes: labels that it should have.
        batch: the fixed batch size that it should have; None for a dynamic one.
        foreign: the network is not one of ours, and may have the operators of MORE_RULES as well.
    """
    if (outside := external_data_check(content)) is not None:
        return [outside]
    model = onnx.load_model_from_string(content)
    faults = _container_faults(model, face_shape, classes, batch)
    checks = [
        Check(
            name="container",
            passed=not faults,
            detail="; ".join(faults[:3]) or "one file: no external data, functions, subgraphs or unused parts",
        )
    ]
    checks += _row_checks(model, face_shape, classes, batch, foreign=foreign)
    bad = _bad_constants(model)
    checks.append(
        Check(name="weights", passed=not bad, detail="; ".join(bad[:3]) or "all constants finite, all scales positive")
    )
    return checks


def _row_checks(
    model: onnx.ModelProto, face_shape: tuple[int, ...], classes: int, batch: int | None, *, foreign: bool
) -> list[Check]:
    """Check that all operators are on the list, and that row i of each tensor comes from face i alone."""
    rules = RULES | MORE_RULES if foreign else RULES
    used = {operator_name(node) for node in model.graph.node}
    unknown = sorted(used - set(rules))
    wrong: list[str] = []
    failure = "not shown, because of the operators above" if unknown else ""
    try:
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        walk = RowWalk(constants, batch, rules)
        if not unknown:
            _follow_rows(walk, model.graph, face_shape, classes)
        wrong = walk.wrong_attributes
    except NotAllowedError as error:
        failure = str(error)
    operators = [f"{name} is not on the list of operators" for name in unknown] + wrong
    more = sorted(used - set(RULES))
    return [
        Check(
            name="operators",
            passed=not operators,
            detail="; ".join(operators[:3])
            or f"{len(used)} operators, all on the list with their attributes"
            + (f"; beyond our own networks': {', '.join(more)}" if more else ""),
        ),
        Check(
            name="face by face",
            passed=not failure,
            detail=failure or f"shown for any batch: each of {len(model.graph.node)} nodes keeps faces apart",
        ),
    ]


def _follow_rows(walk: RowWalk, graph: onnx.GraphProto, face_shape: tuple[int, ...], classes: int) -> None:
    """Follow a face from the input to the outputs.

    Raises:
        NotAllowedError: a node may mix faces, or an output is not one row per face.
    """
    walk.states["faces"] = Rows(face_shape)
    for node in graph.node:
        walk.follow(node)
    for name in _OUTPUTS:
        if walk.states.get(name) != Rows((classes,)):
            raise NotAllowedError(f"{name} is not one row of {classes} values per face")
    if any(output.name == OPTIONAL for output in graph.output) and walk.states.get(OPTIONAL) != Rows(()):
        raise NotAllowedError(f"{OPTIONAL} is not one value per face")


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    tensors = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t] if attribute.type == AttributeProto.TENSOR else list(attribute.tensors)
    return tensors


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data))


def _container_faults(
    model: onnx.ModelProto, face_shape: tuple[int, ...], classes: int, batch: int | None
) -> list[str]:
    faults: list[str] = []
    domains = [opset.domain for opset in model.opset_import]
    if domains != [""]:
        faults.append(f"operator sets {', '.join(repr(domain) for domain in domains)}; only ONNX's own is allowed")
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
    names = [tensor.name for tensor in graph.initializer]
    produced = [name for node in graph.node for name in node.output if name]
    every = [value.name for value in graph.input] + names + produced
    if twice := [name for name in set(every) if every.count(name) > 1][:1]:
        faults.append(f"{twice[0]} is defined twice")
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    if idle := [name for name in [*names, *produced] if name not in used]:
        faults.append(f"{idle[0]} is used by nothing")
    faults += _interface_faults(graph, face_shape, classes, batch)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's and shape inference's exceptions share no base class
        faults.append(f"onnx.checker: {first_line(error)}")
    return faults


def _interface_faults(
    graph: onnx.GraphProto, face_shape: tuple[int, ...], classes: int, batch: int | None
) -> list[str]:
    wanted = {
        "faces": (TensorProto.UINT8, face_shape),
        "logits": (TensorProto.FLOAT, (classes,)),
        "probabilities": (TensorProto.FLOAT, (classes,)),
        OPTIONAL: (TensorProto.FLOAT, ()),
    }
    outputs = [output.name for output in graph.output]
    if [value.name for value in graph.input] != ["faces"] or outputs not in (list(_OUTPUTS), [*_OUTPUTS, OPTIONAL]):
        names = [*(value.name for value in graph.input), *outputs]
        return [f"inputs and outputs are {', '.join(names)}; they must be faces, logits, probabilities ({OPTIONAL})"]
    faults = []
    for value in (*graph.input, *graph.output):
        tensor = value.type.tensor_type
        kind, row = wanted[value.name]
        dimensions = list(tensor.shape.dim)
        first = dimensions[0] if dimensions else None
        fits = first is not None and (
            first.dim_value == batch if batch is not None else first.HasField("dim_param") and bool(first.dim_param)
        )
        if tensor.elem_type != kind or tuple(dimension.dim_value for dimension in dimensions[1:]) != row or not fits:
            sizes = ", ".join(dimension.dim_param or str(dimension.dim_value) for dimension in dimensions)
            faults.append(f"{value.name} is {TensorProto.DataType.Name(tensor.elem_type).lower()} ({sizes})")
    return faults


def _bad_constants(model: onnx.ModelProto) -> list[str]:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    bad = [f"{name} has values that are not finite" for name, value in constants.items() if not _is_finite(value)]
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale = constants.get(node.input[1])
            if scale is None or not (scale > 0).all():
                bad.append(f"the scale of {node.name} is not positive")
        if node.op_type == "QuantizeLinear" and any(entry.key == STEP for entry in node.metadata_props):
            # Ours, which every runtime rounds alike: some round before they add the zero point, others after.
            zero = constants.get(node.input[2])
            if zero is None or (zero % 2).any():
                bad.append(f"the zero point of {node.name} is odd")
    return bad


def _is_finite(values: Array) -> bool:
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())
