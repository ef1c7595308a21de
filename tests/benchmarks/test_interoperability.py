"""Other programs on our files: what they compute is held against the certificate, and none ends the table."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.runtime.tiny_models import write_band_model

from fer_bench.interoperability.command import Reading, read_with, table

MODELS = Path(__file__).parents[2] / "models"


def test_onnxruntime_computes_the_certificate_and_opencv_does_not_compute_int8() -> None:
    same = read_with("ONNX Runtime, ORT_ENABLE_ALL", MODELS / "model_0.int8.onnx")
    assert same.error is None
    # Our int8 files are bit-equal on every processor.
    assert same.difference == 0
    other = read_with("OpenCV dnn, face by face", MODELS / "model_0.int8.onnx")
    assert other.error is None
    assert other.difference is not None
    assert other.difference > 0.1
    assert other.flips > 0
    rows = table([same, other]).splitlines()
    assert rows[0] == "| program | model_0.int8.onnx |"
    assert rows[2] == "| ONNX Runtime, ORT_ENABLE_ALL | 0.0e+00 |"
    assert rows[3].startswith("| OpenCV dnn, face by face | ")
    assert "other labels |" in rows[3]


def test_a_file_without_a_certificate_is_no_row_of_figures(tmp_path: Path) -> None:
    reading = read_with("onnx.checker, full", write_band_model(tmp_path / "bands.onnx"))
    assert reading.error == "its process ended with 1"
    assert table([reading]).splitlines()[2:] == ["| onnx.checker, full | no (1) |", "", "1. its process ended with 1"]


def test_a_missing_program_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    reading = read_with("onnxruntime-web, WebAssembly", MODELS / "model_0.onnx")
    assert reading == Reading(
        reader="onnxruntime-web, WebAssembly",
        file="model_0.onnx",
        difference=None,
        flips=0,
        error="not installed: install Node.js 20 or later",
        is_missing=True,
    )
