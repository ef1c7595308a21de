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
