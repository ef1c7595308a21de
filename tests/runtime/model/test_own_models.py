"""Models of one's own, by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.runtime.tiny_models import write_band_model

from fer_runtime.errors import ModelFileError
from fer_runtime.model.find import MODEL_NAMES, available_models, find_model, is_model_file


def test_a_model_of_ones_own_is_found_by_its_name(tmp_path: Path) -> None:
    fp32 = write_band_model(tmp_path / "mine.onnx")
    assert find_model("mine", models_dir=tmp_path) == fp32
    int8 = write_band_model(tmp_path / "mine.int8.onnx")
    assert find_model("mine", models_dir=tmp_path) == int8
    assert find_model("mine", precision="fp32", models_dir=tmp_path) == fp32
    with pytest.raises(ModelFileError, match=rf"no model named hers: .* known are: {', '.join(MODEL_NAMES)}, mine"):
        find_model("hers", models_dir=tmp_path)


def test_a_path_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [is_model_file(name) for name in ("mine.onnx", "./mine", tmp_path / "mine")] == [True] * 3
    assert [is_model_file(name) for name in ("mine", "v0", "my.model", None)] == [False] * 4
    (tmp_path / "mine").touch()
    (tmp_path / "v0").touch()
    assert is_model_file("mine")
    assert not is_model_file("v0")


def test_the_models_of_a_folder_come_before_the_packages(tmp_path: Path) -> None:
    for name in ("mine.onnx", "mine.int8.onnx", "model_0.fp16.onnx"):
        write_band_model(tmp_path / name)
    listed = [(model.name, model.precision) for model in available_models(tmp_path)]
    assert listed[:3] == [("mine", "fp32"), ("mine", "int8"), ("v0", "fp16")]
    # The package has v0 as well, and does not answer for it here.
    assert [model for model in listed if model[0] == "v0"] == [("v0", "fp16")]
    assert {name for name, _ in listed} == {"mine", *MODEL_NAMES}
    for model in available_models(tmp_path):
        found = find_model(model.name, precision=model.precision, models_dir=tmp_path)
        assert found.samefile(model.path)
