"""The int8 graph: the same function in other shapes, within what integers can hold on every CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tests.export.conftest import Exported, ResidualGraph, narrow_metadata

from fer_export.gate.golden import synthetic_faces, textures
from fer_export.gate.units import quantized_scales
from fer_export.gate.weights import weights_check
from fer_export.graph import serialize
from fer_export.int8.optimized import integer_check, optimized_nodes
from fer_export.int8.quantize import blocked_weights, quantize_model
from fer_export.int8.ranges import ActivationRange, Observations, observe
from fer_export.int8.score import append_score
from fer_export.unfamiliar.head import find_maps
from fer_runtime.model.onnx_file import read_onnx
from fer_runtime.model.parity import run_model
from fer_runtime.model.session import open_session


@pytest.fixture(scope="module")
def observations(narrow_graph: onnx.ModelProto) -> Observations:
    return observe(narrow_graph, textures(64))


@pytest.fixture(scope="module")
def int8_graph(narrow_graph: onnx.ModelProto, observations: Observations) -> onnx.ModelProto:
    return quantize_model(narrow_graph, observations)


@pytest.mark.parametrize(("kernel", "stride", "pad"), [(3, 1, 1), (7, 2, 3), (5, 1, 2)])
def test_four_columns_as_channels_are_the_same_convolution(kernel: int, stride: int, pad: int) -> None:
    random = np.random.default_rng(0)
    weights = random.integers(-127, 128, (5, kernel, kernel), np.int8)
    plane = random.integers(0, 256, (2, 1, 48, 48)).astype(np.float32)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(plane), torch.from_numpy(weights[:, None].astype(np.float32)), stride=stride, padding=pad
    ).numpy()

    blocked, before, after = blocked_weights(weights, stride=stride, pad=pad)
    columns = torch.from_numpy(plane.reshape(2, 48, 12, 4).transpose(0, 3, 1, 2).copy())
    padded = torch.nn.functional.pad(columns, (before, after, pad, pad))
    answer = torch.nn.functional.conv2d(padded, torch.from_numpy(blocked.astype(np.float32)), stride=(stride, 1))
    size = expected.shape[-1]
    actual = answer.numpy().transpose(0, 2, 3, 1).reshape(2, size, size, 5).transpose(0, 3, 1, 2)
    assert np.array_equal(actual, expected)  # integers below 2**24: exact in float32


def test_two_rows_at_once_put_the_four_values_of_a_pooling_side_by_side() -> None:
    random = np.random.default_rng(1)
    weights = random.integers(-127, 128, (5, 3, 3), np.int8)
    plane = random.integers(0, 256, (2, 1, 48, 48)).astype(np.float32)
    convolved = torch.nn.functional.conv2d(
        torch.from_numpy(plane), torch.from_numpy(weights[:, None].astype(np.float32)), padding=1
    )
    expected = torch.nn.functional.max_pool2d(convolved, 2).numpy()

    blocked, before, after = blocked_weights(weights, stride=1, pad=1, rows=2)
    columns = torch.from_numpy(plane.reshape(2, 48, 12, 4).transpose(0, 3, 1, 2).copy())
    padded = torch.nn.functional.pad(columns, (before, after, 1, 1))
    answer = torch.nn.functional.conv2d(padded, torch.from_numpy(blocked.astype(np.float32)), stride=(2, 1)).numpy()
    candidates = answer.transpose(0, 2, 3, 1).reshape(2, 24 * 12, 4, 2 * 5)
    actual = candidates.max(2).reshape(2, 24, 24, 5).transpose(0, 3, 1, 2)
    assert np.array_equal(actual, expected)


def test_int8_answers_like_fp32(narrow_graph: onnx.ModelProto, int8_graph: onnx.ModelProto) -> None:
    faces = textures(96)
    expected = run_model(open_session(narrow_graph.SerializeToString()).session, faces).logits
    actual = run_model(open_session(int8_graph.SerializeToString()).session, faces).logits
    # A hundredth of the logits' spread: eight bits through five layers.
    assert np.sqrt(np.mean((actual - expected) ** 2)) < 0.02 * expected.std()


def test_rounding_against_the_inputs_is_nearer_than_rounding_each_weight(
    narrow_graph: onnx.ModelProto, int8_graph: onnx.ModelProto, observations: Observations
) -> None:
    faces = textures(96)
    expected = run_model(open_session(narrow_graph.SerializeToString()).session, faces).logits
    nearest = quantize_model(narrow_graph, Observations(ranges=observations.ranges, inputs={}))
    errors = [
        np.abs(run_model(open_session(model.SerializeToString()).session, faces).logits - expected).mean()
        for model in (int8_graph, nearest)
    ]
    assert errors[0] < errors[1]


def test_every_convolution_and_linear_layer_runs_in_integers(int8_graph: onnx.ModelProto) -> None:
    check = integer_check(serialize(int8_graph, narrow_metadata()))
    assert check.passed, check.detail
    assert check.detail.startswith("3 of 3 convolutions and 2 of 2 linear")


def test_a_layer_left_in_float_is_noticed(narrow_content: bytes) -> None:
    assert not integer_check(narrow_content).passed


def _kernel_order(node: onnx.NodeProto, weights: Any) -> Any:
    """Weights as the integer kernels walk through them: one row per output, the inputs with channels last."""
    if node.op_type == "Conv":
        return weights.transpose(0, 2, 3, 1).reshape(len(weights), -1)
    return weights.T


def _worst_sums(rows: Any) -> tuple[int, int]:
    """The lowest and the highest sum of two products: 255 under every weight of one sign, 0 under the others."""
    pairs = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)  # kernels fill up with zeros
    return 255 * int(np.minimum(pairs, 0).sum(2).min()), 255 * int(np.maximum(pairs, 0).sum(2).max())


def test_no_two_neighbouring_products_leave_16_bits(exported: Exported) -> None:
    """AVX2 without VNNI adds two products of uint8 and int8 in int16 (vpmaddubsw) and cuts off what is beyond."""
    model = onnx.load(exported.models_dir / "narrow.int8.onnx")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    behind = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 6  # the network's five, one with the units of `unfamiliarity`, and its last
    for node in layers:
        rows = _kernel_order(node, constants[behind[node.input[1]]]).astype(np.int64)
        smallest, largest = _worst_sums(rows)
        assert -32768 <= smallest <= largest <= 32767
        assert np.abs(rows).max() > 63  # more than the seven bits that would be safe without looking


def test_equal_neighbours_of_a_score_do_not_leave_16_bits(
    narrow_graph: onnx.ModelProto, int8_graph: onnx.ModelProto
) -> None:
    """Neighbours that are both the largest weight: the highest sum that a row can have."""
    maps = find_maps(narrow_graph)
    assert maps is not None
    model = onnx.ModelProto()
    model.CopyFrom(int8_graph)
    weights = np.ones((int(np.prod(maps.shape)), 4), np.float32)
    weights[len(weights) // 2 :] = -1
    signs = np.array([1, 1, -1, -1], np.float32)
    append_score(
        model,
        maps=maps.tensor,
        flat=maps.flat,
        shape=maps.shape,
        layers=(weights, np.zeros(4, np.float32), signs),
        highest=1.0,
        scales=quantized_scales(model),
        name="score",
    )
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name in ("score_weights", "score_signs"):
        smallest, largest = _worst_sums(constants[name].T.astype(np.int64))
        assert -32768 <= smallest < 0 < largest <= 32767


def test_integers_equal_the_same_graph_in_float(int8_graph: onnx.ModelProto) -> None:
    """onnxruntime's integer kernels against its float operators between the same QuantizeLinear pairs."""
    faces = synthetic_faces()
    expected = run_model(open_session(int8_graph.SerializeToString(), optimize=False).session, faces).logits
    actual = run_model(open_session(int8_graph.SerializeToString()).session, faces).logits
    assert np.array_equal(expected, actual)


