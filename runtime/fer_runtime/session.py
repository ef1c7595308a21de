"""ONNX Runtime sessions: the one place that imports onnxruntime."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fer_runtime.errors import ModelFileError

# onnxruntime's Linux wheel records telemetry unless this is set before its import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

# Fatal only: every failure reaches the user as our own error, and the log would print beside it.
onnxruntime.set_default_logger_severity(4)


def session_options(*, threads: int = 1) -> SessionOptions:
    """The options that the runtime uses; the export checks models through the same ones.

    Args:
        threads: intra-op threads. One is the safe default: on a busy machine two are slower.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads burn a core that the camera or the decoder needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """A session and the execution provider that it really uses."""

    session: InferenceSession
    provider: str  # short name, "CPU"


def open_session(
    model: Path | bytes, *, threads: int = 1, provider: str = "CPU", strict: bool = False, source: str | None = None
) -> OpenedSession:
    """Load a model.

    Args:
        model: the file, or its bytes.
        threads: intra-op threads.
        provider: execution provider without the suffix `ExecutionProvider`, as `--provider` takes it.
        strict: a provider that falls back to another is an error.
        source: name for messages when `model` is bytes.

    Raises:
        ModelFileError: the file is missing, damaged, or wants data from outside its folder.
    """
    name = source or (str(model) if isinstance(model, Path) else "the model")
    content = model if isinstance(model, bytes) else _read(model)
    try:
        session = onnxruntime.InferenceSession(
            content, session_options(threads=threads), [f"{provider}ExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelFileError(f"{name} cannot be loaded by onnxruntime: {reason}") from error
    return OpenedSession(session, session.get_providers()[0].removesuffix("ExecutionProvider"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}; write one with: fer-export --model v0") from error
