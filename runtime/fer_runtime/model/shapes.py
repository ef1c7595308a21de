"""Shapes of a graph's tensors, for one face, computed without running it."""

from __future__ import annotations

import math

from fer_runtime.model.onnx_file import Node, OnnxFile, Tensor

Shape = tuple[int, ...]
Shapes = dict[str, "Shape | None"]  # None where it is not known

_SAME_SHAPE = frozenset(
    """
    Abs BatchNormalization Cast Clip DequantizeLinear Dropout Elu Erf Exp HardSigmoid HardSwish Identity LRN
    LayerNormalization LeakyRelu Neg QuantizeLinear Reciprocal Relu Selu Sigmoid Softmax Softplus Sqrt Tanh
    """.split()  # noqa: SIM905 - a list of a line each would fill a page
)
_BROADCAST = frozenset(("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu", "Sum"))
_REDUCING = frozenset(("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"))
_MULTIPLYING = ("Conv", "Gemm", "MatMul")


def infer_shapes(file: OnnxFile) -> Shapes:
    """The shape of every constant, input and output of a node; sizes that have a name, such as "batch", are 1."""
    shapes: Shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    for value in file.inputs:
        shapes[value.name] = tuple(size if isinstance(size, int) else 1 for size in value.shape)
    for node in file.nodes:
        try:
            shape = _output_shape(node, shapes, file)
        except (IndexError, KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError, AttributeError):
            shape = None
        if shape is not None and not all(isinstance(size, int) and 0 <= size < 1 << 31 for size in shape):
            shape = None
        for name in node.outputs:
            shapes[name] = shape
    return shapes


def count_macs(file: OnnxFile, shapes: Shapes | None = None) -> int | None:
    """Multiplications with addition per face; None where a convolution's or product's shape is not known.

    Counted is what the graph computes: zeros in the weights count as well.
    """
    shapes = infer_shapes(file) if shapes is None else shapes
    total = 0
    for node in file.nodes:
        if node.op_type not in _MULTIPLYING:
            continue
        names = (*node.inputs[:2], *node.outputs[:1])
        source, weights, shape = (shapes.get(name) for name in names) if len(names) == 3 else (None, None, None)
        if not source or not weights or shape is None:
            return None
        per_value = math.prod(weights[1:]) if node.op_type == "Conv" else source[-1]
        total += math.prod(shape) * per_value
    return total