def test_pixels_flow_into_the_first_convolution_unquantized(int8_graph: onnx.ModelProto) -> None:
    first = int8_graph.graph.node[0]
    assert (first.op_type, first.input[0]) == ("Reshape", "faces")
    scale = next(tensor for tensor in int8_graph.graph.initializer if tensor.name == "planes_scale")
    assert numpy_helper.to_array(scale) == 1.0
    assert "Cast" not in {node.op_type for node in int8_graph.graph.node}


def test_ranges_hold_zero_exactly() -> None:
    for positive in (ActivationRange(0.0, 2.55), ActivationRange(0.5, 2.55)):
        assert positive.step == pytest.approx(0.01)
        assert positive.zero_point == 0
    signed = ActivationRange(-1.0, 1.55)
    assert signed.step == pytest.approx(0.01)
    assert signed.zero_point == 100
    assert ActivationRange(0.0, 0.0).step > 0


@pytest.mark.parametrize("low", [-1e-9, -0.013, -0.5, -1.0, -2.2, -300.0])
def test_zero_points_are_even_and_cover_the_range(low: float) -> None:
    for high in (0.0, 0.011, 1.55, 7.0):
        signed = ActivationRange(low, high)
        zero = signed.zero_point
        assert zero % 2 == 0
        assert -zero * signed.step <= low * (1 - 1e-12)
        assert (255 - zero) * signed.step >= high * (1 - 1e-12)
        # An odd zero point would give at best this step; half of two more are lost to an even one.
        assert signed.step <= (high - low) / 253 or zero in (2, 254)


