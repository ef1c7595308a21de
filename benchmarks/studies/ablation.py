"""Ablation of the best recipe: `python -m benchmarks.studies.ablation` trains v0 without each ingredient.

All runs have the same images, epochs and seed, so each row differs from the first by one change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fer_runtime.command import FerCommand
from fer_runtime.errors import DataError
from fer_runtime.extras import needs_extra
from fer_runtime.files import sha256_of, write_atomically
from fer_runtime.model.find import results_path

if TYPE_CHECKING:
    from fer_train.recipes import Recipe

# Name of each row and its changes to the recipe "best".
ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("best recipe", ()),
    ("without augmentation", ("augmentation=none",)),
    ("AutoAugment instead of light augmentation", ("augmentation=autoaugment",)),
    ("stronger augmentation, with erasing", ("augmentation=faces",)),
    ("with label smoothing", ("label_smoothing=0.05",)),
    ("without EMA", ("ema_decay=0",)),
    ("constant learning rate 1e-3 instead of one-cycle", ("schedule=constant", "lr=0.001")),
    ("without weight decay", ("weight_decay=0",)),
    ("with dropout", ("dropout=0.25",)),
    ("with mixup", ("mixup=0.2",)),
    ("with duplicates", ("drop=none",)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationRow:
    """One training of the study."""

    name: str
    settings: tuple[str, ...]  # as `fer-train --set` takes them
    accuracy: float  # fraction of the validation images, best epoch
    macro_f1: float
    epochs: int  # trained
    seconds_per_epoch: float  # median wall clock


def run_ablation(
    data: Path, folder: Path, *, epochs: int, seed: int = 0, teachers: Sequence[Path] = ()
) -> Iterator[AblationRow]:
    """Train and yield the rows in turn. Finished rows in `folder` are read, and interrupted ones are continued.

    Args:
        data: the dataset's root.
        folder: has one folder per row.
        teachers: checkpoints for an additional, distilled row.

    Raises:
        DataError: a finished row in `folder` has other settings, another seed or other images.
    """
    with needs_extra("train"):
        from fer_train.data.folders import load_faces
        from fer_train.execution import Execution
        from fer_train.networks.architectures import ARCHITECTURES
        from fer_train.pipeline import train_model
        from fer_train.results import read_results

    best = ARCHITECTURES["v0"].recipe("best").overridden(epochs=epochs)
    rows: list[tuple[str, tuple[str, ...], Recipe, tuple[Path, ...], Path]] = []
    for name, settings in ROWS:
        place = folder / ("_".join(settings).replace("=", "-") or "best")
        rows.append((name, settings, best.with_settings(*settings), (), place))
    if teachers:
        # Other teachers may have the same file names, and the results file only has names.
        digest = hashlib.sha256("".join(map(sha256_of, teachers)).encode()).hexdigest()
        name = f"distilled from {', '.join(path.name for path in teachers)}"
        rows.append((name, (), best, tuple(teachers), folder / f"distilled-{digest[:8]}"))
    fingerprints = {split: load_faces(data, split).fingerprint for split in ("train", "validation")}
    # All rows are checked before the first training, which takes hours.
    for _, _, recipe, _, own in rows:
        _require_same(results_path(own, "v0"), recipe, seed, fingerprints)
    for name, settings, recipe, given, own in rows:
        if not results_path(own, "v0").is_file():
            train_model(
                "v0",
                data,
                recipe,
                recipe_name="best",
                teachers=given,
                seed=seed,
                models_dir=own,
                execution=Execution(resume=True),
            )
        results: dict[str, Any] = read_results(results_path(own, "v0"))
        yield AblationRow(
            name=name,
            settings=settings,
            accuracy=results["accuracy"],
            macro_f1=results["macro_f1"],
            epochs=len(results["test_acc"]),
            seconds_per_epoch=results["seconds_per_epoch"],
        )


def _require_same(path: Path, recipe: Recipe, seed: int, fingerprints: Mapping[str, str]) -> None:
    """Raise a DataError if results exist at `path` and are from another training."""
    from fer_train.results import read_results

    if not path.is_file():
        return
    results = read_results(path)
    wanted = {**recipe.to_dict(), "seed": seed, **fingerprints}
    found = {
        **results.get("settings", {}),
        "seed": results.get("seed"),
        **{split: part.get("fingerprint") for split, part in results.get("data", {}).items()},
    }
    if differing := [name for name, value in wanted.items() if found.get(name) != value]:
        images = ", ".join(f"images of {name}" if name in fingerprints else name for name in differing)
        raise DataError(f"{path} has other settings ({images}); give another --output, or delete {path.parent}")


def ablation_table(rows: Sequence[AblationRow]) -> str:
    """The rows as a Markdown table, the first row's difference beside each."""
    lines = ["| v0 | accuracy | difference | macro-F1 | s per epoch |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        difference = "" if row is rows[0] else f"{100 * (row.accuracy - rows[0].accuracy):+.1f}"
        lines.append(
            f"| {row.name} | {row.accuracy:.1%} | {difference} | {row.macro_f1:.1%} | {row.seconds_per_epoch:.0f} |"
        )
    return "\n".join(lines)


@click.command(cls=FerCommand)
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), required=True, help="The dataset's root.")
@click.option("--epochs", type=click.IntRange(min=1), default=12, show_default=True, help="Epochs per row.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads.")
@click.option(
    "--teacher",
    "teachers",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    multiple=True,
    help="Add a row distilled from this checkpoint. May be repeated.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/ablation"),
    show_default=True,
    help="Folder of the runs. Finished rows are not trained again.",
)
def main(data: Path, epochs: int, seed: int, threads: int, teachers: tuple[Path, ...], output: Path) -> None:
    """Train v0 without each ingredient of the best recipe, and print the table."""
    with needs_extra("train"):
        import torch

    torch.set_num_threads(threads)
    rows = []
    for row in run_ablation(data, output, epochs=epochs, seed=seed, teachers=teachers):
        rows.append(row)
        click.echo(f"{row.name}: {row.accuracy:.1%}, macro-F1 {row.macro_f1:.1%}", err=True)
        write_atomically(output / "ablation.json", json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    click.echo(ablation_table(rows))


if __name__ == "__main__":
    main()
