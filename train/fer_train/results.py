"""The results of a training: the contents of files such as `models/model_0_results.json`."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from fer_runtime import __version__
from fer_runtime.errors import DataError
from fer_runtime.files import write_atomically
from fer_runtime.metrics import ConfusionMatrix, accuracy, macro_f1, per_class_recall
from fer_runtime.untrusted_json import parse_json
from fer_train.data.votes import VoteReport


@dataclass(slots=True, kw_only=True)
class History:
    """The curves of a training, one value per epoch; "test" is validation, a name kept from the first version."""

    train_loss: list[float] = field(default_factory=list)
    train_acc: list[float] = field(default_factory=list)  # fraction, on augmented images
    test_loss: list[float] = field(default_factory=list)
    test_acc: list[float] = field(default_factory=list)  # fraction; with votes, of the strict majorities
    score: list[float] = field(default_factory=list)  # what chooses the epoch, higher is better
    mean_recall: list[float] = field(default_factory=list)  # with votes: mean over the classes' strict majorities
    start_score: float | None = None  # of the weights that a fine-tuning starts from
    start_acc: float | None = None
    probe_acc: float | None = None  # of a linear probe of those weights
    seconds: list[float] = field(default_factory=list)  # wall clock, evaluation included

    @property
    def epochs(self) -> int:
        return len(self.test_acc)

    @property
    def best_epoch(self) -> int:
        """Number (from 1) of the first epoch with the highest score; 0 where none beats the start of a fine-tuning."""
        best = int(np.argmax(self.score)) + 1
        return 0 if self.start_score is not None and self.start_score >= self.score[best - 1] else best


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResults:
    """The contents of a results file."""

    model: str
    recipe: str
    settings: dict[str, Any]
    seed: int
    history: History
    expressions: tuple[str, ...]
    confusion: ConfusionMatrix  # of the best epoch on validation, rows are the true class
    accuracy_without_duplicates: float | None  # without the validation images that are in train too
    data: dict[str, Any]  # counts and fingerprints
    versions: dict[str, str]
    votes: VoteReport | None = None  # of the best epoch on validation

    @property
    def accuracy(self) -> float:
        """Fraction of the validation images that the best epoch gets right."""
        return accuracy(self.confusion)

    def to_dict(self) -> dict[str, Any]:
        history = {key: value for key, value in asdict(self.history).items() if value not in (None, [])}
        seconds = history.pop("seconds")
        for name in ("score", "start_score"):
            history.pop(name, None)
        return {
            "model": self.model,
            "recipe": self.recipe,
            "seed": self.seed,
            "best_epoch": self.history.best_epoch,
            "accuracy": self.accuracy,
            "accuracy_without_duplicates": self.accuracy_without_duplicates,
            "macro_f1": macro_f1(self.confusion),
            "per_class_recall": per_class_recall(self.confusion, self.expressions),
            "confusion": self.confusion.tolist(),
            "expressions": list(self.expressions),
            **({"votes": self.votes.to_dict(self.expressions)} if self.votes else {}),
            "settings": self.settings,
            "data": self.data,
            "versions": self.versions,
            "seconds": sum(seconds),
            "seconds_per_epoch": float(np.median(seconds)),
            **history,
        }

    def summary(self) -> dict[str, Any]:
        """The part that travels in checkpoints and exported models: nothing that differs between equal runs."""
        whole = self.to_dict()
        kept = (
            "recipe",
            "seed",
            "best_epoch",
            "accuracy",
            "accuracy_without_duplicates",
            "macro_f1",
            "per_class_recall",
        )
        return {key: whole[key] for key in (*kept, "votes", "settings", "data") if key in whole}


def write_results(path: Path, results: TrainingResults) -> None:
    """Write the results file atomically."""
    write_atomically(path, json.dumps(results.to_dict(), indent=1) + "\n")


def read_results(path: Path) -> dict[str, Any]:
    """Read a results file.

    Raises:
        DataError: it is missing or not one of ours.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"no results at {path}; make them with: fer-train --model v0") from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the results {path}: {error}") from error
    if not isinstance(content, dict) or "test_acc" not in content:
        raise DataError(f"{path} is not a results file of fer-train; train again, or copy the file again")
    return content


def tool_versions() -> dict[str, str]:
    """Versions of what shapes the weights."""
    return {
        "fer-edge": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
