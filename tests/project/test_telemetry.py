"""No command, module or import opens a network socket, or writes a file outside its output, cache and temporary files.

strace sees what the libraries below Python do as well: onnxruntime's telemetry connects and keeps a device id on disk.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest
from tests.conftest import CHECKOUT
from tests.export.adopt.foreign_models import FERPLUS, ferplus_like
from tests.export.narrow import narrow
from tests.processes import limited, started
from tests.train.images import write_images

from fer_runtime.batch.sources import find_images, sample_images
from fer_runtime.model.find import find_model, packaged_models_dir
from fer_train.checkpoints import Checkpoint, save_checkpoint

_STRACE = shutil.which("strace")
_CALLS = (
    "socket,connect,bind,sendto,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat"
)


def _can_trace() -> bool:
    return _STRACE is not None and subprocess.run([_STRACE, "-o", os.devnull, "true"], check=False).returncode == 0


pytestmark = pytest.mark.skipif(not _can_trace(), reason="needs strace, and the permission to trace")


@dataclass(frozen=True)
class Traced:
    """One run under strace."""

    network: list[str]  # calls that open sockets of a network, or connect them
    addresses: set[str]  # of the internet that were connected to, written to, or listened on
    written: set[Path]  # files created or opened for writing, folders made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), train=6, validation=3)


def _trace(
    folder: Path, *arguments: str, while_running: Callable[[subprocess.Popen[str]], None] | None = None
) -> Traced:
    """Run Python with `arguments` in `folder`; a run that fails fails the test.

    Args:
        while_running: what happens meanwhile, for a command that does not end by itself.
    """
    log = folder.parent / f"{folder.name}.log"
    with started(
        [*_strace(log), sys.executable, *arguments],
        cwd=folder,
        env=_environment(folder, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        if while_running is not None:
            while_running(run)
        output, errors = run.communicate(timeout=300)
    assert run.returncode == 0, output + errors
    return _read(log.read_bytes(), folder)


def _strace(log: Path) -> list[str]:
    """What the command that is traced follows."""
    assert _STRACE is not None
    # Without --seccomp-bpf each call of PyTorch's start stops the process, which takes minutes.
    return [_STRACE, "-f", "--seccomp-bpf", "-e", f"trace={_CALLS}", "-s", "4096", "-y", "-o", str(log)]


def _environment(folder: Path, *arguments: str) -> dict[str, str]:
    """Of a run in `folder`, which gets folders for its home and temporary files."""
    # Commands that ran inside this process have set some of these for libraries.
    own = ("ORT_", "RAY_", "MPLCONFIGDIR", "TORCHINDUCTOR_", "OPENCV_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    environment |= {
        "HOME": str(folder / "home"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "TMPDIR": str(folder / "tmp"),
    }
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
    if "narrow" in arguments:
        environment["FER_EDGE_PLUGINS"] = "tests.export.narrow"
    for name in ("home", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    return environment


def _read(log: bytes, folder: Path) -> Traced:
    """What strace has written of a run in `folder`."""
    network: list[str] = []
    addresses: set[str] = set()
    written: set[Path] = set()
    for line in log.decode(errors="replace").splitlines():
        call = line.partition(" ")[2].strip()
        if re.match(r"(socket|connect)\(.*AF_(INET|INET6|NETLINK|PACKET)", call):
            network.append(call)
        if re.match(r"(connect|bind|sendto)\(.*AF_INET6?", call):
            addresses |= set(re.findall(r'inet_(?:addr\(|pton\(AF_INET6?, )"([^"]+)"', call))
        if " = -1 " in call or call.startswith(("socket", "connect", "bind", "sendto", "<...")):
            continue
        is_open = call.startswith("open")
        if is_open and not re.search(r"O_(WRONLY|RDWR|CREAT|TMPFILE)", call):
            continue
        if names := re.findall(r'"((?:[^"\\]|\\.)*)"', call):
            written.add(Path(os.path.normpath(folder / names[-1])))
    return Traced(network=network, addresses=addresses, written=written)


# Loads PyTorch, and forks for each line of its input.
_WITH_PYTORCH = """
import gc, json, os, sys
gc.disable()
import torch, torch._dynamo
from tests.commands import be_python
gc.freeze()
gc.enable()
inherited = os.environ["PYTHONPATH"].split(os.pathsep)
installed = [folder for folder in sys.path[1:] if folder not in inherited]
print("ready", flush=True)
for line in sys.stdin:
    run = os.fork()
    if not run:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        be_python(json.loads(line), installed)
        break
    print(os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]), flush=True)
