"""What holds for the options of all commands."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points, version

import click
import pytest
from click.testing import CliRunner


def all_commands() -> Iterator[tuple[str, click.Command]]:
    for script in entry_points(group="console_scripts"):
        if script.value.startswith("fer_"):
            yield from within(script.name, script.load())


def within(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, subcommand in command.commands.items():
            yield from within(f"{path} {name}", subcommand)


COMMANDS = dict(all_commands())


@pytest.mark.parametrize("path", COMMANDS)
def test_every_option_is_explained(path: str) -> None:
    command = COMMANDS[path]
    assert command.help
    options = [one for one in command.params if isinstance(one, click.Option)]
    assert [one.name for one in options if not one.help] == []


@pytest.mark.parametrize("option", ["--models-dir", "--precision", "--seed"])
def test_an_option_means_the_same_everywhere(option: str) -> None:
    """What was given to one command can be given to the next."""
    meanings = {
        path: one.type.to_info_dict()
        for path, command in COMMANDS.items()
        for one in command.params
        if isinstance(one, click.Option) and option in one.opts
    }
    first = next(iter(meanings.values()))
    assert {path: meaning for path, meaning in meanings.items() if meaning != first} == {}


@pytest.mark.parametrize("path", [path for path in COMMANDS if " " not in path])
def test_every_command_tells_its_version(path: str) -> None:
    assert CliRunner().invoke(COMMANDS[path], ["--version"]).output == f"fer-edge {version('fer-edge')}\n"
