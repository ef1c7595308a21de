"""Scales with which no runtime's last bit decides a rounding."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests.export.conftest import ResidualGraph

from fer_export.gate.golden import textures
from fer_export.int8.quantize import quantize_model
from fer_export.int8.ranges import ActivationRange, Observations, observe
from fer_export.int8.scales import SUM_PARTS, mean_step, plan_steps, short_scales
from fer_runtime.model.parity import run_model
from fer_runtime.model.session import open_session


def _significant_bits(value: float) -> int:
    mantissa, _ = np.frexp(value)
    return next(bits for bits in range(1, 54) if float(mantissa * 2**bits).is_integer())


def test_scales_are_short_and_hardly_larger() -> None:
    scales = np.random.default_rng(0).uniform(1e-6, 1, 1000)
    for sums, bits, factor in ((2.0**12, 4, 9 / 8), (2.0**21.5, 2, 3 / 2), (2.0**30, 1, 2)):
        found = short_scales(scales, np.full(1000, sums))
        assert (found >= scales).all()
        assert (found <= factor * scales).all()
        assert max(map(_significant_bits, found)) == bits
        # The products of a sum with its scale's integer stay where float32 holds every integer.
        assert sums * 2**bits <= 2**24 or bits == 1


@pytest.mark.parametrize("values", [9, 36, 144, 576, 49])
@pytest.mark.parametrize("ratio", [0.011, 0.3, 0.5, 0.997])
def test_no_mean_ends_at_half_a_step(values: int, ratio: float) -> None:
    step = mean_step(ratio, 1.0, values)
    assert ratio <= step <= 1.07 * ratio
    sums = np.arange(values * 255 + 1, dtype=np.float64)
    quotients = sums / values / step
    quotients = quotients[quotients < 256]
    from_half = np.abs(quotients - np.floor(quotients) - 0.5)
    # float32's division and multiplication are right to 2^-23 of the result each.
    assert from_half.min() > 256 * 4 * 2.0**-23


def _two_blocks() -> onnx.ModelProto:
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Conv", ["x", "w"], ["b"]),
        node("Add", ["a", "b"], ["first"]),
        node("Relu", ["first"], ["on"]),
        node("Conv", ["on", "w"], ["c"]),
        node("MaxPool", ["on"], ["pooled"], kernel_shape=[1, 1]),
        node("Add", ["c", "pooled"], ["second"]),
    ]
    return onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [value("x", 1, None), value("w", 1, None)], [value("second", 1, None)])
    )


def test_no_sum_ends_at_half_a_step() -> None:
    ranges = {
        "a": ActivationRange(-3.0, 2.0),
        "b": ActivationRange(-0.1, 0.4),
        "on": ActivationRange(0.0, 2.2),
        "c": ActivationRange(-7.7, 1.0),
        "second": ActivationRange(-5.0, 2.5),
    }
    steps = plan_steps(_two_blocks(), ranges)
    assert steps.keys() == ranges.keys()
    for name, covered in ranges.items():
        assert covered.step <= steps[name] * (1 + 1e-12)
    values = np.arange(-255, 256)
    for output, terms in (("on", ("a", "b")), ("second", ("c", "on"))):
        parts = [steps[term] / steps[output] * SUM_PARTS for term in terms]
        assert np.allclose(parts, np.rint(parts))
        left, right = (np.rint(part) * values for part in parts)
        sums = (left[:, None] + right) / SUM_PARTS
        assert np.abs(sums - np.floor(sums) - 0.5).min() > 0.9 / (2 * SUM_PARTS)


def test_openvino_computes_a_residual_network_bit_for_bit(
    residual_graph: ResidualGraph,
) -> None:
    """It rounds behind the zero point, and fuses sums into convolutions."""
    openvino = pytest.importorskip("openvino")
    _, model = residual_graph("v2")
    faces = textures(8)
    quantized = quantize_model(model, Observations(ranges=observe(model, faces).ranges, inputs={}))
    expected = run_model(open_session(quantized.SerializeToString()).session, faces).logits
    core = openvino.Core()
    read = core.read_model(quantized.SerializeToString())
    read.reshape({0: list(faces.shape)})
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    assert np.array_equal(core.compile_model(read, "CPU", settings)(faces)["logits"], expected)
