"""Measure fer-edge next to other packages on the same faces: `make peers`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from fer_bench.accuracy import read_labelled_images
from fer_bench.console import (
    FILE,
    data_option,
    say_environment,
    show_progress,
    warn_about,
    write_json,
)
from fer_bench.environment import environment
from fer_bench.latency.measure import Configuration, classify_in_worker, measure_latency
from fer_bench.statistics import Interval, bootstrap
from fer_runtime.command import FerCommand, NumberRange
from fer_runtime.errors import DataError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.model.find import available_models, checkpoint_path
from fer_runtime.shared_options import models_dir_option

_HERE = Path(__file__).parent
_CHECKOUT = _HERE.parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A package in an environment of its own."""

    name: str
    code: str  # "module:function", as an engine's
    environment: Path
    makes: str  # the command that makes the environment

    @property
    def python(self) -> Path:
        # Not resolved: a virtual environment's python is a link, and its location defines the environment.
        return self.environment / "bin" / "python"


def _package(name: str, code: str) -> Peer:
    return Peer(name=name, code=code, environment=_HERE / f".venv-{name}", makes=f"make peer-{name}")


PEERS = (
    Peer(
        name="fer-edge",
        code="peers.peer_fer_edge:load",
        environment=_CHECKOUT / ".venv-demo",
        makes="make demo",
    ),
    _package("torch", "peers.peer_torch:load"),
    _package("fer", "peers.peer_fer:load"),
    _package("rmn", "peers.peers_with_downloads:load_rmn"),
    _package("hsemotion-onnx", "peers.peers_with_downloads:load_hsemotion_onnx"),
    _package("deepface", "peers.peers_with_downloads:load_deepface"),
    _package("emotiefflib", "peers.peers_with_downloads:load_emotiefflib"),
    _package("online-emotion-detection", "peers.peers_with_downloads:load_online_emotion_detection"),
)


@click.command(cls=FerCommand)
@click.option(
    "--peer",
    "names",
    type=click.Choice([peer.name for peer in PEERS]),
    multiple=True,
    help="Peer to measure. May be repeated. [default: all that have an environment]",
)
@models_dir_option
@data_option
@click.option("--votes", metavar="FILE|ferplus", help="Also compare with raters' votes, as in fer-bench accuracy.")
@click.option("--rounds", type=click.IntRange(min=2), default=8, show_default=True, help="Turns per peer.")
@click.option(
    "--seconds", type=NumberRange(min=0, min_open=True), default=0.4, show_default=True, help="Seconds per turn."
)
@click.option(
    "--json",
    "json_path",
    type=FILE,
    default=_CHECKOUT / "benchmarks" / "results" / "peers.json",
    show_default="benchmarks/results/peers.json",
    help="Write environment and results to FILE.",
)
def main(
    names: tuple[str, ...],
    models_dir: Path,
    data: Path,
    votes: str | None,
    rounds: int,
    seconds: float,
    json_path: Path,
) -> None:
    """Time and score fer-edge and other packages, each in its own environment.

    Every peer classifies one face per call. `make peers` makes the environments of fer-edge, PyTorch and fer; the
    others download their weights on first use and have a command each, such as `make peer-rmn`.
    """
    images = read_labelled_images(data)
    votes_of_images = None
    if votes is not None:
        from fer_bench.raters import measure_raters
        from fer_train.data.votes import open_votes

        votes_of_images = open_votes(votes, EXPRESSIONS).of(images.paths, images.faces, split=images.folder.name)
    wanted = _configurations(models_dir, names)
    machine = environment()
    say_environment(machine)
    results, unavailable = measure_latency(wanted, rounds=rounds, seconds=seconds, progress=show_progress("turn"))
    rows: list[dict[str, Any]] = []
    click.echo(
        f"{'peer':25} {'model':12} {'raters majority':>22} {'FER2013 labels':>22} {'p50 ms':>8} {'p95 ms':>8} "
        f"{'start CPU s':>12} {'peak MB':>8} {'install MB':>11}"
    )
    for result in results:
        configuration = next(
            candidate for candidate in wanted if candidate.key == (result.engine, result.model, result.precision, 1, 1)
        )
        probabilities = classify_in_worker(configuration, images.faces)
        accuracy = _share(probabilities.argmax(1) == images.labels)
        start = sum(result.cold_start_cpu_ms.values()) / 1000
        install = _install_megabytes(configuration.python)
        row: dict[str, Any] = result.to_dict() | {
            "threads": None,  # each library's default
            "images": len(images.labels),
            "accuracy": accuracy.value,
            "accuracy_interval": accuracy.to_list(),
            "install_mb": install,
        }
        majority = ""
        if votes_of_images is not None:
            rated = measure_raters(probabilities.astype(np.float32), votes_of_images, EXPRESSIONS)
            row["votes"] = rated.to_dict()
            majority = _percent(rated.majority_accuracy)
        rows.append(row)
        click.echo(
            f"{result.engine:25} {result.model + ' ' + result.precision:12} {majority:>22} {_percent(accuracy):>22} "
            f"{result.p50_ms:8.3f} {result.p95_ms:8.3f} {start:12.2f} {result.peak_mb:8.0f} {install:11.0f}"
        )
    warn_about(results)
    for missing in unavailable:
        click.echo(f"not measured: {missing.configuration}: {missing.reason}", err=True)
    write_json(json_path, machine, rows)


def _share(right: npt.NDArray[np.bool_]) -> Interval:
    return bootstrap(lambda chosen: float(right[chosen].mean()), len(right), resamples=500)


def _percent(interval: Interval) -> str:
    return f"{interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def _configurations(models_dir: Path, names: Sequence[str]) -> list[Configuration]:
    """Each peer with each of its models.

    Raises:
        DataError: a peer of `names` has no environment, or no peer has one.
    """
    found = []
    for peer in PEERS:
        if names and peer.name not in names:
            continue
        if not peer.python.is_file():
            if names:
                raise DataError(f"{peer.name} has no environment at {peer.environment}; make it with: {peer.makes}")
            continue
        found += _configurations_of(peer, models_dir)
    if not found:
        raise DataError("no peer has an environment; make some with: make peers DATA=DIR")
    return found


def _configurations_of(peer: Peer, models_dir: Path) -> list[Configuration]:
    if peer.name == "fer-edge":
        return [_configuration(peer, model.name, model.precision, model.path) for model in available_models(models_dir)]
    if peer.name == "torch":
        names = dict.fromkeys(model.name for model in available_models(models_dir))
        checkpoints = {name: checkpoint_path(models_dir, name) for name in names}
        return [_configuration(peer, name, "fp32", path) for name, path in checkpoints.items() if path.is_file()]
    source = peer.environment  # weights are inside the package, or downloaded
    if peer.name == "fer":
        pattern = "lib/python*/site-packages/fer/data/emotion_model_quantized.tflite"
        source = next(peer.environment.glob(pattern), source)
    return [_configuration(peer, "its own", "tflite" if peer.name == "fer" else "", source)]


def _configuration(peer: Peer, model: str, precision: str, source: Path) -> Configuration:
    return Configuration(
        engine=peer.name,
        model=model,
        precision=precision,
        batch=1,
        threads=1,
        source=source.resolve(),
        python=peer.python,
        code=peer.code,
    )


def _install_megabytes(python: Path) -> float:
    """Size of the environment's packages in MB."""
    folders = python.parents[1].glob("lib/python*/site-packages")
    return sum(file.lstat().st_size for folder in folders for file in folder.rglob("*") if file.is_file()) / 1e6


if __name__ == "__main__":
    main()
