"""The README's table, from the results files: `python -m studies.readme_table` writes it, `--check` compares."""

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

Row = Mapping[str, Any]


@click.command(cls=FerCommand)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 when the README says something else.")
@click.option("--readme", type=FILE, default=_CHECKOUT / "README.md", help="File with the two markers.")
@click.option(
    "--results",
    type=FOLDER,
    default=_CHECKOUT / "benchmarks" / "results",
    help="Folder of latency.json, accuracy.json and peers.json.",
)
def main(check: bool, readme: Path, results: Path) -> None:
    """Write the README's table from the measured results."""
    text = readme.read_text(encoding="utf-8")
    wanted = replace_table(text, render_table(read_results(results)), source=str(readme))
    for warning in outdated_models(read_results(results), _CHECKOUT / "models"):
        click.echo(f"warning: {warning}", err=True)
    if check:
        if text != wanted:
            raise DataError(f"the table of {readme} is not what {results} says; write it with: make readme-table")
        return
    if text != wanted:
        write_atomically(readme, wanted)
        click.echo(readme, err=True)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Contents of the results files that are there, by name: "latency", "accuracy", "peers".

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
            raise DataError(f"{path} is no JSON ({error}); measure again with: make results") from error
    return found


def replace_table(text: str, table: str, *, source: str) -> str:
    """`text` with `table` between the markers.

    Raises:
        DataError: the markers are not there once each, in this order.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end or START in after or END in after:
        raise DataError(f"{source} needs one line {START} and after it one line {END}")
    return f"{before}{START}\n{table}{END}{after}"


def render_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The table as Markdown, with how it was measured below; empty without latency results."""
    if "latency" not in results:
        return ""
    latency = results["latency"]["results"]
    accuracy = {(row["model"], row["precision"]): row for row in results.get("accuracy", {}).get("results", [])}
    peers: Sequence[Row] = results.get("peers", {}).get("results", [])
    lines = [
        "| | Accuracy | ms per face | × limit | than PyTorch eager (its ms) | than `fer` | Faces/s | MB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    ours = {
        (name, precision): row
        for name in MODEL_NAMES
        for precision in PRECISIONS
        if (row := _row(latency, "onnxruntime", name, precision)) is not None
    }
    default = next(((name, order[0]) for name, order in PREFERENCE.items() if (name, order[0]) in ours), None)
    for (name, precision), row in ours.items():
        lines.append(
            _line(
                f"**{name} {precision}**" + (", the default" if (name, precision) == default else ""),
                _accuracy(accuracy.get((name, precision))),
                _milliseconds(row["p50_ms"]),
                "–" if row.get("times_the_limit") is None else f"{row['times_the_limit']:.1f}",
                _against_eager(row, _row(latency, "torch", name, "fp32")),
                _against_fer(peers, name, precision),
                _throughput(latency, name, precision),
                f"{row['model_bytes'] / 1e6:.2f}",
            )
        )
    for row in peers:
        if row["engine"] == "fer":
            size = f"{row['model_bytes'] / 1e6:.2f}"
            lines.append(_line("`fer` (PyPI)", _accuracy(row), _milliseconds(row["p50_ms"]), "–", "–", "", "–", size))
    return "\n".join(lines) + "\n\n" + _how(results) + "\n"


def outdated_models(results: Mapping[str, Mapping[str, Any]], models_dir: Path) -> list[str]:
    """A sentence for each model whose file is no longer the one that was measured, or was not measured at all."""
    measured = {
        (row["model"], row["precision"]): row.get("model_sha256")
        for row in results.get("accuracy", {}).get("results", [])
    }
    found = []
    for name in MODEL_NAMES:
        for precision in PRECISIONS:
            path = model_path(models_dir, name, precision)
            if path.is_file() and measured.get((name, precision)) != sha256(path.read_bytes()).hexdigest():
                found.append(f"{path} is not the file that the results were measured with; measure: make results")
    return found


def _how(results: Mapping[str, Mapping[str, Any]]) -> str:
    machine = results["latency"]["environment"]
    versions = machine["versions"]
    used = [f"{label} {versions[name]}" for name, label in _LABELS.items() if name in versions]
    flags = [
        flag for flag in ("avx512_vnni", "avx_vnni", "avx512f", "avx2", "i8mm", "asimddp") if flag in _flags(machine)
    ]
    processor = machine["cpu"] + (f" ({flags[0]})" if flags else "")
    images = {row["images"] for row in results.get("accuracy", {}).get("results", [])}
    scored = (
        f"Accuracy on the {max(images):,} validation pictures of FER2013 with its 95 % interval. " if images else ""
    )
    peers = (
        "The ratio to `fer` is between both public interfaces, from a picture in memory to seven probabilities. "
        if "peers" in results
        else ""
    )
    # Weights may change where the graph, and with it every time, stays: the two need not be of one commit.
    scored_at = results.get("accuracy", {}).get("environment", {}).get("commit")
    also = f", accuracy at {scored_at}" if scored_at and scored_at != machine["commit"] else ""
    return (
        f"{scored}Median of one face per call on one thread, faces per second in batches of {_BATCH}; "
        "the limit is the model's arithmetic at the speed of ONNX Runtime's largest matrix product on the same core, "
        "or the time to read its weights, whichever is longer. "
        f"{peers}{processor}, {machine['system']}, {', '.join(used)}; "
        f"commit {machine['commit']}{also}, {machine['date'][:10]}. "
        "Made by `make results` and [explained here](docs/benchmark.md)."
    )


_LABELS = {"onnxruntime": "ONNX Runtime", "torch": "PyTorch"}
_BATCH = 32  # of the column of faces per second


def _flags(machine: Row) -> Sequence[str]:
    flags: Sequence[str] = machine.get("cpu_flags", [])
    return flags


def _row(rows: Sequence[Row], engine: str, model: str, precision: str, *, batch: int = 1) -> Row | None:
    key = (engine, model, precision, batch, 1)
    names = ("engine", "model", "precision", "batch", "threads")
    return next((row for row in rows if tuple(row[name] for name in names) == key), None)


def _against_eager(row: Row, eager: Row | None) -> str:
    return "–" if eager is None else f"{_times(eager['p50_ms'] / row['p50_ms'])} ({_milliseconds(eager['p50_ms'])})"


def _against_fer(peers: Sequence[Row], model: str, precision: str) -> str:
    theirs = next((row for row in peers if row["engine"] == "fer"), None)
    ours = next(
        (row for row in peers if (row["engine"], row["model"], row["precision"]) == ("fer-edge", model, precision)),
        None,
    )
    return "–" if theirs is None or ours is None else _times(theirs["p50_ms"] / ours["p50_ms"])


def _throughput(latency: Sequence[Row], model: str, precision: str) -> str:
    row = _row(latency, "onnxruntime", model, precision, batch=_BATCH)
    return "–" if row is None else _three_digits(row["images_per_second"])


def _three_digits(value: float) -> str:
    return f"{float(f'{value:.3g}'):,.0f}"


def _accuracy(row: Row | None) -> str:
    if row is None:
        return "–"
    low, high = row["accuracy_interval"]
    return f"{row['accuracy']:.1%} ({100 * low:.1f}–{100 * high:.1f})"


def _milliseconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def _times(ratio: float) -> str:
    return f"{ratio:.1f} × faster" if ratio >= 1 else f"{1 / ratio:.1f} × slower"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
