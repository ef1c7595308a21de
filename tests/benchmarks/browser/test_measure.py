"""Timing in a real Chromium: the timed answers are the Python runtime's, the counted bytes those of the files."""

from __future__ import annotations

import pytest
from tests.conftest import CHECKOUT

from fer_bench.browser.measure import BrowserMissingError, BrowserResult, find_chromium, measure_browser
from fer_export.site.write import ORT_WEB_INTEGRITY, ORT_WEB_VERSION, fetch_npm_package
from fer_runtime.errors import DownloadError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.model.certificate import parse_certificate
from fer_runtime.model.metadata import METADATA_KEY, parse_metadata
from fer_runtime.model.onnx_file import read_onnx_file
from fer_runtime.recognizer import Recognizer

MODEL = CHECKOUT / "models" / "model_0.onnx"


def test_rounds_that_differ_make_a_spread() -> None:
    result = BrowserResult(
        name="v0 fp32",
        p50_ms=1.0,
        p95_ms=1.0,
        min_ms=1.0,
        runs=3,
        round_p50_ms=(1.0, 1.25, 1.5),
        cold_ms=9.0,
        transferred_bytes=1,
        probabilities={},
    )
    assert result.spread == pytest.approx(0.5 / 1.25)


def test_what_is_timed_is_an_answer() -> None:
    try:
        find_chromium()
    except BrowserMissingError as error:
        pytest.skip(str(error))
    try:
        fetch_npm_package("onnxruntime-web", ORT_WEB_VERSION, ORT_WEB_INTEGRITY)
        version, (ours, theirs) = measure_browser([("v0 fp32", MODEL)], rounds=2, seconds=0.2, cold_starts=1)
    except DownloadError as error:
        pytest.skip(f"needs packages of npm: {error}")
    assert version.startswith("Chromium 1")

    metadata = parse_metadata(read_onnx_file(MODEL)[0].metadata[METADATA_KEY], source=str(MODEL))
    face = parse_certificate(metadata, source=str(MODEL)).faces[:1]
    with Recognizer(MODEL) as recognizer:
        (expected,) = recognizer.classify(face)
    assert list(ours.probabilities) == list(EXPRESSIONS)
    # The tolerance of the file's own certificate.
    assert list(ours.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-3)
    # face-api.js has names of its own; the seven sum to 1.
    assert set(theirs.probabilities) == {"angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised"}
    assert sum(theirs.probabilities.values()) == pytest.approx(1, abs=1e-4)

    # onnxruntime-web's WebAssembly and the model make almost all of a visit, each fetched once.
    files = 14_239_897 + MODEL.stat().st_size
    assert files < ours.transferred_bytes < files + 300_000
    for result in (ours, theirs):
        assert 0 < result.min_ms <= result.p50_ms <= result.p95_ms < result.cold_ms
        assert result.runs > 2
        assert len(result.round_p50_ms) == 2
