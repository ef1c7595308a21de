"""The contents of an .onnx file, read from its bytes: the base install has no onnx package.

An ONNX file is one protobuf message (onnx.proto3 of the ONNX project). Only the fields that describe a
model are read; field numbers are those of that schema.

The file may have been made to hurt, so the limits below hold for every file. Those of this project's models are lower
by a factor of ten and more.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fer_runtime.errors import ModelFileError
from fer_runtime.model.metadata import METADATA_KEY, ModelMetadata, parse_metadata
from fer_runtime.untrusted_json import parse_json

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

MAX_FILE_BYTES = 1 << 30
MAX_FIELDS = 500_000  # of all messages that are read; about a second
MAX_DIMENSIONS = 8
MAX_SIZE = 1 << 31  # of one dimension, and of a tensor's values
MAX_NAME_BYTES = 1024


class Tensor(NamedTuple):
    """A constant in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    integers: tuple[int, ...] = ()  # values of small int64 tensors, such as shapes

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class Node(NamedTuple):
    """One operator of the graph."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = MappingProxyType({})  # integers, floats, texts, lists of integers, tensors
    domain: str = ""
    has_subgraph: bool = False  # an attribute is a graph, as of Loop and If


class Value(NamedTuple):
    """An input or output; a size that is not fixed is a name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class OnnxFile(NamedTuple):
    """A model file's contents."""

    ir_version: int
    producer: str
    opsets: dict[str, int]  # version by domain, "" is ONNX's own
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    functions: int = 0  # operators that the file defines itself
    sparse_tensors: int = 0

    def own_metadata(self, *, source: str) -> ModelMetadata:
        """What fer-export wrote into the file; arguments and errors are those of `parse_metadata`."""
        return parse_metadata(self.metadata.get(METADATA_KEY), source=source)


_Message = dict[int, list["int | memoryview"]]


def read_onnx(
    content: bytes, *, source: str, advice: str = "copy it again, or export it again with fer-export"
) -> OnnxFile:
    """Read a model from its bytes.

    Args:
        source: the file, for messages.
        advice: the next step, for the message about a damaged or empty file.

    Raises:
        ModelFileError: the bytes are empty, truncated or no ONNX model, or a limit of this module is exceeded.
    """
    if not content:
        raise ModelFileError(f"{source} is empty; {advice}")
    reader = _Reader()
    try:
        model = reader.group(memoryview(content))
        graph = reader.group(_bytes(model[7][0]))
        opsets = [reader.group(_bytes(field)) for field in model.get(8, [])]
        tensors = [reader.tensor(_bytes(field)) for field in graph.get(5, [])]
        inputs = tuple(reader.value(_bytes(field)) for field in graph.get(11, []))
        outputs = tuple(reader.value(_bytes(field)) for field in graph.get(12, []))
        nodes = tuple(reader.node(_bytes(field)) for field in graph.get(1, []))
        _check_unique("constants", (tensor.name for tensor in tensors))
        _check_unique("inputs", (value.name for value in inputs))
        _check_unique("outputs", (value.name for value in outputs))
        _check_unique("results of operators", (name for node in nodes for name in node.outputs if name))
        return OnnxFile(
            ir_version=int(model.get(1, [0])[0]),
            producer=f"{_text(model, 2)} {_text(model, 3)}".strip(),
            opsets={_text(opset, 1): int(opset.get(2, [0])[0]) for opset in opsets},
            inputs=inputs,
            outputs=outputs,
            nodes=nodes,
            tensors={tensor.name: tensor for tensor in tensors},
            metadata=reader.metadata(model),
            functions=len(model.get(25, [])),
            sparse_tensors=len(graph.get(15, [])),
        )
    except (ValueError, KeyError, IndexError, struct.error, TypeError, OverflowError) as error:
        reason = f"field {error} is missing" if isinstance(error, KeyError) else error
        raise ModelFileError(f"{source} cannot be read as an ONNX model: {reason}; {advice}") from error


def read_onnx_file(path: Path, *, advice: str = "write one with: fer-export --model v0") -> tuple[OnnxFile, bytes]:
    """Read a model file; also returns its bytes.

    Args:
        advice: where such a file comes from, for the message when it is missing.

    Raises:
        ModelFileError: the file is missing, or as for `read_onnx`.
    """
    content = read_model_bytes(path, advice=advice)
    return read_onnx(content, source=str(path)), content


