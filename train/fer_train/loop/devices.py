"""Choose the training device, and whether to train in bfloat16."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import nn

from fer_runtime.errors import ProviderError


def choose_device(wanted: str) -> torch.device:
    """The device that `--device` stands for; "auto" takes MPS, else CUDA, else the CPU.

    Raises:
        ProviderError: the device is not there.
    """
    available = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name in ("mps", "cuda", "cpu") if available[name]))
    if not available[wanted]:
        names = ", ".join(name for name, is_there in available.items() if is_there)
        raise ProviderError(f"PyTorch {torch.__version__} finds no {wanted} device here; --device takes: {names}")
    return torch.device(wanted)


def supports_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32: on CUDA since Ampere, on CPUs with AMX or AVX-512 BF16.

    Elsewhere PyTorch emulates it, six times slower (measured on Zen 3).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    return _cpu_computes_bf16()


def trains_in_bf16(network: nn.Module, device: torch.device) -> bool:
    """Whether training that network there is faster in bfloat16.

    On CPUs it is not where convolutions have groups: an epoch of timm's mobilenetv4_conv_small takes 106 s of CPU in
    bfloat16 and 63 s in float32 on an AMD EPYC with AVX-512 BF16.
    """
    if not supports_bf16(device):
        return False
    convolutions = (layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    return device.type != "cpu" or all(layer.groups == 1 for layer in convolutions)


@cache  # teachers ask in every step, and a machine with many cores describes each of them
def _cpu_computes_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags
