"""Picture files through both readers: differences of pixels are told apart from differences of graphs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.export.conftest import Exported

from fer_export.gate.file_parity import compare_files, read_like_torchvision
from fer_export.gate.golden import synthetic_faces
from fer_runtime.errors import DataError
from fer_train.checkpoints import Checkpoint


@pytest.fixture
def model(exported: Exported) -> bytes:
    return (exported.models_dir / "model_0.onnx").read_bytes()


def _write(folder: Path, faces: np.ndarray, suffix: str) -> list[Path]:
    paths = [folder / f"{index:02}{suffix}" for index in range(len(faces))]
    for path, face in zip(paths, faces, strict=True):
        cv2.imwrite(str(path), face)
    return paths


def test_lossless_crops_agree_pixel_by_pixel(tmp_path: Path, trained_v0: Checkpoint, model: bytes) -> None:
    faces = synthetic_faces()
    paths = _write(tmp_path, faces, ".png")
    assert np.array_equal(read_like_torchvision(paths[12]), faces[12])
    found = compare_files(paths, trained_v0, model)
    assert (found.files, found.files_with_other_pixels, found.labels_changed) == (16, 0, 0)


def test_resized_pictures_differ_by_reading_and_not_by_the_graph(
    tmp_path: Path, trained_v0: Checkpoint, model: bytes
) -> None:
    large = np.stack([cv2.resize(face, (113, 113), interpolation=cv2.INTER_CUBIC) for face in synthetic_faces()])
    found = compare_files(_write(tmp_path, large, ".png"), trained_v0, model)
    assert found.files_with_other_pixels > 0
    assert found.max_pixel_difference > 0
    assert found.labels_changed_by_graph == 0


def test_another_graph_is_not_hidden_behind_equal_pixels(
    tmp_path: Path, trained_v0: Checkpoint, exported: Exported, model: bytes
) -> None:
    state = dict(trained_v0.state_dict)
    for key in ("fc_layer.4.weight", "fc_layer.4.bias"):
        state[key] = state[key].flip(0)
    found = compare_files(_write(tmp_path, synthetic_faces(), ".png"), Checkpoint(name="v0", state_dict=state), model)
    assert found.labels_changed_by_reading == 0
    assert found.labels_changed_by_graph == found.labels_changed > 0


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.png"):
        read_like_torchvision(tmp_path / "a.png")
