"""Model files that are made to hurt, through every command that opens one: one harmless line, in bounded time.

`tests/runtime/model/test_hostile_models.py` says what the reader refuses and why. These files go through the commands.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from tests.commands import RunningPython
from tests.runtime.model.test_hostile_models import GRAPHS, METADATA
from tests.runtime.tiny_models import write_band_model

from fer_bench.cli import main as fer_bench
from fer_export.cli import main as fer_export
from fer_runtime.cli import main as fer_infer
from fer_runtime.errors import FerError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.text import printable

_SECONDS = 20.0  # of CPU time, for a command that takes a tenth of one; the largest file has 500,000 fields
_BYTES = 4 << 30  # of address space: ONNX Runtime's library and threads map 2 GiB before the file is read


# Protobuf by hand, for what the onnx package does not write.


def _varint(value: int) -> bytes:
    found = b""
    while value >= 0x80:
        found, value = found + bytes([value & 0x7F | 0x80]), value >> 7
    return found + bytes([value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _nested(depth: int) -> bytes:
    """A graph in an operator in a graph, `depth` times, and nothing else."""
    graph = b""
    for _ in range(depth):
        # Attribute: name 1, graph 6, type 20. Node: attribute 5, op_type 4. Graph: node 1.
        attribute = _field(1, b"body") + _field(6, graph) + _varint(20 << 3) + _varint(5)
        graph = _field(1, _field(5, attribute) + _field(4, b"Loop"))
    return _varint(1 << 3) + _varint(10) + _field(7, graph) + _field(8, _varint(2 << 3) + _varint(18))


def _honest(folder: Path) -> onnx.ModelProto:
    return onnx.load(write_band_model(folder / "honest.onnx"))


def _append(model: onnx.ModelProto, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
    model.graph.node.append(helper.make_node(op, inputs, outputs, **attributes))


def _external(model: onnx.ModelProto, location: str) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def _cycle(model: onnx.ModelProto) -> None:
    _append(model, "Add", ["logits", "second"], ["first"])
    _append(model, "Relu", ["first"], ["second"])


def _cycle_of_what_counts(model: onnx.ModelProto) -> None:
    model.graph.node[2].input[0] = "probabilities"


def _reads_itself(model: onnx.ModelProto) -> None:
    _append(model, "Relu", ["self"], ["self"])


def _opset(model: onnx.ModelProto, version: int) -> None:
    model.opset_import[0].version = version


def _initializer_twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def _initializer_twice_of_another_size(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((3, 3), np.float32), "weights"))


def _output_twice(model: onnx.ModelProto) -> None:
    _append(model, "Relu", ["logits"], ["probabilities"])


def _stated_output_twice(model: onnx.ModelProto) -> None:
    model.graph.output.append(model.graph.output[0])


def _input_twice(model: onnx.ModelProto) -> None:
    model.graph.input.append(model.graph.input[0])


def _escapes(model: onnx.ModelProto) -> None:
    """Everything that has a name clears the screen and forges a line."""
    text = "\x1b[2J\x1b]0;owned\x07\n  verdict       passed\r\u202e"
    model.producer_name = model.producer_version = model.domain = model.doc_string = text
    model.graph.name = text
    model.graph.node[0].name = text
    _append(model, text, ["logits", text], [text], mode=text)
    _append(model, "Relu", [text], [text + "2"], domain=text)
    model.opset_import.append(helper.make_opsetid(text, 1))
    model.graph.output.append(helper.make_tensor_value_info(text, TensorProto.FLOAT, [text, 7]))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), text))
    helper.set_model_props(model, {text: text, **{entry.key: entry.value for entry in model.metadata_props}})


def _entries(model: onnx.ModelProto) -> None:
    model.metadata_props.extend(onnx.StringStringEntryProto(key=str(number), value="") for number in range(1_000_000))


def _long_entry(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="other", value="x" * (64 << 20))


def _reshape(model: onnx.ModelProto, shape: list[int]) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), "to"))
    _append(model, "Reshape", ["logits", "to"], ["reshaped"])


def _attribute(model: onnx.ModelProto) -> None:
    _append(model, "Transpose", ["logits"], ["turned"], perm=[0] * 1_000_000)


def _pads(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 1 << 40, 1 << 40], np.int64), "pads"))
    _append(model, "Pad", ["logits", "pads"], ["padded"])


def _metadata(text: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        helper.set_model_props(model, {"fer": text})

    return change


def _bomb(model: onnx.ModelProto) -> None:
    """Golden faces of a gigabyte in a megabyte."""
    import base64
    import zlib

    (entry,) = model.metadata_props
    metadata = json.loads(entry.value)
    packed = base64.b64encode(zlib.compress(bytes(1 << 28), 9)).decode()
    metadata["certificate"] = {
        "faces": {"shape": [4096, 48, 48], "zlib_base64": packed},
        "network_logits": [[1e400 if face else 0.0] * 7 for face in range(2)],
        "model_logits": [[0.0] * 7] * 4096,
        "tolerance": {"logits": 1, "probabilities": 1, "margin": 1},
        "measured": {},
        "made_with": {},
        "digest": "\x1b[2J",
    }
    entry.value = json.dumps(metadata).replace("Infinity", "1" * 400)


_CHANGES: dict[str, Callable[[onnx.ModelProto], object]] = {
    **{f"graph: {kind}": change for kind, (change, _) in GRAPHS.items()},
    "external ../../etc/passwd": lambda model: _external(model, "../../../../../../etc/passwd"),
    "external /etc/passwd": lambda model: _external(model, "/etc/passwd"),
    "external itself": lambda model: _external(model, "hostile.onnx"),
    "cycle": _cycle,
    "cycle of the answer": _cycle_of_what_counts,
    "reads itself": _reads_itself,
    "opset 0": lambda model: _opset(model, 0),
    "opset 2^62": lambda model: _opset(model, 1 << 62),
    "opset -1": lambda model: _opset(model, -1),
    "no opset": lambda model: model.ClearField("opset_import"),
    "initializer twice": _initializer_twice,
    "initializer twice, other size": _initializer_twice_of_another_size,
    "output of two operators": _output_twice,
    "stated output twice": _stated_output_twice,
    "input twice": _input_twice,
    "escapes": _escapes,
    "a million entries": _entries,
    "long entry": _long_entry,
    "reshape to 2^62": lambda model: _reshape(model, [1 << 62, -1]),
    "reshape to -1, -1": lambda model: _reshape(model, [-1, -1]),
    "reshape to -7": lambda model: _reshape(model, [-7]),
    "long attribute": _attribute,
    "pads": _pads,
    "zipped faces": _bomb,
    "ir version 2^31": lambda model: setattr(model, "ir_version", 1 << 31),
    **{
        f"metadata: {kind}": _metadata(
            given
            if isinstance(given, str)
            else json.dumps({"schema": 1, "name": "v0", "expressions": list(EXPRESSIONS), "precision": "fp32"} | given)
        )
        for kind, (given, _) in METADATA.items()
    },
}
_BYTES_OF: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "but one byte": lambda content: content[:-1],
    "two bytes": lambda content: content[:2],
    "zeros": lambda content: bytes(100_000),
    "ones": lambda content: b"\xff" * 100_000,
    "nested 10,000 times": lambda content: _nested(10_000),
    "a length of 2^63": lambda content: content + _varint(7 << 3 | 2) + _varint((1 << 63) - 1),
    "a varint without end": lambda content: b"\x80" * 1_000_000,
    "a second graph": lambda content: content + content,
}
KINDS = (*_CHANGES, *_BYTES_OF)


# Cases stand in the order of their kinds, so the last one is enough; some take seconds and megabytes to make.
@functools.lru_cache(maxsize=1)
def _content(kind: str) -> bytes:
    with TemporaryDirectory() as folder:
        model = _honest(Path(folder))
    if kind in _BYTES_OF:
        return _BYTES_OF[kind](model.SerializeToString())
    _CHANGES[kind](model)
    changed: bytes = model.SerializeToString()
    return changed


@pytest.fixture
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "hostile.onnx"
    path.write_bytes(_content(request.param))
    return path


def _recognize(path: Path) -> list[str]:
    return ["--samples", "--output", str(path.parent / "rows.jsonl"), "--model", str(path)]


COMMANDS: dict[str, tuple[click.Command, Callable[[Path], list[str]]]] = {
    "fer-infer": (fer_infer, _recognize),
    "fer-infer --self-test": (fer_infer, lambda path: ["--self-test", "--model", str(path)]),
    "fer-export --inspect": (fer_export, lambda path: ["--inspect", str(path)]),
    "fer-export --inspect --json": (fer_export, lambda path: ["--inspect", str(path), "--json"]),
    "fer-export --adopt": (
        fer_export,
        lambda path: [
            *("--adopt", str(path), "--input", "gray48", "--range", "0..255", "--labels", ",".join(EXPRESSIONS)),
            *("--models-dir", str(path.parent / "adopted")),
        ],
    ),
    "fer-bench latency": (
        fer_bench,
        lambda path: [
            *("latency", "--model", str(path), "--engine", "onnxruntime"),
            *("--rounds", "2", "--seconds", "0.01"),
        ],
    ),
}
# They look at a file without running it, so a broken graph does not stop them.
_LOOKING = {"fer-export --inspect", "fer-export --inspect --json"}
_HARMLESS = {"long entry"}  # 64 MiB of text that nobody reads
# What test_hostile_models.py puts through Recognizer, run_self_test and fer-infer.
_KNOWN = tuple(kind for kind in KINDS if kind.startswith(("graph: ", "metadata: ")))
_CASES = [
    (kind, command)
    for kind in KINDS
    for command in COMMANDS
    if kind not in _KNOWN or command in ("fer-export --inspect", "fer-export --adopt")
]


def _assert_harmless(output: str) -> None:
    for line in output.split("\n"):
        assert line == printable(line)
        assert not line.startswith(("  verdict       passed", "Traceback"))


@pytest.fixture
def _loaded_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """fer-bench's workers have loaded ONNX Runtime, which takes most of their time."""
    if sys.platform != "linux":
        return
    start = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        if command[1:] == ["-m", "fer_bench.latency.worker"]:
            return RunningPython(*command[1:], env=options["env"])
        return start(command, **options)

    monkeypatch.setattr(subprocess, "Popen", popen)