def read_model_bytes(path: Path, *, advice: str = "write one with: fer-export --model v0") -> bytes:
    """The bytes of a model file.

    Raises:
        ModelFileError: it is missing, no regular file, or larger than MAX_FILE_BYTES.
    """
    try:
        size = path.stat().st_size
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ModelFileError(f"{path} is not a regular file; {advice}")
        if size > MAX_FILE_BYTES:
            raise ModelFileError(f"{path} has {size:,} bytes, more than the {MAX_FILE_BYTES:,} of any model; {advice}")
        return path.read_bytes()
    except OSError as error:
        step = advice if isinstance(error, FileNotFoundError) else "give a file that can be read"
        raise ModelFileError(f"cannot read {path}: {error.strerror}; {step}") from error


def content_digest(content: bytes) -> str:
    """SHA-256 over everything that a model file says and computes, hexadecimal.

    Covered are all fields but the metadata entries as they stand, and the entries in order of their keys.
    The digest's own place, `certificate.digest` of the `fer` entry, counts as empty. It notices changes;
    it is no signature: whoever changes a file on purpose can compute it again.

    Raises:
        ValueError: the bytes are no protobuf message.
    """
    reader = _Reader()
    import hashlib  # loads OpenSSL, which a run of fer-infer does not need

    digest = hashlib.sha256()
    entries: dict[str, str] = {}
    whole = memoryview(content)
    start = 0
    for number, value, end in reader.fields(whole):
        raw, start = whole[start:end], end
        if number == _METADATA_PROPS:
            entry = reader.group(_bytes(value))
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
        values = parse_json(text)
        values["certificate"]["digest"] = ""
    except (ValueError, KeyError, TypeError):
        return text
    return json.dumps(values, sort_keys=True)


