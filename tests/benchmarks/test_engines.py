"""Engines: each computes the same function, and one that does not is found out."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.commands import run_python_text
from tests.runtime.tiny_models import band_face, write_band_model

from fer_bench.engines import ENGINES
from fer_bench.latency.measure import Configuration, classify_in_worker, configurations, measure_latency
from fer_export.targets.publish import convert_model
from fer_runtime.errors import ModelFileError

MODELS = Path(__file__).parents[2] / "models"


def test_every_engine_gives_the_same_probabilities_for_the_shipped_v0() -> None:
    # torch.compile is left out: it needs a C++ compiler and half a minute.
    engines = [name for name in ENGINES if name != "torch-compile" and ENGINES[name].is_installed]
    wanted = configurations(models=["v0"], precisions=["fp32"], engines=engines, models_dir=MODELS)
    results, unavailable = measure_latency(wanted, rounds=2, seconds=0.02)
    assert not unavailable
    differences = {result.engine: result.max_probability_difference for result in results}
    assert differences.pop("onnxruntime") is None
    # bfloat16 has 8 bits of mantissa; the others differ from float32 by its rounding only.
    differences.pop("openvino-bf16", None)
    assert {"torch", "opencv-dnn"} <= set(differences)
    assert all(difference is not None and difference < 1e-4 for difference in differences.values()), differences


def test_a_fast_engine_that_computes_something_else_is_found_out(tmp_path: Path) -> None:
    bands = write_band_model(tmp_path / "bands.onnx")
    other = Configuration(engine="opencv-dnn", model="v0", precision="fp32", batch=1, threads=1, source=bands)
    right = configurations(models=["v0"], precisions=["fp32"], engines=["onnxruntime"], models_dir=MODELS)
    results, unavailable = measure_latency([*right, other], rounds=2, seconds=0.02)
    assert not unavailable
    difference = results[1].max_probability_difference
    assert difference is not None
    assert difference > 0.1


def test_a_targets_file_is_timed_only_if_it_computes_its_certificate(tmp_path: Path) -> None:
    shutil.copy(MODELS / "model_0.onnx", tmp_path)
    convert_model("v0", targets=["ort"], models_dir=tmp_path)
    wanted = configurations(
        models=["v0"], precisions=["fp32"], engines=["onnxruntime", "ort-format", "ncnn"], models_dir=tmp_path
    )
    # No file of ncnn is there.
    assert [configuration.engine for configuration in wanted] == ["onnxruntime", "ort-format"]
    (_, timed), unavailable = measure_latency(wanted, rounds=2, seconds=0.02)
    assert not unavailable
    assert timed.max_probability_difference is not None
    assert timed.max_probability_difference < 1e-5  # the same kernels, but for float rounding
    files = ("model_0.ort", "model_0.ort.operators.config")
    assert timed.model_bytes == sum((tmp_path / name).stat().st_size for name in files)

    path = tmp_path / "model_0.ort"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    results, (refused,) = measure_latency(wanted, rounds=2, seconds=0.02)
    assert [result.engine for result in results] == ["onnxruntime"]
    assert "self-test" in refused.reason
    assert "digest" in refused.reason


def test_faces_are_classified_one_by_one_in_another_process(tmp_path: Path) -> None:
    bands = write_band_model(tmp_path / "bands.onnx")
    configuration = Configuration(
        engine="onnxruntime", model="bands", precision="fp32", batch=1, threads=1, source=bands
    )
    faces = np.stack([band_face(index) for index in (3, 0, 6)])
    assert classify_in_worker(configuration, faces).argmax(1).tolist() == [3, 0, 6]


def test_a_peer_whose_environment_lacks_it_says_so(tmp_path: Path) -> None:
    peer = Configuration(
        engine="peer", model="x", precision="fp32", batch=1, threads=1, source=tmp_path, code="no_such_peer:load"
    )
    with pytest.raises(ModelFileError, match="No module named 'no_such_peer'"):
        classify_in_worker(peer, np.zeros((1, 48, 48), np.uint8))


_PLUGIN = """
from fer_bench.engines import ENGINES, Engine

ENGINES.register(Engine(name="mine", code="my_engine:load", needs="numpy", install="pip install numpy"))


def load(source, *, model, threads, batch):
    from fer_runtime.recognizer import Recognizer

    return Recognizer(source).classify
"""


def test_an_engine_is_one_module_and_one_entry(tmp_path: Path) -> None:
    """Added from outside, and used from the command line."""
    (tmp_path / "my_engine.py").write_text(_PLUGIN)
    bands, output = write_band_model(tmp_path / "bands.onnx"), tmp_path / "latency.json"
    script = "from fer_bench.cli import main; main(prog_name='fer-bench')"
    path = os.pathsep.join(folder for folder in (str(tmp_path), os.environ.get("PYTHONPATH", "")) if folder)
    environment = dict(os.environ, PYTHONPATH=path, FER_EDGE_PLUGINS="my_engine")
    arguments = ["latency", "--model", str(bands), "--engine", "mine", "--engine", "onnxruntime", "--rounds", "2"]
    run = run_python_text("-c", script, *arguments, "--seconds", "0.02", "--json", output, env=environment)
    assert run.returncode == 0, run.stderr
    rows = {row["engine"]: row for row in json.loads(output.read_text())["results"]}
    assert set(rows) == {"mine", "onnxruntime"}
    assert rows["mine"]["max_probability_difference"] == pytest.approx(0, abs=1e-7)  # the same session, float32
    refused = run_python_text("-c", script, *arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert "'mine' is not one of" in refused.stderr
