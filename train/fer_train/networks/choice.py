"""The option `--model` of the commands that make networks."""

from __future__ import annotations

import click

from fer_runtime.command import RegistryChoice
from fer_train.networks.architectures import ARCHITECTURES, find_architecture


class NetworkChoice(RegistryChoice):
    """A registered network, or one of others: timm:NAME, package.module:function, an entry point."""

    name = "network"

    def __init__(self) -> None:
        super().__init__(ARCHITECTURES)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(ARCHITECTURES)}|timm:NAME|MODULE:FUNCTION]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return find_architecture(value).name
        except ValueError as error:
            self.fail(str(error), param, ctx)