@pytest.mark.usefixtures("_loaded_workers")
@pytest.mark.parametrize(("hostile", "command"), _CASES, indirect=["hostile"])
def test_every_command_answers_in_one_line(hostile: Path, command: str, request: pytest.FixtureRequest) -> None:
    main, arguments = COMMANDS[command]
    started = time.process_time()
    result = CliRunner().invoke(main, arguments(hostile))
    assert time.process_time() - started < _SECONDS
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    _assert_harmless(result.output)
    if result.exit_code == 0:
        kind = request.node.callspec.params["hostile"]
        assert command in _LOOKING or kind in _HARMLESS, result.output
        return
    assert result.exit_code == 1
    assert [line for line in result.stderr.splitlines() if "Error: " in line]


@pytest.mark.parametrize("hostile", [kind for kind in KINDS if kind not in _KNOWN], indirect=True)
def test_a_server_does_not_start_with_it(hostile: Path) -> None:
    from fer_runtime.server import ServerSettings, open_recognition

    with pytest.raises(FerError) as refused:
        open_recognition(ServerSettings(models=(str(hostile),)))
    assert str(refused.value).count("\n") == 0 or printable(refused.value)


_WITH_A_LIMIT = """
import re, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
from fer_runtime.cli import main
try:
    main(["--self-test", "--model", sys.argv[2]], prog_name="fer-infer")
finally:
    # Since exec; ru_maxrss would be that of pytest, which forked.
    print(int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) >> 10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "hostile",
    ["zipped faces", "a million entries", "nested 10,000 times", "a varint without end", "graph: empty gigabytes"],
    indirect=True,
)
def test_memory_is_bounded(hostile: Path) -> None:
    """Python and the libraries take 100 MiB; a file of half a million fields takes another 150."""
    command = [sys.executable, "-c", _WITH_A_LIMIT, str(_BYTES), str(hostile)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1, result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("Error: ")]) == 1
    assert "Traceback" not in result.stderr
    assert int(result.stdout.split()[-1]) < 300 + 2 * (hostile.stat().st_size >> 20)  # MiB
