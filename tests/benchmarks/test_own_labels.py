"""Models of one's own on one's own images: labels by name, faces of the model's size and colour."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.commands import run_python_text
from tests.runtime.tiny_models import band_face, write_band_model

from fer_bench.accuracy import measure_accuracy, measure_files, read_labelled_images
from fer_bench.diff import observe
from fer_bench.latency.measure import configurations
from fer_bench.matching import images_for
from fer_bench.report.data import label_of
from fer_bench.report.measure import compare_files, measure_robustness_of
from fer_bench.robustness import CONDITIONS, degrade_faces
from fer_bench.unfamiliar import measure as measure_unfamiliar
from fer_runtime import Recognizer
from fer_runtime.errors import DataError
from fer_runtime.model.metadata import ModelMetadata

THREE = ("bored", "müde, sehr", "engaged")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for index, name in enumerate(THREE):
        (root / "val" / name).mkdir(parents=True)
        for number in range(3):
            cv2.imwrite(str(root / "val" / name / f"{number}.png"), band_face(index, side=90, classes=3))
    cv2.imwrite(str(root / "val" / "bored" / "wrong.png"), band_face(2, side=90, classes=3))
    return root


def _model(folder: Path, name: str, labels: tuple[str, ...], *, size: int = 48, color: str = "gray") -> Path:
    folder.mkdir(exist_ok=True)
    metadata = ModelMetadata(name=name, labels=labels, precision="fp32", opset=18, size=size, color=color)
    return write_band_model(folder / f"{name}.onnx", metadata=metadata)


def test_figures_are_those_worked_by_hand_for_any_labels_sizes_and_colours(data: Path, tmp_path: Path) -> None:
    images = read_labelled_images(data, THREE)
    for size, color in ((48, "gray"), (64, "rgb")):
        with Recognizer(_model(tmp_path, f"m{size}", THREE, size=size, color=color)) as recognizer:
            result = measure_accuracy(recognizer, images, resamples=10)
        assert result.accuracy.value == pytest.approx(9 / 10)
        assert result.per_class_recall["bored"].value == pytest.approx(3 / 4)
        assert result.confusion.tolist() == [[3, 0, 1], [0, 3, 0], [0, 0, 3]]
        assert result.to_dict()["labels"] == list(THREE)


def test_results_have_the_name_of_the_file_not_of_the_network(data: Path, tmp_path: Path) -> None:
    """Two trainings of one network would have one name in the same table."""
    metadata = ModelMetadata(name="v0", labels=THREE, precision="fp32", opset=18)
    image = np.zeros((48, 48), np.uint8)
    with Recognizer(write_band_model(tmp_path / "mine.onnx", metadata=metadata)) as recognizer:
        assert measure_accuracy(recognizer, read_labelled_images(data, THREE), resamples=2).model == "mine"
        assert observe(recognizer, tmp_path, ()).name == "mine fp32"
        assert [result.model for result in measure_unfamiliar(recognizer, {"noise": [image]}, None)[0]] == ["mine"]


def test_models_of_other_labels_are_left_out_or_refused(data: Path, tmp_path: Path) -> None:
    _model(tmp_path, "mine", THREE)
    _model(tmp_path, "turned", THREE[::-1])
    _model(tmp_path, "other", ("bored", "engaged"))
    files = configurations(models=("mine", "turned", "other"), engines=("onnxruntime",), models_dir=tmp_path)
    messages: list[str] = []
    images, kept = images_for(data, files, are_named=False, say=messages.append)
    assert [file.model for file in kept] == ["mine", "turned"]
    assert images.classes == THREE
    (note,) = messages
    assert "other fp32 has other labels" in note
    assert "it lacks müde, sehr" in note
    with pytest.raises(DataError, match="other fp32 has other labels"):
        images_for(data, files, are_named=True)
    with pytest.raises(DataError, match="no model has the labels"):
        images_for(data, files[2:], are_named=False)
    with Recognizer(tmp_path / "other.onnx") as recognizer, pytest.raises(DataError, match="it lacks müde, sehr"):
        measure_accuracy(recognizer, images)


def test_files_of_one_name_are_told_apart_by_their_paths(data: Path, tmp_path: Path) -> None:
    paths = [_model(tmp_path / "first", "mine", THREE), _model(tmp_path / "second", "mine", THREE[::-1])]
    given = tuple(map(str, paths))
    # Twice the same one is one.
    files = configurations(models=(*given, given[0]), engines=("onnxruntime",), models_dir=tmp_path)
    images, files = images_for(data, files, are_named=True)
    results = measure_files([file.source for file in files], images, progress=lambda done, total: None)
    assert [file.model for file in files] == [result.model for result in results] == list(given)
    # The report's pairs have the names of its rows, by which its verdict finds them.
    (pair,) = compare_files(files, results, images)
    assert [pair["first"], pair["second"]] == [label_of(file.model, file.precision) for file in files] == list(given)
    chosen = [condition for condition in CONDITIONS if condition.name == "rotation"]
    found = measure_robustness_of(data, models=given, models_dir=tmp_path, conditions=chosen, count=100)
    # By name, both have the three labels.
    assert {point.model for point in found.points} == set(given)
    (alone,) = configurations(models=given[:1], engines=("onnxruntime",), models_dir=tmp_path)
    assert alone.model == "mine.onnx"


def test_images_that_cannot_be_read_are_named(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(data, root)
    (root / "val" / "bored" / "broken.png").write_bytes(b"none")
    files = configurations(
        models=(str(_model(tmp_path, "mine", THREE)),), engines=("onnxruntime",), models_dir=tmp_path
    )
    messages: list[str] = []
    images_for(root, files, are_named=True, say=messages.append)
    assert messages == ["not counted: bored/broken.png: cannot be decoded: damaged, or not an image"]


def test_training_images_alone_tell_nothing(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no folder validation or test.*fer-data split"):
        read_labelled_images(tmp_path)


def test_images_that_the_model_may_have_learned_are_said(tmp_path: Path) -> None:
    for index, name in enumerate(("calm", "glad")):
        (tmp_path / "data" / name / "album").mkdir(parents=True)
        for number in range(3 + index):
            place = tmp_path / "data" / name / ("album" if number else "") / f"{number}.png"
            cv2.imwrite(str(place), band_face(index, classes=2))
    script = "from fer_bench.cli import main; main(prog_name='fer-bench')"
    arguments = ["-c", script, "accuracy", "--data", tmp_path / "data", "--model", tmp_path / "mine.onnx"]
    held_out = {"train": {"counts": {"calm": 2, "glad": 3}}, "validation": {"counts": {"calm": 1, "glad": 1}}}
    others = {"train": {"counts": {"calm": 4, "glad": 3}}, "validation": {"counts": {"calm": 1, "glad": 1}}}
    warning = "warning: mine fp32 was trained on as many images of each label as there are here"
    for data, is_warned in ((held_out, True), (others, False), ({"train": None}, False)):
        metadata = ModelMetadata(
            name="mine", labels=("calm", "glad"), precision="fp32", opset=18, training={"data": data}
        )
        write_band_model(tmp_path / "mine.onnx", metadata=metadata)
        done = run_python_text(*arguments)
        assert done.returncode == 0, done.stderr
        # Images in folders below the class folders count, as for fer-train.
        assert f"7 images of {tmp_path / 'data'}\n" in done.stdout
        assert (warning in done.stderr) == is_warned


def test_the_commands_print_the_files_labels(data: Path, tmp_path: Path) -> None:
    _model(tmp_path / "models", "mine", THREE, size=64, color="rgb")
    script = "from fer_bench.cli import main; main(prog_name='fer-bench')"
    done = run_python_text("-c", script, "accuracy", "--data", data, "--model", "mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"10 images of {data / 'val'}\n" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.strip().startswith("müde, sehr"))
    assert row.split()[-3:] == ["0", "3", "0"]


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name)
def test_faces_in_colour_are_degraded_as_gray_ones_are(condition: object) -> None:
    """Three equal planes: the same as the gray face, but for JPEG's colours and its rounding."""
    gray = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (96, 96), np.uint8), (0, 0), 3)[None]
    colour = np.repeat(gray[..., None], 3, 3)
    degradation = next(known for known in CONDITIONS if known is condition)
    if degradation.name == "noise":  # which is another one in every plane
        assert degrade_faces(colour, degradation, degradation.levels[-1]).shape == colour.shape  # type: ignore[arg-type]
        return
    expected = degrade_faces(gray, degradation, degradation.levels[-1]).astype(int)  # type: ignore[arg-type]
    found = degrade_faces(colour, degradation, degradation.levels[-1]).astype(int)  # type: ignore[arg-type]
    assert np.abs(found - expected[..., None]).max() <= 2


def test_robustness_is_measured_in_the_models_size_and_colour(data: Path, tmp_path: Path) -> None:
    _model(tmp_path, "small", THREE)
    _model(tmp_path, "large", THREE[::-1], size=96, color="rgb")
    chosen = [condition for condition in CONDITIONS if condition.name == "rotation"]
    found = measure_robustness_of(data, models=("small", "large"), models_dir=tmp_path, conditions=chosen, count=100)
    neutral = {point.model: point.accuracy for point in found.points if point.level == chosen[0].neutral}
    # By name: the second model takes the upper band for engaged, so that it is right about the middle band and the odd
    # image alone.
    assert neutral == {"small": 0.9, "large": 0.4}
