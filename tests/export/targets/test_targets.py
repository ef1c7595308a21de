"""Files for other runtimes: converted, replayed by those runtimes, and found out where they compute something else."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tests.commands import RUNTIME, TRAINING, run_python_text
from tests.train.images import write_images

from fer_export.targets.golden_header import golden_header
from fer_export.targets.ort import convert as convert_to_ort
from fer_export.targets.publish import convert_model, golden_of, read_source
from fer_export.torch_module import OnnxModule
from fer_runtime.errors import DataError, ExtraMissingError, ModelFileError, OutputError
from fer_runtime.model.find import find_model, packaged_models_dir
from fer_runtime.model.parity import FloatArray
from fer_runtime.targets import TARGETS
from fer_runtime.targets.replay import replay_target
from fer_runtime.targets.sidecar import read_sidecar

MODELS = Path(__file__).parents[3] / "models"
_NAMES = ("openvino", "ncnn", "ort", "executorch", "litert")


def _needs(name: str) -> None:
    if not TARGETS[name].is_installed:
        pytest.skip(f"{TARGETS[name].needs} is not installed: {TARGETS[name].install_converter}")
    for package in TARGETS[name].converters:
        pytest.importorskip(package, reason=f"{package} is not installed: {TARGETS[name].install_converter}")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of v0 with its file for a target, converted once."""
    folders: dict[str, Path] = {}

    def convert(name: str) -> Path:
        _needs(name)
        if name not in folders:
            folder = tmp_path_factory.mktemp(name)
            shutil.copy(MODELS / "model_0.onnx", folder)
            convert_model("v0", targets=[name], models_dir=folder)
            folders[name] = folder
        return folders[name]

    return convert


@pytest.fixture
def copied(converted: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A target's file of v0 that a test may change."""

    def copy(name: str) -> Path:
        shutil.copytree(converted(name), tmp_path / name)
        return TARGETS[name].path(tmp_path / name, "model_0")

    return copy


def _weights(name: str) -> FloatArray:
    model = onnx.load(MODELS / "model_0.onnx")
    found: FloatArray = numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))
    return found


def _exchange(path: Path, old: FloatArray, new: FloatArray) -> None:
    """Exchange values in whichever file of the conversion holds them."""
    files = [file for file in path.parent.iterdir() if file.suffix not in (".onnx", ".npz", ".h", ".json")]
    if sum(file.read_bytes().count(old.tobytes()) for file in files) == 1:
        pairs = [(old.tobytes(), new.tobytes())]
    else:  # in another order: value by value
        pairs = [(before.tobytes(), after.tobytes()) for before, after in zip(old.ravel(), new.ravel(), strict=True)]
    for before, after in pairs:
        changed = 0
        for file in files:
            content = file.read_bytes()
            changed += content.count(before)
            file.write_bytes(content.replace(before, after))
        assert changed == 1 if len(pairs) == 1 else changed  # four bytes may occur twice by chance


def _reseal(path: Path, name: str, **changes: object) -> None:
    """Make the sidecar fit files that were changed, as a wrong conversion would have written it."""
    target = TARGETS[name]
    sidecar, _ = read_sidecar(path, target)
    sha256 = {name: hashlib.sha256((path.parent / name).read_bytes()).hexdigest() for name in sidecar.sha256}
    sidecar = dataclasses.replace(sidecar, sha256=sha256, **changes)  # type: ignore[arg-type]
    target.sidecar_path(path).write_text(sidecar.to_json())


def _failures(path: Path, name: str) -> set[str]:
    return {check.name for check in replay_target(path, TARGETS[name]).checks if not check.passed}


@pytest.mark.parametrize("name", _NAMES)
def test_a_conversion_replays_the_golden_faces_in_its_own_runtime(converted: Callable[[str], Path], name: str) -> None:
    path = TARGETS[name].path(converted(name), "model_0")
    report = replay_target(path, TARGETS[name])
    assert report.passed, report.to_text()
    # Float32 sums in another order: 1e-5 were measured, and other processors order them differently again.
    assert report.comparison.max_logit_difference < 1e-3
    sidecar, is_as_written = read_sidecar(path, TARGETS[name])
    assert is_as_written
    assert sidecar.verdict["outcome"] == "passed"


