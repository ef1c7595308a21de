"""Which file a name stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.runtime.tiny_models import write_band_model

from fer_runtime.errors import ModelFileError
from fer_runtime.model.find import find_model, packaged_models_dir


def test_a_folder_without_the_model_leaves_it_to_the_package(tmp_path: Path) -> None:
    assert find_model("v0", models_dir=tmp_path) == packaged_models_dir() / "model_0.int8.onnx"
    assert find_model("v0", precision="int8", models_dir=tmp_path) == packaged_models_dir() / "model_0.int8.onnx"


def test_the_packages_int8_does_not_answer_for_somebodys_own_model(tmp_path: Path) -> None:
    own = write_band_model(tmp_path / "model_0.onnx")
    assert find_model("v0", models_dir=tmp_path) == own
    with pytest.raises(ModelFileError, match=r"model_0\.int8\.onnx, though .* --model v0 --precision int8"):
        find_model("v0", precision="int8", models_dir=tmp_path)


def test_a_missing_precision_of_ones_own_model_is_written_by_its_name(tmp_path: Path) -> None:
    write_band_model(tmp_path / "mine.onnx")
    with pytest.raises(ModelFileError, match=r"fer-export --name mine --precision int8$"):
        find_model("mine", precision="int8", models_dir=tmp_path)


def test_without_a_name_the_more_accurate_model_of_ones_own_folder_comes_first(tmp_path: Path) -> None:
    own_v0 = write_band_model(tmp_path / "model_0.onnx")
    # Somebody who trained and exported v0 means that one, whatever the package brings along.
    assert find_model(models_dir=tmp_path) == own_v0
    own_v1 = write_band_model(tmp_path / "model_v1.onnx")
    assert find_model(models_dir=tmp_path) == own_v1
    int8 = write_band_model(tmp_path / "model_v1.int8.onnx")
    assert find_model(models_dir=tmp_path) == int8
    assert find_model(precision="fp32", models_dir=tmp_path) == own_v1
    assert find_model("v0", models_dir=tmp_path) == own_v0
    with pytest.raises(ModelFileError, match=r"model_v1\.fp16\.onnx, though .* in another precision"):
        find_model(precision="fp16", models_dir=tmp_path)


def test_a_precision_that_no_model_can_have_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no precision 'int4'; one of: fp32, int8, fp16"):
        find_model("v0", precision="int4", models_dir=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"precision='int8' is for named models; .*own\.onnx is a file"):
        find_model(tmp_path / "own.onnx", precision="int8")
