"""The subcommand `fer-bench diff`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fer_bench.console import FILE, IMAGE_OUTPUT_FILE, OUTPUT_FILE
from fer_bench.engines import ENGINES
from fer_runtime.command import FerCommand, RegistryChoice, say
from fer_runtime.detectors import DETECTORS
from fer_runtime.errors import DataError
from fer_runtime.model.find import PRECISIONS, Precision, is_model_file
from fer_runtime.shared_options import detector_rule, models_dir_option

if TYPE_CHECKING:
    from fer_bench.diff import Run


@click.command(cls=FerCommand, rules=(detector_rule("yunet"),))
@click.argument("runs", nargs=-1, required=True, metavar="A [B] FOLDER")
@models_dir_option
@click.option(
    "--detector",
    type=RegistryChoice(DETECTORS),
    help="How to find faces. {entries} [default: as fer-infer does]",
)
@click.option("--yunet", type=FILE, help="YuNet's file. [default: the one that fer-infer --fetch-yunet stored]")
@click.option(
    "--save",
    type=OUTPUT_FILE,
    metavar="FILE",
    help="Write the results of A to FILE (.json), to compare with elsewhere.",
)
@click.option(
    "--sheet", type=IMAGE_OUTPUT_FILE, metavar="FILE", help="Write an image of the changed faces, .jpg or .png."
)
def diff(
    runs: tuple[str, ...],
    models_dir: Path,
    detector: str | None,
    yunet: Path | None,
    save: Path | None,
    sheet: Path | None,
) -> None:
    """Find the faces whose label differs between A and B, and the cause.

    A and B are a model (v3, v3:fp32 or FILE.onnx), run here over the images of FOLDER, or a run that --save wrote on
    another machine or with another version. @ENGINE after a model runs its graph in another engine of `fer-bench
    latency`. Labels of the images are not needed. Exits 1 if any answer differs.

    \b
    fer-bench diff v3:int8 v3:fp32 photos/                what int8 changes
    fer-bench diff v3:int8 v3:int8@openvino photos/       what OpenVINO changes
    fer-bench diff v3:fp32 v3@torch photos/               what the export changes
    fer-bench diff v3 photos/ --save pi.json              on the Raspberry Pi
    fer-bench diff pi.json v3 photos/                     here

    The stage is the first whose result differs: reading (the decoded pixels), detecting (the box), cropping (the face
    that the model takes), graph (only the answer).
    """
    from fer_bench import diff as work

    *sides, folder_name = runs
    folder = Path(folder_name)
    if len(sides) not in (1, 2):
        raise click.UsageError("give A, B and a folder, or A and a folder with --save FILE")
    if not folder.is_dir():
        raise click.UsageError(f"{folder} is no folder; give A, B and a folder, or A and a folder with --save FILE")
    if len(sides) == 1 and save is None:
        raise click.UsageError("there is nothing to compare with; give B, or --save FILE")
    if sheet is not None and folder.resolve() in sheet.resolve().parents:
        raise click.UsageError(
            f"--sheet {sheet} is inside {folder}, whose images are read; choose a folder outside of it"
        )
    observed = [_run(side, folder, models_dir, detector, yunet) for side in sides]
    if save is not None:
        work.save_run(observed[0], save)
        say(save, err=True)
    if len(observed) == 1:
        return
    first, second = observed
    changes = work.compare_runs(first, second)
    say(work.format_changes(first, second, changes))
    if sheet is not None and changes:
        from fer_runtime.output.annotate import write_image

        write_image(sheet, work.draw_changes(changes, folder))
        say(sheet, err=True)
    if changes:
        sys.exit(1)


def _run(side: str, folder: Path, models_dir: Path, detector: str | None, yunet: Path | None) -> Run:
    from fer_bench import diff as work
    from fer_runtime.batch.sources import find_images
    from fer_runtime.recognizer import Recognizer

    if side.endswith(".json"):
        return work.load_run(Path(side))
    name, engine, precision = side, "", None
    if "@" in side and not Path(side).is_file():
        name, _, engine = side.rpartition("@")
        if engine not in ENGINES:
            raise click.UsageError(f"no engine {engine!r}; one of: {', '.join(ENGINES)}")
    if not is_model_file(name) and ":" in name:
        name, _, variant = name.rpartition(":")
        precision = _precision(variant)
    with ExitStack() as stack:
        recognizer = stack.enter_context(
            Recognizer(name, precision=precision, models_dir=models_dir, detector=detector or "auto", yunet=yunet)
        )
        answer = work.answers_of(recognizer, engine, model=name, models_dir=models_dir) if engine else None
        paths = [Path(path) for path in find_images(folder, recursive=True)]
        if not paths:
            raise DataError(f"{folder} and its subfolders hold no image; give a folder of images")
        return work.observe(recognizer, folder, paths, engine=engine, answer=answer)


def _precision(text: str) -> Precision:
    for precision in PRECISIONS:
        if precision == text:
            return precision
    raise click.UsageError(f"no precision {text!r}; one of: {', '.join(PRECISIONS)}")
