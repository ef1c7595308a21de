"""Two plots of a training: its curves, and its confusion matrix."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fer_runtime.files import write_atomically
from fer_runtime.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# matplotlib is imported by what draws: its import leaves a folder in the user's home.
_TRAIN, _VALIDATION, _MARK = "#8a93a6", "#1f5fd0", "#d0461f"
_GRID = "#dfe3ea"


def write_plots(results: Mapping[str, Any], stem: Path) -> list[Path]:
    """Draw both plots: STEM_curves.png and STEM_confusion.png."""
    from matplotlib import rc_context

    written = []
    # A label with dollar signs is no formula.
    with rc_context({"text.parse_math": False}):
        for plot, kind in ((plot_curves, "curves"), (plot_confusion, "confusion")):
            path = stem.with_name(f"{stem.name}_{kind}.png")
            plot(results, path)
            written.append(path)
    return written


def plot_curves(results: Mapping[str, Any], path: Path) -> None:
    """Draw loss and accuracy per epoch, the best epoch marked; against the raters where votes were given.

    Args:
        results: contents of a results file.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    epochs = np.arange(1, len(results["test_acc"]) + 1)
    best = results["best_epoch"]
    panels = figure.subplots(1, 2)
    for axes, train, validation, title, scale in (
        (panels[0], results["train_loss"], results["test_loss"], "Loss", 1),
        (panels[1], results["train_acc"], results["test_acc"], "Accuracy, %", 100),
    ):
        axes.plot(epochs, np.multiply(train, scale), color=_TRAIN, lw=1.6, label="train (augmented)")
        axes.plot(epochs, np.multiply(validation, scale), color=_VALIDATION, lw=2, label="validation")
        if best:  # 0 is the start of a fine-tuning
            axes.plot(best, validation[best - 1] * scale, "o", color=_MARK, ms=7, label=f"kept: epoch {best}")
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("epoch")
        axes.grid(color=_GRID, lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[1].legend(frameon=False, loc="lower right")
    figure.suptitle(_headline(results), x=0.01, ha="left", fontsize=12)
    _write(figure, path)


def plot_confusion(results: Mapping[str, Any], path: Path) -> None:
    """Draw the confusion matrix: per cent of each true class, with counts; against the raters where votes were given.

    Args:
        results: contents of a results file.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    by_votes = "votes" in results
    counts = np.array((results["votes"] if by_votes else results)["confusion"], dtype=np.int64)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [printable(name) for name in results["expressions"]]
    figure = Figure(figsize=(7.4, 6.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), [f"{name} ({count})" for name, count in zip(names, counts.sum(1), strict=True)])
    axes.set_xlabel("predicted")
    axes.set_ylabel("strict majority of the raters (images)" if by_votes else "label (images)")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for row in range(len(names)):
        for column in range(len(names)):
            share = shares[row, column]
            axes.text(
                column,
                row,
                f"{share:.0%}\n{counts[row, column]}",
                ha="center",
                va="center",
                fontsize=8.5,
                fontweight="bold" if row == column else "normal",
                color="white" if share > 0.55 else "#22304a",
            )
    figure.suptitle(_headline(results), x=0.01, ha="left", fontsize=12)
    _write(figure, path)


def _headline(results: Mapping[str, Any]) -> str:
    headline = f"{printable(results['model'])}, recipe {printable(results['recipe'])}: validation "
    if votes := results.get("votes"):
        return (
            f"{headline}accuracy {votes['majority_accuracy']:.1%} of the raters' majorities, "
            f"mean recall {votes['mean_recall']:.1%}"
        )
    return f"{headline}accuracy {results['accuracy']:.1%}, macro-F1 {results['macro_f1']:.1%}"


def _write(figure: Figure, path: Path) -> None:
    # The canvas by name: pyplot would keep every figure alive and ask for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]
    write_atomically(path, buffer.getvalue())
