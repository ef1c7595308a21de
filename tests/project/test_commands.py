"""What holds for the options of all commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points, version
from pathlib import Path

import click
import cv2
import pytest
from click.testing import CliRunner
from tests.processes import without_roots_rights
from tests.runtime.tiny_models import band_face, write_band_model

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
# As pyproject.toml has them now; an editable install may be older.
SCRIPTS = dict(
    re.findall(
        r'^(fer-\w+) = "(\w[\w.]*):main"$', (Path(__file__).parents[2] / "pyproject.toml").read_text(), re.MULTILINE
    )
)


@pytest.mark.parametrize("path", COMMANDS)
def test_every_option_is_explained(path: str) -> None:
    command = COMMANDS[path]
    assert command.help
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize(
    ("script", "words", "completed"),
    [
        ("fer-infer", "fer-infer --fetch-y", "--fetch-yunet"),
        ("fer-bench", "fer-bench laten", "latency"),
    ],
)
def test_a_shell_completes_options_and_subcommands(script: str, words: str, completed: str) -> None:
    variables = {
        f"_{script.replace('-', '_').upper()}_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": "1",
    }
    program = f"import sys; sys.argv = [{script!r}]; from {SCRIPTS[script]} import main; main(prog_name={script!r})"
    run = subprocess.run([sys.executable, "-c", program], env=os.environ | variables, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == (f"plain,{completed}\n", "")


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


@pytest.mark.parametrize("path", COMMANDS)
def test_no_path_is_empty_and_no_fifo_is_a_folder(path: str, tmp_path: Path) -> None:
    """A variable of the shell without a value gives an empty name, which pathlib takes for the current folder."""
    fifo = str(tmp_path / "fifo")
    if hasattr(os, "mkfifo"):
        os.mkfifo(fifo)
    for option in COMMANDS[path].params:
        if not isinstance(option.type, click.Path) or option.name == "paths":  # whose rows say what each of them is
            continue
        with pytest.raises(click.BadParameter, match=r"the name is empty; the current folder is \."):
            option.type.convert("", option, None)
        with pytest.raises(click.BadParameter, match="null byte"):
            option.type.convert("a\0b", option, None)
        if not option.type.file_okay and hasattr(os, "mkfifo"):
            with pytest.raises(click.BadParameter, match="is not a folder"):
                option.type.convert(fifo, option, None)


_TOO_LARGE = 10**20


@pytest.mark.parametrize(
    "arguments",
    [
        f"fer-infer . --min-face {_TOO_LARGE}",
        f"fer-infer . --engine ray --workers {_TOO_LARGE}",
        f"fer-serve --min-face {_TOO_LARGE}",
        "fer-serve --timeout inf",
        "fer-serve --batch-wait 1e300",
        f"fer-train --model v0 --seed {_TOO_LARGE}",
        "fer-train --model v0 --seed -1",
        "fer-train --model v0 --lr 1e300",
        f"fer-data crop a --output b --min-face {_TOO_LARGE}",
        f"fer-export --model v0 --batch {_TOO_LARGE}",
        "fer-bench robustness --data . --seed -1",
        f"fer-bench serve --faces {_TOO_LARGE}",
        f"fer-bench serve --clients {_TOO_LARGE}",
    ],
)
def test_a_number_that_a_library_cannot_take_is_a_usage_error(arguments: str) -> None:
    command, *given = arguments.split()
    run = CliRunner().invoke(COMMANDS[command], given)
    assert (run.exit_code, "is not in the range" in run.stderr) == (2, True), run.stderr


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("fer-infer", "a.jpg --detector haar --yunet b", "--yunet: only with --detector auto or yunet"),
        ("fer-data", "crop a --output b --detector haar --yunet c", "--yunet: only with --detector auto or yunet"),
        ("fer-data", "crop a --output b --detector whole --min-face 9", "--min-face: only with --detector auto, haar"),
        ("fer-bench", "diff a b c --detector whole --yunet d", "--yunet: only with --detector yunet"),
    ],
)
def test_what_a_detector_does_not_use_is_refused_in_every_command(path: str, arguments: str, message: str) -> None:
    run = CliRunner().invoke(COMMANDS[path], arguments.split())
    assert (run.exit_code, message in run.stderr) == (2, True), run.stderr


_OF_NAMED_MODELS = {
    "fer-infer": ("--samples", "--precision", "int8"),
    "fer-serve": ("--precision", "int8"),
    "fer-data audit": (".",),
    "fer-export": ("--site", "site", "--precision", "int8"),
    "fer-bench latency": ("--precision", "int8"),
    "fer-bench accuracy": ("--data", ".", "--precision", "int8"),
    "fer-bench robustness": ("--data", ".", "--precision", "int8"),
    "fer-bench report": ("--data", ".", "--precision", "int8"),
    "fer-bench unfamiliar": ("--precision", "int8"),
    "fer-bench reasons": ("--data", ".", "--precision", "int8"),
    "fer-bench serve": ("--precision", "int8"),
    "fer-bench interoperability": ("--precision", "int8"),
    "fer-bench ledger add": ("--precision", "int8"),
}


@pytest.mark.parametrize(("path", "more"), _OF_NAMED_MODELS.items())
def test_what_chooses_among_the_files_of_a_name_is_refused_with_a_file(path: str, more: tuple[str, ...]) -> None:
    program, *subcommands = path.split()
    arguments = (*subcommands, *more, "--model", "a/b.onnx", "--models-dir", "c")
    run = CliRunner().invoke(COMMANDS[program], arguments)
    refused = "--precision, --models-dir" if "--precision" in more else "--models-dir"
    message = f"Error: {refused}: only with the name of a model, not with --model FILE"
    assert (run.exit_code, run.stderr.splitlines()[-1]) == (2, message)


def test_a_watched_folder_serves_its_files_whatever_their_precision(tmp_path: Path) -> None:
    run = CliRunner().invoke(COMMANDS["fer-serve"], ["--watch", str(tmp_path), "--precision", "int8"])
    assert (run.exit_code, "--precision: only with the name of a model; --watch serves" in run.stderr) == (2, True)


def test_every_command_that_finds_models_by_name_is_in_the_list_above() -> None:
    finds = {
        path
        for path, command in COMMANDS.items()
        if {"--model", "--models-dir"} <= {option for parameter in command.params for option in parameter.opts}
    }
    assert finds - _OF_NAMED_MODELS.keys() == {"fer-train", "fer-bench browser"}  # which take names alone


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


@pytest.mark.parametrize("module", ["click", "plugin"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_ctrl_c_ends_a_command_alike_before_and_after_its_imports(name: str, module: str, tmp_path: Path) -> None:
    """Every command imports click first of all, and a plugin when it has everything that it needs."""
    (tmp_path / f"{module}.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        "FER_EDGE_PLUGINS": "plugin",
    }
    program = f"import sys\nfrom {SCRIPTS[name]} import main\nsys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "\nAborted!\n")


def test_a_models_folder_that_cannot_be_read_stops_only_runs_that_need_it(tmp_path: Path) -> None:
    model = write_band_model(tmp_path / "bands.onnx")
    cv2.imwrite(str(tmp_path / "face.png"), band_face(0))
    (tmp_path / "models").mkdir(mode=0)

    def run(*arguments: object) -> tuple[int, str]:
        command = [*without_roots_rights(), sys.executable, "-m", "fer_runtime", "face.png", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        return ended.returncode, ended.stderr

    assert run("--model", model, "--quiet") == (0, "")
    assert run() == (1, f"Error: {_UNREADABLE}\n")
    code, message = run("--models-dir", "models")
    assert (code, "Directory 'models' is not readable." in message) == (2, True)


_UNREADABLE = (
    "the folder models cannot be read: permission denied; change its permissions, or give another --models-dir"
)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("fer-infer --devices", ""),
        ("fer-export --inspect bands.onnx", ""),
        ("fer-infer --list-models", _UNREADABLE),
        ("fer-bench latency --model v0", _UNREADABLE),
        ("fer-export --name mine", _UNREADABLE),
        ("fer-export --adopt bands.onnx --input gray48 --range 0..1", _UNREADABLE),
        ("fer-train --model v0", _UNREADABLE),
    ],
)
def test_no_other_command_takes_an_unreadable_models_folder_for_an_empty_one(
    arguments: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_band_model(tmp_path / "bands.onnx")
    (tmp_path / "models").mkdir()
    access = os.access  # root may read everything
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "models" and access(path, mode))
    command, *given = arguments.split()
    run = CliRunner().invoke(COMMANDS[command], given)
    assert (run.exit_code, run.stderr) == ((1, f"Error: {says}\n") if says else (0, "")), run.output


def test_a_file_with_the_name_of_the_models_folder_is_no_folder_of_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").touch()
    main = COMMANDS["fer-infer"]
    run = CliRunner().invoke(main, ["--samples", "--quiet", "--model", "v0", "--output", "rows.jsonl"])
    assert run.exit_code == 0, run.output
    assert "is a file" in CliRunner().invoke(main, ["--samples", "--models-dir", "models"]).stderr