@pytest.mark.parametrize(("name", "additions"), [("v1", 8), ("v2", 6)])
def test_a_residual_network_is_quantized_whole(name: str, additions: int, residual_graph: ResidualGraph) -> None:
    _, model = residual_graph(name)
    faces = textures(32)
    # The statistics of 4608 inputs take half a minute; v0's tests cover what they do.
    observed = observe(model, faces[:8])
    quantized = quantize_model(model, Observations(ranges=observed.ranges, inputs={}))
    content = serialize(quantized, narrow_metadata())
    check = integer_check(content)
    assert check.passed, check.detail
    expected = run_model(open_session(model.SerializeToString()).session, faces).logits
    actual = run_model(open_session(content).session, faces).logits
    assert np.corrcoef(expected.ravel(), actual.ravel())[0, 1] > 0.99
    assert sum(node.op_type == "Add" for node in read_onnx(content, source=name).nodes) == additions
    # Between the pixels and the logits nothing is taken back to float, and nothing is moved about.
    kinds = {node.op_type for node in optimized_nodes(content)}
    assert kinds == {
        *("Reshape", "QLinearConv", "NhwcMaxPool", "QLinearGlobalAveragePool", "QGemm"),
        *("QLinearAdd", "Div", "Softmax"),
    }
    # Nothing is left to a runtime's way of rounding, not even with weights of which no input's size is known.
    plain = run_model(open_session(content, optimize=False).session, faces).logits
    assert np.array_equal(plain, actual)


def test_nan_in_one_layer_is_not_hidden_by_the_next(narrow_graph: onnx.ModelProto, int8_graph: onnx.ModelProto) -> None:
    assert weights_check(narrow_graph, int8_graph).passed
    layers = {node.input[1] for node in narrow_graph.graph.node if node.op_type in ("Conv", "Gemm")}
    reader = next(node for node in int8_graph.graph.node if node.input[0] in layers)
    broken = onnx.ModelProto()
    broken.CopyFrom(int8_graph)
    scale = next(tensor for tensor in broken.graph.initializer if tensor.name == reader.input[1])
    scale.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(scale), np.nan), scale.name))
    assert not weights_check(narrow_graph, broken).passed
