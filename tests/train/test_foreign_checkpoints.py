"""What other programs save of this very network is read, and files that are made to hurt are refused in one line."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.commands import TRAINING, run_python_text
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fer_runtime.errors import CheckpointError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.labels import parse_labels
from fer_train.checkpoints import (
    Checkpoint,
    in_label_order,
    load_checkpoint,
    pack_state,
    save_checkpoint,
    unpack_state,
)
from fer_train.networks.registry import create_network
from fer_train.pickle_reader import MAX_PICKLE_BYTES

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return create_network("v0").state_dict()


def _prefixed(prefix: str) -> Callable[[State], Any]:
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


def _averaged_model(state: State) -> Any:
    network = create_network("v0")
    network.load_state_dict(state)
    return AveragedModel(network).state_dict()


def _compiled_block(state: State) -> Any:
    return {key.replace("conv_block_1.", "conv_block_1._orig_mod."): value for key, value in state.items()}


FOREIGN: dict[str, Callable[[State], Any]] = {
    "lightning": lambda state: {
        "state_dict": {**_prefixed("model.")(state), "criterion.weight": torch.ones(7)},
        "epoch": 1,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        "pytorch-lightning_version": "2.4.0",
    },
    "torch.compile": _prefixed("_orig_mod."),
    "compiled block": _compiled_block,
    "compiled inside DDP": _prefixed("module._orig_mod."),
    "DDP": _prefixed("module."),
    "own attribute": _prefixed("student.backbone.net."),
    "AveragedModel": _averaged_model,
    "ema_pytorch": lambda state: {
        **{f"online_model.{key}": value * 0.5 if value.is_floating_point() else value for key, value in state.items()},
        **_prefixed("ema_model.")(state),
        "initted": torch.tensor(True),
        "step": torch.tensor(7),
    },
    "state_dict_ema": lambda state: {
        "state_dict": {key: value * 0.5 if value.is_floating_point() else value for key, value in state.items()},
        "state_dict_ema": state,
    },
    **{
        key: lambda state, key=key: {key: state, "acc": 64.0, "epoch": 1}  # type: ignore[misc]
        for key in ("net", "network", "weights", "params", "state_dict", "model_state_dict", "model", "generator")
    },
    "nested": lambda state: {"checkpoint": {"best": {"model": state}}, "history": [1, 2]},
    "no num_batches_tracked": lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
    "double": lambda state: {key: value.double() for key, value in state.items()},
    "bfloat16": lambda state: {
        key: value.bfloat16() if value.is_floating_point() else value for key, value in state.items()
    },
    "channels last": lambda state: {
        key: value.to(memory_format=torch.channels_last) if value.ndim == 4 else value for key, value in state.items()
    },
    "one flat storage": lambda state: _flat(state),
    "parameters": lambda state: {
        key: nn.Parameter(value) if value.is_floating_point() else value for key, value in state.items()
    },
}


def _flat(state: State) -> State:
    flat = torch.cat([value.reshape(-1).float() for value in state.values()])
    parts = torch.split(flat, [value.numel() for value in state.values()])
    return {
        key: part.reshape(value.shape) if value.is_floating_point() else value
        for (key, value), part in zip(state.items(), parts, strict=True)
    }


@pytest.mark.parametrize("kind", FOREIGN)
def test_the_same_network_of_another_program_is_read(kind: str, state: State, tmp_path: Path) -> None:
    torch.save(FOREIGN[kind](state), tmp_path / "a.pth")
    loaded = load_checkpoint(tmp_path / "a.pth", name="v0")
    # bfloat16 keeps 8 bits of the mantissa.
    rtol = 2**-8 if kind == "bfloat16" else 0.0
    for key, value in state.items():
        torch.testing.assert_close(loaded.state_dict[key], value, rtol=rtol, atol=0.0)
    loaded.network()
    assert loaded.labels_assumed
    assert loaded.expressions == EXPRESSIONS


def test_the_place_of_the_weights_is_told(state: State, tmp_path: Path) -> None:
    torch.save(FOREIGN["lightning"](state), tmp_path / "a.pth")
    assert load_checkpoint(tmp_path / "a.pth", name="v0").place == "state_dict, prefix model."


def test_a_teacher_and_a_student_in_one_file_are_not_guessed(state: State, tmp_path: Path) -> None:
    other = {key: value * 0.5 if value.is_floating_point() else value for key, value in state.items()}
    torch.save({**_prefixed("student.")(state), **_prefixed("teacher.")(other)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"2 times, at prefix student\. and at prefix teacher\."):
        load_checkpoint(tmp_path / "a.pth", name="v0")


def test_the_format_before_pytorch_1_6_is_read(state: State, tmp_path: Path) -> None:
    torch.save({"net": state}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    loaded = load_checkpoint(tmp_path / "a.pth", name="v0").state_dict
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "b.pth").write_bytes(content[:-1000])
    with pytest.raises(CheckpointError, match="cut short"):
        load_checkpoint(tmp_path / "b.pth", name="v0")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_safetensors_of_other_programs_are_read(prefix: str, state: State, tmp_path: Path) -> None:
    save_file(_prefixed(prefix)(state), tmp_path / "model.safetensors")
    loaded = load_checkpoint(tmp_path / "model.safetensors", name="v0").state_dict
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_our_own_safetensors_come_back_whole(state: State, tmp_path: Path) -> None:
    order = EXPRESSIONS[::-1]
    saved = Checkpoint(name="v0", state_dict=state, mean=0.5, std=0.25, expressions=order, training={"recipe": "first"})
    save_checkpoint(tmp_path / "a.safetensors", saved)
    loaded = load_checkpoint(tmp_path / "a.safetensors", name="v0")
    assert (loaded.mean, loaded.std, loaded.expressions, loaded.training) == (0.5, 0.25, order, {"recipe": "first"})
    assert not loaded.labels_assumed
    assert all(torch.equal(loaded.state_dict[key], value) for key, value in state.items())
    again = (tmp_path / "a.safetensors").read_bytes()
    save_checkpoint(tmp_path / "a.safetensors", saved)
    assert (tmp_path / "a.safetensors").read_bytes() == again


CSV_ORDER = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")  # of FER2013's fer2013.csv


def test_labels_in_another_order_are_put_in_ours(state: State, tmp_path: Path) -> None:
    rows = [EXPRESSIONS.index(label) for label in CSV_ORDER]
    swapped = {**state, **{f"fc_layer.4.{kind}": state[f"fc_layer.4.{kind}"][rows] for kind in ("weight", "bias")}}
    torch.save(swapped, tmp_path / "a.pth")
    told = load_checkpoint(tmp_path / "a.pth", name="v0", labels=parse_labels(",".join(CSV_ORDER)))
    assert told.expressions == CSV_ORDER
    assert not told.labels_assumed
    ours = in_label_order(told, EXPRESSIONS)
    assert all(torch.equal(ours.state_dict[key], value) for key, value in state.items())
    save_checkpoint(tmp_path / "b.pth", ours)
    with pytest.raises(CheckpointError, match="leave --labels out"):
        load_checkpoint(tmp_path / "b.pth", name="v0", labels=CSV_ORDER)


class Holder(nn.Module):
    """Pickled under a name that checkpoints consist of."""


Holder.__module__, Holder.__qualname__ = "torch.nn.modules.container", "Sequential"


def _pickled_module(build: Callable[[], nn.Module]) -> bytes:
    """torch.save of modules, without PyTorch's check that the class is the one of that name."""
    buffer = io.BytesIO()
    torch.save(build(), buffer)
    return buffer.getvalue()


