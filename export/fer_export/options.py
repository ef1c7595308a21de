"""Options that exports of checkpoints and of adopted files share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fer_export.gate.accuracy import Budget
from fer_runtime.model.find import DEFAULT_MODELS_DIR, Precision

# The others are compared with the first file.
_ORDER: tuple[Precision, ...] = ("fp32", "fp16", "int8")


def _tell_nobody(text: str) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Which files to write, what they are judged by, and where they go."""

    precisions: Sequence[Precision] = ("fp32",)  # of the files to publish
    data: Path | None = None  # the dataset's root; without it synthetic faces are compared, and there is no int8
    # Raters' votes for the faces of `data`: a CSV file or "ferplus". Their strict majority replaces the class folders.
    votes: str | Path | None = None
    batch: int | None = None  # a fixed batch size, for runtimes that read no dynamic one; None for a dynamic batch
    models_dir: Path = Path(DEFAULT_MODELS_DIR)  # where files are read and written
    budget: Budget = field(default_factory=Budget)  # what int8 may lose
    keep_anyway: bool = False  # publish int8 and fp16 files that fail, with the verdict in their metadata
    replace: bool = False  # overwrite files of another checkpoint, or of another program
    progress: Callable[[str], None] = _tell_nobody  # called with a line of text for each stage

    @property
    def wanted(self) -> list[Precision]:
        """The precisions in the order in which their files are made and judged."""
        return [precision for precision in _ORDER if precision in self.precisions]


DEFAULT_OPTIONS = ExportOptions()
