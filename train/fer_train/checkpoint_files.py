"""Open untrusted checkpoint files: their structure is checked before any value is read.

Three kinds are read: the zip archives of `torch.save`, its format before PyTorch 1.6, and safetensors.
"""

from __future__ import annotations

import io
import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from torch import Tensor

from fer_runtime.text import printable
from fer_train.pickle_reader import MAX_PICKLE_BYTES, RefusedPickleError, StorageReference, StoredTensor, read_pickle

# What is read at once: whatever length a damaged file states, no more memory is taken for it.
_BLOCK_BYTES = 1 << 20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
FLOATS = ("float32", "float64", "float16", "bfloat16")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8")


class UnreadableError(ValueError):
    """The file is damaged, or made to hurt; the message is the fact, "it is cut short"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFile:
    """An open file: its structure with `StoredTensor`s for tensors, and a way to their values."""

    content: Any  # dicts, lists and plain values, as `read_pickle` gives them
    source: _Source
    metadata: Mapping[str, str]  # of a safetensors file

    def read(self, tensor: StoredTensor) -> Tensor:
        """The values, a copy in memory of its own.

        Raises:
            UnreadableError: they are damaged or not in the file.
        """
        return self.source.read(tensor)


class _Source(Protocol):
    """Where the values of tensors are."""

    def read(self, tensor: StoredTensor) -> Tensor: ...


@contextmanager
def open_checkpoint(path: Path) -> Iterator[CheckpointFile]:
    """Open a checkpoint file of any of the three kinds.

    Raises:
        OSError: it cannot be read.
        ForeignClassError: it names a class that no checkpoint needs.
        UnreadableError: it is empty, damaged, larger than it can be, or of another kind.
    """
    with path.open("rb") as raw:
        file = _BoundedFile(raw)
        start = file.read(16)
        file.seek(0)
        if not start:
            raise UnreadableError("it is empty")
        try:
            if start.startswith(b"PK"):
                with _opened_zip(file) as archive:
                    zipped = _Archive(archive, file)
                    yield CheckpointFile(content=read_pickle(zipped.pickle()), source=zipped, metadata={})
            elif _is_safetensors(start, path):
                with _opened_safetensors(path) as (described, metadata, source):
                    yield CheckpointFile(content=described, source=source, metadata=metadata)
            else:
                content, legacy = _read_legacy(file)
                yield CheckpointFile(content=content, source=legacy, metadata={})
        except zipfile.BadZipFile as error:
            raise UnreadableError(f"it is cut short or damaged ({printable(error, limit=200)})") from error
        except RefusedPickleError as error:
            if type(error) is not RefusedPickleError:
                raise
            raise UnreadableError(str(error)) from error


def _opened_zip(file: io.RawIOBase) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    # zipfile decodes names as UTF-8; a version above 6.3 is a RuntimeError.
    except (UnicodeDecodeError, RuntimeError) as error:
        raise UnreadableError(f"its zip structure cannot be read ({printable(error, limit=200)})") from error


class _BoundedFile(io.RawIOBase):
    """A file that refuses to read much at once."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file

    def read(self, size: int | None = -1) -> bytes:
        wanted = _BLOCK_BYTES + 1 if size is None or size < 0 else size
        content = self._file.read(min(wanted, _BLOCK_BYTES + 1))
        if len(content) > _BLOCK_BYTES or wanted > _BLOCK_BYTES + 1:
            raise UnreadableError("it states a length that no checkpoint has")
        return content

    def readline(self, size: int | None = -1) -> bytes:
        return self._file.readline(_BLOCK_BYTES)

    def read_exactly(self, place: int, size: int) -> bytearray:
        """`size` bytes from `place` on, in memory that can be written to."""
        self._file.seek(place)
        content = bytearray()
        while block := self._file.read(min(_BLOCK_BYTES, size - len(content))):
            content += block
        if len(content) < size:
            raise UnreadableError("its values are cut short")
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


