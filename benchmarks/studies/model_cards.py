"""`models/README.md`: what each file is and how good, with every figure from the results files.

`python -m benchmarks.studies.model_cards` writes it, `--check` fails when it is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fer_runtime.command import FerCommand
from fer_runtime.files import write_atomically
from fer_runtime.metrics import wilson_interval
from fer_runtime.model.find import DEFAULT_MODELS_DIR, FILE_STEMS, Precision, model_path, results_path
from fer_train.networks.architectures import ARCHITECTURES
from fer_train.results import read_results

_WHAT = {
    "v0": "a small CNN: three blocks of convolution, BatchNorm, ReLU and pooling, two linear layers; "
    "319,751 parameters, 6.6 M multiply-accumulates per face",
    "v1": "torchvision's ResNet18 with a head of two linear layers; "
    "11.3 M parameters, 98 M multiply-accumulates per face",
    "v3": "a residual network that keeps the maps large: one convolution, six residual blocks; "
    "3.59 M parameters, 130 M multiply-accumulates per face",
}

# What the repository carries. v1 in float32 is 45 MB, four times as slow, and written by `fer-export --model v1`.
_EXPORTED: dict[str, tuple[Precision, ...]] = {"v0": ("fp32", "int8"), "v1": ("int8",), "v3": ("int8",)}

_HEAD = Path(__file__).with_suffix(".md")  # what no results file says


def model_cards(models_dir: Path) -> str:
    """The page as Markdown; a model without a results file is left out.

    Raises:
        DataError: a results file is damaged.
    """
    cards = [_card(name, models_dir) for name in _WHAT if results_path(models_dir, name).is_file()]
    return "\n".join([_HEAD.read_text(encoding="utf-8"), *cards])


def _card(name: str, models_dir: Path) -> str:
    results = read_results(results_path(models_dir, name))
    files = [f"`{FILE_STEMS[name]}.pth`"]
    files += [
        f"`{model_path(models_dir, name, precision).name}`"
        for precision in _EXPORTED[name]
        if model_path(models_dir, name, precision).is_file()
    ]
    lines = [
        f"## {name}",
        "",
        f"{', '.join(files)}: {_WHAT[name]}.",
        "",
        _origin(results),
        "",
        *_figures(results),
        "",
        f"![curves]({FILE_STEMS[name]}_curves.png)",
        "",
        f"![confusion matrix]({FILE_STEMS[name]}_confusion.png)",
        "",
    ]
    return "\n".join(lines)


def _origin(results: Mapping[str, Any]) -> str:
    settings, train = results["settings"], results["data"]["train"]
    target = "FER+'s votes" if settings.get("votes") else "FER2013's labels"
    started = "scratch" if settings["weights"] == "none" else f"`{Path(settings['weights']).name}`"
    digests = settings.get("teachers_sha256", [""] * len(settings["teachers"]))
    teachers = [
        f"`{name}`" + (f" (SHA-256 {digest[:12]})" if digest else "")
        for name, digest in zip(settings["teachers"], digests, strict=True)
    ]
    threads = f"{settings['threads']} thread{'s' if settings['threads'] != 1 else ''}"
    return (
        f"Trained on {target} with `--recipe {results['recipe']}`{_changed(results)} from {started}"
        + (f", distilled from {', '.join(teachers)}" if teachers else "")
        + f", seed {results['seed']}: {train['used']:,} of {sum(train['counts'].values()):,} training images, "
        f"{len(results['test_acc'])} epochs of {results['seconds_per_epoch']:.0f} s, "
        f"epoch {results['best_epoch']} kept. "
        f"PyTorch {results['versions']['torch']}, {settings['device']}, {threads}."
    )


def _changed(results: Mapping[str, Any]) -> str:
    """The settings that are not those of the recipe, such as " (epochs 14, lr 0.0012)"."""
    recipe = ARCHITECTURES[results["model"]].recipe(results["recipe"]).to_dict()
    settings = results["settings"]
    changed = [f"{name} {settings[name]}" for name, value in recipe.items() if settings.get(name, value) != value]
    return f" ({', '.join(changed)})" if changed else ""


def _figures(results: Mapping[str, Any]) -> list[str]:
    """The table of both yardsticks, with 95 % intervals; that of the raters is missing where nothing was measured."""
    votes = results.get("votes")
    counts = results["data"]["validation"]["counts"]
    validation, recalls = sum(counts.values()), results["per_class_recall"]
    labels = [
        ("accuracy", _with_interval(results["accuracy"], validation)),
        ("mean of the recalls", f"{sum(recalls.values()) / len(recalls):.1%}"),
        *(
            (f"recall of {name}", _with_interval(share, counts[name]))
            for name, share in results["per_class_recall"].items()
        ),
    ]
    if votes is None:
        rows = [f"| {name} | {label} |" for name, label in labels]
        return ["| validation, single view | labels |", "|---|---|", *rows]
    support = [sum(row) for row in votes["confusion"]]
    raters = [
        _with_interval(votes["majority_accuracy"], votes["majority_images"]),
        f"{votes['mean_recall']:.1%}",
        *(
            _with_interval(share, count)
            for share, count in zip(votes["per_class_recall"].values(), support, strict=True)
        ),
    ]
    rows = [f"| {name} | {rater} | {label} |" for (name, label), rater in zip(labels, raters, strict=True)]
    most, agreement = f"{votes['rater_ceiling']:.1%}", f"{votes['rater_agreement']:.1%}"
    rows.append(f"| raters who name the predicted expression | {agreement} (at most {most}) | |")
    return ["| validation, single view | raters | labels |", "|---|---|---|", *rows]


def _with_interval(share: float, count: int) -> str:
    """A share with its 95 % interval (Wilson, 1927)."""
    low, high = wilson_interval(round(share * count), count)
    return f"{share:.1%} [{low:.1%}, {high:.1%}] of {count:,}"


@click.command(cls=FerCommand)
@click.option("--models-dir", type=click.Path(path_type=Path), default=DEFAULT_MODELS_DIR, show_default=True)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 when the page is not what the results say.")
def main(models_dir: Path, check: bool) -> None:
    """Write models/README.md from the results files."""
    page = models_dir / "README.md"
    text = model_cards(models_dir)
    if not check:
        write_atomically(page, text)
        click.echo(page)
    elif not page.is_file() or page.read_text(encoding="utf-8") != text:
        click.echo(f"{page} is stale; write it with: python -m benchmarks.studies.model_cards", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
