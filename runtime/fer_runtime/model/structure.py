"""Limits on a model file, checked before ONNX Runtime opens it: operators whose work is known from the file."""

from __future__ import annotations

import math
from collections.abc import Collection

from fer_runtime.errors import ModelFileError
from fer_runtime.model.metadata import ModelMetadata
from fer_runtime.model.onnx_file import Node, OnnxFile
from fer_runtime.model.shapes import Shapes, count_macs, infer_shapes
from fer_runtime.text import printable

# Operators of classifiers. Each computes its output from its inputs alone, once, and its output's size is known from
# the file: no loops, no random numbers, no strings, no code.
OPERATORS = frozenset(
    """
    Abs Add AveragePool BatchNormalization Cast Clip Concat Constant Conv DequantizeLinear Div Elu Erf Exp Flatten
    Gemm GlobalAveragePool GlobalMaxPool HardSigmoid HardSwish Identity LRN LayerNormalization LeakyRelu MatMul Max
    MaxPool Min Mul Neg PRelu Pad Pow QuantizeLinear Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum
    Relu Reshape Selu Sigmoid Slice Softmax Softplus Sqrt Squeeze Sub Sum Tanh Transpose Unsqueeze
    """.split()  # noqa: SIM905 - a list of a line each would fill a page
)
_DOMAINS = ("", "ai.onnx")
MAX_NODES = 20_000
# Of one tensor and one face: a layer of 16 MB. The largest of ours, v1's first, has 147,456 values.
MAX_VALUES = 1 << 22
# About a second for each face on one core; v1 has 0.3 billion.
MAX_MACS = 32_000_000_000
# Values that the operators take for one face, and a pooling's once for each place of its window: a few seconds. v1 has
# 24 million.
MAX_STEPS = 1 << 32


_ADVICE = "if you trust the file, give --any-operator (Python: any_operator=True)"


def check_operators(
    file: OnnxFile, *, source: str, allowed: Collection[str] = OPERATORS, advice: str = _ADVICE
) -> None:
    """Refuse a graph with operators outside the list, subgraphs, functions or sparse constants.

    Args:
        source: the file, for messages.
        allowed: operators that the graph may have.
        advice: the next step, for the message.

    Raises:
        ModelFileError: with what the file has, and how to run it all the same.
    """
    names = (f"{node.domain}.{node.op_type}" if node.domain not in _DOMAINS else node.op_type for node in file.nodes)
    found = [name for name in dict.fromkeys(names) if name not in allowed]
    faults = [f"{len(file.nodes):,} operators"] if len(file.nodes) > MAX_NODES else []
    faults += [f"the operator {printable(name, limit=60)}" for name in found[:5]]
    faults += [f"a graph inside the operator {node.op_type}" for node in file.nodes if node.has_subgraph][:1]
    faults += [f"{file.functions} functions of its own"] if file.functions else []
    faults += [f"{file.sparse_tensors} sparse constants"] if file.sparse_tensors else []
    if faults:
        raise ModelFileError(f"{source} has {', '.join(faults)}, which no such model needs; {advice}")


def check_work(file: OnnxFile, *, source: str) -> None:
    """Refuse a graph of allowed operators whose work for one face is too much, or cannot be known.

    Raises:
        ModelFileError: with the operator, and how to run the file all the same.
    """
    shapes = infer_shapes(file)
    steps = 0
    for node in file.nodes:
        steps += _steps(node, shapes)
        for name in node.outputs:
            shape = shapes.get(name)
            if shape is None:
                raise ModelFileError(f"{source}: the output size of {node.op_type} {name!r} cannot be known; {_ADVICE}")
            if math.prod(shape) > MAX_VALUES:
                raise ModelFileError(
                    f"{source}: {node.op_type} {name!r} gives {math.prod(shape):,} values for one face, more than "
                    f"{MAX_VALUES:,}; {_ADVICE}"
                )
    for value in file.outputs:
        shape = shapes.get(value.name)
        if shape is None or shape[1:] != value.shape[1:]:
            computed = "an unknown shape" if shape is None else f"the shape {list(shape)}"
            raise ModelFileError(
                f"{source} states the shape {list(value.shape)} for {value.name!r}, but computes {computed} for one "
                "face; export the model again with fer-export"
            )
    if steps > MAX_STEPS:
        raise ModelFileError(
            f"{source}: its operators take {steps:,} values for one face, more than {MAX_STEPS:,}; {_ADVICE}"
        )
    macs = count_macs(file, shapes)
    if macs is None or macs > MAX_MACS:
        taken = "an unknown number of" if macs is None else f"{macs:,}"
        raise ModelFileError(f"{source} takes {taken} multiplications for one face, at most {MAX_MACS:,}; {_ADVICE}")


def _steps(node: Node, shapes: Shapes) -> int:
    sizes = [math.prod(shapes.get(name) or ()) for name in (*node.inputs, *node.outputs)]
    window = node.attributes.get("kernel_shape") if node.op_type in ("AveragePool", "MaxPool") else None
    return max(sizes, default=0) * (math.prod(map(abs, window)) if isinstance(window, (list, tuple)) else 1)


def check_contract(file: OnnxFile, metadata: ModelMetadata, *, source: str) -> None:
    """Compare a file's inputs and outputs with its metadata.

    Raises:
        ModelFileError: with what the file takes and gives.
    """
    constants = file.tensors.keys()
    inputs = {value.name: (value.dtype, value.shape[1:]) for value in file.inputs if value.name not in constants}
    outputs = {value.name: (value.dtype, value.shape[1:]) for value in file.outputs}
    wanted = dict.fromkeys(("logits", "probabilities"), ("float32", (len(metadata.labels),)))
    strange = outputs.get("unfamiliarity", ("float32", ()))
    fits = wanted.items() <= outputs.items() and strange == ("float32", ())
    if inputs == {"faces": ("uint8", metadata.face_shape)} and fits:
        return
    taken, given = (
        printable(", ".join(f"{name} {dtype} {list(shape)}" for name, (dtype, shape) in values.items()), limit=300)
        for values in (inputs, outputs)
    )
    raise ModelFileError(
        f"{source} takes {taken or 'nothing'} and gives {given or 'nothing'}, not faces uint8 "
        f"(batch, {', '.join(map(str, metadata.face_shape))}) to logits and probabilities float32 "
        f"(batch, {len(metadata.labels)}); export the model again with fer-export"
    )


def fixed_batch(file: OnnxFile) -> int | None:
    """The batch size that the file was exported with; None where any is taken."""
    first = file.inputs[0].shape[0] if file.inputs and file.inputs[0].shape else None
    return first if isinstance(first, int) and first > 0 else None
