"""Make tensors inside a model's graph additional outputs, for checks, by appending bytes to the file's content."""

from __future__ import annotations

from collections.abc import Sequence

# onnx.proto3: ModelProto.graph, GraphProto.output, ValueInfoProto.name and .type.
_GRAPH, _OUTPUT, _NAME, _TYPE = 7, 12, 1, 2
# TypeProto: a tensor (field 1) of uint8 (field 1: 2).
UINT8 = b"\x0a\x02\x08\x02"


def with_outputs(content: bytes, names: Sequence[str], *, value_type: bytes | None = None) -> bytes:
    """The model's bytes with more outputs.

    Protobuf joins the fields of a message that occurs twice. A second graph, which has the outputs alone, is appended,
    so nothing before it has to be parsed.

    Args:
        content: a model file.
        names: of tensors of its graph.
        value_type: their TypeProto, such as UINT8; None leaves it to ONNX Runtime's type inference.
    """
    kind = b"" if value_type is None else _field(_TYPE, value_type)
    return content + _field(_GRAPH, b"".join(_field(_OUTPUT, _field(_NAME, name.encode()) + kind) for name in names))


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes, in protobuf's encoding."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
