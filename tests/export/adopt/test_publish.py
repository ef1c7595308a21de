"""An adopted file goes through the gate of every export, and a break of its graph does not come through."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from tests.export.adopt.faults import (
    FAULTS,
    Bench,
    change_values,
    few_faces,
    fixed_batch_in_a_reshape,
    nothing,
)
from tests.export.adopt.foreign_models import FERPLUS, ferplus_like, mobilefacenet_like

from fer_export.adopt.inputs import FaceInput
from fer_export.adopt.publish import adopt_model
from fer_export.adopt.read import adopt_file
from fer_export.candidates import make_candidate
from fer_export.cli import main
from fer_export.gate.report import ExportRefusedError
from fer_export.gate.subject import prepare_subject
from fer_export.graph import set_temperature
from fer_export.options import ExportOptions
from fer_runtime import Recognizer
from fer_runtime.errors import DataError, OutputError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.model.find import packaged_models_dir
from fer_runtime.model.inspect import inspect_model
from fer_runtime.model.self_test import run_self_test

pytestmark = pytest.mark.usefixtures("exports_once")


def test_a_file_like_ferplus_becomes_a_model_with_a_certificate(tmp_path: Path) -> None:
    (tmp_path / "ferplus.onnx").write_bytes(ferplus_like().SerializeToString())
    models = tmp_path / "models"
    command = ["--adopt", str(tmp_path / "ferplus.onnx"), "--input", "gray64", "--range", "0..255"]
    command += ["--labels", ",".join(FERPLUS), "--models-dir", str(models), "--temperature", "2"]
    models.mkdir()
    shutil.copy(packaged_models_dir() / "model_0.int8.onnx", models / "ferplus.int8.onnx")
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "a fixed batch of 1" in result.stderr
    # fer-infer --model ferplus would take it.
    assert f"{models / 'ferplus.int8.onnx'} has the same name and is of another checkpoint" in result.stderr
    (models / "ferplus.int8.onnx").unlink()
    replay = run_self_test(models / "ferplus.onnx")
    assert replay.passed, replay.to_text()
    assert "from the original file" in replay.to_text()
    with Recognizer("ferplus", models_dir=models) as recognizer:
        assert (recognizer.labels, recognizer.size, recognizer.color) == (FERPLUS, 64, "gray")
        assert recognizer.metadata.training["adopted"]["producer"] == "CNTK"
        assert recognizer.metadata.temperature == 2.0
        faces = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
        assert recognizer.classify(faces).shape == (3, 8)
    # Another file's model is not overwritten; the file itself never.
    (tmp_path / "ferplus.onnx").write_bytes(ferplus_like("N").SerializeToString())
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 1
    assert "was exported from another checkpoint" in again.stderr
    faces_taken = FaceInput(color="gray", size=64, high=255)
    with pytest.raises(OutputError, match="would be replaced by its own adoption"):
        adopt_model(
            tmp_path / "ferplus.onnx",
            ExportOptions(models_dir=tmp_path, replace=True),
            name="ferplus",
            faces=faces_taken,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--adopt needs --input"),
        (["--input", "gray64"], "--adopt needs --range, or --mean and --std"),
        (["--input", "gray64", "--range", "1"], "is not BLACK..WHITE"),
        (["--input", "gray64", "--range", "1..1"], "two different numbers"),
        (["--input", "gray64", "--range", "0...1"], "'0...1' is not BLACK..WHITE"),  # 0 to 0.1, or to 1?
        (["--input", "gray64", "--mean", "a"], "is not one number, or three"),
        (["--input", "gray64", "--std", "0"], "std must be positive, got 0"),
        (["--input", "round64", "--range", "0..1"], "is not a colour and size"),
        (["--input", "gray64", "--range", "0..1", "--model", "v0"], "--adopt does not use --model"),
        (["--input", "gray64", "--range", "0..1", "--temperature", "2", "--data", "."], "fitted to --data"),
    ],
)
def test_what_the_command_needs_is_said(options: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--adopt", str(tmp_path / "file.onnx"), *options])
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    path = tmp_path_factory.mktemp("foreign") / "faces.onnx"
    path.write_bytes(mobilefacenet_like(32).SerializeToString())
    faces = FaceInput(color="rgb", size=32, mean=(0.5, 0.4, 0.6), std=(0.2, 0.3, 0.25))
    adopted = adopt_file(path, name="faces", faces=faces, labels=EXPRESSIONS)
    with few_faces():
        subject, fp32 = prepare_subject(
            adopted.original,
            lambda calibration: set_temperature(adopted.graph, calibration.temperature),
            ExportOptions(models_dir=path.parent),
            sha256=adopted.sha256,
            file_name="faces",
        )
    return Bench(subject=subject, candidate=make_candidate(subject, "fp32", fp32))


@pytest.mark.parametrize(("fault", "found_by"), [*FAULTS, (fixed_batch_in_a_reshape, "face by face")])
def test_a_break_of_the_adopted_graph_is_found(
    bench: Bench, fault: Callable[[onnx.ModelProto], None], found_by: str
) -> None:
    assert found_by in bench.failures(fault)


def test_the_right_graph_passes(bench: Bench) -> None:
    assert bench.failures(nothing) == []


@pytest.fixture(scope="module")
def labelled(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up faces in class folders, each under the label that the foreign file itself gives it."""
    folder = tmp_path_factory.mktemp("labelled")
    logits = bench.subject.logits - bench.subject.logits.mean(0)
    for place, (face, label) in enumerate(zip(bench.subject.faces, logits.argmax(1), strict=True)):
        for split in ("train", "validation"):
            path = folder / split / EXPRESSIONS[label] / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), face[..., ::-1])
    return folder


