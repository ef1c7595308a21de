"""`fer-infer --devices`: the execution providers that onnxruntime offers here, and the wheels for others."""

from __future__ import annotations

import click

from fer_runtime.cli.options import DevicesRun
from fer_runtime.model.providers import ARITHMETICS, DISTRIBUTIONS, PLUGIN_WHEELS, how_to_get
from fer_runtime.model.session import available_providers, register_plugins, runtime_version, silence
from fer_runtime.text import printable


def list_devices(options: DevicesRun) -> bool:
    """Print a line per provider; never a failure."""
    silence()
    listed = set()
    click.echo(f"onnxruntime {runtime_version()}")
    for provider in available_providers():
        listed.add(provider)
        click.echo(_line(provider, "built in", ""))
    for registered in register_plugins():
        source = f"{registered.plugin.module} {registered.plugin.version}".strip()
        for provider in registered.providers:
            listed.add(provider)
            click.echo(_line(provider, source, ", ".join(registered.kinds)))
        if registered.problem is not None:
            click.echo(_line("-", source, registered.problem))
    for provider in (*PLUGIN_WHEELS, *DISTRIBUTIONS):
        if provider not in listed:
            click.echo(_line(provider, "not available", how_to_get(provider)))
    return False


def _line(provider: str, source: str, note: str) -> str:
    others = [arithmetic for arithmetic in ARITHMETICS.get(provider, ()) if arithmetic != "fp32"]
    names = provider + "".join(f", {provider}:{arithmetic}" for arithmetic in others)
    return printable(f"  {names:26}  {source:30}  {note}").rstrip()
