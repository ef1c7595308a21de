"""The self-test: replay a model file's certificate on this machine, without PyTorch."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fer_runtime.errors import ModelFileError, first_line
from fer_runtime.model.certificate import LOOSEST, Certificate, parse_certificate, tolerance_in
from fer_runtime.model.integers import integer_checksums
from fer_runtime.model.metadata import ModelMetadata
from fer_runtime.model.onnx_file import content_digest, read_model_bytes
from fer_runtime.model.opening import LoadedModel, open_model
from fer_runtime.model.parity import (
    Check,
    Comparison,
    FloatArray,
    Outputs,
    Tolerance,
    compare_outputs,
    comparison_checks,
    run_model,
    softmax,
    worst_of,
)
from fer_runtime.model.providers import split_name
from fer_runtime.model.session import find_provider, runtime_version
from fer_runtime.text import printable

# Many golden faces at once, and one by one: kernels differ between the two.
_BATCHES = (64, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTestReport:
    """The result of one replay."""

    path: Path
    model: str  # "v0 int8"
    provider: str  # the execution provider that really ran, "CPU"
    made_with: str
    checks: tuple[Check, ...]
    comparison: Comparison  # this machine against the exported model
    network_comparison: Comparison  # this machine against PyTorch, or against the adopted file

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "model": self.model,
            "provider": self.provider,
            "passed": self.passed,
            "checks": [check.to_dict() for check in self.checks],
            "against_export": self.comparison.to_dict(),
            "against_network": self.network_comparison.to_dict(),
        }

    def to_text(self) -> str:
        """The report for a terminal."""
        verdict = (
            "This machine computes what was trained."
            if self.passed
            else "Do not trust this file here: " + "; ".join(check.name for check in self.checks if not check.passed)
        )
        lines = [f"{self.path}  {self.model}, exported with {self.made_with}"]
        lines = [*lines, *(f"  {check}" for check in self.checks), verdict]
        return "\n".join(map(printable, lines))


def run_self_test(
    path: Path,
    *,
    provider: str = "CPU",
    threads: int = 1,
    strict: bool = False,
    any_operator: bool = False,
    trusted: Path | None = None,
    loaded: LoadedModel | None = None,
) -> SelfTestReport:
    """Replay the golden faces of a model file and compare with what its export computed.

    Args:
        path: the file.
        provider: execution provider, as for `open_session`.
        threads: intra-op threads.
        strict: raise an error if ONNX Runtime falls back to another provider.
        any_operator: as for `open_model`.
        trusted: file of a public key (PEM); the model must be signed by its holder.
        loaded: the result of `load_model` for the file, whose session is then tested. The check `integers` is left out.

    Raises:
        ModelFileError: the file is missing, damaged or not signed by the trusted key, or has no certificate.
        ProviderError: as for `open_session`.
    """
    content = read_model_bytes(path) if loaded is None else loaded.content
    checks = []
    if trusted is not None:
        checks.append(_signature_check(content, path, trusted))  # before anything of the file is read
    opened = loaded or open_model(
        path, content=content, threads=threads, provider=provider, strict=strict, any_operator=any_operator
    )
    metadata = opened.metadata
    certificate = parse_certificate(metadata, source=str(path))
    checks += [_digest_check(content, certificate), _labels_check(metadata, certificate)]

    runs = _replay(opened, certificate, path)
    exported = _with_probabilities(certificate.model_logits, metadata)
    network = _with_probabilities(certificate.network_logits, metadata)
    _, arithmetic = split_name(opened.provider)
    tolerance = tolerance_in(arithmetic, metadata.precision, certificate.tolerance)
    against_export = worst_of([compare_outputs(exported, run, margin=tolerance.margin) for run in runs])
    against_network = worst_of([compare_outputs(network, run, margin=tolerance.margin) for run in runs])
    checks += comparison_checks(against_export, tolerance)
    is_fine = arithmetic == "fp32" and metadata.precision in ("fp32", "int8")
    checks += _unfamiliarity_checks(certificate, runs, tolerance, is_fine=is_fine)
    if certificate.integers and loaded is None and opened.provider == "CPU":
        checks.append(_integers_check(certificate, opened, threads))
    reference = certificate.made_with.get("reference", "PyTorch")
    from_network = f"from {reference} max |Δlogit| {against_network.max_logit_difference:.1e}"
    if metadata.precision == "int8":
        # It differs from the network on purpose, and its gate measured by how much.
        from_network += f", {_median_difference(network, runs[0]):.1e} in the median"
    elif metadata.precision in LOOSEST:
        loosest = tolerance_in(arithmetic, metadata.precision, LOOSEST[metadata.precision])
        checks.append(_network_check(against_network, loosest, reference))
    is_asked_for = not strict or opened.provider == find_provider(provider)
    checks.append(_provider_check(opened, certificate, from_network, passed=is_asked_for))
    return SelfTestReport(
        path=path,
        model=f"{metadata.name} {metadata.precision}",
        provider=opened.provider,
        made_with=_made_with_text(metadata, certificate),
        checks=tuple(checks),
        comparison=against_export,
        network_comparison=against_network,
    )


def _signature_check(content: bytes, path: Path, trusted: Path) -> Check:
    from fer_runtime.model.signature import is_signed_by

    if not is_signed_by(content, path, trusted):
        raise ModelFileError(
            f"{path} is not signed by the holder of {trusted}, or was changed since; get the file and its .sig anew"
        )
    return Check(name="signature", passed=True, detail=f"by the holder of {trusted}")


def _digest_check(content: bytes, certificate: Certificate) -> Check:
    unchanged = content_digest(content) == certificate.digest
    return Check(
        name="digest",
        passed=unchanged,
        detail=f"graph, weights and metadata are as exported ({certificate.digest[:12]})"
        if unchanged
        else "graph, weights or metadata were changed after the export; export or copy the file again",
    )


def _labels_check(metadata: ModelMetadata, certificate: Certificate) -> Check:
    # In order: the same labels at other logits would be other answers.
    known = metadata.labels == certificate.labels
    return Check(
        name="labels",
        passed=known,
        detail=", ".join(metadata.labels) + ("" if known else f"; expected {', '.join(certificate.labels)}"),
    )


def _with_probabilities(logits: FloatArray, metadata: ModelMetadata) -> Outputs:
    return Outputs(logits=logits, probabilities=softmax(logits, temperature=metadata.temperature))


def _replay(opened: LoadedModel, certificate: Certificate, path: Path) -> list[Outputs]:
    """The outputs for the golden faces, once for each size of a batch.

    Raises:
        ModelFileError: the model does not run, or answers in another shape.
    """
    shape = certificate.model_logits.shape
    runs = []
    for batch in _BATCHES if opened.batch is None else (opened.batch,):
        try:
            run = run_model(opened.session, certificate.faces, batch=batch, pads=opened.batch is not None)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise ModelFileError(
                f"{path} does not run on {opened.provider}: {first_line(error)}; choose another --provider"
            ) from error
        if run.logits.shape != shape or run.probabilities.shape != shape:
            raise ModelFileError(
                f"{path} gives logits {run.logits.shape} and probabilities {run.probabilities.shape}, not "
                f"{shape}; export the model again with fer-export"
            )
        runs.append(run)
    return runs


def _network_check(difference: Comparison, tolerance: Tolerance, reference: str) -> Check:
    """Is the file still close to what it was exported from?"""
    failed = difference.failures(tolerance)
    return Check(
        name="network",
        passed=not failed,
        detail=f"max |Δlogit| from {reference} {difference.max_logit_difference:.1e}"
        + (f"; {', '.join(failed)} differ" if failed else ""),
    )


def _median_difference(expected: Outputs, actual: Outputs) -> float:
    """The median of each face's largest |Δlogit|: some golden faces go beyond the range of int8 on purpose."""
    return float(np.median(np.abs(expected.logits.astype(np.float64) - actual.logits).max(1)))


