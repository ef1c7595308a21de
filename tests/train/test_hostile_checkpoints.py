"""Checkpoints that are made to hurt: each is refused in one line, in little time, memory and no code."""

from __future__ import annotations

import io
import json
import pickle
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fer_runtime.errors import CheckpointError
from fer_train.checkpoints import load_checkpoint, load_start
from fer_train.networks.registry import create_network

SECONDS = 5.0  # of CPU time; the slowest takes a tenth of a second


def _saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _state() -> dict[str, Any]:
    torch.manual_seed(0)
    return OrderedDict(create_network("v0").state_dict())


def _with(key: str, value: Any) -> bytes:
    return _saved({**_state(), key: value})


def _zip(change: Callable[[zipfile.ZipInfo, bytes], tuple[str, bytes] | None], kind: int = zipfile.ZIP_STORED) -> bytes:
    """A checkpoint with its archive's entries changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_saved(_state()))) as whole, zipfile.ZipFile(buffer, "w", kind) as other:
        for entry in whole.infolist():
            found = change(entry, whole.read(entry))
            if found is not None:
                other.writestr(*found)
    return buffer.getvalue()


def _pickled(code: bytes) -> bytes:
    """A checkpoint whose data.pkl is `code`."""
    return _zip(lambda entry, data: (entry.filename, code if entry.filename.endswith("data.pkl") else data))


def _safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensor(**changes: Any) -> dict[str, Any]:
    return {"conv_block_1.0.weight": {"dtype": "F32", "shape": [32, 3, 3, 3], "data_offsets": [0, 3456]} | changes}


def _self_reference() -> bytes:
    state: dict[str, Any] = {"conv_block_1.0.weight": torch.zeros(3)}
    state["again"] = state
    return _saved(state)


def _nested(depth: int) -> bytes:
    # Written by hand: torch.save recurses.
    return _pickled(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".")


def _renamed(signature: bytes, flags: int, name: int) -> bytes:
    """An entry's name that is said to be UTF-8 and is not, in the headers with this signature."""
    content = bytearray(_saved({"a": torch.zeros(3)}))
    place = 0
    while (place := content.find(signature, place)) >= 0:
        content[place + flags + 1] |= 8
        content[place + name] = 0xE8
        place += 1
    return bytes(content)


def _later_version() -> bytes:
    content = bytearray(_saved({"a": torch.zeros(3)}))
    content[content.find(b"PK\x01\x02") + 6] = 255
    return bytes(content)


FILES: dict[str, Callable[[], bytes]] = {
    "complex weights": lambda: _with("fc_layer.4.bias", torch.zeros(7, dtype=torch.complex64)),
    "bool weights": lambda: _with("fc_layer.4.bias", torch.zeros(7, dtype=torch.bool)),
    "integer weights": lambda: _with("fc_layer.4.bias", torch.zeros(7, dtype=torch.int64)),
    "sparse weights": lambda: _with("fc_layer.4.weight", torch.zeros(7, 128).to_sparse()),
    "meta weights": lambda: _with("fc_layer.4.weight", torch.empty(7, 128, device="meta")),
    "NaN": lambda: _with("fc_layer.4.bias", torch.full((7,), float("nan"))),
    "infinite": lambda: _with("fc_layer.4.bias", torch.full((7,), float("inf"))),
    "a billion values of one": lambda: _with("fc_layer.1.weight", torch.zeros(1).expand(128, 10**7)),
    "half a billion of one": lambda: _with("fc_layer.1.weight", torch.zeros(1).half().expand(10**9)),
    "no dimension": lambda: _with("fc_layer.4.bias", torch.tensor(1.0)),
    "only itself inside": _self_reference,
    "100,000 lists": lambda: _nested(100_000),
    "memo that grows": lambda: _pickled(b"\x80\x02" + b"]q\x00(" + b"h\x00" * 200_000 + b"e."),
    "a long integer": lambda: _pickled(b"\x80\x02\x8b" + struct.pack("<i", 10**9) + b"1."),
    "a string that is not there": lambda: _pickled(b"\x80\x02X" + struct.pack("<I", 2**31) + b"abc."),
    "os.system": lambda: _pickled(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R."),
    "builtins.eval": lambda: _pickled(b"\x80\x02cbuiltins\neval\nX\x03\x00\x00\x001+1\x85R."),
    "no end": lambda: _pickled(b"\x80\x02]"),
    "an empty pickle": lambda: _pickled(b""),
    "only numbers": lambda: _saved(list(range(100_000))),
    "compressed": lambda: _zip(lambda entry, data: (entry.filename, data), zipfile.ZIP_DEFLATED),
    "a bomb": lambda: _zip(
        lambda entry, data: (entry.filename, bytes(50_000_000) if "data/0" in entry.filename else data),
        zipfile.ZIP_DEFLATED,
    ),
    "a short storage": lambda: _zip(
        lambda entry, data: (entry.filename, data[:8] if entry.filename.endswith("data/0") else data)
    ),
    "a storage less": lambda: _zip(
        lambda entry, data: None if entry.filename.endswith("data/0") else (entry.filename, data)
    ),
    "paths upwards": lambda: _zip(lambda entry, data: (f"../../{entry.filename}", data)),
    "a name that is not UTF-8": lambda: _renamed(b"PK\x03\x04", 6, 30),
    "a name that is not UTF-8 in the table": lambda: _renamed(b"PK\x01\x02", 8, 46),
    "a later version of zip": _later_version,
    "a first weight in many places": lambda: _saved(
        dict.fromkeys((f"{place}.conv_block_1.0.weight" for place in range(12_000)), torch.zeros(1))
    ),
    "escapes in names": lambda: _with("\x1b[2Jverdict\n  ok", torch.zeros(3)),
    "safetensors: long header": lambda: _safetensors(_tensor(), length=2**60),
    "safetensors: no JSON": lambda: _safetensors(b"{" * 100_000),
    "safetensors: deep JSON": lambda: _safetensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "safetensors: long number": lambda: _safetensors(b'{"a":{"dtype":"F32","shape":[' + b"9" * 400 + b"]}}"),
    "safetensors: offsets": lambda: _safetensors(_tensor(data_offsets=[0, 2**40])),
    "safetensors: negative": lambda: _safetensors(_tensor(shape=[-32, 3, 3, 3])),
    "safetensors: overlapping": lambda: _safetensors(
        _tensor() | {"b": {"dtype": "F32", "shape": [864], "data_offsets": [0, 3456]}}, bytes(3456)
    ),
    "safetensors: unknown type": lambda: _safetensors(_tensor(dtype="\x1b[2J"), bytes(3456)),
    "a plain pickle": lambda: pickle.dumps({"a": [1] * 10}),
}


def _assert_refused(read: Callable[[Path], object], kind: str, folder: Path) -> None:
    path = folder / ("a.safetensors" if kind.startswith("safetensors") else "a.pth")
    path.write_bytes(FILES[kind]())
    started = time.process_time()
    with pytest.raises(CheckpointError) as refused:
        read(path)
    assert time.process_time() - started < SECONDS
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 2000


@pytest.mark.parametrize("kind", FILES)
def test_a_hostile_checkpoint_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    _assert_refused(lambda path: load_checkpoint(path, name="v0"), kind, tmp_path)


# Weights to start from may have other shapes and names.
_TAKEN = {"no dimension", "escapes in names", "only itself inside", "a first weight in many places"}


@pytest.mark.parametrize("kind", sorted(set(FILES) - _TAKEN))
def test_a_hostile_start_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    _assert_refused(lambda path: load_start(path, name="v0"), kind, tmp_path)