def _check_unique(kind: str, names: Iterable[str]) -> None:
    """Programs disagree about which of two values of one name counts, so a file could be another for each of them."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"two {kind} have the name {name!r}")
        seen.add(name)


class _Reader:
    """Reads protobuf messages and counts their fields."""

    def __init__(self) -> None:
        self._left = MAX_FIELDS

    def fields(self, content: memoryview) -> Iterator[tuple[int, int | memoryview, int]]:
        """(field number, value, where the field ends) of a message, in the order of the file."""
        position, end = 0, len(content)
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"it has more than {MAX_FIELDS:,} fields")
            # Nearly all tags and lengths have one byte, and a call takes longer than the rest of this loop.
            tag, position = content[position], position + 1
            if tag >= 0x80:
                tag, position = _varint(content, position - 1)
            number, wire = tag >> 3, tag & 7
            value: int | memoryview
            if wire == 2:
                length, position = _varint(content, position)
                value, position = content[position : position + length], position + length
            elif wire == 0:
                value, position = _varint(content, position)
            elif wire in (1, 5):
                length = 8 if wire == 1 else 4
                value, position = content[position : position + length], position + length
            else:
                raise ValueError(f"unknown wire type {wire}")
            if position > end:
                raise ValueError("it ends in the middle of a field")
            if number == 0:
                raise ValueError("field number 0")
            yield number, value, position

    def group(self, content: memoryview) -> _Message:
        """The values of a message's fields by field number."""
        grouped: _Message = {}
        for number, value, _ in self.fields(content):
            if number in grouped:
                grouped[number].append(value)
            else:
                grouped[number] = [value]
        return grouped

    def integers(self, values: Sequence[int | memoryview]) -> list[int]:
        """Repeated integers, packed or not; 64-bit two's complement."""
        found: list[int] = []
        for value in values:
            if isinstance(value, int):
                found.append(value)
                continue
            position = 0
            while position < len(value):
                number, position = _varint(value, position)
                found.append(number)
                self._left -= 1
                if self._left < 0:
                    raise ValueError(f"it has more than {MAX_FIELDS:,} fields")
        return [number - (1 << 64) if number >= 1 << 63 else number for number in found]

    def metadata(self, model: _Message) -> dict[str, str]:
        entries: dict[str, str] = {}
        for field in model.get(_METADATA_PROPS, []):
            entry = self.group(_bytes(field))
            key = _text(entry, 1)
            if key in entries:
                raise ValueError(f"its metadata has two entries {key!r}")
            entries[key] = bytes(_bytes(entry[2][-1])).decode() if 2 in entry else ""
        return entries

    def value(self, content: memoryview) -> Value:
        message = self.group(content)
        kinds = self.group(_bytes(message[2][0]))
        if 1 not in kinds:
            raise ValueError(f"{_name(message, 1)!r} is not a tensor")
        tensor = self.group(_bytes(kinds[1][0]))
        sizes: list[int | str] = []
        for dimension in self.group(_bytes(tensor.get(2, [memoryview(b"")])[0])).get(1, []):
            size = self.group(_bytes(dimension))
            sizes.append(self.integers(size[1])[0] if 1 in size else _name(size, 2) or "?")
        if len(sizes) > MAX_DIMENSIONS:
            raise ValueError(f"{_name(message, 1)!r} has {len(sizes)} dimensions")
        kind = self.integers(tensor.get(1, [0]))[0]
        return Value(name=_name(message, 1), dtype=_TYPES.get(kind, (f"type {kind}", 0))[0], shape=tuple(sizes))

    def node(self, content: memoryview) -> Node:
        message = self.group(content)
        groups = [self.group(_bytes(field)) for field in message.get(5, [])]
        return Node(
            op_type=_name(message, 4),
            domain=_name(message, 7),
            inputs=tuple(_decoded(field) for field in message.get(1, [])),
            outputs=tuple(_decoded(field) for field in message.get(2, [])),
            attributes={_name(group, 1): self.attribute(group) for group in groups},
            has_subgraph=any(6 in group or 11 in group for group in groups),
        )

    def attribute(self, message: _Message) -> Any:
        if 8 in message:
            return self.integers(message[8])
        if 3 in message:
            return self.integers(message[3])[0]
        if 2 in message:
            return struct.unpack("<f", _bytes(message[2][0]))[0]
        if 4 in message:
            return _text(message, 4)
        if 5 in message:
            return self.tensor(_bytes(message[5][0]))
        return None

    def tensor(self, content: memoryview) -> Tensor:
        message = self.group(content)
        name, kind = _name(message, 8), self.integers(message.get(2, [0]))[0]
        shape = tuple(self.integers(message.get(1, [])))
        dtype, item_bytes = _TYPES.get(kind, (f"type {kind}", 0))
        if len(shape) > MAX_DIMENSIONS:
            raise ValueError(f"{name!r} has {len(shape)} dimensions")
        if not all(0 <= size < MAX_SIZE for size in shape) or math.prod(shape) >= MAX_SIZE:
            raise ValueError(f"{name!r} has shape {shape}")
        if 13 in message or self.integers(message.get(14, [0]))[0]:
            raise ValueError(f"the values of {name!r} are in another file")
        size = math.prod(shape)
        # raw_data, or one of the typed fields: float, int32, string, int64, double, uint64.
        raw = _bytes(message[9][0]) if 9 in message else None
        if raw is not None and item_bytes and len(raw) != size * item_bytes:
            raise ValueError(f"{name!r} has {size} values and {len(raw)} bytes")
        stored = sum(
            1 if isinstance(field, int) else len(field)
            for key in (4, 5, 6, 7, 9, 10, 11)
            for field in message.get(key, [])
        )
        if size > 8 * stored:
            raise ValueError(f"{name!r} has {size} values and {stored} bytes")
        integers: tuple[int, ...] = ()
        if kind == 7 and size <= 16:
            integers = struct.unpack(f"<{size}q", raw) if raw is not None else tuple(self.integers(message.get(7, [])))
        return Tensor(name=name, dtype=dtype, shape=shape, integers=integers)


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    if position < len(content) and (byte := content[position]) < 0x80:
        return byte, position + 1
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


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _decoded(value: int | memoryview) -> str:
    content = _bytes(value)
    if len(content) > MAX_NAME_BYTES:
        raise ValueError(f"a name in it has {len(content):,} bytes")
    return bytes(content).decode()


def _name(message: _Message, number: int) -> str:
    return _decoded(message[number][-1]) if number in message else ""


def _text(message: _Message, number: int) -> str:
    return bytes(_bytes(message[number][-1])).decode("utf-8", "replace") if number in message else ""


def bytes_per_value(dtype: str) -> int:
    """Size of one value of a dtype, 0 where it is unknown."""
    return next((size for name, size in _TYPES.values() if name == dtype), 0)
