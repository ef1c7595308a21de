"""The report's content as typed rows, read from JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_bench.report.verdict import Candidate, PValues
from fer_bench.robustness import RobustnessPoint
from fer_runtime.checksums import check_checksum
from fer_runtime.errors import DataError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.labels import check_labels
from fer_runtime.metrics import wilson_interval
from fer_runtime.text import printable
from fer_runtime.untrusted_json import parse_json

ENGINE = "onnxruntime"  # the runtime's engine, which the recommendation is based on


def label_of(model: str, precision: str) -> str:
    """Name of a model file on the page and in its plots: "v0 int8", or the file name if it was given by path."""
    return printable(model if precision == "file" else f"{model} {precision}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Faces with similar confidence."""

    confidence: float  # mean probability of the predicted expression
    accuracy: float  # fraction of correct predictions
    faces: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyRow:
    """One model file on the labelled images."""

    model: str
    precision: str
    images: int
    accuracy: float
    low: float  # 95 % interval
    high: float
    macro_f1: float
    calibration_error: float | None
    confusion: npt.NDArray[np.int64]
    labels: tuple[str, ...]  # of its rows and columns
    per_class_recall: dict[str, float]
    reliability: tuple[ReliabilityBin, ...]

    @property
    def label(self) -> str:
        return label_of(self.model, self.precision)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyRow:
    """Single calls of one configuration."""

    engine: str
    model: str
    precision: str
    batch: int
    threads: int
    min_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    images_per_second: float
    samples_ms: tuple[float, ...] = ()  # quantiles at equal steps, for drawing the distribution
    times_roofline: float | None = None  # p50 as a multiple of the roofline
    cold_start_ms: float | None = None
    peak_mb: float | None = None
    difference: float | None = None  # largest |Δp| from ONNX Runtime; None: this row is the reference

    @property
    def label(self) -> str:
        return label_of(self.model, self.precision)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """Paired comparison of two models on the same faces."""

    first: str
    second: str
    only_first_right: int
    only_second_right: int
    changed: int  # faces with different predictions
    p_value: float  # McNemar's exact test


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything on the page."""

    created: str  # date and time, ISO 8601
    command: str
    environment: dict[str, Any]
    data: str  # which images
    accuracy: tuple[AccuracyRow, ...]
    latency: tuple[LatencyRow, ...]
    robustness: tuple[RobustnessPoint, ...]
    pairs: tuple[PairRow, ...]
    megabytes: dict[str, float]  # size of the file by label, "v0 int8"
    warnings: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = ()  # engines that are not installed, with the command to install them

    def headline_latency(self, label: str) -> LatencyRow | None:
        """One face per call on one thread with the runtime's engine."""
        return next(
            (
                row
                for row in self.latency
                if row.label == label and row.engine == ENGINE and row.batch == 1 and row.threads == 1
            ),
            None,
        )

    def best_throughput(self, label: str) -> LatencyRow | None:
        """The one-thread configuration with the most faces per second."""
        rows = [row for row in self.latency if row.label == label and row.engine == ENGINE and row.threads == 1]
        return max(rows, key=lambda row: row.images_per_second, default=None)

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The model files with known accuracy, time and size."""
        found = []
        for row in self.accuracy:
            latency = self.headline_latency(row.label)
            if latency is None or row.label not in self.megabytes:
                continue
            found.append(
                Candidate(
                    label=row.label,
                    model=row.model,
                    precision=row.precision,
                    accuracy=row.accuracy,
                    low=row.low,
                    high=row.high,
                    p50_ms=latency.p50_ms,
                    megabytes=self.megabytes[row.label],
                )
            )
        return tuple(found)

    @property
    def p_values(self) -> PValues:
        """McNemar's p-value of each pair of models, by their labels."""
        return {frozenset((pair.first, pair.second)): pair.p_value for pair in self.pairs}


