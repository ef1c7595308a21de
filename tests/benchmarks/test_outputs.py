"""What is written at the end of a measurement."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from fer_bench.cli import main


@pytest.mark.parametrize(
    "command",
    [
        ("latency", "--json"),
        ("accuracy", "--data", ".", "--json"),
        ("accuracy", "--data", ".", "--flips"),
        ("robustness", "--data", ".", "--json"),
        ("report", "--data", ".", "--output"),
        ("report", "--data", ".", "--json"),
        ("diff", "v0", ".", "--save"),
        ("diff", "v0", "v1", ".", "--sheet"),
        ("ledger", "add", "--ledger"),
    ],
)
def test_a_file_that_cannot_be_written_is_said_before_anything_is_measured(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for name in ("file/out.json", "/dev/null"):
        done = CliRunner().invoke(main, [*command, name])
        assert done.exit_code == 1
        assert done.output.startswith(("Error: cannot write ", "Error: there is no folder file"))
        assert done.output.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "command",
    [
        ("latency", "--json"),
        ("accuracy", "--data", ".", "--flips"),
        ("report", "--data", ".", "--output"),
        ("diff", "v0", ".", "--save"),
    ],
)
def test_a_model_is_not_replaced_by_results(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.onnx").write_bytes(b"\x08\x0a\x00 a model")
    done = CliRunner().invoke(main, [*command, "mine.onnx"])
    assert done.exit_code == 1
    assert done.output == "Error: mine.onnx is an existing file and no text; give another name, or remove it\n"
    assert (tmp_path / "mine.onnx").read_bytes() == b"\x08\x0a\x00 a model"


def test_a_sheet_is_not_written_among_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    done = CliRunner().invoke(main, ["diff", "v0", "v1", "photos", "--sheet", "photos/holiday.jpg"])
    assert done.exit_code == 2
    assert "--sheet photos/holiday.jpg is inside photos, whose images are read" in done.stderr
