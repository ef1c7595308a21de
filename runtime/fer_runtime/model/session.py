"""ONNX Runtime sessions: the one place that imports onnxruntime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import onnxruntime  # fer_runtime/__init__.py has turned its telemetry off

from fer_runtime.errors import ModelFileError, ProviderError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession as InferenceSession
    from onnxruntime import SessionOptions

# Fatal only: every failure reaches the user as our own error, and the log would print beside it.
_SEVERITY = 4
# Providers' own settings, where their defaults compute something else than the certificate was made with: since
# Ampere, CUDA rounds float32 to TF32's 10 bits.
_GPU = ("cuda", "tensorrt")  # providers of the package onnxruntime-gpu
_PROVIDER_OPTIONS = {"CUDA": {"use_tf32": "0"}}


def silence() -> None:
    """Keep ONNX Runtime's log out of this process, for commands; an application that embeds us keeps its own."""
    onnxruntime.set_default_logger_severity(_SEVERITY)


def runtime_version() -> str:
    """Of onnxruntime, whichever distribution it came in: onnxruntime-gpu has no metadata under that name."""
    version: str = onnxruntime.__version__
    return version


def session_options(*, threads: int = 1, optimize: bool = True) -> SessionOptions:
    """The options that the runtime uses; the export checks models through the same ones.

    Args:
        threads: intra-op threads. One is the safe default: on a busy machine two are slower.
        optimize: False runs the graph as it is written, node by node, for checks.
    """
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SEVERITY
    # Weights outside the file would be looked for in the current folder, and no digest covers them: nowhere, then.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    # Spinning threads burn a core that the camera or the decoder needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def create_session(content: bytes, options: SessionOptions) -> InferenceSession:
    """A session on the CPU with other options than `open_session` takes, for checks of the export."""
    return onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])


class OpenedSession(NamedTuple):
    """A session and the execution provider that it really uses."""

    session: InferenceSession
    provider: str  # short name, "CPU"


def open_session(
    model: Path | bytes,
    *,
    threads: int = 1,
    provider: str = "CPU",
    strict: bool = False,
    optimize: bool = True,
    source: str | None = None,
    advice: str = "write one with: fer-export --model v0",
) -> OpenedSession:
    """Load a model.

    Args:
        model: the file, or its bytes.
        threads: intra-op threads.
        provider: execution provider without the suffix `ExecutionProvider`, as `--provider` takes it.
        strict: a provider that falls back to another is an error.
        optimize: False runs the graph as it is written, for checks.
        source: name for messages when `model` is bytes.
        advice: where such a file comes from, for the message when it is missing.

    Raises:
        ModelFileError: the file is missing, damaged, or wants data from outside its folder.
        ProviderError: this onnxruntime has no such provider, or fell back to another under `strict`.
    """
    name = source or (str(model) if isinstance(model, Path) else "the model")
    wanted = find_provider(provider)
    content = model if isinstance(model, bytes) else _read(model, advice)
    try:
        session = _create_session(content, threads, (wanted, "CPU"), optimize)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        failure = ModelFileError(
            f"{name} cannot be loaded by onnxruntime: {_reason(error)}; copy the file again, or give another"
        )
        if wanted == "CPU":
            raise failure from error
        try:
            # A provider that cannot start fails like a model that cannot be read; on CPU they part.
            session = _create_session(content, threads, ("CPU",), optimize)
        except Exception:
            raise failure from error
    used = _used_provider(session, wanted)
    if strict and used != wanted:
        raise ProviderError(
            f"onnxruntime fell back from {wanted} to {used}; install what {wanted} needs, or leave --strict away"
        )
    return OpenedSession(session, used)


def _create_session(
    content: bytes, threads: int, providers: tuple[str, ...], optimize: bool = True
) -> InferenceSession:
    options = session_options(threads=threads, optimize=optimize)
    if providers[0] != "CPU":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return onnxruntime.InferenceSession(
        content,
        options,
        [(f"{one}ExecutionProvider", _PROVIDER_OPTIONS.get(one, {})) for one in dict.fromkeys(providers)],
        # Its own fallback says so on standard output, among the rows.
        enable_fallback=0,
    )


def optimized_model(content: bytes) -> bytes:
    """The graph that ONNX Runtime runs on this machine after its own optimisation, as an .onnx file's bytes."""
    return _saved(content, session_options())


def save_optimized(content: bytes, *, ort_format: bool) -> bytes:
    """The graph after the optimisations that hold on every processor, as an .onnx or .ort file's bytes."""
    options = session_options()
    # ORT_ENABLE_ALL adds layouts that only this machine's kernels read.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.save_model_format", "ORT" if ort_format else "ONNX")
    return _saved(content, options)


def _saved(content: bytes, options: SessionOptions) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized"
        options.optimized_model_filepath = str(path)
        create_session(content, options)
        return path.read_bytes()


def quantization_tools() -> Any:
    """`onnxruntime.quantization`, which imports onnx: for the export alone."""
    from onnxruntime import quantization

    return quantization


def _used_provider(session: InferenceSession, wanted: str) -> str:
    """`wanted` where it runs a part of the model, else the CPU, which runs what no other provider takes."""
    if wanted == "CPU" or f"{wanted}ExecutionProvider" not in session.get_providers():
        return "CPU"
    if not hasattr(session, "get_provider_graph_assignment_info"):  # an older onnxruntime
        return wanted
    # A provider may start and then take nothing of the graph, which is a fallback as well.
    parts = {part.ep_name.removesuffix("ExecutionProvider") for part in session.get_provider_graph_assignment_info()}
    return wanted if wanted in parts else "CPU"


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def available_providers() -> tuple[str, ...]:
    """Execution providers of the installed onnxruntime, such as "CPU", "CUDA", "CoreML", the fastest first."""
    return tuple(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())


def find_provider(name: str) -> str:
    """The provider's own spelling of `name`, which may be in any case and with the suffix ExecutionProvider.

    Raises:
        ProviderError: this onnxruntime does not have it.
    """
    there = available_providers()
    for one in there:
        if one.lower() == name.lower().removesuffix("executionprovider"):
            return one
    is_gpu = name.lower().removesuffix("executionprovider") in _GPU
    package = "onnxruntime-gpu" if is_gpu else "a build that has it"
    raise ProviderError(
        f"onnxruntime {onnxruntime.__version__} has no execution provider {name} here; it has: {', '.join(there)}; "
        f"install {package} in onnxruntime's place, or leave --provider out"
    )


def _read(path: Path, advice: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}; {advice}") from error
