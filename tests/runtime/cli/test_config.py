"""Options from fer.toml, and messages as JSON lines."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tests.commands import run_python_text
from tests.runtime.tiny_models import band_face, write_band_model

from fer_runtime.cli import main
from fer_runtime.command import FerGroup
from fer_runtime.log_lines import JsonLines


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: with a model, and an image of a face."""
    import cv2

    write_band_model(tmp_path / "bands.onnx")
    cv2.imwrite(str(tmp_path / "face.png"), band_face(3))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python_text("-m", "fer_runtime", *arguments, timeout=60)


def test_options_come_from_fer_toml_and_the_command_line_wins(folder: Path) -> None:
    (folder / "fer.toml").write_text(
        '[fer-infer]\nmodel = "bands.onnx"\nformat = "csv"\nmin-confidence = 0.9\nevery = 7\n', encoding="utf-8-sig"
    )
    from_file = _run("face.png")
    assert from_file.returncode == 0, from_file.stderr
    assert from_file.stdout.startswith("path,width,height")
    assert "options from fer.toml: model, format, min-confidence, every\n" in from_file.stderr
    # An option for other kinds of run is no error in a file, as it is on the command line.
    assert _run("face.png", "--every", "7").returncode == 2
    given = _run("face.png", "--format", "jsonl", "--quiet")
    assert json.loads(given.stdout)["faces"][0]["uncertain"] is not None
    assert "fer.toml" not in given.stderr


def test_a_named_file_takes_the_place_of_fer_toml_and_may_hold_paths(folder: Path) -> None:
    (folder / "fer.toml").write_text("[fer-infer]\nformat = 'csv'\n")
    (folder / "other.toml").write_text('[fer-infer]\nmodel = "bands.onnx"\npaths = ["face.png", "face.png"]\n')
    done = _run("--config", "other.toml", "--format", "jsonl")
    assert [json.loads(line)["path"] for line in done.stdout.splitlines()] == ["face.png", "face.png"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[fer-infer]\nthread = 2", "[fer-infer] thread: no such option"),
        ("[fer-infr]\nthreads = 2", "there is no command [fer-infr]"),
        ("[fer-infer]\nthreads = 0", "0 is not in the range x>=1. (from fer.toml)"),
        ("[fer-infer]\nthreads = 1.5", "'1.5' is not a valid integer range. (from fer.toml)"),
        ("[fer-infer]\nmin-face = inf", "'inf' is not a valid integer range. (from fer.toml)"),
        ('[fer-infer]\nquiet = "yes"', "expected true or false"),
        ("[fer-infer]\nthreads = true", "expected a text or a number"),
        ("[fer-infer]\nname = [[1]]", "or a list of them"),
        ('[fer-infer]\npaths = ["rtsp://host/"]', "only in a file that --config names"),
        ("fer-infer = 3", "fer-infer must be a table"),
        ("[fer-infer", "is not valid TOML"),
        ("[fer-infer]\nmodel = '\udcff'", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_a_usage_error(folder: Path, text: str, said: str) -> None:
    (folder / "fer.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    result = CliRunner().invoke(main, ["face.png"])
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())


def test_a_number_for_a_file_is_its_name(folder: Path) -> None:
    (folder / "fer.toml").write_text("[fer-infer]\noutput = 3\nmodel = 'bands.onnx'\n")
    assert CliRunner().invoke(main, ["face.png"]).exit_code == 0
    assert (folder / "3").is_file()


def test_a_missing_file_is_a_usage_error(folder: Path) -> None:
    done = _run("face.png", "--config", "none.toml")
    assert done.returncode == 2
    assert "cannot read none.toml: No such file" in done.stderr


def test_a_subcommand_has_a_table_of_its_own(folder: Path) -> None:
    @click.group("fer-bench", cls=FerGroup)
    def bench() -> None:
        """A group."""

    @bench.command()
    @click.option("--threads", type=int)
    def latency(threads: int | None) -> None:
        """A subcommand."""
        click.echo(threads)

    (folder / "fer.toml").write_text("[fer-bench.latency]\nthreads = 3\n")
    assert CliRunner().invoke(bench, ["latency"]).stdout == "3\n"
    assert CliRunner().invoke(bench, ["latency", "--threads", "4"]).stdout == "4\n"
    (folder / "fer.toml").write_text('[fer-bench.latency]\nthreads = "many"\n')
    assert CliRunner().invoke(bench, ["latency"]).stderr.count("(from fer.toml)") == 1
    (folder / "fer.toml").write_text("[fer-bench]\nthreads = 0\n")
    refused = CliRunner().invoke(bench, ["latency"])
    assert refused.exit_code == 2
    assert "expected a table for one of latency" in refused.stderr


def test_every_command_takes_a_config_and_a_log_format(folder: Path) -> None:
    """The table names of config.py are the commands of pyproject.toml."""
    from importlib.metadata import distribution

    from fer_runtime.config import COMMANDS

    scripts = {
        entry_point.name: entry_point
        for entry_point in distribution("fer-edge").entry_points
        if entry_point.group == "console_scripts"
    }
    for name in COMMANDS:
        if name in scripts:
            assert scripts[name].load().name == name


def test_messages_are_json_lines_and_rows_stay_as_they_are(folder: Path) -> None:
    done = _run("face.png", "missing.png", "--model", "bands.onnx", "--log-format", "json", "--format", "jsonl")
    assert done.returncode == 1
    assert [json.loads(row)["path"] for row in done.stdout.splitlines()] == ["face.png", "missing.png"]
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all(set(line) == {"time", "level", "message"} for line in lines)
    assert any("2 images, 1 face" in line["message"] for line in lines)
    failed = _run("--self-test", "--model", "nothing.onnx", "--log-format", "json")
    assert [json.loads(line)["level"] for line in failed.stderr.splitlines()] == ["error"]
    for wrong in (_run("--log-format", "json", "--threads", "0"), _run("--unknown", "--log-format=json")):
        assert [json.loads(line)["level"] for line in wrong.stderr.splitlines()] == ["info", "info", "error"]


def test_json_lines_of_a_command_stay_as_they_are() -> None:
    below = io.StringIO()
    stream = JsonLines(below)
    stream.write('{"event": "request"}\nwarning: hot')
    stream.close()
    first, second = map(json.loads, below.getvalue().splitlines())
    assert first == {"event": "request"}
    assert (second["level"], second["message"]) == ("warning", "hot")


def test_no_module_of_the_file_is_loaded_without_one(folder: Path) -> None:
    program = (
        "import sys; from fer_runtime.cli import main\n"
        "try: main(['--list-models'])\nexcept SystemExit: pass\n"
        "print([one for one in ('tomllib', 'fer_runtime.config', 'fer_runtime.log_lines') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ})
    assert done.stdout.splitlines()[-1] == "[]"