def _output_shape(node: Node, shapes: Shapes, file: OnnxFile) -> Shape | None:
    """The shape behind the operators that our files and most classifiers consist of, None behind others."""
    kind, attributes = node.op_type, node.attributes
    if kind == "Constant":
        value = attributes.get("value")
        return value.shape if isinstance(value, Tensor) else None
    source = shapes[node.inputs[0]]
    if source is None:
        return None
    if kind in _SAME_SHAPE:
        return source
    if kind in _BROADCAST:
        wide = _broadcast(source, shapes[node.inputs[1]])
        for name in node.inputs[2:]:  # a Sum, a Max and a Min may have more than two
            wide = None if wide is None else _broadcast(wide, shapes[name])
        return wide
    if kind in ("Conv", "MaxPool", "AveragePool"):
        weights = shapes[node.inputs[1]] if kind == "Conv" else None
        kernel = list(weights[2:]) if weights is not None else attributes["kernel_shape"]
        return (source[0], weights[0] if weights is not None else source[1], *_windows(node, source[2:], kernel))
    if kind in ("Gemm", "MatMul"):
        weights = shapes[node.inputs[1]]
        if weights is None or (kind == "MatMul" and (len(weights) < 2 or len(source) < 2 or source[-1] != weights[-2])):
            return None
        if kind == "MatMul":
            before = _broadcast(source[:-2], weights[:-2])
            return None if before is None else (*before, source[-2], weights[-1])
        return (*source[:-1], weights[0 if attributes.get("transB") else -1])
    if kind == "Transpose":
        return tuple(source[axis] for axis in attributes.get("perm") or range(len(source) - 1, -1, -1))
    if kind == "Unsqueeze":
        shape = list(source)
        for axis in sorted(_axes(node, file, len(source) + 1)):
            shape.insert(axis, 1)
        return tuple(shape)
    if kind == "Squeeze":
        axes = _axes(node, file, len(source))
        return tuple(size for axis, size in enumerate(source) if axis not in axes)
    if kind == "Reshape":
        wanted = list(file.tensors[node.inputs[1]].integers)
        wanted = [source[index] if size == 0 else size for index, size in enumerate(wanted)]
        known = math.prod(size for size in wanted if size > 0)
        shape = [math.prod(source) // known if size < 0 else size for size in wanted]
        return tuple(shape) if math.prod(shape) == math.prod(source) else None
    if kind == "Flatten":
        axis = attributes.get("axis", 1)
        return (math.prod(source[:axis]), math.prod(source[axis:]))
    if kind in ("GlobalAveragePool", "GlobalMaxPool"):
        return (*source[:2], *(1 for _ in source[2:]))
    if kind in _REDUCING:
        axes = _axes(node, file, len(source))
        if attributes.get("keepdims", 1):
            return tuple(1 if index in axes else size for index, size in enumerate(source))
        return tuple(size for index, size in enumerate(source) if index not in axes)
    if kind == "Pad":
        pads = file.tensors[node.inputs[1]].integers
        if len(pads) != 2 * len(source) or len(node.inputs) > 3:
            return None
        return tuple(size + pads[axis] + pads[axis + len(source)] for axis, size in enumerate(source))
    if kind == "Slice":
        sizes = list(source)
        columns = [file.tensors[name].integers for name in node.inputs[1:]]
        for start, end, axis, step in zip(*columns, strict=True):
            size = source[axis]
            stop = None if step < 0 and end < -size else end  # beside the first value
            sizes[axis] = len(range(*slice(start, stop, step).indices(size)))
        return tuple(sizes)
    if kind == "Concat":
        parts = [shapes[name] for name in node.inputs]
        axis = attributes["axis"] % len(source)
        joined = sum(part[axis] for part in parts if part is not None)
        return None if None in parts else (*source[:axis], joined, *source[axis + 1 :])
    return None


def _axes(node: Node, file: OnnxFile, dimensions: int) -> set[int]:
    axes = file.tensors[node.inputs[1]].integers if len(node.inputs) > 1 else node.attributes["axes"]
    return {axis % dimensions for axis in axes}


def _broadcast(first: Shape, second: Shape | None) -> Shape | None:
    if second is None:
        return None
    length = max(len(first), len(second))
    pairs = zip((1,) * (length - len(first)) + first, (1,) * (length - len(second)) + second, strict=True)
    return tuple(max(pair) if 1 in pair or pair[0] == pair[1] else -1 for pair in pairs)


def _windows(node: Node, sizes: Shape, kernel: list[int]) -> list[int]:
    axes = len(sizes)
    pads = node.attributes.get("pads") or [0] * 2 * axes
    strides = node.attributes.get("strides") or [1] * axes
    dilations = node.attributes.get("dilations") or [1] * axes
    if min([*pads, 0]) < 0 or min([*strides, *dilations, *kernel, 1]) < 1:
        raise ValueError("a window of no size")
    found = [
        (size + pads[axis] + pads[axis + axes] - dilations[axis] * (kernel[axis] - 1) - 1) // strides[axis] + 1
        for axis, size in enumerate(sizes)
    ]
    # auto_pad SAME rounds up, as ceil_mode does; what is known of the size is a bound then.
    if node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or node.attributes.get("ceil_mode"):
        found = [max(one, -(-size // stride)) for one, size, stride in zip(found, sizes, strides, strict=True)]
    return found