"""


class TracedForks:
    """Runs that are forked, one after another, from a process under strace that has loaded PyTorch."""

    def __init__(self, process: subprocess.Popen[str], log: Path, errors: Path) -> None:
        self._process = process
        self._log = log
        self._errors = errors
        self._read_bytes = 0
        assert self._answer() == "ready", errors.read_text()

    def loading(self, folder: Path) -> Traced:
        """What it took to load PyTorch."""
        return self._latest(folder)

    def trace(self, folder: Path, *arguments: str) -> Traced:
        """The same as `_trace`."""
        request = {"arguments": arguments, "cwd": str(folder), "environment": _environment(folder, *arguments)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        assert self._answer() == "0", self._errors.read_text()
        return self._latest(folder)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        with limited(self._process):
            return self._process.stdout.readline().strip()

    def _latest(self, folder: Path) -> Traced:
        log = self._log.read_bytes()
        latest, self._read_bytes = log[self._read_bytes :], len(log)
        return _read(latest, folder)


@pytest.fixture(scope="module")
def with_pytorch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TracedForks]:
    folder = tmp_path_factory.mktemp("pytorch") / "work"
    folder.mkdir()
    log, errors = folder.parent / "log", folder.parent / "errors"
    with (
        errors.open("wb") as file,
        started(
            [*_strace(log), sys.executable, "-c", _WITH_PYTORCH],
            cwd=folder,
            env=_environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        ) as process,
    ):
        forks = TracedForks(process, log, errors)
        loading = forks.loading(folder)
        assert loading.network == []
        assert _strays(loading, folder) == []
        yield forks
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0, errors.read_text()


def _strays(traced: Traced, folder: Path) -> list[str]:
    """What was written outside the working folder with its cache, or into the home folder."""
    return sorted(
        str(path)
        for path in traced.written
        if path.is_relative_to(folder.parent) or not (path.is_relative_to("/dev") or path.is_relative_to("/proc"))
        if not path.is_relative_to(folder) or path.is_relative_to(folder / "home")
    )


def _model() -> str:
    return str(find_model("v0", precision="fp32", models_dir=packaged_models_dir()))


# All of ours but those that need a package which is not installed, or run when they are imported.
_IMPORT_ALL = """
import importlib, pkgutil
imported = 0
for name in ("fer_runtime", "fer_train", "fer_export", "fer_bench"):
    for module in pkgutil.walk_packages(importlib.import_module(name).__path__, name + "."):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
                imported += 1
            except ModuleNotFoundError as error:
                assert not error.name.startswith("fer_"), error
