"""The Python examples of README and docs: each runs as it stands, beside the pictures that it names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.processes import limited

from fer_runtime.batch.sources import sample_images

CHECKOUT = Path(__file__).parents[2]


def _examples() -> list[tuple[str, str]]:
    pages = [CHECKOUT / "README.md", CHECKOUT / "docs" / "runtime.md"]
    return [
        (f"{page.name}-{number}", code)
        for page in pages
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    ]


@pytest.mark.parametrize(("name", "code"), _examples(), ids=lambda value: value if len(value) < 30 else "")
def test_an_example_runs_and_says_something(name: str, code: str, tmp_path: Path) -> None:
    shutil.copy(sample_images()[0], tmp_path / "portrait.jpg")
    (tmp_path / "holiday" / "beach").mkdir(parents=True)
    shutil.copy(sample_images()[0], tmp_path / "holiday" / "beach" / "1.jpg")
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "happy" in run.stdout


def test_both_pages_have_examples() -> None:
    assert {name.split("-")[0] for name, _ in _examples()} == {"README.md", "runtime.md"}


def test_the_progress_of_a_run_shows_on_a_terminal_only(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty", reason="needs a pseudo-terminal")
    for number in range(5):
        (tmp_path / f"{number}.jpg").symlink_to(sample_images()[2])
    # No half second between two reports, so that a short run has some.
    program = "from fer_runtime.cli import main, progress; progress._SECONDS_BETWEEN = 0; main()"
    command = [sys.executable, "-c", program, str(tmp_path), "--output", str(tmp_path / "rows.jsonl")]
    leader, follower = pty.openpty()
    # Both on the terminal, as people start it; the rows go to a file.
    process = subprocess.Popen(command, stderr=follower, stdout=follower)
    os.close(follower)
    said = b""
    with limited(process):
        while True:
            try:
                block = os.read(leader, 4096)
            except OSError:  # Linux's answer when the other end has closed
                break
            if not block:
                break
            said += block
    process.wait()
    os.close(leader)
    assert re.search(rb"\d+ images of 5, ", said)
    assert b" s left" in said
    silent = subprocess.run(command, capture_output=True)
    assert b"left" not in silent.stderr
    assert b"\r" not in silent.stderr
