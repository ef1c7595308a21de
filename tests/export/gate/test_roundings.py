"""A right fp16 file passes however a runtime rounds its results, and what is no rounding does not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.export import faults
from tests.export.conftest import TEMPERATURE

from fer_export.fp16 import halve_model
from fer_export.gate.golden import synthetic_faces
from fer_export.gate.roundings import graph_check, perturbed, rounded, rounding_checks
from fer_runtime.model.parity import Check, Outputs, softmax
from fer_runtime.model.session import open_session


@pytest.fixture
def fp32(narrow_content: bytes) -> onnx.ModelProto:
    return onnx.load_model_from_string(narrow_content)


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (200, 48, 48)).astype(np.uint8)


def _failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if not check.passed]


def _judged(fp32: onnx.ModelProto, logits: np.ndarray, faces: np.ndarray) -> list[str]:
    outputs = Outputs(logits=logits, probabilities=softmax(logits, temperature=TEMPERATURE))
    return _failed(rounding_checks(fp32, halve_model(fp32), faces, outputs, temperature=TEMPERATURE, batch=50))


def _logits(model: onnx.ModelProto, faces: np.ndarray) -> np.ndarray:
    session = open_session(model.SerializeToString(), source="the file").session
    return np.asarray(session.run(["logits"], {"faces": faces})[0])


def test_weights_have_eleven_bits() -> None:
    # 1 + 2^-11 lies half way between 1 and 1 + 2^-10, and goes to the even one; a little more goes up.
    values = np.array([1 + 2**-11, 1 + 2**-11 + 2**-20, 3.4e38, 2**-25], np.float32)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["logits"])],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [4])],
        [numpy_helper.from_array(values, "w")],
    )
    (tensor,) = rounded(helper.make_model(graph)).graph.initializer
    assert numpy_helper.to_array(tensor).tolist() == [1, 1 + 2**-10, np.inf, 0]


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_every_way_of_rounding_results_passes(fp32: onnx.ModelProto, faces: np.ndarray, seed: int) -> None:
    """As on GPUs. The seeds are others than those that set the limit."""
    logits = _logits(perturbed(fp32, seed), faces)
    assert np.abs(logits - _logits(rounded(fp32), faces)).max() > 1e-5  # it does round
    assert _judged(fp32, logits, faces) == []


def test_the_file_itself_passes(fp32: onnx.ModelProto, faces: np.ndarray) -> None:
    assert _judged(fp32, _logits(halve_model(fp32), faces), faces) == []


@pytest.mark.parametrize(
    ("factor", "found"),
    [(1.0, []), (1.3, []), (4.0, ["logits", "logit error"])],
)
def test_only_roundings_of_this_size_pass(
    fp32: onnx.ModelProto, faces: np.ndarray, factor: float, found: list[str]
) -> None:
    exact = _logits(rounded(fp32), faces)
    errors = _logits(perturbed(fp32, 21), faces) - exact
    assert set(found) <= set(_judged(fp32, exact + np.float32(factor) * errors, faces))
    assert bool(found) == bool(_judged(fp32, exact + np.float32(factor) * errors, faces))


def test_nan_fails(fp32: onnx.ModelProto, faces: np.ndarray) -> None:
    logits = _logits(rounded(fp32), faces)
    logits[7, 3] = np.nan
    assert {"logits", "probabilities", "logit error"} <= set(_judged(fp32, logits, faces))


@pytest.mark.parametrize(
    "fault", [faults.weights_cut_off, faults.results_of_eight_bits, faults.one_integer, faults.relu_leaks]
)
def test_operators_and_weights_are_compared_one_by_one(fp32: onnx.ModelProto, fault: faults.Fault) -> None:
    changed = halve_model(fp32)
    assert graph_check(fp32, changed).passed
    fault(changed)
    found = graph_check(fp32, changed)
    assert not found.passed
    assert "differs" in found.detail or "not the nearest" in found.detail or "operators, not" in found.detail


def test_a_single_step_of_a_single_weight_is_named(fp32: onnx.ModelProto) -> None:
    changed = halve_model(fp32)
    tensor = next(tensor for tensor in changed.graph.initializer if tensor.name.endswith("fc_layer.4.weight"))
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] = np.nextafter(values[0, 0], np.float16(1))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert f"1 of {values.size} values of {tensor.name} are not the nearest" in graph_check(fp32, changed).detail


def test_synthetic_faces_fill_a_fixed_batch(fp32: onnx.ModelProto) -> None:
    some = synthetic_faces()[:5]
    assert len(_logits(rounded(fp32), some)) == 5
    assert _judged(fp32, _logits(rounded(fp32), some), some) == []
