"""The command `fer-export`."""

from __future__ import annotations

from pathlib import Path

import click

from fer_runtime.command import FerCommand, needs_extra
from fer_runtime.models import DEFAULT_MODELS_DIR, MODEL_NAMES, PRECISIONS, Precision

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(cls=FerCommand, context_settings={"max_content_width": 100})
@click.option("--model", type=click.Choice(MODEL_NAMES), help="Network to export: v0, a small CNN; v1, a ResNet18.")
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    help="Arithmetic of the file. May be given several times. [default: fp32]",
)
@click.option("--checkpoint", type=_FILE, help="Trained weights. [default: the model's own in --models-dir]")
@click.option(
    "--data",
    type=_FOLDER,
    help="Labelled faces to compare on: a folder with images/train and images/validation, or with train and "
    "validation. Without it the comparison uses made-up faces.",
)
@click.option("--opset", default=18, show_default=True, help="ONNX opset version.")
@click.option(
    "--models-dir",
    type=_FOLDER,
    default=DEFAULT_MODELS_DIR,
    show_default=True,
    help="Where the checkpoint is read and the model is written.",
)
def main(
    model: str | None,
    precisions: tuple[Precision, ...],
    checkpoint: Path | None,
    data: Path | None,
    opset: int,
    models_dir: Path,
) -> None:
    """Export a trained network to ONNX and check its parity with PyTorch."""
    if model is None:
        raise click.UsageError("Missing option '--model'. Choose from: v0, v1.")
    with needs_extra("export"):  # PyTorch loads slowly and edge devices lack it; --help needs neither
        from fer_export.pipeline import export_model

    exported = export_model(
        model,
        precisions=precisions or ("fp32",),
        checkpoint=checkpoint,
        data=data,
        opset=opset,
        models_dir=models_dir,
    )
    for one in exported:
        for check in one.parity.checks:
            click.echo(f"  {'ok  ' if check.passed else 'FAIL'}  {check.name:<14} {check.detail}")
        click.echo(f"{one.path}  {one.model_bytes / 1e6:.2f} MB")
