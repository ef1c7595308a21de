"""From a published ONNX file to a target's files: converted, replayed, and only then given their names."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from fer_export.gate.accuracy import Budget, budget_checks, measure_quality
from fer_export.gate.report import tool_versions
from fer_export.targets import Converted, Source
from fer_export.targets.golden_header import golden_header
from fer_runtime.errors import ModelFileError, OutputError, ParityError
from fer_runtime.files import no_empty_folder
from fer_runtime.model.certificate import parse_certificate
from fer_runtime.model.find import DEFAULT_MODELS_DIR, Precision, find_model, is_model_file
from fer_runtime.model.load import load_model
from fer_runtime.model.parity import Check, run_model
from fer_runtime.model.self_test import SelfTestReport
from fer_runtime.registry import load as load_code
from fer_runtime.targets import TARGETS, Target
from fer_runtime.targets.golden import Golden
from fer_runtime.targets.replay import open_target, replay_target
from fer_runtime.targets.sidecar import Sidecar, read_sidecar
from fer_train.data.dataset import load_validation, seed_of_training


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetReport:
    """The result of a conversion for one target."""

    path: Path
    target: str
    precision: Precision
    target_bytes: int  # of all its files, without sidecar and golden faces
    outcome: str  # "passed", "unproven" or "FAILED"
    replay: SelfTestReport | None  # None where the target's runtime does not run here
    checks: tuple[Check, ...]  # of the replay, and on labelled faces
    labelled_faces: int = 0
    flips: int = 0  # labelled faces whose label differs from the ONNX file's

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)


class TargetRefusedError(ParityError):
    """A target's file failed its replay or its budget. `reports` has all of the run."""

    def __init__(self, message: str, reports: Sequence[TargetReport]) -> None:
        super().__init__(message)
        self.reports = tuple(reports)


