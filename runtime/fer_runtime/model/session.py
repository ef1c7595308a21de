"""ONNX Runtime sessions. No other module imports onnxruntime."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fer_runtime.errors import ExtraMissingError, ModelFileError, ProviderError, first_line
from fer_runtime.model.providers import (
    Plugin,
    find_plugins,
    full_name,
    is_chooser,
    match_provider,
    missing_provider,
    provider_options,
    short_name,
    split_name,
)

try:
    import onnxruntime  # fer_runtime/__init__.py has turned its telemetry off
except ModuleNotFoundError as missing:
    if missing.name != "onnxruntime":
        raise
    onnxruntime = None
# Uninstalling one of two distributions leaves an empty folder, which Python takes for a package.
if not hasattr(onnxruntime, "InferenceSession"):
    raise ExtraMissingError(
        f"onnxruntime is not installed; install it with: {sys.executable} -m pip install --force-reinstall onnxruntime "
        "(or onnxruntime-gpu, onnxruntime-openvino, onnxruntime-directml: one of them)"
    )

if TYPE_CHECKING:
    from onnxruntime import InferenceSession as InferenceSession
    from onnxruntime import SessionOptions

# Fatal only: every failure reaches the user as our own error, and the log would print beside it.
_SEVERITY = 4
_registering = threading.Lock()
_plugins: list[PluginProvider] | None = None  # once they are registered, for the rest of the process


class PluginProvider(NamedTuple):
    """A plugin package, and the devices that it offers."""

    plugin: Plugin
    providers: tuple[str, ...]  # short names, such as "OpenVINO"; () if it offers no device here
    devices: tuple[Any, ...]  # onnxruntime's handles
    kinds: tuple[str, ...]  # of the devices: "CPU", "GPU", "NPU"
    problem: str | None


def silence() -> None:
    """Turn off ONNX Runtime's log in this process. Commands call this; importing the library does not."""
    onnxruntime.set_default_logger_severity(_SEVERITY)


def runtime_version() -> str:
    """The version of onnxruntime, also of distributions with another name, such as onnxruntime-gpu."""
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
    """Create a session on the CPU with any options, for checks of the export."""
    return onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])


class OpenedSession(NamedTuple):
    """A session and the execution provider that it uses."""

    session: InferenceSession
    provider: str  # short name, "CPU", with the arithmetic if it is not fp32: "OpenVINO:bf16"


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
        provider: execution provider without the suffix `ExecutionProvider`, such as "CUDA"; the suffix ":bf16" asks for
            that arithmetic.
        strict: raise an error if ONNX Runtime falls back to another provider.
        optimize: False runs the graph as it is written, for checks.
        source: name for messages if `model` is bytes.
        advice: how to get such a file, for the message if it is missing.

    Raises:
        ModelFileError: the file is missing, damaged, or wants data from outside its folder.
        ProviderError: this onnxruntime has no such provider, or fell back to another under `strict`.
    """
    name = source or (str(model) if isinstance(model, Path) else "the model")
    wanted = find_provider(provider)
    content = model if isinstance(model, bytes) else _read(model, advice)
    reason = "it takes no part of this model"
    try:
        session = _create_session(content, threads, wanted, optimize)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        failure = ModelFileError(
            f"{name} cannot be loaded by onnxruntime: {first_line(error)}; copy the file again, or give another"
        )
        if wanted == "CPU":
            raise failure from error
        try:
            # A provider that cannot start fails like a model that cannot be read; on CPU they part.
            session = _create_session(content, threads, "CPU", optimize)
        except Exception:
            raise failure from error
        reason = first_line(error)
    used = _used_provider(session, wanted)
    if strict and used != wanted:
        raise ProviderError(
            f"onnxruntime fell back from {wanted} to {used}: {reason}; install what {wanted} needs, or leave out "
            "--strict"
        )
    return OpenedSession(session, used)


def _create_session(content: bytes, threads: int, wanted: str, optimize: bool = True) -> InferenceSession:
    options = session_options(threads=threads, optimize=optimize)
    provider, arithmetic = split_name(wanted)
    settings = provider_options(provider, arithmetic, threads=threads)
    if provider != "CPU":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if provider not in available_providers():
        devices = [
            device
            for plugin in register_plugins()
            for device in plugin.devices
            if short_name(device.ep_name) == provider
        ]
        # One device: a session over several of them is not what a self-test of one has tested.
        options.add_provider_for_devices(devices[:1], settings)
        return onnxruntime.InferenceSession(content, options)
    return onnxruntime.InferenceSession(
        content,
        options,
        [
            (f"{name}ExecutionProvider", settings if name == provider else {})
            for name in dict.fromkeys((provider, "CPU"))
        ],
        # Its own fallback says so on standard output, among the rows.
        enable_fallback=0,
    )


def optimized_model(content: bytes) -> bytes:
    """The graph that ONNX Runtime runs on this machine after its own optimization, as an .onnx file's bytes."""
    return _saved(content, session_options())