class _Archive(_Source):
    """The zip archive of torch.save: NAME/data.pkl, and NAME/data/KEY for each storage."""

    def __init__(self, archive: zipfile.ZipFile, file: _BoundedFile) -> None:
        self._archive = archive
        self._file = file
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if len(set(names)) != len(names):
            raise UnreadableError("two entries in it have one name")
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UnreadableError("it is a zip file, and not one of torch.save")
        self._root = pickles[0].removesuffix("data.pkl")
        if any(name.startswith(f"{self._root}code/") for name in names):
            raise UnreadableError("it is a TorchScript module; save the network's state_dict() instead")
        self._entries = dict(zip(names, entries, strict=True))
        for entry in entries:
            # PyTorch never compresses, and a compressed megabyte can become a gigabyte.
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise UnreadableError(
                    f"{printable(entry.filename, limit=100)} in it is compressed, which torch.save never does"
                )
            if entry.flag_bits & 1:
                raise UnreadableError(f"{printable(entry.filename, limit=100)} in it is encrypted")
        self._is_big_endian = self._small("byteorder", b"little") == b"big"
        self._checked: set[str] = set()

    def pickle(self) -> bytes:
        return self._small("data.pkl")

    def _small(self, name: str, default: bytes | None = None) -> bytes:
        entry = self._entries.get(self._root + name)
        if entry is None and default is not None:
            return default
        if entry is None or entry.file_size > MAX_PICKLE_BYTES:
            raise UnreadableError(f"{name} in it is missing or larger than {MAX_PICKLE_BYTES:,} bytes")
        return b"".join(self._blocks(entry))

    def read(self, tensor: StoredTensor) -> Tensor:
        assert tensor.storage is not None
        entry = self._entries.get(f"{self._root}data/{tensor.storage.key}")
        if entry is None:
            raise UnreadableError("its values are not in the file")
        item = _item_bytes(tensor.storage.dtype)
        if entry.file_size != tensor.storage.elements * item:
            raise UnreadableError(
                f"its values take {entry.file_size:,} bytes in the file, not {tensor.storage.elements * item:,}"
            )
        if entry.filename not in self._checked:
            for _ in self._blocks(entry):  # to the end, where zipfile compares the CRC-32
                pass
            self._checked.add(entry.filename)
        begin, end = _extent(tensor)
        # zipfile reads everything before a place to get there, and many tensors may share one storage.
        self._file.seek(entry.header_offset)
        name_bytes, extra_bytes = struct.unpack("<HH", self._file.read(30)[26:30])
        content = self._file.read_exactly(entry.header_offset + 30 + name_bytes + extra_bytes + begin, end - begin)
        return _view(content, tensor, is_big_endian=self._is_big_endian)

    def _blocks(self, entry: zipfile.ZipInfo) -> Iterator[bytes]:
        try:
            with self._archive.open(entry) as values:
                while block := values.read(_BLOCK_BYTES):
                    yield block
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, UnicodeDecodeError) as error:
            raise UnreadableError(f"{printable(entry.filename, limit=100)} in it is cut short or damaged") from error


class _Legacy(_Source):
    """The values behind the pickles of a file from before PyTorch 1.6."""

    def __init__(self, file: _BoundedFile, places: dict[str, int], *, is_big_endian: bool) -> None:
        self._file = file
        self._places = places  # of the length before a storage's values
        self._is_big_endian = is_big_endian

    def read(self, tensor: StoredTensor) -> Tensor:
        assert tensor.storage is not None
        place = self._places.get(tensor.storage.key)
        if place is None:
            raise UnreadableError("its values are not in the file")
        self._file.seek(place)
        if _length(self._file) != tensor.storage.elements:
            raise UnreadableError("its values are of another length than it says")
        begin, end = _extent(tensor)
        content = self._file.read_exactly(place + 8 + begin, end - begin)
        return _view(content, tensor, is_big_endian=self._is_big_endian)


def _read_legacy(file: _BoundedFile) -> tuple[Any, _Legacy]:
    """Five pickles (magic number, protocol, system, content, keys), then the storages in the order of the keys."""
    try:
        if read_pickle(file) != _LEGACY_MAGIC or read_pickle(file) != _LEGACY_PROTOCOL:
            raise UnreadableError("it is cut short, damaged, or no PyTorch file")
        system = read_pickle(file)
    except RefusedPickleError as error:
        if type(error) is not RefusedPickleError:
            raise
        raise UnreadableError("it is cut short, damaged, or no PyTorch file") from error
    content = read_pickle(file)
    keys = read_pickle(file)
    if not isinstance(system, dict) or not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise UnreadableError("it is damaged")
    sizes = {tensor.storage.key: tensor.storage for tensor in _tensors_in(content) if tensor.storage is not None}
    places: dict[str, int] = {}
    place = file.tell()
    for key in keys:
        if key not in sizes:
            # Its length is in elements of an unknown size, so nothing behind it can be found.
            break
        places[key] = place
        file.seek(place)
        place += 8 + _length(file) * _item_bytes(sizes[key].dtype)
    return content, _Legacy(file, places, is_big_endian=system.get("little_endian") is False)


