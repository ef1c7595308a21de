"""Print the reports of fer-export: every check, then a table with a line per file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fer_runtime.command import say

if TYPE_CHECKING:
    from fer_export.gate.report import ExportReport
    from fer_export.targets.publish import TargetReport


def show_export(report: ExportReport) -> None:
    """The checks of each file, what was fitted, what the golden faces cover, and the table."""
    from fer_export.gate.calibration import describe_calibration
    from fer_export.gate.unfamiliar import describe

    for model in report.models:
        say(f"{model.path.name}, {model.parity.faces} faces, {model.parity.real_faces} of them real")
        for check in model.parity.checks:
            say(f"  {check}")
        for unproven in model.parity.unproven:
            say(f"  note  not proven: {unproven}")
        if model.not_proven:
            say(f"  note  not proven: {model.not_proven}")
        if model.precision == "fp16":
            say(
                "  note  fp16 halves the file, and is faster on GPUs and ARM cores with 16-bit units; x86 computes it "
                "in float32, no faster than fp32"
            )
    for model in report.models:
        if model.calibration.faces:
            threshold = model.calibration.uncertain_below
            say(
                f"{model.path.name}: temperature {model.calibration.temperature:.4f}, "
                + (f"uncertain below {threshold:.3f}; " if threshold is not None else "")
                + describe_calibration(model.calibration)
                + f" (labels: {model.calibration.labels})"
            )
        if model.point is not None:
            say(f"{model.path.name}: {describe(model.point)}")
    if not report.calibration.faces:
        say("temperature 1: not calibrated; labelled faces (--data) calibrate it")
    golden = report.coverage
    say(
        f"{len(golden.golden)} golden faces switch on {golden.covered} of {golden.live} live units"
        + (
            f" and {golden.weights_covered:,} of {golden.weights_live:,} reachable weights of hidden linear layers"
            if golden.weights_live
            else ""
        )
        + (
            f"; they reach {golden.layer_extremes_covered} of {golden.layer_extremes} layers' extremes "
            f"and {golden.extremes_covered:,} of {golden.extremes:,} units' extremes"
            if golden.extremes
            else ""
        )
    )
    say(_table(report))


def show_targets(reports: Sequence[TargetReport]) -> None:
    """The checks of each converted file, and the table."""
    head = ("file", "MB", "max |Δlogit|", "max |Δp|", "other labels", "verdict")
    rows = [head]
    for report in reports:
        say(f"{report.path}")
        for check in report.checks:
            say(f"  {check}")
        if report.replay is None:
            say(f"  note  {report.target} does not run on this system; --self-test replays the file where it does")
        worst = None if report.replay is None else report.replay.comparison
        failed = ", ".join(check.name for check in report.failures)
        rows.append(
            (
                report.path.name,
                f"{report.target_bytes / 1e6:.2f}",
                "" if worst is None else f"{worst.max_logit_difference:.1e}",
                "" if worst is None else f"{worst.max_probability_difference:.1e}",
                f"{report.flips} of {report.labelled_faces}" if report.labelled_faces else "",
                f"not published, FAILED: {failed}" if failed else report.outcome,
            )
        )
    say(_aligned(rows))


def _table(report: ExportReport) -> str:
    head = ("file", "MB", "accuracy", "macro-F1", "agrees", "max |Δp|", "p50 ms", "faces/s", "verdict")
    rows = [head]
    for model in report.models:
        failed = ", ".join(check.name for check in model.parity.failures)
        verdict = f"FAILED: {failed}" if failed else model.outcome
        rows.append(
            (
                model.path.name,
                f"{model.model_bytes / 1e6:.2f}",
                "" if model.quality is None else f"{model.quality.accuracy:.2%}",
                "" if model.quality is None else f"{model.quality.macro_f1:.2%}",
                "" if model.agreement is None else f"{model.agreement:.2%}",
                "" if model.difference is None else f"{model.difference:.1e}",
                f"{model.latency.p50_ms:.3f}",
                f"{model.throughput.images_per_second:,.0f}",
                ("" if model.is_published else "not published, ") + verdict,
            )
        )
    return _aligned(rows) + "\np50 at batch 1, faces/s at batch 64, one thread, in turns"


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows under their head, the first and last column to the left."""
    last = len(rows[0]) - 1
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
