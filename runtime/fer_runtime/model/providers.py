"""Execution providers by name: the settings that a certificate needs, the plugin packages, and the wheels.

Nothing here imports onnxruntime; `fer_runtime.model.session` does, and gives what is really there.

A plugin is a package beside onnxruntime that brings one provider. Its module is named `onnxruntime_ep_...`, or is one
of `_OTHER_PLUGINS`, and tells the path of its library, which onnxruntime's `register_execution_provider_library` loads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from fer_runtime.errors import ProviderError, first_line

AUTO = "auto"
_SUFFIX = "ExecutionProvider"
_PLUGIN_PREFIX = "onnxruntime_ep_"
_OTHER_PLUGINS = ("onnxruntime_qnn", "onnxruntime_ggml")

# The wheel that brings a provider. A plugin is installed beside onnxruntime; a distribution has onnxruntime in it, so
# it belongs into an environment without the other.
PLUGIN_WHEELS = {
    "OpenVINO": "onnxruntime-ep-openvino",
    "NvTensorRTRTX": "onnxruntime-ep-nv-tensorrt-rtx",
    "WebGPU": "onnxruntime-ep-webgpu",
    "QNN": "onnxruntime-qnn",
    "MLX": "onnxruntime-ep-mlx",
}
DISTRIBUTIONS = {"CUDA": "onnxruntime-gpu", "TensorRT": "onnxruntime-gpu", "Dml": "onnxruntime-directml"}

# How a provider computes. "fp32" is what certificates are made with; another one is used only where it is asked for.
ARITHMETICS = {"OpenVINO": ("fp32", "bf16")}


class Plugin(NamedTuple):
    """A plugin package that is installed."""

    module: str
    version: str
    library: str | None  # path; None where the package does not tell it
    problem: str | None = None  # why it cannot be used


def split_name(name: str) -> tuple[str, str]:
    """A provider as `--provider` takes it, "OpenVINO:bf16", as its name and its arithmetic.

    Raises:
        ProviderError: the provider does not have that arithmetic.
    """
    provider, colon, arithmetic = name.partition(":")
    if provider.lower().endswith(_SUFFIX.lower()):
        provider = provider[: -len(_SUFFIX)]
    known = next(
        (kinds for known_name, kinds in ARITHMETICS.items() if known_name.lower() == provider.lower()), ("fp32",)
    )
    arithmetic = arithmetic.lower() if colon else "fp32"
    if arithmetic not in known:
        raise ProviderError(
            f"provider {provider} computes in {', '.join(known)}, not in {arithmetic or 'nothing'}; "
            f"give --provider {provider}"
        )
    return provider, arithmetic


def full_name(provider: str, arithmetic: str) -> str:
    """The inverse of `split_name`: "CPU", "OpenVINO:bf16"."""
    return provider if arithmetic == "fp32" else f"{provider}:{arithmetic}"


def short_name(provider: str) -> str:
    """onnxruntime's name of a provider, as `--provider` takes it: without the suffix ExecutionProvider."""
    return provider.removesuffix(_SUFFIX)


def is_chooser(provider: str) -> bool:
    """Whether onnxruntime's name is of a plugin's own choice among its devices, "OpenVINOExecutionProvider.AUTO".

    Such a name takes none of the settings below, and `--provider auto` chooses.
    """
    return f"{_SUFFIX}." in provider


def provider_options(provider: str, arithmetic: str, *, threads: int) -> dict[str, str]:
    """Settings with which a provider computes in `arithmetic`, whatever its default is on this processor.

    Since Ampere, CUDA rounds float32 to TF32's 10 bits. OpenVINO computes in bf16 on processors that have it.
    """
    if provider == "CUDA":
        return {"use_tf32": "0"}
    if provider == "OpenVINO":
        hint = {"fp32": "f32", "bf16": "bf16"}[arithmetic]
        # Pinned threads stay on a core that others use.
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": str(threads),
            "ENABLE_CPU_PINNING": "NO",
        }
        return {"load_config": json.dumps({"CPU": settings, "GPU": {"INFERENCE_PRECISION_HINT": hint}})}
    return {}


def match_provider(name: str, available: Sequence[str]) -> str | None:
    """The entry of `available` that equals `name`, upper and lower case aside; None if there is none."""
    return next((entry for entry in available if entry.lower() == name.lower()), None)


def missing_provider(name: str, available: Sequence[str], version: str) -> ProviderError:
    """The error for a provider that is not among the `available` ones, with the way to get it."""
    fact = f"onnxruntime {version} has no execution provider {name} here; it has: {', '.join(available)}"
    return ProviderError(f"{fact}; {how_to_get(name)}, or leave out --provider (fer-infer --devices lists them)")


def how_to_get(name: str) -> str:
    """The package to install for the provider `name`, as part of a sentence."""
    if plugin := _by_name(PLUGIN_WHEELS, name):
        return f"install its plugin beside onnxruntime: pip install {plugin}"
    if distribution := _by_name(DISTRIBUTIONS, name):
        return f"it comes with {distribution}, in an environment of its own (docs/devices.md)"
    return "no package is known that brings it"


def _by_name(table: dict[str, str], name: str) -> str | None:
    return next((value for key, value in table.items() if key.lower() == name.lower()), None)


def find_plugins() -> list[Plugin]:
    """The plugin packages that are installed, by module name."""
    import pkgutil

    modules = {module.name for module in pkgutil.iter_modules()}
    names = sorted(name for name in modules if name.startswith(_PLUGIN_PREFIX) or name in _OTHER_PLUGINS)
    return [_plugin(name) for name in names]


def _plugin(name: str) -> Plugin:
    from importlib import import_module

    version = _version(name)
    try:
        module: Any = import_module(name)
        # onnxruntime-qnn and the onnxruntime-ep-... packages call it get_library_path.
        path = getattr(module, "get_library_path", None) or getattr(module, "library_path", None)
        if path is None:
            return Plugin(module=name, version=version, library=None, problem="it does not tell where its library is")
        return Plugin(module=name, version=version, library=str(path()))
    except Exception as error:  # code of another package
        return Plugin(module=name, version=version, library=None, problem=first_line(error))


def _version(module: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(module.replace("_", "-"))
    except PackageNotFoundError:
        return ""
