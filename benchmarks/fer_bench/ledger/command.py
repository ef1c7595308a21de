"""`fer-bench ledger`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fer_bench.console import (
    FILE,
    NAMED_MODELS_RULE,
    models_option,
    precisions_option,
    say_environment,
    show_progress,
    threads_option,
)
from fer_bench.engines import ENGINES
from fer_runtime.command import FerGroup, NumberRange, RegistryChoice, say
from fer_runtime.errors import DataError, OutputError
from fer_runtime.model.find import PRECISIONS, Precision
from fer_runtime.shared_options import models_dir_option

if TYPE_CHECKING:
    from fer_bench.ledger.entries import Board

_LEDGER = "benchmarks/results/ledger.jsonl"
ledger_option = click.option(
    "--ledger",
    "path",
    type=FILE,
    default=_LEDGER,
    show_default=True,
    help="File of the measurements; the default is that of a clone.",
)
boards_argument = click.argument("boards", nargs=-1, metavar="[BOARD]...")


@click.group("ledger", cls=FerGroup)
def ledger() -> None:
    """Compare the speed and the self-tests of boards.

    \b
    fer-bench ledger add                              measure this machine and append a line
    fer-bench ledger show                             every board, its self-tests and latencies
    fer-bench ledger compare EPYC Xeon                boards side by side
    """


@ledger.command(rules=(NAMED_MODELS_RULE,))
@ledger_option
@click.option("--board", help="Name of this machine. [default: what the board or its processor is called]")
@models_option
@precisions_option
@models_dir_option
@click.option(
    "--engine",
    "engines",
    type=RegistryChoice(ENGINES),
    multiple=True,
    help="Engine. May be repeated. [default: ONNX Runtime, OpenVINO and the files of fer-export --target beside the "
    "models]",
)
@threads_option
@click.option("--rounds", type=click.IntRange(min=2), default=8, show_default=True, help="Turns per configuration.")
@click.option(
    "--seconds", type=NumberRange(min=0, min_open=True), default=0.4, show_default=True, help="Seconds per turn."
)
def add(
    path: Path,
    board: str | None,
    models: tuple[str, ...],
    precisions: tuple[Precision, ...],
    models_dir: Path,
    engines: tuple[str, ...],
    threads: tuple[int, ...],
    rounds: int,
    seconds: float,
) -> None:
    """Measure this machine and append one JSON line.

    Replays the certificate of each model file, then times each engine that is installed, one face per call. A file
    that fails its self-test is not timed. Exits 1 if a self-test failed; the line is still written.
    """
    from fer_bench.latency.measure import configurations, without_files
    from fer_bench.ledger.entries import append_board, board_name, measure_board, read_ledger
    from fer_bench.ledger.entries import show as show_text
    from fer_runtime.files import refuse_special

    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent}; run this in a clone of fer-edge, or give --ledger FILE")
    refuse_special(path)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OutputError(f"cannot write {path}; give another --ledger")
    if path.exists():
        read_ledger(path)  # a file that is no ledger is found before minutes of measuring
    ours = ("onnxruntime", "openvino", *(name for name, entry in ENGINES.items() if entry.source == "target"))
    chosen = engines or tuple(name for name in ours if ENGINES[name].is_installed)
    wanted = configurations(
        models=models,
        precisions=precisions or PRECISIONS,
        engines=chosen,
        threads=threads,
        models_dir=models_dir,
    )
    for reason in without_files(engines, wanted):
        say(f"not measured: {reason}", err=True)
    measured = measure_board(
        board or board_name(), wanted, rounds=rounds, seconds=seconds, progress=show_progress("turn")
    )
    say_environment(measured.machine)
    append_board(path, measured)
    say(show_text([measured]))
    say(path, err=True)
    if failed := [test.file for test in measured.self_tests if not test.passed]:
        raise DataError(f"the self-test failed for {', '.join(failed)}; the reasons are above and in {path}")


@ledger.command()
@ledger_option
@boards_argument
def show(path: Path, boards: tuple[str, ...]) -> None:
    """Print the self-tests and latencies of each board.

    With BOARD, only the boards whose name contains it.
    """
    from fer_bench.ledger.entries import read_ledger
    from fer_bench.ledger.entries import show as text

    say(text(_chosen(read_ledger(path), boards, path)))


@ledger.command()
@ledger_option
@boards_argument
def compare(path: Path, boards: tuple[str, ...]) -> None:
    """Print p50 in ms and the multiple of the roofline, boards side by side.

    With BOARD, only the boards whose name contains it.
    """
    from fer_bench.ledger.entries import compare as text
    from fer_bench.ledger.entries import read_ledger

    say(text(_chosen(read_ledger(path), boards, path)))


def _chosen(found: list[Board], names: tuple[str, ...], path: Path) -> list[Board]:
    from fer_bench.ledger.entries import ADVICE

    if not found:
        raise DataError(f"{path} has no board; {ADVICE}")
    for name in names:
        if all(name.lower() not in board.name.lower() for board in found):
            raise DataError(f"{path} has no board {name}; it has {', '.join(board.name for board in found)}")
    return [board for board in found if not names or any(name.lower() in board.name.lower() for name in names)]
