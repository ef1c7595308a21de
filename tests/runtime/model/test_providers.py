"""Providers by name, plugin packages, and `--provider auto`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fer_runtime.errors import ModelFileError, ProviderError
from fer_runtime.model.auto import choose_provider
from fer_runtime.model.certificate import ARITHMETIC_TOLERANCES, tolerance_in
from fer_runtime.model.find import find_model
from fer_runtime.model.load import load_model
from fer_runtime.model.parity import Tolerance
from fer_runtime.model.providers import missing_provider, split_name
from fer_runtime.model.self_test import run_self_test
from fer_runtime.model.session import available_providers, register_plugins


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "providers.json"


def _infer(*arguments: object, plugins: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(plugins or ""), os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-m", "fer_runtime", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": path})


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("CPU", ("CPU", "fp32")),
        ("cpuexecutionprovider", ("cpu", "fp32")),
        ("openvino:BF16", ("openvino", "bf16")),
    ],
)
def test_a_name_is_a_provider_and_an_arithmetic(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name) == parts


@pytest.mark.parametrize("name", ["CPU:bf16", "OpenVINO:int4", "OpenVINO:"])
def test_an_arithmetic_that_a_provider_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(ProviderError, match="computes in fp32"):
        split_name(name)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("openvino", "beside onnxruntime: pip install onnxruntime-ep-openvino"),
        ("CUDA", "comes with onnxruntime-gpu, in an environment of its own"),
        ("Abacus", "no package is known"),
    ],
)
def test_a_missing_provider_is_answered_with_its_wheel_and_nobody_is_to_replace_onnxruntime(
    name: str, advice: str
) -> None:
    text = str(missing_provider(name, ("CPU",), "1.32.0"))
    assert advice in text
    assert "place" not in text
    assert "uninstall" not in text


def test_plugins_that_cannot_be_used_are_listed_with_the_reason(tmp_path: Path) -> None:
    for name, code in (
        ("onnxruntime_ep_text", "from pathlib import Path\ndef get_library_path():\n    return str(Path(__file__))\n"),
        ("onnxruntime_ep_raising", "raise OSError('libabacus.so.1: cannot open shared object file')\n"),
        ("onnxruntime_ep_silent", ""),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    done = _infer("--devices", plugins=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = {name: line for line in done.stdout.splitlines() for name in ("raising", "silent", "text") if name in line}
    assert "libabacus.so.1: cannot open" in lines["raising"]
    assert "does not tell where its library is" in lines["silent"]
    # What the dynamic loader says of a file that is no library, through onnxruntime's own registration call.
    assert "onnxruntime_ep_text" in lines["text"]
    assert len(lines["text"].split("onnxruntime_ep_text", 1)[1]) > 20
    assert "CPU" in done.stdout
    missing = _infer("--self-test", "--provider", "raising", plugins=tmp_path)
    assert missing.returncode == 1
    assert "onnxruntime_ep_raising is installed, but libabacus.so.1" in missing.stderr


def test_auto_takes_a_provider_that_passes_and_measures_once(cache: Path) -> None:
    path = find_model("v0")
    first = choose_provider(path)
    assert first.provider in first.faces_per_second
    assert "CPU" in first.faces_per_second
    assert not first.is_cached
    second = choose_provider(path)
    assert second.is_cached
    assert (second.provider, second.faces_per_second) == (first.provider, first.faces_per_second)
    # Other threads are another question; and so is another file.
    assert not choose_provider(path, threads=2).is_cached
    assert not choose_provider(path, batch=1).is_cached
    assert len(json.loads(cache.read_text())) == 3
    assert load_model(path, provider="auto").provider == first.provider


@pytest.mark.parametrize(
    "change",
    [
        {"provider": "Azure"},
        {"provider": 5},
        {"faces_per_second": [1.0]},
        {"faces_per_second": {}},
        {"refused": "no"},
        {"refused": {"CUDA": 3}},
    ],
)
def test_a_cached_answer_of_another_kind_is_measured_again(cache: Path, change: dict[str, object]) -> None:
    path = find_model("v0")
    choose_provider(path)
    answers = json.loads(cache.read_text())
    cache.write_text(json.dumps({key: answer | change for key, answer in answers.items()}))
    assert not choose_provider(path).is_cached
    assert choose_provider(path).is_cached


@pytest.mark.parametrize("damage", ["[]", "{", '{"x": 3}', "[" * 200_000])
def test_a_damaged_cache_is_measured_again(cache: Path, damage: str) -> None:
    cache.parent.mkdir()
    cache.write_text(damage)
    assert not choose_provider(find_model("v0")).is_cached


def test_a_model_that_no_provider_computes_right_is_refused(cache: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(find_model("v0"))
    scales = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    largest = max(scales, key=lambda weights: numpy_helper.to_array(weights).size)
    changed = numpy_helper.from_array(numpy_helper.to_array(largest) * 1.5, largest.name)
    largest.CopyFrom(changed)
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(ModelFileError, match=r"no provider here computes what was trained .*CPU: self-test: digest"):
        choose_provider(tmp_path / "changed.onnx")
    assert not cache.exists()


def test_another_arithmetic_widens_the_tolerance_of_float_files_alone() -> None:
    stated = Tolerance()
    assert tolerance_in("fp32", "fp32", stated) is stated
    assert tolerance_in("bf16", "fp32", stated) is ARITHMETIC_TOLERANCES["bf16"]
    assert tolerance_in("bf16", "int8", stated) is stated


def _is_here(provider: str) -> bool:
    return provider in (*available_providers(), *(name for plugin in register_plugins() for name in plugin.providers))


_NEEDS_OPENVINO = pytest.mark.skipif(
    not _is_here("OpenVINO"),
    reason="needs OpenVINO: pip install onnxruntime-ep-openvino, or onnxruntime-openvino in its own place",
)


@_NEEDS_OPENVINO
def test_a_plugins_own_choice_among_its_devices_is_no_provider() -> None:
    # onnxruntime-ep-openvino offers "OpenVINOExecutionProvider.AUTO", which computes in bf16 without our settings.
    assert not [name for plugin in register_plugins() for name in plugin.providers if "." in name]
    assert not [name for name in available_providers() if "." in name]


@_NEEDS_OPENVINO
def test_openvino_passes_in_fp32_and_in_bf16_within_its_own_class() -> None:
    path = find_model("v0", precision="fp32")
    exact, coarse = (run_self_test(path, provider=name, strict=True) for name in ("OpenVINO", "OpenVINO:bf16"))
    assert exact.passed
    assert coarse.passed
    assert exact.comparison.max_logit_difference < 1e-4 < coarse.comparison.max_logit_difference


def test_allow_without_auto_is_a_usage_error() -> None:
    done = _infer("--samples", "--allow", "bf16")
    assert done.returncode == 2
    assert "only with --provider auto" in done.stderr


def test_an_onnxruntime_that_was_uninstalled_is_one_error_line(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()  # what pip leaves: an empty package without __init__.py
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    done = _infer("--self-test", plugins=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: onnxruntime is not installed")
    assert "onnxruntime-gpu" in done.stderr