def _holding_each_other() -> nn.Module:
    first, second = nn.Sequential(), nn.Sequential()
    first._modules["a"] = second
    second._modules["b"] = first
    return first


def _doubling() -> nn.Module:
    module = nn.Sequential(nn.Linear(1, 1))
    for _ in range(40):  # 2^40 names
        module = nn.Sequential(module, module)
    return module


def _saved(change: Callable[[State], Any]) -> Callable[[State], bytes]:
    def save(state: State) -> bytes:
        buffer = io.BytesIO()
        torch.save(change(dict(state)), buffer)
        return buffer.getvalue()

    return save


def _with(key: str, value: Callable[[Tensor], Any]) -> Callable[[State], bytes]:
    return _saved(lambda state: {**state, key: value(state[key])})


def _nan(value: Tensor) -> Tensor:
    value = value.clone()
    value.view(-1)[3] = float("nan")
    return value


def _self_reference(state: State) -> Any:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    return content


def _training_that_holds_itself(state: State) -> Any:
    training: dict[str, Any] = {}
    training["again"] = training
    return {
        "format": "fer-edge checkpoint",
        "name": "v0",
        "state_dict": state,
        "mean": 0.0,
        "std": 1.0,
        "expressions": list(EXPRESSIONS),
        "training": training,
    }


