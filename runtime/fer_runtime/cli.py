"""The command `fer-infer`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import click

from fer_runtime.command import FerCommand
from fer_runtime.models import DEFAULT_MODELS_DIR, PRECISIONS, Precision

if TYPE_CHECKING:
    from fer_runtime.jobs import JobSummary
    from fer_runtime.recognizer import Recognizer

# The model and precision of a run without --model; README's table has the reason.
DEFAULT_MODEL = "v0"


@click.command(cls=FerCommand, context_settings={"max_content_width": 100})
@click.argument("paths", nargs=-1, metavar="PATH...", type=click.Path(path_type=str))
@click.option("--samples", is_flag=True, help="Run on the photographs that ship with the package.")
@click.option("--recursive", is_flag=True, help="Go down into folders of folders.")
@click.option(
    "--model", default=DEFAULT_MODEL, show_default=True, metavar="v0|v1|FILE", help="Model: a name or an .onnx file."
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Of a named model. [default: the first of fp32, int8, fp16 that is there]",
)
@click.option(
    "--models-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_MODELS_DIR,
    show_default=True,
    help="Where named models are looked for before those inside the package.",
)
@click.option(
    "--detector",
    type=click.Choice(["auto", "haar", "whole"]),
    default="auto",
    show_default=True,
    help="auto: a picture up to 64 pixels on its short side is a face, in larger ones faces are found; "
    "haar: find faces in all; whole: every picture is a face.",
)
@click.option("--min-face", type=click.IntRange(min=1), default=24, show_default=True, help="Smallest face in pixels.")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["table", "jsonl", "csv"]),
    help="Of the rows. [default: table on a terminal, else jsonl]",
)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to FILE, whole or not.")
@click.option("--provider", default="CPU", show_default=True, help="ONNX Runtime execution provider.")
@click.option("--strict", is_flag=True, help="Fail when ONNX Runtime falls back to another provider.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of ONNX Runtime.")
def main(
    paths: tuple[str, ...],
    samples: bool,
    recursive: bool,
    model: str,
    precision: Precision | None,
    models_dir: Path,
    detector: str,
    min_face: int,
    format_name: str | None,
    output: Path | None,
    provider: str,
    strict: bool,
    threads: int,
) -> None:
    """Read expressions from the faces in pictures and folders of pictures.

    \b
    fer-infer --samples                          the photographs that ship with the package
    fer-infer holiday/ --recursive               a table, one line per face
    fer-infer holiday/ --format jsonl | head     one JSON line per picture
    fer-infer crops/ --format csv --output faces.csv

    Every picture gets its row, a broken one with the reason. PATH may be "-": a picture, or a list
    of paths, on standard input. Exits 0 when all went well, 1 when some pictures failed, 2 for
    wrong usage. Opens no network.
    """
    if not paths and not samples:
        raise click.UsageError("Give pictures or folders, or try: fer-infer --samples")
    # OpenCV and ONNX Runtime take 0.1 s to load; --help needs neither.
    from fer_runtime import inputs, jobs
    from fer_runtime.recognizer import Recognizer

    pictures = inputs.Inputs((*paths, *(inputs.sample_pictures() if samples else ())), recursive=recursive)
    with Recognizer(
        model,
        precision=precision,
        models_dir=models_dir,
        detector=detector,
        min_face=min_face,
        threads=threads,
        provider=provider,
        strict=strict,
    ) as recognizer:
        click.echo(f"{recognizer.path}  {recognizer.metadata.precision}  {recognizer.provider}", err=True)
        summary = jobs.JobSummary()
        _write_rows(recognizer, pictures, summary, format_name, output)
    for folder in pictures.only_folders:
        click.echo(f"{folder} holds only folders; add --recursive to go into them", err=True)
    if summary.failed or pictures.only_folders:
        sys.exit(1)


def _write_rows(
    recognizer: Recognizer, pictures: object, summary: JobSummary, format_name: str | None, output: Path | None
) -> None:
    from fer_runtime import inputs, jobs
    from fer_runtime.output import FORMATS

    assert isinstance(pictures, inputs.Inputs)
    to_terminal = output is None and sys.stdout.isatty()
    rows = FORMATS[format_name or ("table" if to_terminal else "jsonl")]()
    started = perf_counter()
    with _sink(output) as write:
        write(rows.header())
        for result in jobs.recognize_files(recognizer, pictures, summary=summary):
            write(rows.row(result))
    seconds = perf_counter() - started
    click.echo(
        f"{summary.pictures} pictures, {summary.faces} faces, {summary.failed} failed, "
        f"{seconds:.1f} s, {summary.pictures / max(seconds, 1e-9):.0f} pictures/s",
        err=True,
    )
    for reason, count in summary.failures.most_common():
        click.echo(f"  {count} x {reason}", err=True)
    if pictures.skipped:
        click.echo(f"  {pictures.skipped} files with other suffixes were not read", err=True)


@contextmanager
def _sink(output: Path | None) -> Iterator[Callable[[str], object]]:
    if output is None:
        # Names and reasons may hold anything; the rows are UTF-8 whatever the terminal's locale.
        with open(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", newline="", buffering=1 << 16) as stream:
            yield stream.write
        return
    from fer_runtime.files import replaced_atomically

    with (
        replaced_atomically(output) as partial,
        partial.open("w", encoding="utf-8", newline="", buffering=1 << 20) as stream,
    ):
        yield stream.write
