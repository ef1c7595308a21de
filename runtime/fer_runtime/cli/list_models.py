"""`fer-infer --list-models`: what `--model NAME` finds."""

from __future__ import annotations

import click

from fer_runtime.cli.options import ListModelsRun
from fer_runtime.model.find import available_models, check_models_dir
from fer_runtime.text import printable


def list_models(options: ListModelsRun) -> bool:
    """Print a line per model; whether there is none."""
    check_models_dir(options.models_dir)
    models = available_models(options.models_dir)
    for model in models:
        click.echo(f"{printable(model.name)}  {model.precision}  {printable(model.path)}")
    if not models:
        click.echo("no models found; write one with: fer-export --model v0", err=True)
    return not models
