"""`fer-bench interoperability`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from fer_bench.console import NAMED_MODELS_RULE, json_option, models_option, precisions_option, write_json
from fer_runtime.command import FerCommand, say
from fer_runtime.extras import needs_extra
from fer_runtime.model.find import PRECISIONS, Precision
from fer_runtime.shared_options import models_dir_option
from fer_runtime.text import markdown_text

_SECONDS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The result of one program with one file."""

    reader: str
    file: str
    difference: float | None  # largest |Δlogit| from the certificate; None for a check without numbers
    flips: int  # golden faces with another label
    error: str | None
    is_missing: bool = False  # the program is not installed

    def __str__(self) -> str:
        if self.error is not None:
            return self.error
        if self.difference is None:
            return "valid"
        return f"{self.difference:.1e}" + (f", {self.flips} other labels" if self.flips else "")


def read_with(reader: str, path: Path) -> Reading:
    """Run one reader on one file in a process of its own."""
    from fer_bench.interoperability.readers import READERS

    entry = READERS[reader]
    nothing = {"difference": None, "flips": 0}
    if not entry.is_installed:
        error = f"not installed: {entry.install}"
        return Reading(reader=reader, file=path.name, error=error, is_missing=True, difference=None, flips=0)
    done = subprocess.run(
        [sys.executable, "-m", "fer_bench.interoperability.readers", reader, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=_SECONDS,
    )
    if done.returncode < 0:
        answer: dict[str, Any] = {
            "error": f"its process was killed by {signal.Signals(-done.returncode).name}",
            **nothing,
        }
    elif done.returncode:
        answer = {"error": f"its process ended with {done.returncode}", **nothing}
    else:
        answer = nothing | json.loads(done.stdout.splitlines()[-1])
    return Reading(
        reader=reader, file=path.name, error=answer["error"], difference=answer["difference"], flips=answer["flips"]
    )


def table(readings: Sequence[Reading]) -> str:
    """A Markdown table: a row for each program, a column for each file; long reasons below it."""
    files = list(dict.fromkeys(reading.file for reading in readings))
    lines = [f"| program | {' | '.join(map(markdown_text, files))} |", "|---|" + "---:|" * len(files)]
    notes: list[str] = []
    for reader in dict.fromkeys(reading.reader for reading in readings):
        cells = []
        for reading in (reading for reading in readings if reading.reader == reader):
            text = str(reading)
            if reading.error is not None:
                if text not in notes:
                    notes.append(text)
                text = f"no ({notes.index(text) + 1})"
            cells.append(text)
        lines.append(f"| {markdown_text(reader)} | {' | '.join(cells)} |")
    return "\n".join(
        [*lines, "", *(f"{number}. {markdown_text(note)}" for number, note in enumerate(notes, 1))]
    ).rstrip()


@click.command(cls=FerCommand, rules=(NAMED_MODELS_RULE,))
@models_option
@precisions_option
@models_dir_option
@click.option("--fetch", is_flag=True, help="Fetch onnxruntime-web with npm, once, at a pinned version.")
@json_option
def interoperability(
    models: tuple[str, ...],
    precisions: tuple[Precision, ...],
    models_dir: Path,
    fetch: bool,
    json_path: Path | None,
) -> None:
    """Run the golden faces of model files in other programs.

    Prints a Markdown table of the largest |Δlogit| from each file's certificate, or why a program cannot read the file.
    """
    from fer_bench.latency.measure import configurations

    with needs_extra("bench"):
        from fer_bench.environment import environment
        from fer_bench.interoperability.readers import READERS
    files = configurations(
        models=models, precisions=precisions or PRECISIONS, engines=("onnxruntime",), models_dir=models_dir
    )
    if fetch:
        from fer_export.site.write import ORT_WEB_INTEGRITY, ORT_WEB_VERSION, fetch_npm_package

        fetch_npm_package("onnxruntime-web", ORT_WEB_VERSION, ORT_WEB_INTEGRITY)
    readings = []
    for reader in READERS:
        for file in files:
            readings.append(read_with(reader, file.source))
            say(f"{reader}: {file.source.name}: {readings[-1]}", err=True)
    say(table(readings))
    write_json(json_path, environment(), [asdict(reading) for reading in readings])
