"""What fer-export prints of its reports: every check, then a table with a line per file."""

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

    for one in report.models:
        say(f"{one.path.name}, {one.parity.faces} faces, {one.parity.real_faces} of them real")
        for check in one.parity.checks:
            say(f"  {check}")
        for unproven in one.parity.unproven:
            say(f"  note  not proven: {unproven}")
        if one.not_proven:
            say(f"  note  not proven: {one.not_proven}")
        if one.precision == "fp16":
            say(
                "  note  fp16 halves the file, and is faster on GPUs and ARM cores with 16-bit units; x86 computes it "
                "in float32, no faster than fp32"
            )
    for one in report.models:
        if one.calibration.faces:
            threshold = one.calibration.uncertain_below
            say(
                f"{one.path.name}: temperature {one.calibration.temperature:.4f}, "
                + (f"uncertain below {threshold:.3f}; " if threshold is not None else "")
                + describe_calibration(one.calibration)
                + f" (labels: {one.calibration.labels})"
            )
        if one.point is not None:
            say(f"{one.path.name}: {describe(one.point)}")
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
    for one in reports:
        say(f"{one.path}")
        for check in one.checks:
            say(f"  {check}")
        if one.replay is None:
            say(f"  note  {one.target} does not run on this system; --self-test replays the file where it does")
        worst = None if one.replay is None else one.replay.comparison
        failed = ", ".join(check.name for check in one.failures)
        rows.append(
            (
                one.path.name,
                f"{one.target_bytes / 1e6:.2f}",
                "" if worst is None else f"{worst.max_logit_difference:.1e}",
                "" if worst is None else f"{worst.max_probability_difference:.1e}",
                f"{one.flips} of {one.labelled_faces}" if one.labelled_faces else "",
                f"not published, FAILED: {failed}" if failed else one.outcome,
            )
        )
    say(_aligned(rows))


def _table(report: ExportReport) -> str:
    head = ("file", "MB", "accuracy", "macro-F1", "agrees", "max |Δp|", "p50 ms", "faces/s", "verdict")
    rows = [head]
    for one in report.models:
        failed = ", ".join(check.name for check in one.parity.failures)
        verdict = f"FAILED: {failed}" if failed else one.outcome
        rows.append(
            (
                one.path.name,
                f"{one.model_bytes / 1e6:.2f}",
                "" if one.quality is None else f"{one.quality.accuracy:.2%}",
                "" if one.quality is None else f"{one.quality.macro_f1:.2%}",
                "" if one.agreement is None else f"{one.agreement:.2%}",
                "" if one.difference is None else f"{one.difference:.1e}",
                f"{one.latency.p50_ms:.3f}",
                f"{one.throughput.images_per_second:,.0f}",
                ("" if one.is_published else "not published, ") + verdict,
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
