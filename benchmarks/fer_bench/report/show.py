"""Both models' trainings side by side, from their results files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_runtime.errors import DataError
from fer_runtime.model.find import MODEL_NAMES, results_path

_HISTORY = ("train_loss", "train_acc", "test_loss", "test_acc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What `fer-bench show` draws of one results file."""

    model: str
    path: Path
    recipe: str
    best_epoch: int  # from 1
    history: dict[str, list[float]]  # train_loss, train_acc, test_loss, test_acc; "test" is the validation folder
    expressions: tuple[str, ...]
    confusion: npt.NDArray[np.int64]  # (classes, classes), rows are the true class
    per_class_recall: dict[str, float]
    accuracy: float
    macro_f1: float

    @property
    def epochs(self) -> int:
        return len(self.history["test_acc"])

    @property
    def hardest(self) -> str:
        """The expression that is recognized least often."""
        return min(self.per_class_recall, key=lambda name: self.per_class_recall[name])


def read_trainings(folder: Path) -> list[Training]:
    """The results files in a models folder, v0 first.

    Raises:
        DataError: the folder holds none, or one cannot be read.
    """
    paths = {name: results_path(folder, name) for name in MODEL_NAMES}
    trainings = [read_training(name, path) for name, path in paths.items() if path.is_file()]
    if not trainings:
        wanted = " nor ".join(map(str, paths.values()))
        raise DataError(f"no results at {wanted}; make them with: fer-train --model {MODEL_NAMES[0]}")
    return trainings


def read_training(model: str, path: Path) -> Training:
    """One results file.

    Raises:
        DataError: it is missing, damaged, or not written by fer-train.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        history = {key: [float(value) for value in content[key]] for key in _HISTORY}
        confusion = np.array(content["confusion"], dtype=np.int64)
        expressions = tuple(str(name) for name in content["expressions"])
        if confusion.shape != (len(expressions), len(expressions)):
            raise ValueError(f"a confusion matrix of shape {confusion.shape} for {len(expressions)} expressions")
        if len({len(values) for values in history.values()}) != 1 or not history["test_acc"]:
            raise ValueError("its curves have no epoch, or not equally many")
        return Training(
            model=model,
            path=path,
            recipe=str(content["recipe"]),
            best_epoch=int(content["best_epoch"]),
            history=history,
            expressions=expressions,
            confusion=confusion,
            per_class_recall={str(name): float(value) for name, value in content["per_class_recall"].items()},
            accuracy=float(content["accuracy"]),
            macro_f1=float(content["macro_f1"]),
        )
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; make it with: fer-train --model {model}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{path} is no results file of fer-train ({reason}); make it again with: fer-train --model {model}"
        ) from error


def draw_trainings(trainings: Sequence[Training], output: Path) -> None:
    """Draw a column per model (loss, accuracy, confusion matrix) and write it by the suffix of `output`.

    Raises:
        OutputError: the suffix is none of .png, .svg and .pdf, or the file cannot be written.
    """
    from fer_bench.report.plots import LIGHT, drawing, fill_confusion, fill_history, new_figure, write_figure

    columns = len(trainings)
    with drawing(LIGHT) as theme:
        figure = new_figure(470 * columns, 1010)
        grid = figure.add_gridspec(3, columns, height_ratios=(1, 1, 1.75))
        loss_axes, accuracy_axes = None, None
        for column, training in enumerate(trainings):
            # Shared axes: a difference between the models is a difference on the paper.
            loss_axes = figure.add_subplot(grid[0, column], sharey=loss_axes)
            accuracy_axes = figure.add_subplot(grid[1, column], sharey=accuracy_axes)
            for axes, quantity in ((loss_axes, "loss"), (accuracy_axes, "acc")):
                fill_history(
                    axes,
                    training.history,
                    model=training.model,
                    quantity=quantity,
                    best_epoch=training.best_epoch,
                    theme=theme,
                )
            loss_axes.legend(loc="upper right")
            loss_axes.set_title(
                f"{training.model}: {training.accuracy:.1%} accuracy, {training.macro_f1:.2f} macro-F1",
                fontsize=15,
                pad=14,
            )
            matrix_axes = figure.add_subplot(grid[2, column])
            fill_confusion(matrix_axes, training.confusion, training.expressions, theme=theme)
            matrix_axes.set_title("Share of each expression's faces, %", pad=10)
        write_figure(figure, output)


def format_table(trainings: Sequence[Training]) -> str:
    """The same in a few lines of text."""
    lines = [f"{'model':<7}{'recipe':<10}{'kept epoch':>12}{'accuracy':>10}{'macro-F1':>10}  hardest expression"]
    for one in trainings:
        recall = one.per_class_recall[one.hardest]
        lines.append(
            f"{one.model:<7}{one.recipe:<10}{f'{one.best_epoch} of {one.epochs}':>12}{one.accuracy:>10.1%}"
            f"{one.macro_f1:>10.3f}  {one.hardest} ({recall:.0%} found)"
        )
    return "\n".join(lines)
