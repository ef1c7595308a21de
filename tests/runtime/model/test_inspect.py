"""Facts about model files, worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.runtime.tiny_models import write_band_model

from fer_runtime.errors import ModelFileError
from fer_runtime.model.find import find_model
from fer_runtime.model.inspect import inspect_model


def _unfamiliarity(path: Path) -> tuple[int, int]:
    """Weights and biases of the layers behind the output `unfamiliarity`; the first version's had no hidden units."""
    shapes = {tensor.name: tensor.dims for tensor in onnx.load(path).graph.initializer}
    inputs, units = shapes["unfamiliarity_weights"]
    assert inputs == 2304
    return (2304, 0) if units == 1 else (2304 * units + units, units)


def test_v0_is_counted_by_hand() -> None:
    path = find_model("v0", precision="fp32")
    facts, (weights, biases) = inspect_model(path), _unfamiliarity(path)
    # 3x3 kernels over 1, 16 and 32 channels at 48, 24 and 12 pixels; two matrices; the layers of `unfamiliarity`.
    convolutions = 48 * 48 * 16 * 9 + 24 * 24 * 32 * 9 * 16 + 12 * 12 * 64 * 9 * 32
    assert facts.macs == convolutions + 2304 * 128 + 128 * 7 + weights
    weights += 16 * 9 + 32 * 9 * 16 + 64 * 9 * 32 + 2304 * 128 + 128 * 7
    assert facts.parameters == weights + 16 + 32 + 64 + 128 + 7 + biases
    assert facts.weight_bytes == 4 * facts.parameters
    assert (facts.arithmetic, facts.opset, facts.is_unchanged) == ("fp32", 18, True)


def test_int8_counts_the_zeros_that_it_multiplies() -> None:
    path = find_model("v0", precision="int8")
    facts = inspect_model(path)
    # Two rows of four columns at once: 4 x 3 kernels over 4 columns to 8 x 16 results, at 24 x 12 places.
    first = 24 * 12 * 128 * 4 * 3 * 4
    # The hidden layer holds the units that faces switch on and those of `unfamiliarity`; two layers read them all.
    (shared,) = [
        tensor for tensor in onnx.load(path).graph.initializer if tensor.dims[:1] == [2304] and len(tensor.dims) == 2
    ]
    hidden = shared.dims[1]
    assert 32 < hidden < 128 + 32
    assert facts.macs == first + 24 * 24 * 32 * 9 * 16 + 12 * 12 * 64 * 9 * 32 + 2304 * hidden + hidden * 7 + hidden
    assert facts.arithmetic == "int8"
    assert facts.weight_bytes < 1.05 * facts.parameters  # one byte each, four for the few biases


def test_facts_are_json_and_leave_the_pixels_out() -> None:
    text = json.dumps(inspect_model(find_model("v0")).to_dict())
    assert "zlib" not in text
    assert json.loads(text)["metadata"]["name"] == "v0"


def test_a_missing_file_is_not_to_be_exported_first(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"No such file or directory; give the path of an \.onnx file"):
        inspect_model(tmp_path / "none.onnx")


def test_a_file_that_is_not_ours_is_still_described(tmp_path: Path) -> None:
    facts = inspect_model(write_band_model(tmp_path / "a.onnx", metadata=""))
    assert facts.metadata is None
    assert facts.is_unchanged is None
    assert "labels and input are unknown" in facts.to_text()


@pytest.mark.parametrize("op_type", ["ConvTranspose", "Resize"])
def test_work_behind_an_unknown_shape_is_not_guessed(op_type: str, tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.zeros((4, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [weights],
    )
    onnx.save(helper.make_model(graph), tmp_path / "a.onnx")
    assert inspect_model(tmp_path / "a.onnx").macs is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"certificate": {"digest": 5}}, "DAMAGED"),
        ({"certificate": {"faces": [1], "digest": "0"}}, "DAMAGED"),
        ({"calibration": {"faces": 3}}, "fitted on 3 faces"),
        ({"verdict": {"passed": False}}, "DID NOT PASS"),
        ({"verdict": {"passed": False, "outcome": "not proven"}}, "DID NOT PASS"),
        (
            {"verdict": {"passed": False, "outcome": "not proven", "failures": ["not proven: 18 labelled faces"]}},
            "  verdict       not proven: 18 labelled faces",
        ),
    ],
)
def test_changed_metadata_is_described_as_far_as_it_goes(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    facts = inspect_model(_changed(tmp_path, change))
    assert told in facts.to_text()
    assert not facts.is_unchanged
    json.dumps(facts.to_dict())


@pytest.mark.parametrize(
    "change",
    [{"certificate": [1]}, {"verdict": "good"}, {"training": 3}, {"versions": []}, {"uncertain_below": "low"}],
    ids=lambda change: next(iter(change)),
)
def test_metadata_of_another_shape_is_one_error(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"changed\.onnx has 'fer' metadata that cannot be read"):
        inspect_model(_changed(tmp_path, change))


def _changed(folder: Path, change: dict[str, Any]) -> Path:
    model = onnx.load(find_model("v0", precision="fp32"))
    entry = model.metadata_props[0]
    entry.value = json.dumps(json.loads(entry.value) | change)
    onnx.save(model, folder / "changed.onnx")
    return folder / "changed.onnx"
