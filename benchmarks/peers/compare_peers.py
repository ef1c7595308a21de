"""fer-edge beside what people use now, on the same faces: `make peers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from fer_bench.accuracy import read_labelled_images
from fer_bench.console import (
    FILE,
    data_option,
    models_dir_option,
    say_environment,
    show_progress,
    warn_about,
    write_json,
)
from fer_bench.environment import environment
from fer_bench.latency.measure import Configuration, classify_in_worker, measure_latency
from fer_bench.statistics import Interval, bootstrap
from fer_runtime.command import FerCommand
from fer_runtime.errors import DataError, ModelFileError
from fer_runtime.model.find import MODEL_NAMES, PRECISIONS, checkpoint_path, find_model

_HERE = Path(__file__).parent
_CHECKOUT = _HERE.parents[1]


@click.command(cls=FerCommand)
@models_dir_option
@data_option
@click.option("--rounds", type=click.IntRange(min=2), default=8, show_default=True, help="Turns of each peer.")
@click.option("--seconds", type=float, default=0.4, show_default=True, help="Length of a turn.")
@click.option(
    "--json",
    "json_path",
    type=FILE,
    default=_CHECKOUT / "benchmarks" / "results" / "peers.json",
    show_default="benchmarks/results/peers.json",
    help="Where environment and results go.",
)
def main(models_dir: Path, data: Path, rounds: int, seconds: float, json_path: Path) -> None:
    """Time and score fer-edge, `fer` (PyPI) and a plain PyTorch loop, each in its own environment.

    Every peer classifies one face per call. `make peers` makes the environments first.
    """
    pictures = read_labelled_images(data)
    wanted = _configurations(models_dir)
    machine = environment()
    say_environment(machine)
    results, unavailable = measure_latency(wanted, rounds=rounds, seconds=seconds, progress=show_progress("turn"))
    rows: list[dict[str, Any]] = []
    click.echo(
        f"{'peer':14} {'model':12} {'accuracy':>22} {'p50 ms':>8} {'p95 ms':>8} {'start CPU s':>12} {'peak MB':>8} "
        f"{'install MB':>11}"
    )
    for result in results:
        configuration = next(one for one in wanted if one.key == (result.engine, result.model, result.precision, 1, 1))
        probabilities = classify_in_worker(configuration, pictures.faces)
        right = probabilities.argmax(1) == pictures.labels
        accuracy = _share(right)
        start = sum(result.cold_start_cpu_ms.values()) / 1000
        install = _install_megabytes(configuration.python)
        rows.append(
            result.to_dict()
            | {
                "threads": None,  # each library's default
                "images": len(right),
                "accuracy": accuracy.value,
                "accuracy_interval": accuracy.to_list(),
                "install_mb": install,
            }
        )
        scored = f"{accuracy.value:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}]"
        click.echo(
            f"{result.engine:14} {result.model + ' ' + result.precision:12} {scored:>22} {result.p50_ms:8.3f} "
            f"{result.p95_ms:8.3f} {start:12.2f} {result.peak_mb:8.0f} {install:11.0f}"
        )
    warn_about(results)
    for missing in unavailable:
        click.echo(f"not measured: {missing.configuration}: {missing.reason}", err=True)
    write_json(json_path, machine, rows)


def _share(right: npt.NDArray[np.bool_]) -> Interval:
    return bootstrap(lambda chosen: float(right[chosen].mean()), len(right), resamples=500)


def _configurations(models_dir: Path) -> list[Configuration]:
    """Every peer with every model that is there."""
    found = []
    demo, torch = _python(_CHECKOUT / ".venv-demo"), _python(_HERE / ".venv-torch")
    for name in MODEL_NAMES:
        for precision in PRECISIONS:
            try:
                source = find_model(name, precision=precision, models_dir=models_dir)
            except ModelFileError:
                continue
            found.append(_peer("fer-edge", name, precision, source, demo))
        checkpoint = checkpoint_path(models_dir, name)
        if checkpoint.is_file():
            found.append(_peer("torch-loop", name, "fp32", checkpoint, torch))
    python = _python(_HERE / ".venv-fer")
    tflite = next(python.parents[1].glob("lib/python*/site-packages/fer/data/emotion_model_quantized.tflite"), None)
    if tflite is None:
        raise DataError(f"{python.parents[1]} has no fer; make it again: remove the folder, then make peers DATA=DIR")
    return [*found, _peer("fer", "its own", "tflite", tflite, python)]


def _peer(engine: str, model: str, precision: str, source: Path, python: Path) -> Configuration:
    code = {
        "fer-edge": "peers.peer_fer_edge:load",
        "torch-loop": "peers.peer_torch:load",
        "fer": "peers.peer_fer:load",
    }[engine]
    return Configuration(
        engine=engine,
        model=model,
        precision=precision,
        batch=1,
        threads=1,
        source=source.resolve(),
        python=python,
        code=code,
    )


def _python(folder: Path) -> Path:
    # Not resolved: a virtual environment's python is a link, and its place is what makes the environment.
    python = folder / "bin" / "python"
    if not python.is_file():
        raise DataError(f"no environment at {folder}; make it with: make peers DATA=DIR")
    return python


def _install_megabytes(python: Path) -> float:
    """Size of the environment's packages in MB."""
    folders = python.parents[1].glob("lib/python*/site-packages")
    return sum(file.lstat().st_size for folder in folders for file in folder.rglob("*") if file.is_file()) / 1e6


if __name__ == "__main__":
    main()