def parse_report(content: Mapping[str, Any], *, source: str) -> ReportData:
    """Read the JSON that `fer-bench report --json` writes.

    Raises:
        DataError: a part is missing or malformed.
    """
    try:
        return ReportData(
            created=str(content["created"]),
            command=str(content["command"]),
            environment=dict(content["environment"]),
            data=str(content["data"]),
            accuracy=tuple(_accuracy_row(row) for row in content["accuracy"]),
            latency=tuple(_latency_row(row) for row in content["latency"]),
            robustness=tuple(RobustnessPoint(**row) for row in content["robustness"]),
            pairs=tuple(_pair_row(row) for row in content.get("comparisons", ())),
            megabytes={
                label_of(row["model"], row["precision"]): int(row["model_bytes"]) / 1e6
                for row in content["latency"]
                if row["engine"] == ENGINE
            },
            warnings=tuple(str(text) for text in content.get("warnings", ())),
            not_measured=tuple(str(text) for text in content.get("not_measured", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{source} is not a report of fer-bench ({printable(repr(error), limit=200)}); make it again with: "
            "fer-bench report --data DIR"
        ) from error


def read_report(path: Path) -> ReportData:
    """Read a report's JSON file.

    Raises:
        DataError: it is missing or not a report.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"), finite=False)
        if isinstance(content, dict):
            check_checksum(content)
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; write it with: fer-bench report --data DIR --json {path}"
        ) from error
    except ValueError as error:
        raise DataError(
            f"cannot read {path} ({error}); write it again with: fer-bench report --data DIR --json {path}"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a report of fer-bench; write one with: fer-bench report --data DIR --json FILE")
    return parse_report(content, source=str(path))


def _accuracy_row(row: Mapping[str, Any]) -> AccuracyRow:
    confusion = np.array(row["confusion"], dtype=np.int64)
    labels = check_labels(row.get("labels", EXPRESSIONS))  # older reports know no others
    if confusion.shape != (len(labels), len(labels)):
        raise ValueError(f"a confusion matrix of shape {confusion.shape}")
    images = int(row["images"])
    interval = row.get("accuracy_interval")
    low, high = interval if interval else wilson_interval(int(np.trace(confusion)), images)
    error = row.get("expected_calibration_error")
    return AccuracyRow(
        model=str(row["model"]),
        precision=str(row["precision"]),
        images=images,
        accuracy=float(row["accuracy"]),
        low=float(low),
        high=float(high),
        macro_f1=float(row["macro_f1"]),
        calibration_error=None if error is None else float(error),
        confusion=confusion,
        labels=labels,
        per_class_recall={str(name): float(value) for name, value in row["per_class_recall"].items()},
        reliability=tuple(ReliabilityBin(**fields) for fields in row.get("reliability", ())),
    )


def _latency_row(row: Mapping[str, Any]) -> LatencyRow:
    return LatencyRow(
        engine=str(row["engine"]),
        model=str(row["model"]),
        precision=str(row["precision"]),
        batch=int(row["batch"]),
        threads=int(row["threads"]),
        min_ms=float(row["min_ms"]),
        p50_ms=float(row["p50_ms"]),
        p95_ms=float(row["p95_ms"]),
        p99_ms=float(row["p99_ms"]),
        images_per_second=float(row["images_per_second"]),
        samples_ms=tuple(float(time) for time in row.get("histogram_ms", ())),
        times_roofline=row.get("times_roofline"),
        cold_start_ms=sum(row["cold_start_cpu_ms"].values()) if "cold_start_cpu_ms" in row else None,
        peak_mb=row.get("peak_mb"),
        difference=row.get("max_probability_difference"),
    )


def _pair_row(row: Mapping[str, Any]) -> PairRow:
    return PairRow(
        first=str(row["first"]),
        second=str(row["second"]),
        only_first_right=int(row["only_first_right"]),
        only_second_right=int(row["only_second_right"]),
        changed=int(row["changed"]),
        p_value=float(row["mcnemar_p"]),
    )