def _unfamiliarity_checks(
    certificate: Certificate, runs: Sequence[Outputs], tolerance: Tolerance, *, is_fine: bool
) -> list[Check]:
    """Does the optional output give what it gave at export? A file without it has no such check.

    Args:
        is_fine: it is computed in float32 or in integers.
    """
    expected, found = certificate.model_unfamiliarity, [run.unfamiliarity for run in runs]
    if expected is None and not any(values is not None for values in found):
        return []
    if expected is None or any(values is None or values.shape != expected.shape for values in found):
        return [Check(name="unfamiliarity", passed=False, detail="the graph and its certificate disagree about it")]
    differences = [
        (np.abs(values.astype(np.float64) - expected) / (1 + np.abs(expected))).max()
        for values in found
        if values is not None
    ]
    worst = float(np.max(differences))  # NaN where one of them is, unlike Python's max
    # Float32 rounds it by 2.3e-6 in v0, as it rounds the logits. Coarser numbers add up over thousands of products, ten
    # times as many as a logit has.
    allowed = tolerance.logits if is_fine else 10 * tolerance.logits
    return [
        Check(
            name="unfamiliarity",
            # Written as "<=" so that NaN fails.
            passed=bool(worst <= allowed),
            detail=f"max relative difference {worst:.1e} (allowed {allowed:g})",
        )
    ]


