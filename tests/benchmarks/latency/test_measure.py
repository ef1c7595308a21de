"""Latency of real sessions in real processes, and the comparison of two measurements."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.runtime.tiny_models import write_band_model

from fer_bench.cli import main
from fer_bench.latency.compare import compare_results
from fer_bench.latency.measure import Configuration, LatencyResult, _reference, configurations, measure_latency
from fer_bench.latency.roofline import Ceilings, measure_ceilings, rows_with_limits, warn_about_limits
from fer_runtime.errors import ModelFileError


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
    assert "cannot be loaded" in unavailable[0].reason


def test_the_limit_goes_by_the_arithmetic_in_the_file_not_by_its_name(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[3] / "models" / "model_0.int8.onnx"
    renamed = tmp_path / "renamed.onnx"
    renamed.write_bytes(shipped.read_bytes())
    wanted = configurations(models=[str(renamed)], engines=["onnxruntime"], models_dir=tmp_path)
    results, _ = measure_latency(wanted, rounds=2, seconds=0.02)
    (row,) = rows_with_limits(results, wanted, Ceilings(fp32_macs_per_second=1e6, int8_macs_per_second=2e6))
    assert row["limit_ms"] == pytest.approx(row["macs"] / 2e6 * 1000)


def test_zeros_that_a_file_adds_are_no_work_of_the_network() -> None:
    models = Path(__file__).parents[3] / "models"
    wanted = configurations(models=["v0"], engines=["onnxruntime"], precisions=("fp32", "int8"), models_dir=models)
    results, _ = measure_latency(wanted, rounds=2, seconds=0.02)
    rows = rows_with_limits(results, wanted, Ceilings(fp32_macs_per_second=1e9, int8_macs_per_second=1e9))
    # 3 x 16, 16 x 32 and 32 x 64 filters of 3 x 3 at 48 x 48, 24 x 24 and 12 x 12 places (the export adds up the three
    # equal channels of a gray face, so 1 x 16), then 2304 x 128 and 128 x 7.
    by_hand = 9 * (1 * 16 * 48**2 + 16 * 32 * 24**2 + 32 * 64 * 12**2) + 2304 * 128 + 128 * 7
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
        engine="crashing", model=when, precision="fp32", batch=1, threads=1, source=model, module="crashing"
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
    assert [(one.configuration.engine, one.reason) for one in unavailable] == [
        ("crashing", "its process was killed by SIGFPE")
    ]


def test_a_model_that_is_nowhere_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"none\.onnx"):
        configurations(models=[str(tmp_path / "none.onnx")], models_dir=tmp_path)


def test_the_model_that_was_asked_for_is_the_one_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("fer_runtime.model.find", "fer_bench.latency.measure"):
        monkeypatch.setattr(f"{module}.packaged_models_dir", lambda: tmp_path)
    with pytest.raises(ModelFileError, match="fer-export --model v1"):
        configurations(models=["v1"], models_dir=tmp_path)


def _results(rounds: list[float], **changes: object) -> list[dict[str, object]]:
    one = {"engine": "onnxruntime", "model": "v0", "precision": "fp32", "batch": 1, "threads": 1}
    return [one | {"p50_ms": sorted(rounds)[len(rounds) // 2], "round_p50_ms": rounds} | changes]


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
    assert "by the core's speed x" in str(core)
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
    assert "is no file of fer-bench latency --json (ValueError('a configuration without engine'))" in result.stderr


def test_the_limit_is_within_reach_of_numpy() -> None:
    import time

    left, right = (np.ones((768, 768), np.float32) for _ in range(2))
    best = 1e9
    for _ in range(30):
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    # The ceiling is what ONNX Runtime's product reaches; another library's on the same core differs by
    # a small factor, not by orders of magnitude (a wrong count of the work would be off by 1000).
    ceiling = measure_ceilings(seconds=0.3).fp32_macs_per_second
    assert 0.1 < ceiling / (768**3 / best) < 10


def test_the_limit_is_arithmetic_or_reading_whichever_is_longer(model: Path) -> None:
    wanted = configurations(models=[str(model)], engines=["onnxruntime"], models_dir=model.parent)
    results, _ = measure_latency(wanted, rounds=2, seconds=0.02)
    slow = Ceilings(fp32_macs_per_second=1e6, int8_macs_per_second=1e6)
    quick = Ceilings(fp32_macs_per_second=1e30, int8_macs_per_second=1e30)
    (by_arithmetic,), (by_reading,) = (rows_with_limits(results, wanted, one) for one in (slow, quick))
    # The band model multiplies 48 * 48 pixels with 7 columns of float32.
    assert by_arithmetic["macs"] == 48 * 48 * 7
    assert by_arithmetic["weight_bytes"] == 48 * 48 * 7 * 4
    assert by_arithmetic["limit_ms"] == pytest.approx(48 * 48 * 7 / 1e6 * 1000)
    assert by_arithmetic["times_the_limit"] == pytest.approx(results[0].p50_ms / by_arithmetic["limit_ms"])
    assert 0 < by_reading["limit_ms"] < 1


def test_a_limit_that_was_beaten_is_said_to_be_none() -> None:
    rows: list[dict[str, Any]] = [{"times_the_limit": 1.2}, {"times_the_limit": None}]
    assert warn_about_limits(rows) is None
    warning = warn_about_limits([*rows, {"times_the_limit": 0.8}])
    assert warning is not None
    assert "1 of 3 configurations took less than the limit" in warning


def test_the_ceiling_is_the_higher_of_two() -> None:
    first = Ceilings(fp32_macs_per_second=3.0, int8_macs_per_second=5.0)
    second = Ceilings(fp32_macs_per_second=2.0, int8_macs_per_second=9.0)
    assert first.or_higher(second) == Ceilings(fp32_macs_per_second=3.0, int8_macs_per_second=9.0)


# The slowed runtime: every run of a session takes a fifth longer, as if a release had made it so.
_SLOWED = """
import time
import fer_bench.engines.onnxruntime_engine as engine
load = engine.load
def slowed(source, **options):
    run = load(source, **options)
    def slow(faces):
        started = time.perf_counter()
        run(faces)
        end = time.perf_counter() + (time.perf_counter() - started) * 0.2
        while time.perf_counter() < end:
            pass
    return slow
