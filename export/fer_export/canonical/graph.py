"""Any classifier's graph in the few operators that the gate can follow, face by face, at one opset.

Exporters write the same network in many ways: shapes that are computed while the model runs, bias as an addition,
BatchNormalization beside a convolution, a batch of one in every Reshape, operators of opset 7. Here each node is
written again as one or a few operators of `gate.rows` at opset 18, with shapes of a face as constants and any batch.
What has no such form is refused by its name. The result is not trusted: the gate compares it with the original.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

# Imported for the operators that they register.
from fer_export.canonical import elementwise, layers, shapes  # noqa: F401
from fer_export.canonical.operators import write_node
from fer_export.canonical.writer import RefusedError, Writer
from fer_export.gate.rows import NotAllowedError
from fer_runtime.errors import ModelFileError
from fer_runtime.text import printable

OPSET = 18
# What Python and numpy raise about attributes, shapes and constants that no exporter writes.
_UNREADABLE = (
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    ZeroDivisionError,
    OverflowError,
    AttributeError,
    MemoryError,
)
LOWEST_OPSET = 7  # the lowest that ONNX Runtime promises to run


def canonical_graph(
    model: onnx.ModelProto,
    row: tuple[int, ...],
    *,
    outputs: Sequence[str],
    source: str,
    batch: int | None = None,
    written_opset: int = OPSET,
) -> onnx.ModelProto:
    """`model` with one row per face everywhere, any batch, and operators of RULES and MORE_RULES only.

    Args:
        model: its one input has a batch first; checked by `check_operators` before.
        row: the shape of the input for one face.
        outputs: names of the outputs to keep.
        source: the file, for messages.
        batch: the batch size that is written into the graph's shapes; None where it says none.
        written_opset: of the result, 18 or above.

    Raises:
        ModelFileError: an operator, or what it does, has no such form.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < LOWEST_OPSET:
        raise ModelFileError(f"{source} has opset {opset}; opset {LOWEST_OPSET} and above can be read")
    writer = Writer(model, row, opset, batch)
    for node in model.graph.node:
        name = f"{node.op_type} {printable(node.name or (node.output[0] if node.output else ''), limit=60)}"
        try:
            write_node(writer, node)
        except NotAllowedError as error:
            raise ModelFileError(f"{source} cannot be written for any batch: {printable(str(error))}") from error
        except RefusedError as error:
            raise ModelFileError(f"{source}: {name} {error}") from error
        except _UNREADABLE as error:
            reason = printable(str(error) or type(error).__name__, limit=200)
            raise ModelFileError(f"{source}: {name} cannot be read ({reason})") from error
    return writer.model(outputs, source, max(written_opset, OPSET))