def test_labelled_faces_may_be_in_any_folders_that_fer_train_reads(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", train=1, validation=2)
    (data / "images" / "validation").rename(data / "images" / "val")
    shutil.copy(MODELS / "model_0.onnx", tmp_path)
    (report,) = convert_model("v0", targets=["ort"], models_dir=tmp_path, data=data)
    assert (report.outcome, report.labelled_faces, report.flips) == ("passed", 14, 0)
    (data / "images" / "val" / "sad").rename(data / "images" / "val" / "bored")
    with pytest.raises(DataError, match="lacks the class folder sad and has an unexpected class folder bored"):
        convert_model("v0", targets=["ort"], models_dir=tmp_path, data=data, replace=True)


@pytest.mark.parametrize("name", _NAMES)
def test_one_wrong_weight_is_found_by_the_replay(copied: Callable[[str], Path], name: str) -> None:
    path = copied(name)
    weights = _weights("network.conv_block_2.0.weight").ravel()
    old = weights[np.abs(weights).argmax()]
    _exchange(path, old, -old)
    _reseal(path, name)
    assert "logits" in _failures(path, name)


@pytest.mark.parametrize("name", _NAMES)
def test_another_input_scale_is_found_by_the_replay(copied: Callable[[str], Path], name: str) -> None:
    path = copied(name)
    # 1 / 255 is part of the first convolution: these are the weights of faces divided by 256.
    first = _weights("network.conv_block_1.0.weight")
    _exchange(path, first, first * np.float32(255 / 256))
    _reseal(path, name)
    assert "logits" in _failures(path, name)


@pytest.mark.parametrize("name", _NAMES)
def test_exchanged_labels_are_found_by_the_replay(copied: Callable[[str], Path], name: str) -> None:
    path = copied(name)
    metadata = read_sidecar(path, TARGETS[name])[0].metadata
    labels = (metadata.labels[1], metadata.labels[0], *metadata.labels[2:])
    _reseal(path, name, metadata=dataclasses.replace(metadata, labels=labels))
    assert _failures(path, name) == {"labels"}


@pytest.mark.parametrize("name", _NAMES)
def test_a_file_that_was_changed_afterwards_is_found_by_its_digest(copied: Callable[[str], Path], name: str) -> None:
    path = copied(name)
    sidecar_path = TARGETS[name].sidecar_path(path)
    sidecar_path.write_text(sidecar_path.read_text().replace('"happy"', '"smiling"'))
    with (path.parent / "model_0.golden.npz").open("ab") as golden:
        golden.write(b"\0")
    assert {"digest", "labels"} <= _failures(path, name)


def test_int8_is_held_against_the_quantized_file_and_fp16_against_pytorch(tmp_path: Path) -> None:
    _needs("openvino")
    for file in ("model_0.onnx", "model_0.int8.onnx"):
        shutil.copy(MODELS / file, tmp_path)
    int8, fp16 = convert_model("v0", targets=["openvino"], precisions=["int8", "fp16"], models_dir=tmp_path)
    assert (int8.path.name, fp16.path.name) == ("model_0.int8.openvino.xml", "model_0.fp16.openvino.xml")
    assert int8.replay is not None
    assert fp16.replay is not None
    # OpenVINO computes v0's integers as ONNX Runtime does; PyTorch's logits are a quantization error away.
    assert int8.replay.comparison.max_logit_difference < 0.05
    assert int8.replay.network_comparison.max_logit_difference > int8.replay.comparison.max_logit_difference
    assert fp16.replay.comparison.max_logit_difference > 1e-5  # float16 weights are not float32's
    assert fp16.target_bytes < 0.6 * (tmp_path / "model_0.onnx").stat().st_size


class _CoreMl(ModuleType):
    """coremltools as far as a target uses it: `convert` keeps the traced network, `predict` runs it."""

    ComputeUnit = SimpleNamespace(CPU_ONLY="cpu only")
    TensorType = SimpleNamespace
    scale = 1.0

    def __init__(self) -> None:
        super().__init__("coremltools")
        self.__spec__ = ModuleSpec("coremltools", None)
        self.models = SimpleNamespace(MLModel=self.open)

    def convert(self, traced: Any, *, inputs: Any, outputs: Any, convert_to: str) -> Any:
        assert [value.name for value in (*inputs, *outputs)] == ["faces", "logits", "probabilities"]
        return SimpleNamespace(save=traced.save)

    def open(self, path: str, *, compute_units: str) -> Any:
        assert compute_units == "cpu only"
        load: Any = torch.jit.load  # without types
        network = load(path)

        def predict(given: dict[str, Any]) -> dict[str, Any]:
            assert given["faces"].dtype == np.float32
            logits, probabilities = network(torch.from_numpy(given["faces"] * np.float32(self.scale)))
            return {"logits": logits.numpy(), "probabilities": probabilities.numpy()}

        return SimpleNamespace(predict=predict)


def test_core_ml_is_unproven_elsewhere_and_replayed_on_a_mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _CoreMl()
    monkeypatch.setitem(sys.modules, "coremltools", fake)
    monkeypatch.delitem(sys.modules, "fer_export.targets.coreml", raising=False)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.0")
    shutil.copy(MODELS / "model_0.onnx", tmp_path)
    (report,) = convert_model("v0", targets=["coreml"], models_dir=tmp_path)
    monkeypatch.delitem(sys.modules, "fer_export.targets.coreml")
    assert (report.outcome, report.replay) == ("unproven", None)
    target = TARGETS["coreml"]
    assert read_sidecar(report.path, target)[0].verdict["outcome"] == "unproven"
    assert replay_target(report.path, target).passed
    fake.scale = 255 / 256
    assert "logits" in _failures(report.path, "coreml")


def test_the_golden_faces_leave_the_file_for_any_program(converted: Callable[[str], Path], tmp_path: Path) -> None:
    folder = converted("ort")
    certificate = read_source(MODELS / "model_0.onnx").certificate
    with np.load(folder / "model_0.golden.npz") as arrays:
        np.testing.assert_array_equal(arrays["faces"], certificate.faces)
        np.testing.assert_array_equal(arrays["network_logits"], certificate.network_logits)
        assert dict(zip(arrays["precisions"].tolist(), arrays["tolerances"][:, 0].tolist(), strict=True)) == {
            "fp32": 1e-3,
            "fp16": 2e-2,
            "int8": 0.05,
        }
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler: install gcc or clang")
    program = """
    #include <stdio.h>
    #include "model_0.golden.h"
    int main(void) {
      float row[FER_GOLDEN_CLASSES];
      double sum = 0;
      for (int i = 0; i < FER_GOLDEN_FACES * FER_GOLDEN_SIZE * FER_GOLDEN_SIZE; ++i) sum += fer_golden_faces[i];
      for (int i = 0; i < FER_GOLDEN_CLASSES; ++i) row[i] = fer_golden_network_logits[FER_GOLDEN_CLASSES + i];
      printf("%.0f %s %g ", sum, fer_golden_labels[6], fer_golden_difference(1, row, 0));
      row[2] += 0.5f;
      printf("%d ", fer_golden_difference(1, row, 0) > fer_golden_tolerance_fp32);
      row[2] = 0.0f / (row[2] - row[2]);
      printf("%d\\n", fer_golden_difference(1, row, 0) <= fer_golden_tolerance_int8);
      return 0;
    }
    """
    (tmp_path / "check.c").write_text(program)
    build = [compiler, "-std=c99", "-Wall", "-Wextra", "-Werror", "-I", str(folder), "check.c", "-o", "check"]
    subprocess.run(build, cwd=tmp_path, check=True, timeout=60)
    answer = subprocess.run([tmp_path / "check"], check=True, capture_output=True, text=True, timeout=60).stdout
    assert answer.split() == [str(int(certificate.faces.sum(dtype=np.int64))), "surprise", "0", "1", "0"]


def test_the_graph_as_a_pytorch_module_computes_pytorchs_logits() -> None:
    source = read_source(MODELS / "model_0.onnx")
    module = OnnxModule(onnx.load_model_from_string(source.content))
    with torch.no_grad():
        logits, probabilities = module(torch.from_numpy(source.certificate.faces.copy()))
    # The folded first layer adds in another order than the network that the certificate was computed with.
    np.testing.assert_allclose(logits.numpy(), source.certificate.network_logits, atol=1e-3)
    np.testing.assert_allclose(probabilities.numpy().sum(1), 1, atol=1e-5)
    with pytest.raises(ModelFileError, match=r"DequantizeLinear.*does not know"):
        OnnxModule(onnx.load(MODELS / "model_0.int8.onnx"))


def test_labels_of_any_language_are_strings_of_c() -> None:
    golden = dataclasses.replace(golden_of(read_source(MODELS / "model_0.onnx")), labels=('a"b', "fröhlich1", *"cdefg"))
    assert '{"a\\"b", "fr\\303\\266hlich1", "c"' in golden_header(golden, name="x.onnx")


def test_a_fixed_batch_is_not_converted_for_a_runtime_that_replays_any(tmp_path: Path) -> None:
    source = read_source(MODELS / "model_0.onnx")
    model = onnx.load_model_from_string(source.content)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    fixed = dataclasses.replace(source, content=model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"takes 3 faces, .* without --batch"):
        convert_to_ort(fixed, "fp32", tmp_path / "model_0.ort")


def test_a_crash_of_ncnn_and_an_endless_pnnx_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pnnx")
    ncnn_target = importlib.import_module("fer_export.targets.ncnn")
    source = read_source(MODELS / "model_0.onnx")
    # ncnn itself does so on some small models.
    monkeypatch.setattr(ncnn_target, "_ONE_FACE", "import os; os.abort()")
    with pytest.raises(ModelFileError, match=r"ncnn crashes on what pnnx makes of .*model_0\.onnx"):
        ncnn_target.convert(source, "fp32", tmp_path / "model_0.ncnn.param")

    def endless(command: list[str], *, timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", endless)
    with pytest.raises(ModelFileError, match=r"cannot convert .* in 600 seconds"):
        ncnn_target.convert(source, "fp32", tmp_path / "model_0.ncnn.param")


def test_a_file_is_converted_in_its_own_precision(tmp_path: Path) -> None:
    int8 = str(MODELS / "model_0.int8.onnx")
    (report,) = convert_model(int8, targets=["ort"], models_dir=tmp_path)
    assert (report.path.name, report.precision, report.outcome) == ("model_0.int8.ort", "int8", "passed")
    with pytest.raises(ModelFileError, match=r"int8\.onnx is int8, and ort in fp32 is made from the fp32 file"):
        convert_model(int8, targets=["ort"], precisions=["fp32"], models_dir=tmp_path)
    with pytest.raises(ModelFileError, match="ncnn is not written in int8"):
        convert_model(int8, targets=["ncnn"], models_dir=tmp_path)


def test_a_conversion_makes_its_folder(tmp_path: Path) -> None:
    model = find_model("v0", precision="fp32", models_dir=packaged_models_dir())
    (report,) = convert_model(str(model), targets=("ort",), models_dir=tmp_path / "new" / "models")
    assert (report.path.parent, report.path.is_file()) == (tmp_path / "new" / "models", True)


def test_a_conversion_that_fails_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise ModelFileError("no such operator")

    monkeypatch.setattr("fer_export.targets.ort.convert", refused)
    with pytest.raises(ModelFileError, match="no such operator"):
        convert_model(str(MODELS / "model_0.onnx"), targets=("ort",), models_dir=tmp_path / "new" / "models")
    assert not list(tmp_path.iterdir())


def test_nothing_replaces_a_conversion_of_another_checkpoint(copied: Callable[[str], Path]) -> None:
    path = copied("ort")
    before = path.read_bytes()
    metadata = read_sidecar(path, TARGETS["ort"])[0].metadata
    _reseal(path, "ort", metadata=dataclasses.replace(metadata, checkpoint_sha256="0" * 64))
    with pytest.raises(OutputError, match=r"made from another checkpoint.*--replace"):
        convert_model("v0", targets=["ort"], models_dir=path.parent)
    assert path.read_bytes() == before
    TARGETS["ort"].sidecar_path(path).unlink()
    with pytest.raises(OutputError, match=r"model_0\.ort has no readable sidecar; add --replace"):
        convert_model("v0", targets=["ort"], models_dir=path.parent)
    convert_model("v0", targets=["ort"], models_dir=path.parent, replace=True)
    assert replay_target(path, TARGETS["ort"]).passed


def test_what_is_missing_is_named(copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = copied("ort")
    (path.parent / "model_0.golden.npz").unlink()
    with pytest.raises(ModelFileError, match=r"model_0\.golden\.npz, which .*model_0\.ort needs"):
        replay_target(path, TARGETS["ort"])
    TARGETS["ort"].sidecar_path(path).unlink()
    with pytest.raises(ModelFileError, match=r"model_0\.ort\.json"):
        replay_target(path, TARGETS["ort"])
    path = copied("ncnn")
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(ExtraMissingError, match=r"needs ncnn.*pip install ncnn"):
        replay_target(path, TARGETS["ncnn"])
    with pytest.raises(ModelFileError, match="ncnn is not written in int8; it can be fp32 or fp16"):
        convert_model("v0", targets=["ncnn"], precisions=["int8"], models_dir=path.parent)


_PLUGIN = """
import os
from fer_runtime.targets import TARGETS, Target

TARGETS.register(Target(name="mine", help="my board", suffix=".mine", load="mine:load", convert="mine:convert",
                        needs="onnxruntime", install="pip install mine"))


def load(path, settings, *, threads):
    from fer_runtime.targets.ort import load

    return load(path, settings, threads=threads)


def convert(source, precision, path):
    from fer_export.targets import Converted

    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(source.content)
    if os.environ.get("BROKEN"):
        weights = next(one for one in model.graph.initializer if one.name == "network.fc_layer.4.weight")
        changed = numpy_helper.to_array(weights).copy()
        changed.flat[abs(changed).argmax()] *= 1.01
        weights.CopyFrom(numpy_helper.from_array(changed, weights.name))
    onnx.save(model, path)
    return Converted(preprocessing="none", versions={"mine": "1"})
"""


def _run(folder: Path, module: str, *arguments: object, code: int = 0, **environment: str) -> str:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = run_python_text(
        *("-m", module, *arguments),
        cwd=folder,
        env={**os.environ, "FER_EDGE_PLUGINS": "mine", "PYTHONPATH": path, **environment},
        libraries=RUNTIME if module == "fer_runtime" else TRAINING,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_target_is_one_module_and_one_entry_and_a_wrong_converter_publishes_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(_PLUGIN)
    (tmp_path / "models").mkdir()
    shutil.copy(MODELS / "model_0.onnx", tmp_path / "models")
    refused = _run(tmp_path, "fer_export", "--model", "v0", "--target", "mine", code=1, BROKEN="1")
    assert "model_0.mine is not published: logits" in refused
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["model_0.onnx"]
    run = _run(tmp_path, "fer_export", "--model", "v0", "--target", "mine")
    assert "passed" in run
    assert "mine: my board" in " ".join(_run(tmp_path, "fer_export", "--help").split())
    replayed = _run(tmp_path, "fer_runtime", "--self-test", "--model", "models/model_0.mine")
    assert "This machine computes what was trained." in replayed
    sidecar = json.loads((tmp_path / "models" / "model_0.mine.json").read_text())
    assert sidecar["model"]["labels"][3] == "happy"
    (tmp_path / "models" / "model_0.mine").write_bytes(b"damaged")
    assert "Error: " in _run(tmp_path, "fer_runtime", "--self-test", "--model", "models/model_0.mine", code=1)
    # A target's file is only replayed, by its own runtime.
    refused = _run(tmp_path, "fer_runtime", "--samples", "--model", "models/model_0.mine", code=2)
    assert "add --self-test" in refused
    provider = ("--self-test", "--model", "models/model_0.mine", "--provider", "CPU")
    assert "--provider: only with an .onnx file" in _run(tmp_path, "fer_runtime", *provider, code=2)
