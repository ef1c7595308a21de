"""No command, module or import opens a network socket, or writes a file outside its output, cache and temporary files.

strace sees what the libraries below Python do as well: onnxruntime's telemetry connects and keeps a device id on disk.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.conftest import CHECKOUT
from tests.export.narrow import narrow
from tests.train.images import write_images

from fer_runtime.batch.sources import find_images, sample_images
from fer_runtime.model.find import find_model, packaged_models_dir
from fer_train.checkpoints import Checkpoint, save_checkpoint

_STRACE = shutil.which("strace")
_CALLS = "socket,connect,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat"


def _can_trace() -> bool:
    return _STRACE is not None and subprocess.run([_STRACE, "-o", os.devnull, "true"], check=False).returncode == 0


pytestmark = pytest.mark.skipif(not _can_trace(), reason="needs strace, and the permission to trace")


@dataclass(frozen=True)
class Traced:
    """One run under strace."""

    network: list[str]  # calls
    written: set[Path]  # files created or opened for writing, folders made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), train=6, validation=3)


def _trace(folder: Path, *arguments: str) -> Traced:
    """Run Python with `arguments` in `folder`; a run that fails fails the test."""
    assert _STRACE is not None
    log = folder.parent / f"{folder.name}.log"
    # Without --seccomp-bpf each call of PyTorch's start stops the process, which takes minutes.
    command = [_STRACE, "-f", "--seccomp-bpf", "-e", f"trace={_CALLS}", "-s", "4096", "-y", "-o", str(log)]
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
    run = subprocess.run(
        [*command, sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr
    network, written = [], set()
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        call = line.partition(" ")[2].strip()
        if re.match(r"(socket|connect)\(.*AF_(INET|INET6|NETLINK|PACKET)", call):
            network.append(call)
        if " = -1 " in call or call.startswith(("socket", "connect", "<...")):
            continue
        is_open = call.startswith("open")
        if is_open and not re.search(r"O_(WRONLY|RDWR|CREAT|TMPFILE)", call):
            continue
        if names := re.findall(r'"((?:[^"\\]|\\.)*)"', call):
            written.add(Path(os.path.normpath(folder / names[-1])))
    return Traced(network=network, written=written)


def _strays(traced: Traced, folder: Path) -> list[str]:
    """What was written outside the working folder with its cache, or into the home folder."""
    return sorted(
        str(path)
        for path in traced.written
        if not path.is_relative_to("/dev") and not path.is_relative_to("/proc")
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
        *("-c", "from fer_bench.cli import main; main()", "latency", "--model", "{model}"),
        *("--engine", "onnxruntime", "--engine", "openvino", "--rounds", "2", "--seconds", "0.05"),
    ),
    "fer-bench accuracy": (
        *("-c", "from fer_bench.cli import main; main()", "accuracy", "--model", "{model}", "--data", "{data}"),
        *("--json", "accuracy.json"),
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


@pytest.mark.parametrize("name", _RUNS)
def test_no_network_and_nothing_left_elsewhere(name: str, data: Path, tmp_path: Path) -> None:
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
        save_checkpoint(checkpoint, Checkpoint(name="narrow", state_dict=narrow(classes=7, dropout=0).state_dict()))
    photos = tmp_path / "photos"
    (photos / "happy").mkdir(parents=True)
    shutil.copy(sample_images()[0], photos / "happy")
    places = {"sample": sample_images()[0], "model": _model(), "video": video, "data": data, "checkpoint": checkpoint}
    places |= {"photos": photos}
    traced = _trace(folder, *(part.format(**places) for part in _RUNS[name]))
    assert traced.network == []
    assert _strays(traced, folder) == []
    assert [str(path) for path in (folder / "tmp").iterdir()] == []


def test_a_socket_and_a_stray_file_would_be_seen(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    program = "import os, socket; socket.socket().close(); os.mkdir('../stray'); open('home_is_' + 'fine', 'w').close()"
    traced = _trace(folder, "-c", program)
    assert len(traced.network) == 1
    assert _strays(traced, folder) == [str(tmp_path / "stray")]
