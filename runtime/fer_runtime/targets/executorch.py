"""ExecuTorch on the CPU: files of `fer-export --target executorch`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_runtime.targets import one_by_one

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fer_runtime.targets import Run


def load(path: Path, settings: Mapping[str, Any], *, threads: int) -> Run:
    """Run a .pte file, face by face. The number of threads is that of the whole process."""
    # Its Python package takes PyTorch's tensors; a device without them uses ExecuTorch in C++ and the golden header.
    from importlib import import_module

    torch = import_module("torch")
    # Before the first program: XNNPACK keeps the pool that it finds.
    import_module("executorch.extension.pybindings.portable_lib")._unsafe_reset_threadpool(threads)
    method = import_module("executorch.runtime").Runtime.get().load_program(path).load_method("forward")

    def run(face: npt.NDArray[np.uint8]) -> tuple[Any, Any]:
        logits, shares = method.execute([torch.from_numpy(face[None].copy())])
        return logits.numpy(), shares.numpy()

    return one_by_one(run)
