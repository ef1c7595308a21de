"""The limits of a unit know how many of its tensor's 256 values it uses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fer_export.gate.units import UnitLimits, _verdict, unit_check
from fer_runtime.model.parity import Uint8Array


def _model(weights: list[float], step: float | None) -> onnx.ModelProto:
    """Units that are multiples of one pixel; with a step, rounded to uint8."""
    constants = {
        "shape": np.array([0, 4]),
        "weights": np.array([weights, *[[0.0] * len(weights)] * 3], np.float32),
        "scale": np.array(step or 1, np.float32),
        "zero": np.array(0, np.uint8),
    }
    nodes = [
        helper.make_node("Cast", ["faces"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "scale", "zero"], ["y_u8"]),
    ][: 4 if step else 3]
    graph = helper.make_graph(
        nodes,
        "units",
        [helper.make_tensor_value_info("faces", TensorProto.UINT8, ["batch", 2, 2])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.UINT8 if step else TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture(scope="module")
def faces() -> Uint8Array:
    return np.random.default_rng(0).integers(0, 256, (500, 2, 2)).astype(np.uint8)


# Pixels have a standard deviation of 74: with the step 1, these units have one of 22 and of 1.1 steps.
_WIDE, _NARROW = 0.3, 0.015


def test_a_unit_of_few_values_may_differ_by_what_rounding_does(faces: Uint8Array) -> None:
    check = unit_check(_model([_WIDE, _NARROW], None), _model([_WIDE, _NARROW], 1.0), faces, UnitLimits(noise=0.1))
    assert check.passed, check.detail


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_wide_unit_that_is_scaled_is_found(faces: Uint8Array, factor: float) -> None:
    changed = _model([_WIDE * factor, _NARROW], 1.0)
    check = unit_check(_model([_WIDE, _NARROW], None), changed, faces, UnitLimits())
    assert not check.passed
    assert "slope 0.1" in check.detail
    assert "(y, unit 0)" in check.detail


def test_a_narrow_unit_that_is_doubled_is_found(faces: Uint8Array) -> None:
    check = unit_check(_model([_WIDE, _NARROW], None), _model([_WIDE, 2 * _NARROW], 1.0), faces, UnitLimits())
    assert not check.passed
    assert "(y, unit 1)" in check.detail


def test_nan_in_one_layer_is_not_hidden_by_the_next() -> None:
    x = np.random.default_rng(0).normal(size=(2, 1000))
    good = np.stack([x.sum(1), x.sum(1), (x * x).sum(1), (x * x).sum(1), (x * x).sum(1)])
    bad = good.copy()
    bad[[1, 3, 4]] = np.nan
    for sums in ([good, bad], [bad, good]):
        check = _verdict(["first", "second"], list(sums), [1000, 1000], [0.0, 0.0], UnitLimits())
        assert not check.passed
    assert _verdict(["first", "second"], [good, good], [1000, 1000], [0.0, 0.0], UnitLimits()).passed
