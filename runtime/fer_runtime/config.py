"""Options from a file: `fer.toml` in the current folder, or the one that `--config` names.

    [fer-infer]
    model = "v3"
    min-confidence = 0.6

    [fer-bench.latency]
    threads = 2

Each table is a command (or `command.subcommand`), each key one of its options without the dashes. The command line
wins.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import click

COMMANDS = ("fer-data", "fer-train", "fer-export", "fer-infer", "fer-serve", "fer-bench")
_MAX_BYTES = 1 << 20


def read_settings(command: click.Command, path: str, *, with_arguments: bool) -> dict[str, Any]:
    """The values for `command` in a file, by parameter name; of a group, a table for each subcommand.

    Args:
        with_arguments: whether the table may also hold arguments, such as `paths`.

    Raises:
        click.UsageError: the file cannot be read, or names what is no command or no option.
    """
    tables = _parse(path)
    for name in tables:
        if name not in COMMANDS:
            raise click.UsageError(f"{path}: there is no command [{name}]; expected one of {', '.join(COMMANDS)}")
    table = tables.get(str(command.name), {})
    if not isinstance(table, dict):
        raise click.UsageError(f"{path}: {command.name} must be a table; write [{command.name}] above its options")
    return _settings(command, table, f"{path}: [{command.name}]", with_arguments)


def _settings(command: click.Command, table: Mapping[str, Any], where: str, with_arguments: bool) -> dict[str, Any]:
    if isinstance(command, click.Group):
        settings = {}
        for name, values in table.items():
            subcommand = command.commands.get(name)
            if subcommand is None or not isinstance(values, dict):
                raise click.UsageError(f"{where} {name}: expected a table for one of {', '.join(command.commands)}")
            settings[name] = _settings(subcommand, values, f"{where[:-1]}.{name}]", with_arguments)
        return settings
    names: dict[str, click.Parameter] = {}
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            names.update({option.lstrip("-"): parameter for option in parameter.opts if option.startswith("--")})
        elif with_arguments:
            names[str(parameter.name)] = parameter
        elif parameter.name in table:
            raise click.UsageError(f"{where} {parameter.name}: only in a file that --config names")
    return {
        str(_parameter(names, key, where).name): _checked(_parameter(names, key, where), value, f"{where} {key}")
        for key, value in table.items()
    }


def _parameter(names: Mapping[str, click.Parameter], key: str, where: str) -> click.Parameter:
    found = names.get(key) or names.get(key.replace("_", "-"))
    if found is None:
        raise click.UsageError(f"{where} {key}: no such option (--help lists them)")
    return found


def _checked(parameter: click.Parameter, value: Any, where: str) -> Any:
    """`value`, where its kind is that of the option; the command checks the rest, as of the command line."""
    is_flag = isinstance(parameter, click.Option) and parameter.is_flag
    takes_many = parameter.nargs != 1 or bool(getattr(parameter, "multiple", False))
    values = value if takes_many and isinstance(value, list) else [value]
    for given in values:
        if isinstance(given, bool) != is_flag or not isinstance(given, (bool, int, float, str)):
            kind = "true or false" if is_flag else "a text or a number"
            raise click.UsageError(f"{where} = {given!r}: expected {kind}{', or a list of them' if takes_many else ''}")
    if is_flag:
        return value
    # As text, which is what a command line holds: click takes 1.5 for the whole number 1, and 3 for an open file.
    return [str(given) for given in values] if takes_many else str(value)


def _parse(path: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > _MAX_BYTES:
                raise click.UsageError(f"{path} is too large for a settings file")
            # Editors on Windows write a byte-order mark.
            tables: dict[str, Any] = tomllib.loads(file.read().decode("utf-8-sig"))
            return tables
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise click.UsageError(f"{path} is not valid TOML: {error}") from error