def _integers_check(certificate: Certificate, opened: LoadedModel, threads: int) -> Check:
    """Are the tensors between the layers what they were at export, bit by bit?

    In a session of its own: another provider need not keep them, but the CPU's kernels round alike everywhere.
    """
    expected = certificate.integers
    found = integer_checksums(opened.content, list(expected), certificate.faces, threads=threads, batch=opened.batch)
    differing = [name for name, checksum in expected.items() if found[name] != checksum]
    return Check(
        name="integers",
        passed=not differing,
        detail=f"{len(differing)} of {len(expected)} tensors between the layers differ"
        + (f", the first is {differing[0]}" if differing else ""),
    )


def _provider_check(opened: LoadedModel, certificate: Certificate, from_network: str, *, passed: bool) -> Check:
    """Where the model ran, and on what."""
    return Check(
        name="provider",
        passed=passed,
        detail=f"{opened.provider}, onnxruntime {runtime_version()}, {platform.machine()}; "
        f"{_batches_text(certificate, opened)}; {_coverage_text(certificate.coverage)}; {from_network}",
    )


def _batches_text(certificate: Certificate, opened: LoadedModel) -> str:
    count = len(certificate.faces)
    sizes = f"{min(count, _BATCHES[0])} and 1" if opened.batch is None else f"{opened.batch}"
    return f"{count} golden faces in batches of {sizes}"


def _coverage_text(coverage: dict[str, Any]) -> str:
    """Which part of the network the golden faces exercise."""
    live, covered = coverage.get("live"), coverage.get("covered")
    if not isinstance(live, int) or not isinstance(covered, int):
        return "their coverage is not stated"
    reached = []
    # Older files count the units' extremes alone.
    for owners, key in (("layers'", "layer_extremes"), ("units'", "extremes")):
        extremes, count = coverage.get(key), coverage.get(f"{key}_covered")
        if isinstance(extremes, int) and isinstance(count, int):
            reached.append(f"{count} of {extremes} {owners} extremes")
    units = f"they switch on {covered} of {live} units"
    return f"{units} and reach {' and '.join(reached)}" if reached else units


def _made_with_text(metadata: ModelMetadata, certificate: Certificate) -> str:
    """What exported the file, and where."""
    versions = certificate.made_with
    instructions = f" with {versions['cpu_flags']}" if versions.get("cpu_flags") else ""
    return (
        f"fer-edge {metadata.versions.get('fer-edge', '?')}, onnxruntime {versions.get('onnxruntime', '?')} "
        f"on {versions.get('machine', '?')}{instructions}"
    )
