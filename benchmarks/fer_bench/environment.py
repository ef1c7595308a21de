"""The machine, versions and commit of a measurement."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fer_runtime import __version__
from fer_runtime.system import available_cpus, instruction_sets

_PACKAGES = ("onnxruntime", "numpy", "opencv-python-headless", "torch", "openvino", "onnx")


def environment() -> dict[str, Any]:
    """Machine, versions, commit and time, as stored in results files."""
    return {
        "cpu": cpu_name(),
        "cpu_flags": instruction_sets(),
        "cpus": available_cpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "fer-edge": __version__,
        "commit": commit(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    """The processor's name, or "unknown"."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def commit() -> str | None:
    """The checkout's commit, with "+" if measured code has uncommitted changes; None outside a checkout."""
    folder = Path(__file__).parents[2]
    git = ("git", "--no-optional-locks", "-C", str(folder))  # asking for the status would lock the index
    # Results files change while other results are being measured.
    measured = ("runtime", "train", "export", "benchmarks", "models", ":!benchmarks/results")
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", *measured],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
