"""Files of `fer-export --target` in the target's own runtime, as `fer-infer --self-test` opens them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_runtime.errors import ModelFileError
from fer_runtime.targets import target_of
from fer_runtime.targets.replay import open_target
from fer_runtime.targets.sidecar import read_sidecar

if TYPE_CHECKING:
    from fer_bench.engines import Run


def load(source: Path, *, model: str, threads: int, batch: int) -> Run:
    """Run a target's file. ncnn and ExecuTorch take one face at a time."""
    target = target_of(source)
    if target is None:
        raise ModelFileError(f"{source} is not a file of fer-export --target")
    sidecar, _ = read_sidecar(source, target)
    run_all = open_target(source, target, sidecar, threads=threads)

    def run(faces: Any) -> Any:
        return run_all(faces).probabilities

    return run
