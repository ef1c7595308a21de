"""Every study tells what it does, also where the packages that only it needs are missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.project.test_imports import PREAMBLE

STUDIES = sorted(path.stem for path in (Path(__file__).parents[2] / "benchmarks/studies").glob("[a-z]*.py"))


def _run(study: str, *arguments: str, program: str = "") -> subprocess.CompletedProcess[str]:
    program += (
        f"import runpy, sys\nsys.argv[1:] = {list(arguments)!r}\nrunpy.run_module('studies.{study}', None, '__main__')"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, input="", check=False)


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_shows_its_help(study: str) -> None:
    done = _run(study, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_a_study_without_its_packages_says_what_to_install(tmp_path: Path) -> None:
    assert _run("litert_int8", "--help", program=PREAMBLE).returncode == 0
    done = _run("litert_int8", "--data", str(tmp_path), program=PREAMBLE.replace("{", "{'ai_edge_quantizer', ", 1))
    assert done.returncode == 1
    assert done.stderr.startswith("this needs ai_edge_quantizer, which is not installed; install it with: pip install ")
    assert done.stderr.count("\n") == 1


def test_the_bare_loop_without_a_model_says_how_it_is_called() -> None:
    done = _run("bare_loop")
    assert (done.returncode, done.stdout) == (1, "")
    assert "python -m benchmarks.studies.bare_loop MODEL < list" in done.stderr
