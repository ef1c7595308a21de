"""The README's table says what the results files say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fer_runtime.errors import DataError
from studies.readme_table import END, START, outdated_models, read_results, render_table, replace_table

CHECKOUT = Path(__file__).parents[2]


def _latency(engine: str, precision: str, p50_ms: float, *, batch: int = 1) -> dict[str, Any]:
    return {
        "engine": engine,
        "model": "v0",
        "precision": precision,
        "batch": batch,
        "threads": 1,
        "p50_ms": p50_ms,
        "images_per_second": batch / p50_ms * 1000,
        "times_roofline": p50_ms / 0.05,
        "model_bytes": 1_290_000,
    }


def _results() -> dict[str, dict[str, Any]]:
    machine = {
        "cpu": "Some CPU",
        "cpu_flags": ["avx2"],
        "system": "Linux x86_64",
        "versions": {"onnxruntime": "1.2.3"},
        "commit": "abc",
        "date": "2026-01-02T03:04:05",
    }
    rows = [_latency("onnxruntime", "int8", 0.08), _latency("torch", "fp32", 0.4)]
    rows.append(_latency("onnxruntime", "int8", 2.0, batch=32))
    scored = {
        "model": "v0",
        "precision": "int8",
        "images": 3589,
        "accuracy": 0.681,
        "accuracy_interval": [0.666, 0.695],
        "votes": {
            "majority_images": 3100,
            "majority_accuracy": 0.871,
            "majority_accuracy_interval": [0.859, 0.883],
        },
    }
    theirs = {"engine": "fer", "model": "its own", "precision": "tflite", "p50_ms": 0.25, "model_bytes": 93_000}
    return {
        "latency": {"environment": machine, "results": rows},
        "accuracy": {"environment": machine, "results": [scored]},
        "peers": {"environment": machine, "results": [scored | theirs]},
    }


def test_cells_are_those_worked_by_hand() -> None:
    lines = render_table(_results()).splitlines()
    # 0.4 / 0.08
    assert "| **v0** | 87.1% (85.9–88.3) | 68.1% (66.6–69.5) | 0.080 | 5.0× |" in lines
    assert "| `fer` (PyPI) | 87.1% (85.9–88.3) | 68.1% (66.6–69.5) | 0.250 | – |" in lines
    assert "3,100 images have one" in lines[-1]
    assert "Some CPU (avx2), Linux x86_64, ONNX Runtime 1.2.3; commit abc, 2026-01-02." in lines[-1]


def test_an_accuracy_of_another_commit_is_said_to_be_one() -> None:
    results = _results()
    results["accuracy"]["environment"] = results["accuracy"]["environment"] | {"commit": "def"}
    assert "commit abc, accuracy at def, 2026-01-02." in render_table(results)


def test_without_votes_their_column_is_empty() -> None:
    results = _results()
    del results["accuracy"]["results"][0]["votes"]
    assert "| **v0** | – | 68.1% (66.6–69.5) | 0.080 | 5.0× |" in render_table(results)


def test_without_results_there_is_no_table() -> None:
    assert render_table({}) == ""


def test_the_text_around_the_markers_stays() -> None:
    text = f"before\n{START}\nold\n{END}\nafter\n"
    assert replace_table(text, "new\n", source="R") == f"before\n{START}\nnew\n{END}\nafter\n"
    for broken in ("", START, f"{END}{START}", text + text):
        with pytest.raises(DataError, match="R needs one line"):
            replace_table(broken, "new\n", source="R")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "studies.readme_table", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_check_fails_until_the_table_is_written(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{START}\n| stale |\n{END}\n")
    for name, content in _results().items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    places = ("--readme", str(readme), "--results", str(tmp_path))
    failed = _run("--check", *places)
    assert failed.returncode == 1
    assert "make readme-table" in failed.stderr
    assert "stale" in readme.read_text()
    assert _run(*places).returncode == 0
    assert _run("--check", *places).returncode == 0
    assert "5.0×" in readme.read_text()


def test_a_model_that_was_replaced_after_the_measurement_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_0.onnx").write_bytes(b"other")
    (outdated,) = outdated_models(_results(), tmp_path)
    assert "model_0.onnx is not the measured file" in outdated


def test_damaged_results_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "latency.json").write_text("{")
    with pytest.raises(DataError, match="make results"):
        read_results(tmp_path)
