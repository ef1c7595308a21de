"""What holds for the options of all commands."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points, version

import click
import pytest
from click.testing import CliRunner

from fer_runtime.command import FerCommand


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
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize("option", ["--models-dir", "--precision", "--seed"])
def test_an_option_means_the_same_everywhere(option: str) -> None:
    """What was given to one command can be given to the next."""
    meanings = {
        path: parameter.type.to_info_dict()
        for path, command in COMMANDS.items()
        for parameter in command.params
        if isinstance(parameter, click.Option) and option in parameter.opts
    }
    first = next(iter(meanings.values()))
    assert {path: meaning for path, meaning in meanings.items() if meaning != first} == {}


@pytest.mark.parametrize("path", COMMANDS)
def test_no_option_takes_nan_for_a_number(path: str) -> None:
    """Every comparison with NaN is false, so click's own ranges take it."""
    command = COMMANDS[path]
    floats = (click.FloatRange, type(click.FLOAT))
    options = [option for option in command.params if isinstance(option.type, floats)]
    for option in options:
        with pytest.raises(click.BadParameter, match="not a number"):
            option.type.convert("nan", option, None)


@pytest.mark.parametrize("path", [path for path in COMMANDS if " " not in path])
def test_every_command_tells_its_version(path: str) -> None:
    assert CliRunner().invoke(COMMANDS[path], ["--version"]).output == f"fer-edge {version('fer-edge')}\n"


@pytest.mark.parametrize("path", [path for path, command in COMMANDS.items() if getattr(command, "runs", ())])
def test_every_option_is_used_by_a_run_and_every_run_names_options(path: str) -> None:
    """A class per kind of run says what it uses; `take_options` refuses the rest."""
    command = COMMANDS[path]
    assert isinstance(command, FerCommand)
    parameters = {parameter.name for parameter in command.params}
    used = {run: set(run.names()) for run in command.runs}
    assert {run.__name__: names - parameters for run, names in used.items() if names - parameters} == {}
    assert parameters - set().union(*used.values()) == set()
    assert {name for rule in command.rules for name in rule.options} <= parameters
    assert [run for run in command.runs if not run.title] == []


@pytest.mark.parametrize("path", COMMANDS)
def test_the_short_option_shows_the_same_help(path: str) -> None:
    program, *subcommands = path.split()
    shown = [CliRunner().invoke(COMMANDS[program], [*subcommands, option]) for option in ("-h", "--help")]
    assert shown[0].exit_code == 0
    assert shown[0].output == shown[1].output
