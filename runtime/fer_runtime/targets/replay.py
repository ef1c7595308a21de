"""Replay the golden faces of a target's file in the target's own runtime, and compare with the stored logits."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fer_runtime.errors import ExtraMissingError, FerError, ModelFileError, first_line
from fer_runtime.model.metadata import ModelMetadata
from fer_runtime.model.parity import Check, Outputs, Uint8Array, compare_outputs, comparison_checks, softmax, worst_of
from fer_runtime.model.self_test import SelfTestReport
from fer_runtime.registry import load as load_code
from fer_runtime.targets import Target
from fer_runtime.targets.golden import Golden, read_file, read_golden, tolerance_of
from fer_runtime.targets.sidecar import Sidecar, changed_files, read_sidecar

if TYPE_CHECKING:
    from fer_runtime.targets import Run

_AGAIN = "convert the model again with fer-export"


def open_target(path: Path, target: Target, sidecar: Sidecar, *, threads: int = 1) -> Run:
    """A target's file in its own runtime.

    Raises:
        ExtraMissingError: the runtime is not installed.
        ModelFileError: the runtime cannot load the file.
    """
    if not target.is_installed:
        raise ExtraMissingError(f"this needs {target.needs}, which is not installed; install it with: {target.install}")
    read_file(path, needed_by=path)
    try:
        run: Run = load_code(target.load)(path, sidecar.settings, threads=threads)
    except FerError:
        raise
    except Exception as error:  # each runtime has exceptions of its own
        raise ModelFileError(f"{target.name} cannot load {path}: {first_line(error)}; {_AGAIN}") from error
    return run


def replay_target(path: Path, target: Target, *, threads: int = 1) -> SelfTestReport:
    """Run the golden faces of a target's file and compare with what its sidecar's golden faces should give.

    Args:
        path: the target's file. Its sidecar, its golden faces and its other files are in the same folder.
        target: its entry.
        threads: of the target's runtime.

    Raises:
        ModelFileError: a file is missing or damaged, or the runtime cannot run it.
        ExtraMissingError: the runtime is not installed.
    """
    sidecar, is_as_written = read_sidecar(path, target)
    changed = changed_files(path.parent, sidecar, needed_by=path)
    golden = read_golden(read_file(path.parent / sidecar.golden, needed_by=path), source=str(path))
    metadata = sidecar.metadata
    faults = [f"{name} was changed" for name in changed]
    faults += [] if is_as_written else [f"{target.sidecar_path(path).name} was changed"]
    faults += [f"{path.name} is not among its files"] if path.name not in sidecar.sha256 else []
    checks = [_digest_check(faults, sidecar), _labels_check(metadata, golden)]
    expected = golden.expected(metadata.precision)
    network = golden.expected("fp32")
    tolerance = tolerance_of(metadata.precision)
    runs = _replay(open_target(path, target, sidecar, threads=threads), golden, path, target, expected.logits.shape)
    worst = worst_of([compare_outputs(expected, found, margin=tolerance.margin) for found in runs])
    against_network = worst_of([compare_outputs(network, found, margin=tolerance.margin) for found in runs])
    checks += comparison_checks(worst, tolerance)
    checks.append(_softmax_check(runs[0], golden.temperature, metadata.precision))
    checks.append(
        Check(
            name="runtime",
            passed=True,
            detail=f"{target.name} {_version(target)}, {platform.machine()}; {len(golden.faces)} golden faces at once "
            f"and one by one; from PyTorch max |Δlogit| {against_network.max_logit_difference:.1e}",
        )
    )
    return SelfTestReport(
        path=path,
        model=f"{metadata.name} {metadata.precision} for {target.name}",
        provider=f"{target.name} {_version(target)}",
        made_with=", ".join(f"{name} {number}" for name, number in sorted(sidecar.versions.items())),
        checks=tuple(checks),
        comparison=worst,
        network_comparison=against_network,
    )


def _digest_check(faults: list[str], sidecar: Sidecar) -> Check:
    return Check(
        name="digest",
        passed=not faults,
        detail=f"{'; '.join(faults)} after the conversion; convert or copy the model again"
        if faults
        else f"{len(sidecar.sha256)} files are as converted",
    )


def _labels_check(metadata: ModelMetadata, golden: Golden) -> Check:
    same_labels = metadata.labels == golden.labels
    same_temperature = abs(metadata.temperature / golden.temperature - 1) < 1e-6
    return Check(
        name="labels",
        passed=same_labels and same_temperature,
        detail=", ".join(metadata.labels)
        + ("" if same_labels else f"; the golden faces are labelled {', '.join(golden.labels)}")
        + ("" if same_temperature else f"; temperature {metadata.temperature}, not {golden.temperature}"),
    )


def _replay(run: Run, golden: Golden, path: Path, target: Target, shape: tuple[int, ...]) -> list[Outputs]:
    """The outputs for all golden faces at once, and one by one: kernels differ between the two.

    Args:
        shape: of the expected logits, (faces, classes).

    Raises:
        ModelFileError: the runtime cannot run the file, or answers in another shape.
    """
    try:
        runs = [run(golden.faces), _alone(run, golden.faces)]
    except FerError:
        raise
    except Exception as error:
        raise ModelFileError(f"{path} does not run on {target.name}: {first_line(error)}; {_AGAIN}") from error
    for found in runs:
        if found.logits.shape != shape or found.probabilities.shape != shape:
            raise ModelFileError(
                f"{path} gives logits {found.logits.shape} and probabilities {found.probabilities.shape}, not "
                f"{shape}; {_AGAIN}"
            )
    return runs


def _softmax_check(found: Outputs, temperature: float, precision: str) -> Check:
    """Do the probabilities follow from the file's own logits? This finds a wrong temperature."""
    difference = float(abs(softmax(found.logits, temperature=temperature) - found.probabilities).max(initial=0))
    # Six float32 roundings; a float16 of a logit up to 32 is known to 2^-6, divided by the temperature.
    allowed = 1e-2 if precision == "fp16" else 1e-5
    return Check(
        name="temperature",
        passed=bool(difference <= allowed),  # written as "<=" so that NaN fails
        detail=f"probabilities differ from softmax(logits / {temperature:.4f}) by {difference:.1e}",
    )


def _alone(run: Run, faces: Uint8Array) -> Outputs:
    """The outputs of faces that are run one by one."""
    found = [run(face[np.newaxis]) for face in faces]
    return Outputs(
        logits=np.concatenate([outputs.logits for outputs in found]),
        probabilities=np.concatenate([outputs.probabilities for outputs in found]),
    )


def _version(target: Target) -> str:
    from importlib import import_module

    try:
        return version(target.needs)
    except PackageNotFoundError:  # onnxruntime-gpu has no metadata under the name of its module
        return str(getattr(import_module(target.needs), "__version__", "?"))
