"""README's table from the results files: `python -m benchmarks.studies.readme_table` writes or checks it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import click

from fer_bench.console import FILE, FOLDER
from fer_runtime.command import FerCommand
from fer_runtime.errors import DataError
from fer_runtime.files import write_atomically
from fer_runtime.model.find import MODEL_NAMES, PRECISIONS, PREFERENCE, model_path

START, END = "<!-- table:start -->", "<!-- table:end -->"
_CHECKOUT = Path(__file__).parents[2]

# README has room for a row per model; fer-bench prints all precisions.
SHOWN_MODELS = ("v0", "v1", "v3")
SHOWN_PRECISION = "int8"

Row = Mapping[str, Any]


@click.command(cls=FerCommand)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if README has another table.")
@click.option("--readme", type=FILE, default=_CHECKOUT / "README.md", help="File with the two markers.")
@click.option(
    "--results",
    type=FOLDER,
    default=_CHECKOUT / "benchmarks" / "results",
    help="Folder of latency.json, accuracy.json and peers.json.",
)
def main(check: bool, readme: Path, results: Path) -> None:
    """Write README's table from the measured results."""
    text = readme.read_text(encoding="utf-8")
    wanted = replace_table(text, render_table(read_results(results)), source=str(readme))
    for warning in outdated_models(read_results(results), _CHECKOUT / "models"):
        click.echo(f"warning: {warning}", err=True)
    if check:
        if text != wanted:
            raise DataError(f"the table of {readme} differs from {results}; write it with: make readme-table")
        return
    if text != wanted:
        write_atomically(readme, wanted)
        click.echo(readme, err=True)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Contents of the existing results files, by name: "latency", "accuracy", "peers".

    Raises:
        DataError: a file is damaged.
    """
    found = {}
    for name in ("latency", "accuracy", "peers"):
        path = folder / f"{name}.json"
        if not path.is_file():
            continue
        try:
            found[name] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is not JSON ({error}); measure again with: make results") from error
    return found


def replace_table(text: str, table: str, *, source: str) -> str:
    """`text` with `table` between the markers.

    Raises:
        DataError: the markers are missing, repeated or in the wrong order.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end or START in after or END in after:
        raise DataError(f"{source} needs one line {START} and after it one line {END}")
    return f"{before}{START}\n{table}{END}{after}"


def render_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The table as Markdown, with the method below it; empty without latency results."""
    if "latency" not in results:
        return ""
    latency = results["latency"]["results"]
    accuracy = {(row["model"], row["precision"]): row for row in results.get("accuracy", {}).get("results", [])}
    peers: Sequence[Row] = results.get("peers", {}).get("results", [])
    lines = [
        "| Model | Accuracy, raters | Accuracy, FER2013 | ms per face | Speed-up vs PyTorch |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    default = PREFERENCE[0]
    for name in SHOWN_MODELS:
        row = _row(latency, "onnxruntime", name, SHOWN_PRECISION)
        if row is None:
            continue
        label = f"**{name}**" + (" (default)" if name == default else "")
        speed_up = _speed_up(row, _row(latency, "torch", name, "fp32"))
        scored = accuracy.get((name, SHOWN_PRECISION))
        lines.append(_line(label, _raters(scored), _labels(scored), _milliseconds(row["p50_ms"]), speed_up))
    for row in peers:
        if row["engine"] == "fer":
            lines.append(_line("`fer` (PyPI)", _raters(row), _labels(row), _milliseconds(row["p50_ms"]), "–"))
    return "\n".join(lines) + "\n\n" + _how(results) + "\n"


def outdated_models(results: Mapping[str, Mapping[str, Any]], models_dir: Path) -> list[str]:
    """A sentence for each model file that differs from the measured one or was not measured."""
    measured = {
        (row["model"], row["precision"]): row.get("model_sha256")
        for row in results.get("accuracy", {}).get("results", [])
    }
    found = []
    for name in MODEL_NAMES:
        for precision in PRECISIONS:
            path = model_path(models_dir, name, precision)
            if path.is_file() and measured.get((name, precision)) != sha256(path.read_bytes()).hexdigest():
                found.append(f"{path} is not the measured file; measure again with: make results")
    return found


def _how(results: Mapping[str, Mapping[str, Any]]) -> str:
    machine = results["latency"]["environment"]
    versions = machine["versions"]
    used = [f"{label} {versions[name]}" for name, label in _TOOLS.items() if name in versions]
    flags = [
        flag for flag in ("avx512_vnni", "avx_vnni", "avx512f", "avx2", "i8mm", "asimddp") if flag in _flags(machine)
    ]
    processor = machine["cpu"] + (f" ({flags[0]})" if flags else "")
    scored = results.get("accuracy", {}).get("results", [])
    images = max((row["images"] for row in scored), default=0)
    rated = max((row["votes"]["majority_images"] for row in scored if "votes" in row), default=0)
    sentences = []
    if rated:
        sentences.append(
            f"Raters: the strict majority of ten FER+ raters ({rated:,} images have one). FER2013: the data set's own "
            f"labels ({images:,} images). Both on the validation split with 95 % intervals."
        )
    elif images:
        sentences.append(f"FER2013: the data set's own labels ({images:,} validation images) with a 95 % interval.")
    # Weights may change while the graph, and so the latency, stays the same.
    scored_at = results.get("accuracy", {}).get("environment", {}).get("commit")
    also = f", accuracy at {scored_at}" if scored_at and scored_at != machine["commit"] else ""
    sentences.append("Our models are int8 files. Latency is the median of one face per call on one thread.")
    measured = f"commit {machine['commit']}{also}, {machine['date'][:10]}"
    sentences.append(f"{processor}, {machine['system']}, {', '.join(used)}; {measured}.")
    sentences.append("Made by `make results`; see [the method](docs/benchmark.md).")
    return " ".join(sentences)


_TOOLS = {"onnxruntime": "ONNX Runtime", "torch": "PyTorch"}


def _flags(machine: Row) -> Sequence[str]:
    flags: Sequence[str] = machine.get("cpu_flags", [])
    return flags


def _row(rows: Sequence[Row], engine: str, model: str, precision: str) -> Row | None:
    key = (engine, model, precision, 1, 1)
    names = ("engine", "model", "precision", "batch", "threads")
    return next((row for row in rows if tuple(row[name] for name in names) == key), None)


def _speed_up(row: Row, eager: Row | None) -> str:
    return "–" if eager is None else f"{eager['p50_ms'] / row['p50_ms']:.1f}×"


def _raters(row: Row | None) -> str:
    if row is None or "votes" not in row:
        return "–"
    return _share(row["votes"]["majority_accuracy"], row["votes"]["majority_accuracy_interval"])


def _labels(row: Row | None) -> str:
    return "–" if row is None else _share(row["accuracy"], row["accuracy_interval"])


def _share(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{value:.1%} ({100 * low:.1f}–{100 * high:.1f})"


def _milliseconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