engine.load = slowed
"""


def test_a_slowed_runtime_makes_compare_exit_1_and_the_same_build_does_not(tmp_path: Path) -> None:
    (tmp_path / "slow").mkdir()
    # Python imports sitecustomize in every process that finds it: the measured one is really slower.
    (tmp_path / "slow" / "sitecustomize.py").write_text(_SLOWED)

    # Many short rounds: where others compute too, the core's speed is then known close to each.
    def latency(name: str, *, slowed: bool) -> Path:
        path = tmp_path / name
        script = "from fer_bench.cli import main; main(prog_name='fer-bench')"
        arguments = ["latency", "--model", "v0", "--precision", "fp32", "--engine", "onnxruntime", "--rounds", "40"]
        environment = dict(os.environ, PYTHONPATH=str(tmp_path / "slow")) if slowed else None
        run = subprocess.run(
            [sys.executable, "-c", script, *arguments, "--seconds", "0.05", "--json", str(path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr
        assert "cold start, CPU ms" in run.stdout
        assert "round_p50_ms" in json.loads(path.read_text())["results"][0]
        return path

    def compare(old: Path, new: Path) -> int:
        script = "from fer_bench.cli import main; main(prog_name='fer-bench')"
        return subprocess.run([sys.executable, "-c", script, "compare", str(old), str(new)], timeout=60).returncode

    first, slow = latency("first.json", slowed=False), latency("slow.json", slowed=True)
    assert compare(first, slow) == 1
    assert [compare(first, latency(f"again{number}.json", slowed=False)) for number in range(5)] == [0] * 5
