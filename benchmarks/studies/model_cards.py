"""`models/README.md`: what each file is and how good, with every figure out of the results files.

`python -m studies.model_cards` writes it, `--check` fails when it is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fer_bench.statistics import wilson_interval
from fer_runtime.command import FerCommand
from fer_runtime.files import write_atomically
from fer_runtime.model.find import DEFAULT_MODELS_DIR, FILE_STEMS, MODEL_NAMES, Precision, model_path, results_path
from fer_train.results import read_results

_WHAT = {
    "v0": "a small CNN: three blocks of convolution, BatchNorm, ReLU and pooling, two linear layers; "
    "319,751 parameters, 6.6 M multiply-accumulates a face",
    "v1": "torchvision's ResNet18 with a head of two linear layers; "
    "11.3 M parameters, 98 M multiply-accumulates a face",
    "v2": "a narrow residual network that keeps the maps large: one convolution, six residual blocks; "
    "0.90 M parameters, 33 M multiply-accumulates a face",
    "v3": "v2 twice as wide; 3.59 M parameters, 130 M multiply-accumulates a face",
}

# What the repository carries. v1 in float32 is 45 MB, four times as slow, and made by `fer-export --model v1`.
_EXPORTED: dict[str, tuple[Precision, ...]] = {
    "v0": ("fp32", "int8"),
    "v1": ("int8",),
    "v2": ("fp32", "int8"),
    "v3": ("int8",),
}

_HEAD = Path(__file__).with_suffix(".md")  # what no results file says


def model_cards(models_dir: Path) -> str:
    """The page as Markdown; a model without a results file is left out.

    Raises:
        DataError: a results file is damaged.
    """
    cards = [_card(name, models_dir) for name in MODEL_NAMES if results_path(models_dir, name).is_file()]
    return "\n".join([_HEAD.read_text(encoding="utf-8"), *cards])


def _card(name: str, models_dir: Path) -> str:
    results = read_results(results_path(models_dir, name))
    validation = sum(results["data"]["validation"]["counts"].values())
    files = [f"`{FILE_STEMS[name]}.pth`"]
    files += [
        f"`{model_path(models_dir, name, precision).name}`"
        for precision in _EXPORTED[name]
        if model_path(models_dir, name, precision).is_file()
    ]
    unseen = results["accuracy_without_duplicates"]
    lines = [
        f"## {name}",
        "",
        f"{', '.join(files)}: {_WHAT[name]}.",
        "",
        _origin(results),
        "",
        "| validation, single view | |",
        "|---|---|",
        f"| accuracy | {_with_interval(results['accuracy'], validation)} |",
        f"| accuracy without pictures that also stand in train | {'' if unseen is None else f'{unseen:.1%}'} |",
        f"| macro-F1 | {results['macro_f1']:.1%} |",
        *_recalls(results),
        "",
        f"![curves]({FILE_STEMS[name]}_curves.png)",
        "",
        f"![confusion matrix]({FILE_STEMS[name]}_confusion.png)",
        "",
    ]
    return "\n".join(lines)


def _origin(results: Mapping[str, Any]) -> str:
    settings, train = results["settings"], results["data"]["train"]
    pictures = (
        f"{train['used']:,} of {sum(train['counts'].values()):,} training pictures "
        f"(left out: {', '.join(settings['drop']) or 'none'})"
    )
    threads = f"{settings['threads']} thread{'s' if settings['threads'] != 1 else ''}"
    tools = f"PyTorch {results['versions']['torch']}, {settings['device']}, {threads}."
    if parts := results.get("averaged"):
        own = ", ".join(f"{part['test_acc']:.1%}{_how(part.get('training') or {})}" for part in parts)
        mean = "" if len(parts) == 1 else f"The mean of the weights of {len(parts)} trainings (`fer-train --average`), "
        whose = f"One training, of {own} on validation" if len(parts) == 1 else f"which alone have {own} on validation"
        return (
            f"{mean}{whose}; its BatchNorm statistics are those of {pictures}, its biases balanced over them "
            f"(`--average`, `--balance {settings['balance']:g}`). {tools}"
        )
    started = Path(settings["weights"]).name if settings["weights"] != "none" else "scratch"
    teachers = f", distilled from {', '.join(settings['teachers'])}" if settings["teachers"] else ""
    return (
        f"Trained with `--recipe {results['recipe']}` from {started}{teachers}, seed {results['seed']}, on "
        f"{pictures}, {len(results['test_acc'])} epochs of {results['seconds_per_epoch']:.0f} s, "
        f"epoch {results['best_epoch']} kept. {tools}"
    )


def _how(training: Mapping[str, Any]) -> str:
    """In brackets, what one of an average's trainings was; nothing where its checkpoint did not say."""
    if "averaged" in training:
        return f" (an average of {len(training['averaged'])} itself)"
    settings = training.get("settings")
    if not settings or "weights" not in settings:
        return ""
    started = "scratch" if settings["weights"] == "none" else f"`{settings['weights']}`"
    teachers = ", ".join(f"`{name}`" for name in settings["teachers"])
    return (
        f" (`--recipe {training['recipe']}` from {started}"
        + (f", distilled from {teachers}" if teachers else "")
        + f", seed {training['seed']}, epoch {training['best_epoch']} of {settings['epochs']})"
    )


def _recalls(results: Mapping[str, Any]) -> list[str]:
    counts = results["data"]["validation"]["counts"]
    recalls = results["per_class_recall"]
    return [f"| recall of {name} | {_with_interval(recall, counts[name])} |" for name, recall in recalls.items()]


def _with_interval(share: float, count: int) -> str:
    """A share with its 95 % interval (Wilson, 1927)."""
    low, high = wilson_interval(round(share * count), count)
    return f"{share:.1%} [{low:.1%}, {high:.1%}] of {count:,}"


@click.command(cls=FerCommand)
@click.option("--models-dir", type=click.Path(path_type=Path), default=DEFAULT_MODELS_DIR, show_default=True)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 when the page is not what the results say.")
def main(models_dir: Path, check: bool) -> None:
    """Write models/README.md out of the results files."""
    page = models_dir / "README.md"
    text = model_cards(models_dir)
    if not check:
        write_atomically(page, text)
        click.echo(page)
    elif not page.is_file() or page.read_text(encoding="utf-8") != text:
        click.echo(f"{page} is stale; write it with: python -m studies.model_cards", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
