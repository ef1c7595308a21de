"""Latency of real sessions in real processes, and the comparison of two measurements."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from tests.runtime.tiny_models import write_band_model

from fer_bench.cli import main
from fer_bench.latency.compare import compare_results
from fer_bench.latency.measure import Configuration, LatencyResult, _reference, configurations, measure_latency
from fer_bench.latency.roofline import (
    _COLUMNS,
    _DEPTH,
    _ROWS,
    PeakRates,
    rows_with_roofline,
    warn_below_roofline,
)
from fer_runtime.errors import ModelFileError
from fer_runtime.model.session import open_session


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_band_model(tmp_path_factory.mktemp("models") / "bands.onnx")


def _measure(model: Path) -> LatencyResult:
    wanted = configurations(models=[str(model)], engines=["onnxruntime"], models_dir=model.parent)
    results, unavailable = measure_latency(wanted, rounds=4, seconds=0.05)
    assert not unavailable
    (result,) = results
    return result


def test_a_configuration_is_timed_in_its_own_process(model: Path) -> None:
    result = _measure(model)
    assert 0 < result.min_ms <= result.p50_ms <= result.p95_ms <= result.p99_ms
    assert result.images_per_second == pytest.approx(1000 / result.p50_ms)
    assert len(result.round_p50_ms) == len(result.round_control_ms) == 4
    assert all(control > 0 for control in result.round_control_ms)
    assert result.runs >= 12
    assert result.warmup_runs > 0
    assert result.peak_mb > 10
    assert set(result.cold_start_cpu_ms) == {"python_ms", "numpy_ms", "engine_ms", "model_ms", "first_run_ms"}
    assert all(stage > 0 for stage in result.cold_start_cpu_ms.values())
    assert result.model_bytes == model.stat().st_size


@pytest.mark.skipif(sys.platform != "linux", reason="another system's peak is its own")
def test_the_peak_is_the_workers_and_not_what_its_parent_held(model: Path) -> None:
    held = np.ones(400_000_000, np.uint8)
    assert _measure(model).peak_mb < held.nbytes / 1e6


def test_an_engine_that_cannot_load_says_why_and_the_others_are_measured(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    wanted = [
        Configuration(engine="onnxruntime", model=path.name, precision="fp32", batch=1, threads=1, source=path)
        for path in (broken, model)
    ]
    results, unavailable = measure_latency(wanted, rounds=2, seconds=0.02)
    assert [result.model for result in results] == ["bands.onnx"]
    assert "broken.onnx cannot be read as an ONNX model: " in unavailable[0].reason


def test_the_roofline_depends_on_the_arithmetic_in_the_file_not_on_its_name(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[3] / "models" / "model_0.int8.onnx"
    renamed = tmp_path / "renamed.onnx"
    renamed.write_bytes(shipped.read_bytes())
    wanted = configurations(models=[str(renamed)], engines=["onnxruntime"], models_dir=tmp_path)
    results, _ = measure_latency(wanted, rounds=2, seconds=0.02)
    (row,) = rows_with_roofline(results, wanted, PeakRates(fp32_macs_per_second=1e6, int8_macs_per_second=2e6))
    assert row["roofline_ms"] == pytest.approx(row["macs"] / 2e6 * 1000)


def test_zeros_that_a_file_adds_are_not_counted() -> None:
    models = Path(__file__).parents[3] / "models"
    wanted = configurations(models=["v0"], engines=["onnxruntime"], precisions=("fp32", "int8"), models_dir=models)
    results, _ = measure_latency(wanted, rounds=2, seconds=0.02)
    rows = rows_with_roofline(results, wanted, PeakRates(fp32_macs_per_second=1e9, int8_macs_per_second=1e9))
    # 3 x 16, 16 x 32 and 32 x 64 filters of 3 x 3 at 48 x 48, 24 x 24 and 12 x 12 places (the export adds up the three
    # equal channels of a gray face, so 1 x 16), then 2304 x 128 and 128 x 7, and the layers of `unfamiliarity`.
    by_hand = 9 * (1 * 16 * 48**2 + 16 * 32 * 24**2 + 32 * 64 * 12**2) + 2304 * 128 + 128 * 7
    shapes = {tensor.name: tensor.dims for tensor in onnx.load(models / "model_0.onnx").graph.initializer}
    units = shapes["unfamiliarity_weights"][1]
    by_hand += 2304 * units + (units if units > 1 else 0)
    assert {row["precision"]: row["macs"] for row in rows} == {"fp32": by_hand, "int8": by_hand}


def test_probabilities_are_held_against_those_of_the_same_batch(model: Path) -> None:
    # Of the first face only, an engine that answers wrongly for the others would pass.
    workers: list[Any] = [
        SimpleNamespace(
            configuration=Configuration(
                engine=engine, model="bands", precision="fp32", batch=batch, threads=1, source=model
            ),
            probabilities=np.full((batch, 7), float(batch)),
        )
        for engine, batch in (("onnxruntime", 1), ("onnxruntime", 4), ("opencv-dnn", 4))
    ]
    found = _reference(workers[2], workers)
    assert found is not None
    assert found.shape == (4, 7)
    assert _reference(workers[2], workers[::2]) is workers[0].probabilities


# An engine that dies as OpenCV does on some graphs, as soon as there is a file beside it.
_CRASHING = """
import os, pathlib, signal
def load(source, *, model, threads, batch):
    def run(faces):
        if pathlib.Path(__file__).with_name("crash").exists():
            os.kill(os.getpid(), signal.SIGFPE)
        return faces[:, 0, :7]
    return run