def save_optimized(content: bytes, *, ort_format: bool) -> bytes:
    """The graph after the optimizations that hold on every processor, as an .onnx or .ort file's bytes."""
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
    provider, _ = split_name(wanted)
    if provider == "CPU" or provider not in map(short_name, session.get_providers()):
        return "CPU"
    if not hasattr(session, "get_provider_graph_assignment_info"):  # an older onnxruntime
        return wanted
    # A provider may start and then take nothing of the graph, which is a fallback as well.
    parts = {short_name(part.ep_name) for part in session.get_provider_graph_assignment_info()}
    return wanted if provider in parts else "CPU"


def available_providers() -> tuple[str, ...]:
    """Providers that are built into the installed onnxruntime, such as "CPU", "CUDA", "CoreML", the fastest first."""
    # A plugin that is registered appears there, too, and is opened in another way.
    plugged = {provider for plugin in _plugins or () for provider in plugin.providers}
    names = [short_name(name) for name in onnxruntime.get_available_providers() if not is_chooser(name)]
    return tuple(name for name in names if name not in plugged)


def register_plugins() -> list[PluginProvider]:
    """Load the plugin packages that are installed, once a process, and tell what they offer."""
    global _plugins
    with _registering:
        if _plugins is None:
            _plugins = [_register(plugin) for plugin in find_plugins()]
        return _plugins


def _register(plugin: Plugin) -> PluginProvider:
    if plugin.library is None:
        return PluginProvider(plugin, (), (), (), plugin.problem)
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        return PluginProvider(plugin, (), (), (), f"onnxruntime {onnxruntime.__version__} loads no plugins; 1.23 does")
    before = {device.ep_name for device in onnxruntime.get_ep_devices()}
    try:
        onnxruntime.register_execution_provider_library(plugin.module, plugin.library)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        return PluginProvider(plugin, (), (), (), first_line(error))
    found = onnxruntime.get_ep_devices()
    devices = tuple(device for device in found if device.ep_name not in before and not is_chooser(device.ep_name))
    providers = tuple(dict.fromkeys(short_name(device.ep_name) for device in devices))
    kinds = tuple(dict.fromkeys(device.device.type.name for device in devices))
    return PluginProvider(plugin, providers, devices, kinds, None if devices else "it offers no device on this machine")


def find_provider(name: str) -> str:
    """The provider's own spelling of `name`, which may be in any case, with the suffix ExecutionProvider, or ":bf16".

    Plugins are loaded only where `name` is not built in.

    Raises:
        ProviderError: there is no such provider here.
    """
    provider, arithmetic = split_name(name)
    available = available_providers()
    found = match_provider(provider, available)
    if found is None:
        plugins = register_plugins()
        available = (*available, *(provider for plugin in plugins for provider in plugin.providers))
        found = match_provider(provider, available)
    if found is None:
        for plugin in plugins:
            if plugin.problem and provider.lower() in plugin.plugin.module:
                raise ProviderError(f"{plugin.plugin.module} is installed, but {plugin.problem}; leave --provider out")
        raise missing_provider(provider, available, onnxruntime.__version__)
    return full_name(found, arithmetic)


def _read(path: Path, advice: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        step = advice if isinstance(error, FileNotFoundError) else "give a file that can be read"
        raise ModelFileError(f"cannot read {path}: {error.strerror}; {step}") from error
