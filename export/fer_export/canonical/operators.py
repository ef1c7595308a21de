"""How each node is written: the operators that take another form, one function each by its name in ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
from onnx import helper

from fer_export.canonical.folding import FOLDED, fold
from fer_export.canonical.writer import RefusedError, Writer
from fer_export.gate.rows import MORE_RULES, RULES

Rewrite = Callable[[Writer, onnx.NodeProto, list[str], dict[str, Any]], None]

REWRITES: dict[str, Rewrite] = {}

# Operators that are gone afterwards: they compute shapes and constants, or have another form.
REWRITTEN = frozenset(
    """
    BatchNormalization Constant ConstantOfShape Dropout Equal Expand Flatten Gather Gelu GlobalAveragePool GlobalMaxPool
    Identity LogSoftmax Mish Range Shape Split Squeeze Sum Unsqueeze Where
    """.split()  # noqa: SIM905 - a list of a line each would fill a page
)
_KNOWN = REWRITTEN | RULES.keys() | MORE_RULES.keys()


def rewrites(*kinds: str) -> Callable[[Rewrite], Rewrite]:
    """Make a function the one that writes operators of these names.

    It is called with the writer, the node, its inputs' names without those left out at the end, and its attributes.
    """

    def register(rewrite: Rewrite) -> Rewrite:
        REWRITES.update(dict.fromkeys(kinds, rewrite))
        return rewrite

    return register


def write_node(writer: Writer, node: onnx.NodeProto) -> None:
    """Write one node of the original, or take it for a constant.

    Raises:
        RefusedError, NotAllowedError: it has no form that answers each face by itself.
    """
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    inputs = list(node.input)
    while inputs and not inputs[-1]:
        inputs.pop()
    if node.op_type not in _KNOWN or node.domain not in ("", "ai.onnx"):
        raise RefusedError("is not among the operators that can be shown to answer each face by itself")
    if all(name in writer.values or not name for name in inputs) and node.op_type != "Shape":
        folded = fold(writer, node, [writer.values.get(name) for name in inputs], attributes)
        if folded is not None:
            writer.keep(node.output[0], folded)
        return
    if any(writer.uses[name] for name in node.output[1:] if name) and node.op_type != "Split":
        raise RefusedError(f"has {len(node.output)} outputs that are used")
    special = REWRITES.get(node.op_type)
    if node.op_type in FOLDED and all(name in writer.values or name in writer.repeated for name in inputs):
        raise RefusedError("computes with a constant that is repeated for each face")
    if special is not None:
        special(writer, node, inputs, attributes)
    elif any(name in writer.repeated for name in inputs):
        raise RefusedError("takes a constant that is repeated for each face")
    else:
        writer.emit(node.op_type, [writer.name_of(name) for name in inputs], node.output[0], **attributes)