def _balanced(model: onnx.ModelProto, logits: np.ndarray) -> onnx.ModelProto:
    """The file with a bias that makes all its labels equally likely, as a trained one's are."""
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    change_values(bias, lambda values: values - logits.mean(0))
    return model


def test_labelled_faces_calibrate_the_file_and_judge_its_int8(bench: Bench, labelled: Path, tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes(_balanced(mobilefacenet_like(32), bench.subject.logits).SerializeToString())
    told: list[str] = []
    report = adopt_model(
        path,
        ExportOptions(
            precisions=("fp32", "int8"),
            data=labelled,
            models_dir=tmp_path / "models",
            keep_anyway=True,  # a random network of 3,000 weights on 80 faces: the verdict is not what is tested
            progress=told.append,
        ),
        name="mine",
        faces=FaceInput(color="rgb", size=32, mean=(0.5, 0.4, 0.6), std=(0.2, 0.3, 0.25)),
        labels=EXPRESSIONS,
    )
    fp32, int8 = report.models
    assert fp32.quality is not None
    assert fp32.quality.accuracy == 1.0  # every face has the label that the file gives it
    assert fp32.calibration.faces > 50
    assert int8.quantizer == "onnxruntime"
    assert "quantize_static: ours does not know faces of shape (32, 32, 3)" in " ".join(told)
    metadata = inspect_model(tmp_path / "models" / "mine.int8.onnx").metadata
    assert metadata is not None
    assert metadata.verdict["quantization"]["by"].startswith("onnxruntime 1.")
    assert run_self_test(tmp_path / "models" / "mine.int8.onnx").passed


def test_the_right_order_of_the_labels_is_named(bench: Bench, labelled: Path, tmp_path: Path) -> None:
    """FER2013's csv has other labels at 4 to 6 than the class folders."""
    path = tmp_path / "foreign.onnx"
    path.write_bytes(_balanced(mobilefacenet_like(32), bench.subject.logits).SerializeToString())
    csv = (*EXPRESSIONS[:4], "sad", "surprise", "neutral")
    with pytest.raises(ExportRefusedError, match="label order") as error:
        adopt_model(
            path,
            ExportOptions(data=labelled, models_dir=tmp_path / "models"),
            name="mine",
            faces=FaceInput(color="rgb", size=32, mean=(0.5, 0.4, 0.6), std=(0.2, 0.3, 0.25)),
            labels=csv,
        )
    assert f"100.00% as {','.join(EXPRESSIONS)}" in str(error.value)
    assert not (tmp_path / "models" / "mine.onnx").exists()


def test_a_folder_that_is_no_label_is_named(labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "foreign.onnx").write_bytes(mobilefacenet_like(32).SerializeToString())
    with pytest.raises(DataError, match=r"has a class folder .* and the model's labels are a, b, c"):
        adopt_model(
            tmp_path / "foreign.onnx",
            ExportOptions(data=labelled, models_dir=tmp_path),
            name="mine",
            faces=FaceInput(color="rgb", size=32, low=-1),
            labels=tuple("abcdefg"),
        )
