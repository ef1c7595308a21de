"""`--provider auto`: the fastest execution provider that computes what was trained.

Each provider is opened, the self-test of the model is replayed on it, and those that pass are timed in turns. The
answer is kept in the cache folder, for this machine, its driver, these packages and this model.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from fer_runtime.errors import FerError, ModelFileError
from fer_runtime.files import cache_folder, write_atomically
from fer_runtime.model.certificate import parse_certificate
from fer_runtime.model.onnx_file import read_model_bytes
from fer_runtime.model.opening import LoadedModel, open_model
from fer_runtime.model.parity import run_model
from fer_runtime.model.providers import ARITHMETICS, full_name
from fer_runtime.model.self_test import run_self_test
from fer_runtime.model.session import available_providers, register_plugins, runtime_version
from fer_runtime.system import instruction_sets
from fer_runtime.untrusted_json import parse_json

BATCH = 32  # faces that are timed together by default, as a run over images classifies them
_WARM_UP_RUNS, _ROUNDS = 3, 15
# Sends the model to a service on the network.
_NEVER = ("Azure",)
_KEPT = 64  # answers in the cache
_FORMAT = 1
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The provider that is taken, and what became of the others."""

    provider: str  # as `open_session` takes it
    faces_per_second: dict[str, float]  # of those that passed, in batches of the size that was asked for
    refused: dict[str, str] = field(default_factory=dict)  # the reason, by provider
    is_cached: bool = False  # measured in an earlier run


def choose_provider(
    path: Path,
    *,
    content: bytes | None = None,
    threads: int = 1,
    any_operator: bool = False,
    allow: Sequence[str] = (),
    batch: int = BATCH,
) -> Choice:
    """The fastest provider on this machine that passes the self-test of a model.

    Args:
        path: the model's file.
        content: its bytes, where they were read already.
        threads: as for `open_session`.
        any_operator: as for `open_model`.
        allow: arithmetics other than fp32 that may be taken, such as "bf16".
        batch: faces that are timed together: 1 for a camera, whose frames hold few.

    Raises:
        ModelFileError: no provider passes, not even the CPU.
    """
    content = read_model_bytes(path) if content is None else content
    candidates = _candidates(allow)
    packages = [f"{plugin.plugin.module} {plugin.plugin.version}" for plugin in register_plugins()]
    key = _key(candidates, packages, content, threads, batch)
    cached = _read_cache().get(key)
    if cached is not None and cached.get("provider") in candidates and _are_answers(cached):
        with suppress(TypeError):
            return Choice(**cached, is_cached=True)
    passed: dict[str, LoadedModel] = {}
    refused: dict[str, str] = {}
    for name in candidates:
        try:
            loaded = open_model(
                path, content=content, threads=threads, provider=name, strict=True, any_operator=any_operator
            )
            report = run_self_test(path, provider=name, threads=threads, strict=True, loaded=loaded)
        except FerError as error:
            refused[name] = str(error).partition("; ")[0]  # the fact, without the next step for one who asked for it
            continue
        failed = [check for check in report.checks if not check.passed]
        if failed:
            refused[name] = "self-test: " + "; ".join(f"{check.name}: {check.detail}" for check in failed)
        else:
            passed[name] = loaded
    if not passed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ModelFileError(
            f"no provider here computes what was trained with {path}: {reasons}; export the model again with fer-export"
        )
    speeds = _faces_per_second(passed, path, batch)
    choice = Choice(
        provider=max(speeds, key=lambda name: speeds[name]),
        faces_per_second={name: round(speed, 1) for name, speed in speeds.items()},
        refused=refused,
    )
    _write_cache(key, choice)
    return choice


def _candidates(allow: Sequence[str]) -> list[str]:
    """The providers of this machine, each in fp32 and in the arithmetics of `allow` that it has."""
    plugged = [provider for plugin in register_plugins() for provider in plugin.providers]
    return [
        full_name(provider, arithmetic)
        for provider in dict.fromkeys((*available_providers(), *plugged))
        if provider not in _NEVER
        for arithmetic in ARITHMETICS.get(provider, ("fp32",))
        if arithmetic == "fp32" or arithmetic in allow
    ]


def _faces_per_second(models: dict[str, LoadedModel], path: Path, batch: int) -> dict[str, float]:
    """Timed in turns, so that a busy machine slows all of them alike."""
    metadata = next(iter(models.values())).metadata
    golden = parse_certificate(metadata, source=str(path)).faces
    faces = np.resize(golden, (batch, *golden.shape[1:]))
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(_WARM_UP_RUNS + (_ROUNDS if len(models) > 1 else 1)):
        for name, model in models.items():
            started = perf_counter()
            run_model(model.session, faces, batch=model.batch or batch, pads=model.batch is not None)
            if number >= _WARM_UP_RUNS:
                seconds[name].append(perf_counter() - started)
    return {name: batch / float(np.median(spent)) for name, spent in seconds.items()}


def _key(candidates: Sequence[str], packages: Sequence[str], content: bytes, threads: int, batch: int) -> str:
    driver = ""
    with suppress(OSError):
        driver = _NVIDIA_DRIVER.read_text()
    machine = (platform.machine(), platform.node(), platform.release(), platform.processor(), instruction_sets())
    parts = [_FORMAT, machine, driver, runtime_version(), *packages, *candidates, threads, batch]
    return hashlib.sha256(json.dumps(parts).encode() + content).hexdigest()


def _are_answers(cached: Mapping[str, Any]) -> bool:
    """Whether the speeds are numbers, that of the chosen provider among them, and the reasons texts."""
    speeds, refused = cached.get("faces_per_second"), cached.get("refused")
    if not isinstance(speeds, dict) or not isinstance(refused, dict) or cached["provider"] not in speeds:
        return False
    are_numbers = all(type(speed) in (int, float) for speed in speeds.values())
    return are_numbers and all(isinstance(reason, str) for reason in refused.values())


def _cache_path() -> Path:
    return cache_folder() / "providers.json"


def _read_cache() -> dict[str, Any]:
    try:
        answers = parse_json(_cache_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return (
        {key: choice for key, choice in answers.items() if isinstance(choice, dict)}
        if isinstance(answers, dict)
        else {}
    )


def _write_cache(key: str, choice: Choice) -> None:
    answer = asdict(choice)
    del answer["is_cached"]
    answers = {**dict([*_read_cache().items()][-_KEPT + 1 :]), key: answer}
    with suppress(OSError, FerError):  # a cache that cannot be written costs time, nothing else
        _cache_path().parent.mkdir(parents=True, exist_ok=True)
        write_atomically(_cache_path(), json.dumps(answers, indent=1))