assert imported > 100, imported
"""
_RUNS = {
    "fer-infer": ("-m", "fer_runtime", "{sample}", "--output", "rows.jsonl", "--annotate", "copies"),
    "fer-infer --self-test": ("-m", "fer_runtime", "--self-test", "--model", "{model}"),
    "fer-infer --camera": ("-m", "fer_runtime", "{video}", "--output", "rows.csv"),
    "fer-train": (
        *("-m", "fer_train", "--model", "v0", "--data", "{data}", "--epochs", "1", "--models-dir", "out"),
        *("--device", "cpu", "--threads", "1"),
    ),
    "fer-data crop": ("-m", "fer_train.data.cli", "crop", "{photos}", "--output", "crops"),
    "fer-data audit": ("-m", "fer_train.data.cli", "audit", "{data}", "--model", "{model}"),
    "fer-export": ("-m", "fer_export", "--model", "narrow", "--checkpoint", "{checkpoint}", "--models-dir", "out"),
    "fer-export --inspect": ("-m", "fer_export", "--inspect", "{model}"),
    "fer-bench latency": (
        *("-m", "fer_bench", "latency", "--model", "{model}"),
        *("--engine", "onnxruntime", "--engine", "openvino", "--rounds", "2", "--seconds", "0.05"),
    ),
    "fer-bench accuracy": (
        *("-m", "fer_bench", "accuracy", "--model", "{model}", "--data", "{data}"),
        *("--json", "accuracy.json"),
    ),
    "fer-bench interoperability": (
        *("-m", "fer_bench", "interoperability", "--model", "{model}"),
        *("--json", "interoperability.json"),
    ),
    "fer-bench ledger show": ("-m", "fer_bench", "ledger", "show", "--ledger", "{ledger}"),
    "fer-bench ledger compare": (*("-m", "fer_bench", "ledger", "compare", "--ledger", "{ledger}"),),
    "fer-export --adopt": (
        *("-m", "fer_export", "--adopt", "{foreign}", "--input", "gray64", "--range", "0..255", "--temperature", "2"),
        *("--labels", ",".join(FERPLUS), "--models-dir", "out"),
    ),
    "import fer_runtime": (
        "-c",
        "from fer_runtime import Recognizer; print(Recognizer({model!r}).predict({sample!r}))",
    ),
    "fer-export --target": (
        *("-m", "fer_export", "--model", "v0", "--target", "openvino", "--target", "ncnn", "--target", "ort"),
        *("--models-dir", "."),
    ),
    "import every module": ("-c", _IMPORT_ALL),
}
# PyTorch takes a second to load, and does the same each time.
_WITH_PYTORCH_LOADED = {"fer-train", "fer-export", "fer-export --adopt", "fer-export --target"}


@pytest.mark.parametrize("name", _RUNS)
def test_no_network_and_nothing_left_elsewhere(
    name: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    import cv2

    folder = tmp_path / "work"
    folder.mkdir()
    video = tmp_path / "still.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    image = cv2.imread(next(find_images(data / "images" / "train" / "happy")))
    assert image is not None
    for _ in range(3):
        writer.write(cv2.resize(image, (64, 64)))
    writer.release()
    checkpoint = tmp_path / "narrow.pth"
    if name == "fer-export":
        weights = narrow(classes=7, dropout=0).state_dict()
        weights["fc_layer.1.bias"] += 1  # no unit is idle, so no faces are searched that switch it on
        save_checkpoint(checkpoint, Checkpoint(name="narrow", state_dict=weights))
    photos = tmp_path / "photos"
    (photos / "happy").mkdir(parents=True)
    shutil.copy(sample_images()[0], photos / "happy")
    places: dict[str, str | Path] = {
        "sample": sample_images()[0],
        "model": _model(),
        "video": video,
        "data": data,
        "checkpoint": checkpoint,
    }
    places |= {"photos": photos, "ledger": CHECKOUT / "benchmarks" / "results" / "ledger.jsonl"}
    if name == "fer-export --adopt":
        foreign = tmp_path / "foreign.onnx"
        foreign.write_bytes(ferplus_like().SerializeToString())
        places["foreign"] = foreign
    arguments = [part.format(**places) for part in _RUNS[name]]
    if name in _WITH_PYTORCH_LOADED:
        forks: TracedForks = request.getfixturevalue("with_pytorch")
        traced = forks.trace(folder, *arguments)
    else:
        traced = _trace(folder, *arguments)
    assert traced.network == []
    assert _strays(traced, folder) == []
    assert [str(path) for path in (folder / "tmp").iterdir()] == []


def test_a_ray_run_stays_on_this_machine_and_leaves_nothing_elsewhere() -> None:
    """Ray asks the metadata services of clouds where it is, and writes a token to the home folder, unless kept from it.

    Its processes talk to each other over the loopback address.
    """
    pytest.importorskip("ray", reason="needs the extra `ray`")
    with tempfile.TemporaryDirectory(prefix="fer", dir="/tmp") as short:  # for sockets, pytest's names are too long
        folder = Path(short) / "w"
        folder.mkdir()
        run = ("-m", "fer_runtime", *sample_images(), "--engine", "ray", "--output", "rows", "--model", _model())
        traced = _trace(folder, *run)
        assert (folder / "rows" / "_SUCCESS").is_file()
        assert traced.addresses, "a trace that shows nothing"
        assert traced.addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        assert _strays(traced, folder) == []
        assert [str(path) for path in (folder / "tmp").iterdir()] == []


def test_a_service_opens_its_own_socket_on_the_loopback_address_and_no_other(tmp_path: Path) -> None:
    pytest.importorskip("starlette", reason="needs the extra serve: pip install 'fer-edge[serve]'")
    folder = tmp_path / "work"
    folder.mkdir()
    image = Path(sample_images()[0]).read_bytes()

    def use(process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        port = 0
        while not port:
            line = process.stderr.readline()
            assert line, "it has ended"
            with suppress(ValueError, KeyError, TypeError):
                port = int(json.loads(line)["url"].rpartition(":")[2])
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/v1/images", image, {"Content-Type": "image/jpeg"})
        assert len(json.loads(connection.getresponse().read())["images"][0]["faces"]) == 1
        connection.close()
        # strace passes no signal on to the service.
        (service,) = (Path(f"/proc/{process.pid}/task/{process.pid}/children")).read_text().split()[:1]
        os.kill(int(service), signal.SIGTERM)

    serve = "from fer_runtime.cli.serve import main; main()"
    traced = _trace(folder, "-c", serve, "--model", _model(), "--port", "0", while_running=use)
    assert len([call for call in traced.network if call.startswith("socket")]) == 1, traced.network
    assert [call for call in traced.network if call.startswith("connect")] == []
    assert traced.addresses == {"127.0.0.1"}
    assert _strays(traced, folder) == []
    assert [str(path) for path in (folder / "tmp").iterdir()] == []


@pytest.mark.parametrize("is_forked", [False, True])
def test_a_socket_and_a_stray_file_would_be_seen(
    is_forked: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    program = "import os, socket; socket.socket().close(); os.mkdir('../stray'); open('home_is_' + 'fine', 'w').close()"
    program += "; socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 9))"
    trace = request.getfixturevalue("with_pytorch").trace if is_forked else _trace
    traced = trace(folder, "-c", program)
    assert len(traced.network) == 3
    assert traced.addresses == {"192.0.2.1"}
    assert _strays(traced, folder) == [str(tmp_path / "stray")]