def _tensors_in(content: Any) -> Iterator[StoredTensor]:
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, StoredTensor):
            yield value
        elif id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, dict):
                waiting += value.values()
            elif isinstance(value, (list, tuple)):
                waiting += value
            elif hasattr(value, "attributes"):
                waiting.append(value.attributes)


def _length(file: _BoundedFile) -> int:
    content = file.read(8)
    if len(content) < 8:
        raise UnreadableError("it is cut short")
    return min(max(0, int(struct.unpack("<q", content)[0])), 1 << 48)


def _is_safetensors(start: bytes, path: Path) -> bool:
    # Eight bytes of a length, then JSON; such a file has no magic number.
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


@contextmanager
def _opened_safetensors(path: Path) -> Iterator[tuple[dict[str, StoredTensor], dict[str, str], _Source]]:
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        if int.from_bytes(file.read(8), "little") > MAX_PICKLE_BYTES:
            raise UnreadableError(f"its header takes more than {MAX_PICKLE_BYTES:,} bytes")
    try:
        with safe_open(path, framework="pt") as opened:
            source = _Safetensors(opened)
            yield {key: source.describe(key) for key in opened.keys()}, dict(opened.metadata() or {}), source  # noqa: SIM118
    except SafetensorError as error:
        raise UnreadableError(f"it is cut short or damaged ({printable(error, limit=200)})") from error


class _Safetensors(_Source):
    """The values of a safetensors file; the library has checked their places against each other and the file."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened

    def describe(self, name: str) -> StoredTensor:
        """What the header says of a tensor."""
        part = self._opened.get_slice(name)
        kind, shape = part.get_dtype(), tuple(part.get_shape())
        if kind not in _SAFETENSORS_DTYPES:
            return StoredTensor(refusal=f"of type {kind}")
        dtype = _SAFETENSORS_DTYPES[kind]
        storage = StorageReference(key=name, dtype=dtype, elements=math.prod(shape))
        return StoredTensor(storage=storage, dtype=dtype, shape=shape, strides=_contiguous(shape))

    def read(self, tensor: StoredTensor) -> Tensor:
        assert tensor.storage is not None
        values: Tensor = self._opened.get_tensor(tensor.storage.key)
        return values.clone()


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _item_bytes(dtype: str) -> int:
    sizes = {"bool": 1, "float16": 2, "bfloat16": 2, "complex64": 8, "complex128": 16}
    return sizes.get(dtype) or int("".join(character for character in dtype if character.isdigit())) // 8


def _extent(tensor: StoredTensor) -> tuple[int, int]:
    """First and last byte, in its storage, of what a tensor looks at.

    Raises:
        UnreadableError: that lies outside, or is far more than the tensor has values.
    """
    assert tensor.storage is not None
    if tensor.dtype != tensor.storage.dtype and tensor.storage.dtype != "uint8":
        raise UnreadableError(f"it is {tensor.dtype}, and its values are {tensor.storage.dtype}")
    item = _item_bytes(tensor.dtype)
    values = math.prod(tensor.shape)
    span = (
        0
        if not values
        else 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    )
    stored = tensor.storage.elements * _item_bytes(tensor.storage.dtype)
    if (tensor.offset + span) * item > stored:
        raise UnreadableError(f"it reads {(tensor.offset + span) * item:,} bytes, and only {stored:,} are stored")
    if span > 2 * values + 1024:
        raise UnreadableError(f"its {values:,} values are scattered over {span:,}; save it with .contiguous()")
    return tensor.offset * item, (tensor.offset + span) * item


def _view(content: bytearray, tensor: StoredTensor, *, is_big_endian: bool) -> Tensor:
    dtype = getattr(torch, tensor.dtype)
    if not content:
        return torch.zeros(tensor.shape, dtype=dtype)
    if is_big_endian != (sys.byteorder == "big"):
        item = _item_bytes(tensor.dtype)
        content = bytearray(b"".join(content[place : place + item][::-1] for place in range(0, len(content), item)))
    values = torch.frombuffer(content, dtype=dtype)
    return values.as_strided(tensor.shape, tensor.strides).clone()
