"""What stands in an .onnx file, read from its bytes: the base install has no onnx package.

An ONNX file is one protobuf message (onnx.proto3 of the ONNX project). Only the fields that describe a
model are read; field numbers are those of that schema.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fer_runtime.errors import ModelFileError
from fer_runtime.model.metadata import METADATA_KEY

# TensorProto.DataType: name and bytes per value.
_TYPES = {
    1: ("float32", 4),
    2: ("uint8", 1),
    3: ("int8", 1),
    5: ("int16", 2),
    6: ("int32", 4),
    7: ("int64", 8),
    9: ("bool", 1),
    10: ("float16", 2),
    11: ("float64", 8),
    16: ("bfloat16", 2),
}
_METADATA_PROPS = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A constant in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    integers: tuple[int, ...] = ()  # values of small int64 tensors, such as shapes

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator of the graph."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)  # integers, floats, texts and lists of integers
    domain: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """An input or output; a size that is not fixed is a name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """A model file's contents."""

    ir_version: int
    producer: str
    opsets: dict[str, int]  # version by domain, "" is ONNX's own
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_onnx(content: bytes, *, source: str) -> OnnxFile:
    """Read a model from its bytes.

    Args:
        source: the file, for messages.

    Raises:
        ModelFileError: the bytes are empty, truncated or no ONNX model.
    """
    if not content:
        raise ModelFileError(f"{source} is empty; export the model again with fer-export")
    try:
        model = _group(content)
        graph = _group(_bytes(model[7][0]))
        opsets = [_group(_bytes(one)) for one in model.get(8, [])]
        return OnnxFile(
            ir_version=int(model.get(1, [0])[0]),
            producer=f"{_text(model, 2)} {_text(model, 3)}".strip(),
            opsets={_text(one, 1): int(one.get(2, [0])[0]) for one in opsets},
            inputs=tuple(_value(_bytes(one)) for one in graph.get(11, [])),
            outputs=tuple(_value(_bytes(one)) for one in graph.get(12, [])),
            nodes=tuple(_node(_bytes(one)) for one in graph.get(1, [])),
            tensors={tensor.name: tensor for tensor in (_tensor(_bytes(one)) for one in graph.get(5, []))},
            metadata=_metadata(model),
        )
    except (ValueError, KeyError, IndexError, struct.error, TypeError) as error:
        raise ModelFileError(
            f"{source} is no whole ONNX model ({error}); copy it again, or export it again with fer-export"
        ) from error


def read_onnx_file(path: Path, *, advice: str = "write one with: fer-export --model v0") -> tuple[OnnxFile, bytes]:
    """Read a model file; also returns its bytes.

    Args:
        advice: where such a file comes from, for the message when it is missing.

    Raises:
        ModelFileError: the file is missing, or as for `read_onnx`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}; {advice}") from error
    return read_onnx(content, source=str(path)), content


def content_digest(content: bytes) -> str:
    """SHA-256 over everything that a model file says and computes, hexadecimal.

    Covered are all fields but the metadata entries as they stand, and the entries in order of their keys.
    The digest's own place, `certificate.digest` of the `fer` entry, counts as empty. It notices changes;
    it is no signature, for who changes a file on purpose can compute it again.

    Raises:
        ValueError: the bytes are no protobuf message.
    """
    digest = hashlib.sha256()
    entries: dict[str, str] = {}
    for number, _, value, raw in _fields(content):
        if number == _METADATA_PROPS:
            entry = _group(_bytes(value))
            entries[_text(entry, 1)] = _text(entry, 2)
        else:
            digest.update(raw)
    for key in sorted(entries):
        text = entries[key]
        if key == METADATA_KEY:
            text = _without_digest(text)
        digest.update(json.dumps([key, text]).encode())
    return digest.hexdigest()


def _without_digest(text: str) -> str:
    try:
        values = json.loads(text)
        values["certificate"]["digest"] = ""
    except (ValueError, KeyError, TypeError):
        return text
    return json.dumps(values, sort_keys=True)


def _fields(content: bytes) -> Iterator[tuple[int, int, int | bytes, bytes]]:
    """(field number, wire type, value, bytes of the whole field) of a message, in the order of the file."""
    position, end = 0, len(content)
    while position < end:
        start = position
        tag, position = _varint(content, position)
        number, wire = tag >> 3, tag & 7
        value: int | bytes
        if wire == 0:
            value, position = _varint(content, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
            value, position = content[position : position + length], position + length
        elif wire == 2:
            length, position = _varint(content, position)
            value, position = content[position : position + length], position + length
        else:
            raise ValueError(f"unknown wire type {wire}")
        if position > end:
            raise ValueError("it ends in the middle of a field")
        if number == 0:
            raise ValueError("field number 0")
        yield number, wire, value, content[start:position]


def _varint(content: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if position >= len(content) or shift > 63:
            raise ValueError("it ends in the middle of a number")
        byte = content[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7


def _group(content: bytes) -> dict[int, list[int | bytes]]:
    grouped: dict[int, list[int | bytes]] = {}
    for number, _, value, _ in _fields(content):
        grouped.setdefault(number, []).append(value)
    return grouped


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where a message should be")
    return value


def _text(message: dict[int, list[int | bytes]], number: int) -> str:
    return _bytes(message.get(number, [b""])[-1]).decode("utf-8", "replace")


def _integers(values: list[int | bytes]) -> list[int]:
    """Repeated integers, packed or not; 64-bit two's complement."""
    found: list[int] = []
    for value in values:
        if isinstance(value, int):
            found.append(value)
            continue
        position = 0
        while position < len(value):
            one, position = _varint(value, position)
            found.append(one)
    return [one - (1 << 64) if one >= 1 << 63 else one for one in found]