"""


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_crashed_engine_is_named_and_the_others_are_measured(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    (tmp_path / "crashing.py").write_text(_CRASHING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    crashing = Configuration(
        engine="crashing", model=when, precision="fp32", batch=1, threads=1, source=model, code="crashing:load"
    )
    good = configurations(models=[str(model)], engines=["onnxruntime"], models_dir=model.parent)
    crash = tmp_path / "crash"
    if when == "at once":
        crash.touch()
    # Otherwise in its second turn.
    results, unavailable = measure_latency(
        [crashing, *good], rounds=3, seconds=0.02, progress=lambda done, of: crash.touch()
    )
    assert [result.engine for result in results] == ["onnxruntime"]
    assert len(results[0].round_p50_ms) == 3
    assert [(missing.configuration.engine, missing.reason) for missing in unavailable] == [
        ("crashing", "its process was killed by SIGFPE")
    ]


def test_a_worker_that_is_killed_between_its_turns_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "calm.py").write_text(
        f"{_CRASHING}\npathlib.Path(__file__).with_name('pid').write_text(str(os.getpid()))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    killed = Configuration(
        engine="calm", model="killed", precision="fp32", batch=1, threads=1, source=model, code="calm:load"
    )
    good = configurations(models=[str(model)], engines=["onnxruntime"], models_dir=model.parent)

    def kill_once(done: int, of: int) -> None:
        if done == 1:
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
            time.sleep(0.2)  # until its end of the pipe is closed

    results, unavailable = measure_latency([killed, *good], rounds=3, seconds=0.02, progress=kill_once)
    assert [result.engine for result in results] == ["onnxruntime"]
    assert [missing.reason for missing in unavailable] == ["its process was killed by SIGKILL"]


def test_a_peers_own_file_is_timed_without_a_targets_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "calm.py").write_text(_CRASHING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    file = tmp_path / "peer.tflite"
    file.write_bytes(bytes(123))
    peer = Configuration(
        engine="peer", model="its own", precision="tflite", batch=1, threads=1, source=file, code="calm:load"
    )
    results, unavailable = measure_latency([peer], rounds=2, seconds=0.02)
    assert not unavailable
    assert [result.model_bytes for result in results] == [123]


def test_a_model_that_is_nowhere_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"none\.onnx"):
        configurations(models=[str(tmp_path / "none.onnx")], models_dir=tmp_path)


def test_the_model_that_was_asked_for_is_the_one_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("fer_runtime.model.find", "fer_bench.latency.measure"):
        monkeypatch.setattr(f"{module}.packaged_models_dir", lambda: tmp_path)
    with pytest.raises(ModelFileError, match="fer-export --model v1"):
        configurations(models=["v1"], models_dir=tmp_path)


def test_a_model_that_was_asked_for_is_not_left_out_silently(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no model named typo: .*known are: v0, v1, v3"):
        configurations(models=["v0", "typo"], models_dir=tmp_path)
    # v1 ships in int8 alone.
    with pytest.raises(ModelFileError, match=r"no model v1 .*: fer-export --model v1 --precision fp32$"):
        configurations(models=["v0", "v1"], precisions=["fp32"], engines=["onnxruntime"], models_dir=tmp_path)
    with pytest.raises(ModelFileError, match=r"fer-export --model v0 --precision fp32 --target ncnn$"):
        configurations(models=["v0"], precisions=["fp32"], engines=["ncnn"], models_dir=tmp_path)


def _results(rounds: list[float], **changes: object) -> list[dict[str, object]]:
    result = {"engine": "onnxruntime", "model": "v0", "precision": "fp32", "batch": 1, "threads": 1}
    return [result | {"p50_ms": sorted(rounds)[len(rounds) // 2], "round_p50_ms": rounds} | changes]


def test_twenty_per_cent_slower_is_a_regression_and_noise_is_not() -> None:
    old = _results([1.00, 1.02, 0.99, 1.01, 1.00, 1.03, 1.00, 0.98])
    slower = _results([1.20, 1.22, 1.19, 1.21, 1.20, 1.23, 1.20, 1.18])
    # A busy machine: half of the rounds took twice as long.
    busy = _results([1.00, 2.02, 0.99, 2.01, 1.00, 2.03, 1.00, 1.98])
    assert [change.is_regression for change in compare_results(old, slower)[0]] == [True]
    assert [change.is_regression for change in compare_results(old, busy)[0]] == [False]
    assert [change.is_regression for change in compare_results(slower, old)[0]] == [False]
    # What is slower on a busy machine is found as well: the faster half of the rounds tells.
    busy_and_slower = _results([1.2 * value for value in (1.00, 2.02, 0.99, 2.01, 1.00, 2.03, 1.00, 1.98)])
    assert [change.is_regression for change in compare_results(busy, busy_and_slower)[0]] == [True]


def test_a_slower_core_is_no_slower_build() -> None:
    old = _results([1.0, 1.02, 0.99, 1.01], round_control_ms=[0.010, 0.010, 0.010, 0.010])
    # Everything took 1.4 times as long, numpy's product too.
    slower_core = _results([1.40, 1.42, 1.39, 1.41], round_control_ms=[0.014, 0.014, 0.014, 0.014])
    slower_build = _results([1.40, 1.42, 1.39, 1.41], round_control_ms=[0.010, 0.010, 0.010, 0.010])
    (core,), (build,) = (compare_results(old, new)[0] for new in (slower_core, slower_build))
    assert (core.is_regression, build.is_regression) == (False, True)
    assert core.core_ratio is not None
    assert core.core_ratio.value == pytest.approx(1.0, abs=0.02)
    assert "relative to core speed x" in str(core)
    # The build is slower by half, and the core was faster by as much.
    faster_core = _results([1.0, 1.02, 0.99, 1.01], round_control_ms=[0.0067, 0.0067, 0.0067, 0.0067])
    assert compare_results(old, faster_core)[0][0].is_regression


def test_configurations_in_one_file_only_are_named() -> None:
    changes, single = compare_results(_results([1.0, 1.0]), _results([1.0, 1.0], batch=64))
    assert changes == []
    assert len(single) == 2


def _write(path: Path, *, flags: list[str], **changes: object) -> str:
    content = {"environment": {"cpu": "Some CPU", "cpu_flags": flags}, "results": _results([1.0, 1.0], **changes)}
    path.write_text(json.dumps(content))
    return str(path)


def test_what_makes_two_files_hard_to_compare_is_said(tmp_path: Path) -> None:
    old = _write(tmp_path / "old.json", flags=["avx2"])
    other = _write(tmp_path / "new.json", flags=["avx2", "avx512f"], is_busy=True)
    result = CliRunner().invoke(main, ["compare", old, old])
    assert (result.exit_code, result.stderr) == (0, "")
    result = CliRunner().invoke(main, ["compare", old, other])
    assert result.exit_code == 0
    assert "different processors, Some CPU (avx2) and Some CPU (avx2, avx512f)" in result.stderr
    assert "busy during 1 of 1 configurations of" in result.stderr


def test_a_file_of_something_else_is_an_error(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"environment": {}, "results": [{"round_p50_ms": [1.0]}]}')
    result = CliRunner().invoke(main, ["compare", str(wrong), str(wrong)])
    assert result.exit_code == 1
    assert "was not written by fer-bench latency --json (a configuration has no engine)" in result.stderr
    assert f"--json {wrong}" not in result.stderr  # which would replace that file


@pytest.mark.parametrize(
    ("name", "left", "kind"), [("product_fp32.onnx", np.float32, np.float32), ("product_int8.onnx", np.uint8, np.int32)]
)
def test_the_peak_rate_is_that_of_a_full_product_with_constant_weights(name: str, left: type, kind: type) -> None:
    """The shipped product has the stated shape, so its multiply-accumulates are counted right."""
    content = files("fer_bench.latency").joinpath(name).read_bytes()
    onnx.checker.check_model(content)
    # Two neighbouring products of up to 211 and 77 fit into the 16 bits in which AVX2 without VNNI adds them.
    faces: np.ndarray = np.random.default_rng(0).integers(0, 212, (_ROWS, _DEPTH)).astype(left)
    (product,) = open_session(content, threads=1, source=name).session.run(None, {"a": faces})
    assert product.shape == (_ROWS, _COLUMNS)
    assert product.dtype == kind
    # All weights are one constant, 0.5 in float32 and 77 in int8: a column of the product is the row's sum times it.
    # A float32 sum of 768 integers below 256 is exact.
    weight = 0.5 if kind is np.float32 else 77
    np.testing.assert_array_equal(product[:, 5], faces.astype(kind).sum(1) * weight)


def test_the_roofline_is_arithmetic_or_reading_whichever_is_longer(model: Path) -> None:
    wanted = configurations(models=[str(model)], engines=["onnxruntime"], models_dir=model.parent)
    results, _ = measure_latency(wanted, rounds=2, seconds=0.02)
    slow = PeakRates(fp32_macs_per_second=1e6, int8_macs_per_second=1e6)
    quick = PeakRates(fp32_macs_per_second=1e30, int8_macs_per_second=1e30)
    (by_arithmetic,), (by_reading,) = (rows_with_roofline(results, wanted, rates) for rates in (slow, quick))
    # The band model multiplies 48 * 48 pixels with 7 columns of float32.
    assert by_arithmetic["macs"] == 48 * 48 * 7
    assert by_arithmetic["weight_bytes"] == 48 * 48 * 7 * 4
    assert by_arithmetic["roofline_ms"] == pytest.approx(48 * 48 * 7 / 1e6 * 1000)
    assert by_arithmetic["times_roofline"] == pytest.approx(results[0].p50_ms / by_arithmetic["roofline_ms"])
    assert 0 < by_reading["roofline_ms"] < 1


def test_a_time_below_the_roofline_is_a_warning() -> None:
    rows: list[dict[str, Any]] = [{"times_roofline": 1.2}, {"times_roofline": None}]
    assert warn_below_roofline(rows) is None
    warning = warn_below_roofline([*rows, {"times_roofline": 0.8}])
    assert warning is not None
    assert "1 of 3 configurations took less than the roofline" in warning


def test_the_peak_rate_is_the_higher_of_two() -> None:
    first = PeakRates(fp32_macs_per_second=3.0, int8_macs_per_second=5.0)
    second = PeakRates(fp32_macs_per_second=2.0, int8_macs_per_second=9.0)
    assert first.or_higher(second) == PeakRates(fp32_macs_per_second=3.0, int8_macs_per_second=9.0)


def test_the_command_measures_and_compare_finds_a_slower_build(model: Path, tmp_path: Path) -> None:
    old, slower = tmp_path / "old.json", tmp_path / "slower.json"
    arguments = ["latency", "--model", str(model), "--engine", "onnxruntime", "--rounds", "8", "--seconds", "0.01"]
    result = CliRunner().invoke(main, [*arguments, "--json", str(old)])
    assert result.exit_code == 0, result.output
    assert "cold start, CPU ms" in result.stdout
    content = json.loads(old.read_text())
    (row,) = content["results"]
    assert len(row["round_p50_ms"]) == 8
    # The same measurement with every round a hundred times as slow: more than any busy machine makes of it.
    row["round_p50_ms"] = [100 * time for time in row["round_p50_ms"]]
    slower.write_text(json.dumps(content))
    assert CliRunner().invoke(main, ["compare", str(old), str(old)]).exit_code == 0
    assert CliRunner().invoke(main, ["compare", str(old), str(slower)]).exit_code == 1


def test_latency_that_measured_nothing_fails_before_the_processor_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fer_bench.latency.roofline.measure_peak_rates", lambda **_: pytest.fail("it takes seconds"))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    result = CliRunner().invoke(main, ["latency", "--model", str(broken), "--engine", "onnxruntime", "--rounds", "2"])
    assert result.exit_code == 1
    assert "not measured: onnxruntime broken.onnx" in result.stderr
    assert "Error: nothing was measured" in result.stderr


def test_no_engine_opens_a_file_with_other_operators(model: Path, tmp_path: Path) -> None:
    changed = onnx.load(model)
    changed.graph.node[-1].op_type = "Hardmax"
    onnx.save(changed, tmp_path / "hardmax.onnx")
    wanted = configurations(models=[str(tmp_path / "hardmax.onnx")], engines=["onnxruntime"], models_dir=tmp_path)
    measured, unavailable = measure_latency(wanted, rounds=1, seconds=0.01)
    assert not measured
    assert "the operator Hardmax" in unavailable[0].reason
