"""Output formats: JSON arrays that are complete however a run ends, and formats that are added from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from tests.processes import wait_until
from tests.runtime.tiny_models import band_face, write_band_model

from fer_runtime.output.rows import JsonArray


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_band_model(tmp_path_factory.mktemp("model") / "bands.onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(3):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), band_face(number))
    return tmp_path / "images"


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "fer_runtime", *map(str, arguments)]


def test_an_array_of_any_rows_is_json() -> None:
    for writes in ([], ["{}\n"], ["{}\n", "", '{"a": "\\n"}\n[2]\n', "3\n"]):
        frame = JsonArray()
        rows = json.loads("".join([*map(frame.rows, writes), frame.end()]))
        assert rows == [json.loads(line) for text in writes for line in text.splitlines()]


def test_json_holds_the_rows_of_json_lines(model: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.json"
    assert subprocess.run(_command(folder, "--model", model, "--output", output)).returncode == 0
    run = subprocess.run(_command(folder, "--model", model), capture_output=True)
    assert json.loads(output.read_text()) == [json.loads(line) for line in run.stdout.splitlines()]
    printed = subprocess.run(_command(folder, "--model", model, "--format", "json"), capture_output=True)
    assert printed.stdout.decode() == output.read_text()
    (tmp_path / "empty").mkdir()
    nothing = subprocess.run(_command(tmp_path / "empty", "--model", model, "--format", "json"), capture_output=True)
    assert (nothing.returncode, json.loads(nothing.stdout)) == (1, [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to_file", [True, False])
def test_json_is_complete_after_a_signal(number: int, to_file: bool, model: Path, folder: Path, tmp_path: Path) -> None:
    written = tmp_path / ("rows.json.partial" if to_file else "printed")
    where = ("--output", tmp_path / "rows.json") if to_file else ("--format", "json")
    with (tmp_path / "printed").open("wb") as printed:
        process = subprocess.Popen(
            _command("-", "--model", model, *where),
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=subprocess.DEVNULL,
            # Tests that a script started in the background inherit a SIGINT that is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    assert process.stdin is not None
    process.stdin.write(f"{folder}/0.png\n".encode() * 600)
    process.stdin.flush()
    wait_until(lambda: written.exists() and written.stat().st_size, process)
    process.send_signal(number)
    assert process.wait(timeout=60) == (143 if number == signal.SIGTERM else 1)
    process.stdin.close()
    rows = json.loads(written.read_text())
    assert {row["path"] for row in rows} == {f"{folder}/0.png"}


def test_a_format_from_outside_is_an_option_with_a_suffix(model: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plugin_names.py").write_text(
        "from fer_runtime.output.formats import OUTPUT_FORMATS, OutputFormat\n"
        "class Names:\n"
        "    def header(self): return 'names\\n'\n"
        "    def row(self, result): return result.path[-5:] + '\\n'\n"
        "OUTPUT_FORMATS.register(OutputFormat(\n"
        "    name='names', help='paths', suffixes=('.names',), images='plugin_names:Names'))\n"
    )
    python_path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": python_path, "FER_EDGE_PLUGINS": "plugin_names"}
    output = tmp_path / "rows.names"
    command = _command(folder, "--model", model, "--output", output)
    assert subprocess.run(command, env=environment).returncode == 0
    assert output.read_text().split() == ["names", "0.png", "1.png", "2.png"]
    help_text = subprocess.run(_command("--help"), env=environment, capture_output=True).stdout
    assert b"names" in help_text.partition(b"--format [")[2].partition(b"]")[0]
