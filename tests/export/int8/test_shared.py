"""The units of `unfamiliarity` in a hidden layer of the network: the same results from one product less."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.export.narrow import HIDDEN

from fer_export.gate.golden import synthetic_faces, textures
from fer_export.gate.units import quantized_scales
from fer_export.int8.optimized import integer_check, optimized_nodes
from fer_export.int8.quantize import quantize_model
from fer_export.int8.ranges import observe
from fer_export.int8.score import append_score
from fer_export.int8.shared import UNITS, _order, find_shared, separate_layer, share_layer
from fer_export.unfamiliar.head import find_maps, idle_units
from fer_runtime.errors import ParityError
from fer_runtime.model.session import open_session

_UNITS = 5
_NAMES = ["logits", "probabilities", "score_score"]


@pytest.fixture(scope="module")
def scored(narrow_graph: onnx.ModelProto) -> onnx.ModelProto:
    """The int8 graph of the narrow network with a score in layers of its own."""
    maps = find_maps(narrow_graph)
    assert maps is not None
    model = quantize_model(narrow_graph, observe(narrow_graph, textures(64)))
    random = np.random.default_rng(0)
    weights = random.normal(size=(int(np.prod(maps.shape)), _UNITS)).astype(np.float32)
    append_score(
        model,
        maps=maps.tensor,
        flat=maps.flat,
        shape=maps.shape,
        layers=(weights, random.normal(size=_UNITS).astype(np.float32), np.array([1, -1, 1, 1, -1], np.float32)),
        highest=20.0,
        scales=quantized_scales(model),
        name="score",
    )
    model.graph.output.append(helper.make_tensor_value_info("score_score", onnx.TensorProto.FLOAT, ["batch", 1]))
    return model


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def _run(model: onnx.ModelProto) -> list[np.ndarray]:
    faces = np.concatenate([synthetic_faces(), textures(32)])
    found: list[np.ndarray] = open_session(model.SerializeToString(), source="it").session.run(_NAMES, {"faces": faces})
    return found


def _idle(narrow_graph: onnx.ModelProto) -> tuple[int, ...]:
    maps = find_maps(narrow_graph)
    assert maps is not None
    return idle_units(narrow_graph, maps, [synthetic_faces(), textures(32)])


@pytest.mark.parametrize("leaves_out", [False, True])
def test_results_stay_bit_by_bit(narrow_graph: onnx.ModelProto, scored: onnx.ModelProto, leaves_out: bool) -> None:
    idle = _idle(narrow_graph) if leaves_out else ()
    assert bool(idle) == leaves_out
    model = _copy(scored)
    assert share_layer(model, "score", idle)
    onnx.checker.check_model(model, full_check=True)
    for expected, found in zip(_run(scored), _run(model), strict=True):
        np.testing.assert_array_equal(found, expected)
    shared = find_shared(model, "score")
    assert shared is not None
    assert set(shared.units).isdisjoint(idle)
    assert len(shared.units) == HIDDEN - len(idle)


def test_onnxruntime_runs_one_product_less(scored: onnx.ModelProto) -> None:
    model = _copy(scored)
    share_layer(model, "score")
    before, after = (
        sum(node.op_type == "QGemm" for node in optimized_nodes(graph.SerializeToString())) for graph in (scored, model)
    )
    assert (before, after) == (4, 3)
    assert integer_check(model.SerializeToString()).passed


def test_idle_units_are_those_that_no_image_switches_on(narrow_graph: onnx.ModelProto) -> None:
    shown = _copy(narrow_graph)
    (units,) = [node.output[0] for node in shown.graph.node if node.op_type == "Relu"][-1:]
    shown.graph.output.append(helper.make_tensor_value_info(units, onnx.TensorProto.FLOAT, None))
    faces = np.concatenate([synthetic_faces(), textures(32)])
    (values,) = open_session(shown.SerializeToString(), source="it").session.run([units], {"faces": faces})
    assert _idle(narrow_graph) == tuple(np.flatnonzero(values.max(0) <= 0).tolist())


def test_a_shared_layer_comes_apart_again(scored: onnx.ModelProto) -> None:
    model = _copy(scored)
    share_layer(model, "score")
    separate = separate_layer(model, "score")
    for expected, found in zip(_run(scored), _run(separate), strict=True):
        np.testing.assert_array_equal(found, expected)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in scored.graph.initializer}
    for tensor in separate.graph.initializer:
        # The written step of a tensor may be a constant of another name.
        if tensor.name in tensors:
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), tensors[tensor.name])
    assert quantized_scales(separate) == quantized_scales(scored)


def test_a_graph_without_a_hidden_layer_stays(scored: onnx.ModelProto) -> None:
    model = _copy(scored)
    (last,) = [node for node in model.graph.node if node.output[0] == "logits"]
    last.op_type = "MatMul"  # what it reads is no linear layer with integer weights any more
    del last.input[2]
    assert not share_layer(model, "score")
    assert find_shared(model, "score") is None


def test_units_that_are_too_large_for_each_other_are_kept_apart() -> None:
    weights = np.array([[100, 1], [1, 1], [100, -1], [-100, 1]], np.int8)
    # Without unit 1, 0 and 2 would add up to 200 in the first column; 2 and 3 have other signs there.
    assert _order([0, 2, 3], 2, weights) == [0, 4, 2, 3, 5]
    assert _order([0, 1, 2, 3], 2, weights) == [0, 1, 2, 3, 4, 5]
    assert _order([0, 2, 3], 0, weights) is None


def _exchange(text: str) -> str:
    first, *others = text.split()
    return " ".join([first, first, *others[1:]])


@pytest.mark.parametrize("change", [_exchange, lambda text: text + " 99", lambda text: "u7 " + text[2:]])
def test_units_that_cannot_be_are_refused(scored: onnx.ModelProto, change: Callable[[str], str]) -> None:
    model = _copy(scored)
    share_layer(model, "score")
    (entry,) = [prop for node in model.graph.node for prop in node.metadata_props if prop.key == UNITS]
    entry.value = change(entry.value)
    with pytest.raises(ParityError, match="score"):
        find_shared(model, "score")