def _rezipped(content: bytes, change: Callable[[str, bytes], bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


def _bomb(state: State) -> bytes:
    """2 MB that unpack to 2 GB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        with archive.open("archive/data/0", "w", force_zip64=True) as entry:
            for _ in range(64):
                entry.write(bytes(1 << 22))
    return buffer.getvalue()


def _with_pickle(text: bytes) -> Callable[[State], bytes]:
    def make(state: State) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", text)
        return buffer.getvalue()

    return make


def _nested_key(depth: int = 60) -> bytes:
    """A dict whose key is a tuple of 2^depth tuples."""
    return b"\x80\x02}" + b")" + b"2\x86" * depth + b"K\x01s."


def _first_bit_of(name: str) -> Callable[[State], bytes]:
    def flip(state: State) -> bytes:
        content = bytearray(_saved(dict)(state))
        with zipfile.ZipFile(io.BytesIO(bytes(content))) as archive:
            values = archive.read(f"archive/data/{name}")
        content[bytes(content).index(values)] ^= 1
        return bytes(content)

    return flip


def _safetensors(
    header: dict[str, Any] | bytes, body: bytes = b"", *, stated: int | None = None
) -> Callable[[State], bytes]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda state: struct.pack("<Q", len(text) if stated is None else stated) + text + body


HOSTILE: dict[str, tuple[Callable[[State], bytes], str]] = {
    "expanded": (
        _with("fc_layer.4.weight", lambda v: torch.zeros(1).half().expand(1 << 31)),
        "fc_layer.4.weight has shape",
    ),
    "expanded unknown": (
        _saved(lambda state: {**state, "extra": torch.zeros(1).half().expand(1 << 40)}),
        "extra is unknown",
    ),
    "hold each other": (lambda state: _pickled_module(_holding_each_other), "holds itself"),
    "doubling": (lambda state: _pickled_module(_doubling), "more than 20,000"),
    "zip bomb": (_bomb, "archive/data.pkl in it is compressed"),
    "compressed": (
        lambda s: _rezipped(_saved(dict)(s), lambda _, b: b, compression=zipfile.ZIP_DEFLATED),
        "is compressed",
    ),
    "sparse": (_with("fc_layer.1.weight", lambda v: v.to_sparse()), "fc_layer.1.weight is a sparse tensor"),
    "quantized": (
        _with("fc_layer.1.weight", lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8)),
        "fc_layer.1.weight is a quantized tensor",
    ),
    "meta": (_with("fc_layer.1.weight", lambda v: v.to("meta")), "fc_layer.1.weight is a meta tensor"),
    "complex": (_with("fc_layer.1.weight", lambda v: v.to(torch.complex64)), "fc_layer.1.weight is complex64"),
    "bool": (_with("fc_layer.1.weight", lambda v: v > 0), "fc_layer.1.weight is bool"),
    "integers": (_with("fc_layer.1.weight", lambda v: v.to(torch.int8)), "fc_layer.1.weight is int8"),
    "float8": (_with("fc_layer.1.weight", lambda v: v.to(torch.float8_e5m2)), "fc_layer.1.weight is float8_e5m2"),
    "NaN": (_with("fc_layer.1.weight", _nan), "fc_layer.1.weight holds 1 values that are NaN"),
    "infinite": (
        _with("fc_layer.1.bias", lambda v: v / 0),
        "fc_layer.1.bias holds 128 values that are NaN or infinite",
    ),
    "overflow": (_with("fc_layer.1.bias", lambda v: v.double().fill_(1e300)), "NaN or infinite"),
    "variance": (_with("conv_block_1.1.running_var", lambda v: -v), "conv_block_1.1.running_var holds a negative"),
    "scattered": (
        _with("fc_layer.4.weight", lambda v: torch.zeros(7 * 128, 50)[:, 0].view(7, 128)),
        r"fc_layer.4.weight cannot be read: its 896 values are scattered",
    ),
    "short storage": (
        lambda s: _rezipped(_saved(dict)(s), lambda n, b: b[:-4] if n == "archive/data/0" else b),
        "conv_block_1.0.weight cannot be read: its values take",
    ),
    "flipped bit": (
        _first_bit_of("0"),
        "conv_block_1.0.weight cannot be read: archive/data/0 in it is cut short or damaged",
    ),
    "self-reference": (_saved(_self_reference), "holds no weights"),
    "training": (_saved(_training_that_holds_itself), "nested too deeply"),
    "huge number": (
        _saved(lambda s: {**_training_that_holds_itself(s), "training": {"epochs": 10**400}}),
        "something other than texts and numbers",
    ),
    "memo": (_with_pickle(b"\x80\x02}r\xff\xff\xff\x3f."), "holds no weights"),
    "nested key": (_with_pickle(_nested_key()), "holds no weights"),
    "long text": (_with_pickle(b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"a."), "structure is damaged"),
    "marks": (_with_pickle(b"\x80\x02" + b"(" * 100_000), "structure"),
    "nested lists": (_with_pickle(b"\x80\x02" + b"](" * 100_000 + b"e" * 100_000 + b"."), "holds no weights"),
    "long pickle": (_with_pickle(b"\x80\x02" + b"}" * MAX_PICKLE_BYTES + b"."), "larger than 1,048,576 bytes"),
    "extension": (_with_pickle(b"\x80\x02\x82\x01."), "uses EXT1"),
    "empty zip": (lambda s: b"PK\x05\x06" + bytes(18), "not one of torch.save"),
    "safetensors header": (_safetensors(b"{" + b" " * 100, stated=1 << 60), "cut short, damaged, or no PyTorch file"),
    "safetensors places": (
        _safetensors({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
        "cut short or damaged",
    ),
    "safetensors depth": (_safetensors(b'{"a":' + b"[" * 50_000), "cut short or damaged"),
    "safetensors dtype": (
        _safetensors({"conv_block_1.0.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "conv_block_1.0.weight has shape",
    ),
    "safetensors settings": (
        _safetensors({"__metadata__": {"fer": "[" * 50_000}}),
        "damaged settings in its header",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_with_its_reason(kind: str, state: State, tmp_path: Path) -> None:
    make, told = HOSTILE[kind]
    (tmp_path / "a.pth").write_bytes(make(state))
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(tmp_path / "a.pth", name="v0")
    assert told in str(refused.value)
    assert len(str(refused.value)) < 600


_WITHIN_MEMORY = """
import resource, sys
from pathlib import Path
from fer_runtime.errors import CheckpointError
from fer_train.checkpoints import load_checkpoint
load_checkpoint(Path(sys.argv[1]), name="v0")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    try:
        load_checkpoint(Path(path), name="v0")
        raise SystemExit("read " + path)
    except CheckpointError:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_refusing_takes_little_memory(state: State, tmp_path: Path) -> None:
    for number, (make, _) in enumerate(HOSTILE.values()):
        (tmp_path / f"{number}.pth").write_bytes(make(state))
    # A table of contents of 30 MB, which Python's zipfile would hold as 200 MB of objects.
    with zipfile.ZipFile(tmp_path / "entries.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        for number in range(20_000):
            archive.writestr(f"archive/data/{number}", b"")
    torch.save(state, tmp_path / "good")
    files = [str(path) for path in tmp_path.glob("*.pth")]
    done = run_python_text("-c", _WITHIN_MEMORY, tmp_path / "good", *files, libraries=TRAINING)
    assert done.returncode == 0, done.stderr
    network_mb = sum(value.numel() * value.element_size() for value in state.values()) / 1e6
    assert float(done.stdout) < 2 * network_mb + 100


def test_a_changed_byte_of_a_training_state_is_noticed() -> None:
    source = Path("a.resume.pth")
    content = pack_state({"identity": {"seed": 1}, "network": {"weight": torch.arange(64.0)}})
    assert torch.equal(unpack_state(content, source=source)["network"]["weight"], torch.arange(64.0))
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(CheckpointError, match=r"a\.resume\.pth"):
            unpack_state(bytes(damaged), source=source)
    older = content[content.index(b"PK") :]  # of an earlier version: torch.save's file alone
    assert unpack_state(older, source=source)["identity"] == {"seed": 1}
    place = older.index(torch.arange(64.0).numpy().tobytes()) + 5
    with pytest.raises(CheckpointError, match="damaged at archive/data/0"):
        unpack_state(older[:place] + bytes([older[place] ^ 1]) + older[place + 1 :], source=source)
