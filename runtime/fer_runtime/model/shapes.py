"""Shapes of a graph's tensors, for one face, computed without running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fer_runtime.model.onnx_file import Node, OnnxFile, Tensor

Shape = tuple[int, ...]
Shapes = dict[str, "Shape | None"]  # None where it is not known

_SAME_SHAPE = frozenset(
    """
    Abs BatchNormalization Cast Clip DequantizeLinear Dropout Elu Erf Exp HardSigmoid HardSwish Identity LRN
    LayerNormalization LeakyRelu Neg QuantizeLinear Reciprocal Relu Selu Sigmoid Softmax Softplus Sqrt Tanh
    """.split()  # noqa: SIM905 - a list of a line each would fill a page
)
MULTIPLYING = ("Conv", "Gemm", "MatMul")  # operators with weights


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
        if node.op_type not in MULTIPLYING:
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
    if node.op_type == "Constant":
        value = node.attributes.get("value")
        return value.shape if isinstance(value, Tensor) else None
    source = shapes[node.inputs[0]]
    if source is None or node.op_type in _SAME_SHAPE:
        return source
    found = _SHAPE_OF.get(node.op_type)
    return None if found is None else found(_Operator(node, source, shapes, file))


class _Operator:
    """A node, and what is known of the tensors before it."""

    def __init__(self, node: Node, source: Shape, shapes: Shapes, file: OnnxFile) -> None:
        self.node = node
        self.source = source  # of the first input
        self.shapes = shapes
        self.file = file

    def input(self, index: int) -> Shape | None:
        return self.shapes[self.node.inputs[index]]

    def integers(self, index: int) -> Sequence[int]:
        """The values of an input that is a constant."""
        return self.file.tensors[self.node.inputs[index]].integers

    def axes(self, dimensions: int) -> set[int]:
        axes = self.integers(1) if len(self.node.inputs) > 1 else self.node.attributes["axes"]
        return {axis % dimensions for axis in axes}


def _elementwise(of: _Operator) -> Shape | None:
    wide = _broadcast(of.source, of.input(1))
    for index in range(2, len(of.node.inputs)):  # a Sum, a Max and a Min may have more than two
        wide = None if wide is None else _broadcast(wide, of.input(index))
    return wide


def _convolved(of: _Operator) -> Shape | None:
    weights = of.input(1)
    if weights is None:
        return None
    return (of.source[0], weights[0], *_windows(of.node, of.source[2:], list(weights[2:])))


def _pooled(of: _Operator) -> Shape | None:
    return (*of.source[:2], *_windows(of.node, of.source[2:], of.node.attributes["kernel_shape"]))


def _gemm(of: _Operator) -> Shape | None:
    weights = of.input(1)
    return None if weights is None else (*of.source[:-1], weights[0 if of.node.attributes.get("transB") else -1])


def _product(of: _Operator) -> Shape | None:
    source, weights = of.source, of.input(1)
    if weights is None or len(weights) < 2 or len(source) < 2 or source[-1] != weights[-2]:
        return None
    before = _broadcast(source[:-2], weights[:-2])
    return None if before is None else (*before, source[-2], weights[-1])


def _transposed(of: _Operator) -> Shape | None:
    return tuple(of.source[axis] for axis in of.node.attributes.get("perm") or range(len(of.source) - 1, -1, -1))


def _unsqueezed(of: _Operator) -> Shape | None:
    shape = list(of.source)
    for axis in sorted(of.axes(len(of.source) + 1)):
        shape.insert(axis, 1)
    return tuple(shape)


def _squeezed(of: _Operator) -> Shape | None:
    axes = of.axes(len(of.source))
    return tuple(size for axis, size in enumerate(of.source) if axis not in axes)


def _reshaped(of: _Operator) -> Shape | None:
    wanted = [of.source[index] if size == 0 else size for index, size in enumerate(of.integers(1))]
    known = math.prod(size for size in wanted if size > 0)
    shape = tuple(math.prod(of.source) // known if size < 0 else size for size in wanted)
    return shape if math.prod(shape) == math.prod(of.source) else None


def _flattened(of: _Operator) -> Shape | None:
    axis = of.node.attributes.get("axis", 1)
    return (math.prod(of.source[:axis]), math.prod(of.source[axis:]))


def _global_pooled(of: _Operator) -> Shape | None:
    return (*of.source[:2], *(1 for _ in of.source[2:]))


def _reduced(of: _Operator) -> Shape | None:
    axes = of.axes(len(of.source))
    if of.node.attributes.get("keepdims", 1):
        return tuple(1 if index in axes else size for index, size in enumerate(of.source))
    return tuple(size for index, size in enumerate(of.source) if index not in axes)


def _padded(of: _Operator) -> Shape | None:
    pads = of.integers(1)
    if len(pads) != 2 * len(of.source) or len(of.node.inputs) > 3:
        return None
    return tuple(size + pads[axis] + pads[axis + len(of.source)] for axis, size in enumerate(of.source))


def _sliced(of: _Operator) -> Shape | None:
    sizes = list(of.source)
    columns = [of.integers(index) for index in range(1, len(of.node.inputs))]
    for start, end, axis, step in zip(*columns, strict=True):
        size = of.source[axis]
        stop = None if step < 0 and end < -size else end  # beside the first value
        sizes[axis] = len(range(*slice(start, stop, step).indices(size)))
    return tuple(sizes)


def _concatenated(of: _Operator) -> Shape | None:
    parts = [of.shapes[name] for name in of.node.inputs]
    axis = of.node.attributes["axis"] % len(of.source)
    joined = sum(part[axis] for part in parts if part is not None)
    return None if None in parts else (*of.source[:axis], joined, *of.source[axis + 1 :])


_SHAPE_OF: dict[str, Callable[[_Operator], Shape | None]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu", "Sum"), _elementwise),
    "Conv": _convolved,
    **dict.fromkeys(("MaxPool", "AveragePool"), _pooled),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pooled),
    "Gemm": _gemm,
    "MatMul": _product,
    **dict.fromkeys(("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), _reduced),
    "Concat": _concatenated,
    "Flatten": _flattened,
    "Pad": _padded,
    "Reshape": _reshaped,
    "Slice": _sliced,
    "Squeeze": _squeezed,
    "Transpose": _transposed,
    "Unsqueeze": _unsqueezed,
}


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
        found = [max(bound, -(-size // stride)) for bound, size, stride in zip(found, sizes, strides, strict=True)]
    return found