def convert_model(
    model: str | None,
    *,
    targets: Sequence[str],
    precisions: Sequence[Precision] = (),
    models_dir: Path = Path(DEFAULT_MODELS_DIR),
    data: Path | None = None,
    budget: Budget = Budget(),  # noqa: B008 - frozen
    replace: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> list[TargetReport]:
    """Convert an exported model for `targets` and publish each file that its own runtime replays.

    Args:
        model: a name, or the path of an .onnx file of fer-export.
        targets: names of entries.
        precisions: of the targets' files; () means fp32, or the precision of an .onnx file.
        models_dir: where the ONNX file is, and where the targets' files are written.
        data: labelled faces, on which a target's file may lose no more than `budget` against the ONNX file.
        replace: overwrite files of another checkpoint.

    Raises:
        ModelFileError: the ONNX file is missing or has no certificate or another precision, or a converter cannot
            convert it.
        ExtraMissingError: a target's runtime or converter is not installed.
        TargetRefusedError: a file failed; the others are published.
    """
    reports = []
    if not precisions:
        stated = read_source(find_model(model)).metadata.precision if is_model_file(model) else "fp32"
        precisions = (cast("Precision", stated),)
    for precision in precisions:
        for name in targets:
            target = TARGETS[name]
            if precision not in target.precisions:
                raise ModelFileError(
                    f"{name} is not written in {precision}; it can be {' or '.join(target.precisions)}: --precision"
                )
    for precision in precisions:
        for name in targets:
            target = TARGETS[name]
            # A file has its own precision, which is compared below.
            named = None if is_model_file(model) else target.precisions[precision]
            source = read_source(find_model(model, precision=named, models_dir=models_dir))
            if source.metadata.precision != target.precisions[precision]:
                raise ModelFileError(
                    f"{source.path} is {source.metadata.precision}, and {name} in {precision} is made from the "
                    f"{target.precisions[precision]} file; give that one, or another --precision"
                )
            progress(f"{source.path}  to {name} {precision}")
            with no_empty_folder(models_dir):
                report = _convert(
                    source, target, precision, models_dir=models_dir, data=data, budget=budget, replace=replace
                )
            reports.append(report)
    if refused := [report for report in reports if report.failures]:
        raise TargetRefusedError(
            "; ".join(
                f"{report.path} is not published: "
                + ", ".join(f"{check.name} ({check.detail})" for check in report.failures)
                for report in refused
            ),
            reports,
        )
    return reports


def read_source(path: Path) -> Source:
    """An ONNX file with the certificate that the conversion is compared with."""
    opened = load_model(path)
    return Source(
        path=path,
        content=opened.content,
        metadata=opened.metadata,
        certificate=parse_certificate(opened.metadata, source=str(path)),
    )


def golden_of(source: Source) -> Golden:
    """The golden faces of an ONNX file."""
    return Golden(
        faces=source.certificate.faces,
        network_logits=source.certificate.network_logits,
        model_logits=source.certificate.model_logits,
        labels=source.certificate.labels,
        temperature=source.metadata.temperature,
    )


def _convert(
    source: Source,
    target: Target,
    precision: Precision,
    *,
    models_dir: Path,
    data: Path | None,
    budget: Budget,
    replace: bool,
) -> TargetReport:
    base = base_name(source, precision)
    path = target.path(models_dir, base)
    if not replace:
        _check_replaceable(path, target, source)
    golden_name = f"{source.path.name.removesuffix('.onnx')}.golden.npz"
    golden = golden_of(source)
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        # In the same file system, so that files are renamed and never copied.
        with tempfile.TemporaryDirectory(dir=models_dir, prefix=f".{path.name}.", suffix=".partial") as name:
            folder = Path(name)
            converted_path = target.path(folder, base)
            converted: Converted = load_code(target.convert)(source, precision, converted_path)
            files = sorted(file for file in folder.iterdir() if file.is_file())
            (folder / golden_name).write_bytes(golden.to_bytes())
            header = (folder / golden_name).with_suffix(".h")
            header.write_text(golden_header(golden, name=source.path.name), encoding="utf-8")
            written = sum(file.stat().st_size for file in files)
            sidecar = Sidecar(
                target=target.name,
                metadata=dataclasses.replace(source.metadata, precision=precision, certificate={}),
                golden=golden_name,
                sha256={file.name: _sha256(file) for file in (*files, folder / golden_name)},
                preprocessing=converted.preprocessing,
                settings=converted.settings,
                versions={**tool_versions(), **converted.versions},
                source={"name": source.path.name, "sha256": hashlib.sha256(source.content).hexdigest()},
            )
            place = target.sidecar_path(converted_path)
            place.write_text(sidecar.to_json(), encoding="utf-8")
            report = _judge(source, target, sidecar, converted_path, data=data, budget=budget)
            report = dataclasses.replace(report, path=path, precision=precision, target_bytes=written)
            if not report.failures:
                sealed = dataclasses.replace(sidecar, verdict=_verdict(report))
                place.write_text(sealed.to_json(), encoding="utf-8")
                # The sidecar is last: until then a killed run leaves files whose digests do not fit.
                for file in (*files, folder / golden_name, header, place):
                    file.replace(models_dir / file.name)
    except OSError as error:
        raise OutputError(f"cannot write to {models_dir}: {error.strerror or error}; choose another folder") from error
    return report


def base_name(source: Source, precision: Precision) -> str:
    """The name that the files of a conversion share: `model_0`, `model_0.fp16`."""
    stem = source.path.name.removesuffix(".onnx").removesuffix(f".{source.metadata.precision}")
    return stem if precision == "fp32" else f"{stem}.{precision}"


def _judge(
    source: Source, target: Target, sidecar: Sidecar, path: Path, *, data: Path | None, budget: Budget
) -> TargetReport:
    """Replay the written file, and hold it against the ONNX file on labelled faces."""
    report = TargetReport(
        path=path, target=target.name, precision="fp32", target_bytes=0, outcome="unproven", replay=None, checks=()
    )
    if not runs_here(target):
        return report
    replay = replay_target(path, target)
    checks = list(replay.checks)
    labelled, flips = 0, 0
    if data is not None and replay.passed:
        metadata = source.metadata
        faces = load_validation(
            data,
            seed=seed_of_training(metadata.training),
            classes=metadata.labels,
            size=metadata.size,
            color=metadata.color,
        )
        opened = load_model(source.path, content=source.content)
        whole = run_model(opened.session, faces.faces, batch=opened.batch or 64, pads=opened.batch is not None)
        before = whole.logits
        run = open_target(path, target, sidecar)
        after = np.concatenate([run(part).logits for part in np.array_split(faces.faces, -(-len(faces) // 64))])
        labelled, flips = len(faces), int((before.argmax(1) != after.argmax(1)).sum())
        after_quality, before_quality = (
            measure_quality(logits, faces.labels, metadata.labels) for logits in (after, before)
        )
        checks += budget_checks(after_quality, before_quality, budget)
    failed = any(not check.passed for check in checks)
    return dataclasses.replace(
        report,
        outcome="FAILED" if failed else "passed",
        replay=replay,
        checks=tuple(checks),
        labelled_faces=labelled,
        flips=flips,
    )


def runs_here(target: Target) -> bool:
    """Whether the target's runtime can run on this system at all; a missing package is an error instead."""
    import platform

    return target.runs_on in (None, platform.system())


def _verdict(report: TargetReport) -> dict[str, Any]:
    verdict: dict[str, Any] = {"outcome": report.outcome, "checks": [check.name for check in report.checks]}
    if report.replay is not None:
        verdict["golden"] = report.replay.comparison.to_dict()
    if report.labelled_faces:
        verdict |= {"labelled_faces": report.labelled_faces, "other_labels_than_onnx": report.flips}
    return verdict


def _check_replaceable(path: Path, target: Target, source: Source) -> None:
    if not path.exists():
        return
    try:
        found, _ = read_sidecar(path, target)
        if found.metadata.checkpoint_sha256 == source.metadata.checkpoint_sha256:
            return
        fact = f"was made from another checkpoint than {source.path}"
    except ModelFileError:
        fact = "has no readable sidecar"
    raise OutputError(f"{path} {fact}; add --replace to overwrite it, or give another --models-dir")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
