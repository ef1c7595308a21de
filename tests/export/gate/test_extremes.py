"""Golden faces drive the sums of every layer as far as labelled faces do, also where tensors saturate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.export.conftest import Exported

from fer_export.gate import extremes
from fer_export.gate.extremes import Sums, _Climber, faces_at_extremes
from fer_export.gate.golden import synthetic_faces
from fer_runtime.model.certificate import parse_certificate
from fer_runtime.model.inspect import inspect_model
from fer_runtime.model.parity import FloatArray, Uint8Array
from fer_runtime.model.session import open_session
from fer_train.data.folders import load_faces


def _small_network(weights: FloatArray, *, kind: str = "Relu") -> onnx.ModelProto:
    """Two linear layers over faces of 2 x 2, of the weights (first 2 x 4, then 1 x 2)."""
    first, second = weights[:8].reshape(2, 4), weights[8:].reshape(1, 2)
    nodes = [
        helper.make_node("Cast", ["faces"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("Gemm", ["flat", "first"], ["sums"], transB=1),
        helper.make_node(kind, ["sums"], ["units"]),
        helper.make_node("Gemm", ["units", "second"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("faces", TensorProto.UINT8, ["batch", 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


_LABELLED: Uint8Array = np.array([[[10, 0], [0, 0]], [[0, 20], [0, 0]], [[0, 0], [0, 0]]], np.uint8)
# The first unit adds the upper pixels; the second subtracts the first pixel.
_WEIGHTS = np.array([1, 1, 0, 0, -1, 0, 0, 0, 1, 1], np.float32)


def test_sums_have_the_ranges_of_labelled_faces() -> None:
    sums = Sums(_small_network(_WEIGHTS), [("sums", ())], _LABELLED)
    assert (sums.layers, sums.units) == (2, 3)
    assert sums.high.tolist() == [20, 0, 20]
    assert sums.low.tolist() == [0, -10, 0]


def test_a_sum_within_five_percent_of_its_range_is_reached() -> None:
    sums = Sums(_small_network(_WEIGHTS), [], _LABELLED)
    face = np.array([[[0, 19], [0, 0]], [[0, 18], [0, 0]], [[200, 0], [0, 0]]], np.uint8)
    # Highest sums of the three units, then their lowest. The third face goes beyond the labelled ones.
    assert sums.reached(face).astype(int).tolist() == [[1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0], [1, 0, 1, 0, 1, 0]]
    assert sums.layers_reached(face[1:2]) == 0
    assert sums.layers_reached(face) == 3  # no face has the lowest logit


def test_a_sum_is_not_reached_where_the_tensor_before_it_would_have_to_leave_its_range() -> None:
    # Labelled faces drive the first layer's sums to 20, and the logits to 60 by three units' worth of the other.
    weights = np.array([1, 0, 0, 0, 0, 1, 0, 0, 1, 2], np.float32)
    labelled = np.array([[[20, 20], [0, 0]], [[0, 0], [0, 0]]], np.uint8)
    sums = Sums(_small_network(weights), [], labelled)
    assert sums.high.tolist() == [20, 20, 60]
    # 250 is held to 20: alone it makes 40 of the 60.
    assert sums.reached(np.array([[[0, 250], [0, 0]]], np.uint8))[0, 2] == np.False_
    assert sums.shares(np.array([[[0, 250], [0, 0]]], np.uint8))[0, 2] == pytest.approx(40 / 60)


def test_the_search_reaches_every_extreme_of_a_small_network() -> None:
    random = np.random.default_rng(3)
    model = _small_network(random.normal(size=10).astype(np.float32))
    labelled = random.integers(0, 256, (200, 2, 2)).astype(np.uint8)
    sums = Sums(model, [], labelled)
    found = faces_at_extremes(sums, labelled[:1], most=40)
    assert sums.reached(found).any(0).all()
    assert len(found) <= 6


def test_a_face_that_is_given_an_extreme_of_its_own_reaches_it() -> None:
    random = np.random.default_rng(3)
    labelled = random.integers(0, 256, (200, 2, 2)).astype(np.uint8)
    sums = Sums(_small_network(random.normal(size=10).astype(np.float32)), [], labelled)
    own = np.arange(2 * sums.units)
    climber = _Climber(sums)
    starts = np.stack([climber.noise(random, (2, 2)) for _ in own])
    found = climber.climb(starts, np.ones(len(own), bool), random, own=own)
    assert sums.reached(found)[own, own].all()


def test_no_more_extreme_faces_are_kept_than_allowed() -> None:
    random = np.random.default_rng(3)
    model = _small_network(random.normal(size=10).astype(np.float32))
    labelled = random.integers(0, 256, (200, 2, 2)).astype(np.uint8)
    assert len(faces_at_extremes(Sums(model, [], labelled), labelled[:1], most=2)) == 2


def test_networks_that_pytorch_is_not_told_of_are_searched_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extremes, "_MOST_ROUNDS", 10)
    random = np.random.default_rng(3)
    model = _small_network(random.normal(size=10).astype(np.float32), kind="Sigmoid")
    labelled = random.integers(0, 256, (200, 2, 2)).astype(np.uint8)
    sums = Sums(model, [], labelled)
    found = faces_at_extremes(sums, labelled[:1], most=40)
    assert sums.reached(found).any(0).sum() > sums.reached(labelled[:1]).any(0).sum()


def test_the_search_gives_the_same_faces_again(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extremes, "_MOST_ROUNDS", 3)  # each takes the same steps
    model = onnx.load(exported.models_dir / "narrow.onnx")
    labelled = load_faces(exported.data, "validation").faces
    first, second = (faces_at_extremes(Sums(model, [], labelled), synthetic_faces(), most=40) for _ in range(2))
    assert len(first) > 1
    assert np.array_equal(first, second)


def _accumulators(path: Path, faces: Uint8Array) -> list[FloatArray]:
    """The highest and lowest sum of each unit of an int8 file's layers, each (units, 2), in steps of the output."""
    model = onnx.load(path)
    layers = [node.output[0] for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    shown = {output.name for output in model.graph.output}
    for name in layers:
        if name not in shown:
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = open_session(model.SerializeToString(), source="the int8 file").session
    found = [values.reshape(*values.shape[:2], -1) for values in session.run(layers, {"faces": faces})]
    return [np.stack([sums.max((0, 2)), sums.min((0, 2))], 1) for sums in found]


def test_the_accumulators_of_the_int8_file_reach_their_extremes(exported: Exported) -> None:
    path = exported.models_dir / "narrow.int8.onnx"
    metadata = inspect_model(path).metadata
    assert metadata is not None
    golden = parse_certificate(metadata, source=str(path)).faces
    labelled = load_faces(exported.data, "validation").faces
    units = reached = 0
    for on_labelled, on_golden in zip(_accumulators(path, labelled), _accumulators(path, golden), strict=True):
        near = 0.05 * (on_labelled[:, 0] - on_labelled[:, 1])
        units += 2 * len(near)
        reached += int((on_golden[:, 0] >= on_labelled[:, 0] - near).sum())
        reached += int((on_golden[:, 1] <= on_labelled[:, 1] + near).sum())
        # Of the whole layer: what saturates.
        top, bottom = on_labelled[:, 0].max(), on_labelled[:, 1].min()
        assert on_golden[:, 0].max() >= top - 0.05 * (top - bottom)
        assert on_golden[:, 1].min() <= bottom + 0.05 * (top - bottom)
    # The ranges of int8 come from training faces, so that its sums are not held where those of the float graph are.
    assert reached >= 0.98 * units