def _metadata(model: dict[int, list[int | bytes]]) -> dict[str, str]:
    entries = [_group(_bytes(one)) for one in model.get(_METADATA_PROPS, [])]
    return {_text(entry, 1): _text(entry, 2) for entry in entries}


def _value(content: bytes) -> Value:
    message = _group(content)
    tensor = _group(_bytes(_group(_bytes(message[2][0]))[1][0]))
    sizes: list[int | str] = []
    for dimension in _group(_bytes(tensor.get(2, [b""])[0])).get(1, []):
        size = _group(_bytes(dimension))
        sizes.append(_integers(size[1])[0] if 1 in size else _text(size, 2) or "?")
    kind = _integers(tensor.get(1, [0]))[0]
    return Value(name=_text(message, 1), dtype=_TYPES.get(kind, (f"type {kind}", 0))[0], shape=tuple(sizes))


def _node(content: bytes) -> Node:
    message = _group(content)
    return Node(
        op_type=_text(message, 4),
        domain=_text(message, 7),
        inputs=tuple(_bytes(one).decode() for one in message.get(1, [])),
        outputs=tuple(_bytes(one).decode() for one in message.get(2, [])),
        attributes=dict(_attribute(_bytes(one)) for one in message.get(5, [])),
    )


def _attribute(content: bytes) -> tuple[str, Any]:
    message = _group(content)
    value: Any = None
    if 8 in message:
        value = _integers(message[8])
    elif 3 in message:
        value = _integers(message[3])[0]
    elif 2 in message:
        value = struct.unpack("<f", _bytes(message[2][0]))[0]
    elif 4 in message:
        value = _text(message, 4)
    return _text(message, 1), value


def _tensor(content: bytes) -> Tensor:
    message = _group(content)
    kind = _integers(message.get(2, [0]))[0]
    shape = tuple(_integers(message.get(1, [])))
    integers: tuple[int, ...] = ()
    if kind == 7 and math.prod(shape) <= 16:
        raw = _bytes(message[9][0]) if 9 in message else b""
        integers = struct.unpack(f"<{len(raw) // 8}q", raw) if raw else tuple(_integers(message.get(7, [])))
    return Tensor(
        name=_text(message, 8),
        dtype=_TYPES.get(kind, (f"type {kind}", 0))[0],
        shape=shape,
        integers=integers,
    )


def bytes_per_value(dtype: str) -> int:
    """Size of one value of a dtype, 0 where it is unknown."""
    return next((size for name, size in _TYPES.values() if name == dtype), 0)
