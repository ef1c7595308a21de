"""Accuracy on labelled pictures whose answers are known by construction."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.commands import run_python_text
from tests.runtime.tiny_models import band_face, write_band_model

from fer_bench.accuracy import compare_pairwise, flips_csv, measure_accuracy, read_labelled_images
from fer_runtime import EXPRESSIONS, Recognizer
from fer_runtime.errors import DataError
from fer_runtime.model.metadata import ModelMetadata


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures per class that the band model gets right, and one labelled angry that it takes for sad."""
    root = tmp_path_factory.mktemp("data") / "validation"
    for index, name in enumerate(EXPRESSIONS):
        (root / name).mkdir(parents=True)
        for number in range(4):
            cv2.imwrite(str(root / name / f"{number}.png"), band_face(index))
    cv2.imwrite(str(root / "angry" / "wrong.png"), band_face(EXPRESSIONS.index("sad")))
    (root / "fear" / "broken.jpg").write_bytes(b"none")
    (root / "fear" / "notes.txt").write_text("no picture")
    return root.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_band_model(tmp_path_factory.mktemp("model") / "bands.onnx")


def test_the_dataset_root_a_split_and_class_folders_are_the_same(pictures: Path) -> None:
    whole = read_labelled_images(pictures)
    assert whole.paths == read_labelled_images(pictures / "validation").paths
    assert len(whole.labels) == 29
    assert whole.unreadable == ("fear/broken.jpg: cannot be decoded: damaged, or not an image",)


def test_figures_are_those_worked_by_hand(pictures: Path, model: Path) -> None:
    with Recognizer(model) as recognizer:
        found = read_labelled_images(pictures)
        result = measure_accuracy(recognizer, found, resamples=200)
    assert result.accuracy.value == pytest.approx(28 / 29)
    assert result.per_class_recall["angry"].value == pytest.approx(4 / 5)
    assert result.per_class_precision["sad"].value == pytest.approx(4 / 5)
    # F1 of angry and of sad: 8 / 9 each; five classes are perfect.
    assert result.macro_f1.value == pytest.approx((5 + 2 * 8 / 9) / 7)
    assert result.confusion[0, EXPRESSIONS.index("sad")] == 1
    assert result.accuracy.low <= 28 / 29 <= result.accuracy.high <= 1


def test_few_images_that_are_all_right_prove_little(model: Path, tmp_path: Path) -> None:
    (tmp_path / "happy").mkdir()
    for number in range(6):
        cv2.imwrite(str(tmp_path / "happy" / f"{number}.png"), band_face(EXPRESSIONS.index("happy")))
    with Recognizer(model) as recognizer:
        result = measure_accuracy(recognizer, read_labelled_images(tmp_path, EXPRESSIONS), resamples=50)
    # Wilson's interval of n of n is n / (n + 1.96^2) to 1.
    low = 6 / (6 + 1.959964**2)
    for found in (result.accuracy, result.per_class_recall["happy"], result.per_class_precision["happy"]):
        assert (found.value, found.low, found.high) == pytest.approx((1, low, 1))
    # Of a class without images nothing is known.
    assert result.per_class_recall["sad"].to_list() == [0, 1]
    assert (result.macro_f1.value, result.macro_f1.low, result.macro_f1.high) == pytest.approx((1 / 7, low / 7, 1 / 7))


def test_two_models_are_compared_face_by_face(pictures: Path, model: Path, tmp_path: Path) -> None:
    # The other model's labels trade places: it gets neither angry nor disgust right, but for the odd picture out.
    traded = ("disgust", "angry", *EXPRESSIONS[2:])
    other = write_band_model(
        tmp_path / "other.onnx", metadata=ModelMetadata(name="v1", labels=traded, precision="int8", opset=18)
    )
    found = read_labelled_images(pictures)
    results = []
    for path in (model, other):
        with Recognizer(path) as recognizer:
            results.append(measure_accuracy(recognizer, found, resamples=10))
    (pair,) = compare_pairwise(results, found.labels)
    assert (pair.only_first_right, pair.only_second_right, pair.changed) == (8, 0, 8)
    assert pair.p_value == pytest.approx(2 / 2**8)
    # Of three, every two: the second and the third are one model, which agrees with itself.
    pairs = compare_pairwise([*results, results[1]], found.labels)
    assert [(pair.first, pair.second, pair.changed) for pair in pairs] == [
        ("bands fp32", "other int8", 8),
        ("bands fp32", "other int8", 8),
        ("other int8", "other int8", 0),
    ]
    flips = list(csv.DictReader(flips_csv(results, found).splitlines()))
    assert len(flips) == 8
    assert flips[0] == {
        "path": "angry/0.png",
        "label": "angry",
        "model": "bands fp32",
        "answer": "angry",
        "confidence": flips[0]["confidence"],
        "other_model": "other int8",
        "other_answer": "disgust",
        "other_confidence": flips[0]["confidence"],
    }


def test_folders_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class folders"):
        read_labelled_images(tmp_path)
    (tmp_path / "bored").mkdir()
    with pytest.raises(DataError, match="the folder bored, which is none of the labels: angry, disgust"):
        read_labelled_images(tmp_path, EXPRESSIONS)
    with pytest.raises(DataError, match="cannot read"):
        read_labelled_images(tmp_path / "missing")


def test_the_command_writes_what_it_prints(pictures: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "accuracy.json"
    script = "from fer_bench.cli import main; main(prog_name='fer-bench')"
    arguments = ["accuracy", "--model", str(model), "--data", str(pictures), "--json", str(output)]
    run = run_python_text("-c", script, *arguments)
    assert run.returncode == 0, run.stderr
    content = json.loads(output.read_text())
    assert set(content) >= {"environment", "results"}
    (result,) = content["results"]
    assert set(result) >= {"model", "precision", "images", "accuracy", "macro_f1", "per_class_recall", "confusion"}
    assert f"{result['accuracy']:.1%}" in run.stdout


def test_the_shipped_v0_is_as_good_as_its_results_file_says(real_data: Path) -> None:
    results = json.loads((Path(__file__).parents[2] / "models" / "model_0_results.json").read_text())
    with Recognizer("v0", precision="fp32") as recognizer:
        result = measure_accuracy(recognizer, read_labelled_images(real_data), resamples=10)
    # Through the runtime's decoding and ONNX Runtime, a face or two at the border may tip over.
    assert result.accuracy.value == pytest.approx(results["accuracy"], abs=0.001)
    assert np.abs(result.confusion - np.array(results["confusion"])).sum() <= 8
