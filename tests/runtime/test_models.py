"""Which file a name stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.runtime.tiny_models import write_band_model

from fer_runtime.errors import ModelFileError
from fer_runtime.models import find_model, packaged_models_dir


def test_a_folder_without_the_model_leaves_it_to_the_package(tmp_path: Path) -> None:
    assert find_model("v0", models_dir=tmp_path) == packaged_models_dir() / "model_0.onnx"
    assert find_model("v0", precision="int8", models_dir=tmp_path) == packaged_models_dir() / "model_0.int8.onnx"


def test_the_packages_int8_does_not_answer_for_somebodys_own_model(tmp_path: Path) -> None:
    own = write_band_model(tmp_path / "model_0.onnx")
    assert find_model("v0", models_dir=tmp_path) == own
    with pytest.raises(ModelFileError, match=r"model_0\.int8\.onnx, though .* --model v0 --precision int8"):
        find_model("v0", precision="int8", models_dir=tmp_path)
