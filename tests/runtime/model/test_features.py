"""The values that a model's last layer takes, against those that the onnx package names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.runtime.tiny_models import write_band_model

from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.model.features import feature_name, features_of
from fer_runtime.model.find import find_model
from fer_runtime.model.inner_tensors import with_outputs
from fer_runtime.model.onnx_file import read_onnx


def _faces(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 48, 48), np.uint8)


def test_the_features_of_a_linear_model_are_its_pixels(tmp_path: Path) -> None:
    path = write_band_model(tmp_path / "bands.onnx")
    faces = _faces(70)  # more than a batch
    seen: list[int] = []
    found = features_of(path, faces, progress=seen.append)
    assert np.array_equal(found, faces.reshape(70, -1).astype(np.float32))
    assert (seen[-1], features_of(path, faces[:0]).shape[0]) == (70, 0)


def test_a_model_that_does_not_end_in_a_linear_layer_gives_its_logits(tmp_path: Path) -> None:
    path = write_band_model(tmp_path / "bands.onnx")
    model = onnx.load(path)
    # The logits are clipped last, and a clipped layer is no linear one.
    model.graph.node[2].output[0] = "raw"
    model.graph.node.insert(3, helper.make_node("Relu", ["raw"], ["logits"]))
    onnx.save(model, path)
    faces = _faces(3)
    bands = np.stack([faces[:, row * 48 // 7 : (row + 1) * 48 // 7].mean((1, 2)) for row in range(7)], 1)
    # In float32, sums of up to 336 products.
    assert features_of(path, faces) == pytest.approx(bands * 10 / 255, rel=1e-4)


@pytest.mark.parametrize("name", ["v0", "v3"])
def test_the_added_output_is_what_onnx_reads_and_the_layer_before_the_logits(name: str) -> None:
    content = find_model(name).read_bytes()
    chosen = feature_name(read_onnx(content, source=name))
    model = onnx.load_from_string(with_outputs(content, [chosen]))
    assert [output.name for output in model.graph.output][-1] == chosen
    before = onnx.load_from_string(content)
    assert len(model.graph.output) == len(before.graph.output) + 1
    assert len(model.graph.node) == len(before.graph.node)
    (last,) = [node for node in model.graph.node if "logits" in node.output]
    assert (last.op_type, last.input[0]) == ("Gemm", chosen)
    features = features_of(find_model(name), _faces(2))
    assert features.shape[0] == 2
    assert features.shape[1] > len(EXPRESSIONS)
