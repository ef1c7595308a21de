"""The output `unfamiliarity`: what is fitted, what the files compute, and what their thresholds say."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from tests.export.conftest import Exported, ResidualGraph

from fer_export.gate.golden import candidate_faces
from fer_export.gate.unfamiliar import unfamiliarity_of
from fer_export.gate.units import UnitLimits
from fer_export.unfamiliar.head import LOST, find_maps, fit_threshold
from fer_export.unfamiliar.images import FROM_FACES, MADE_UP, strange_images
from fer_runtime import Recognizer
from fer_runtime.errors import ModelFileError
from fer_runtime.model.certificate import parse_certificate
from fer_runtime.model.find import find_model
from fer_runtime.model.load import load_model
from fer_runtime.model.self_test import run_self_test
from fer_train.data.folders import load_faces


def test_the_threshold_loses_the_share_that_it_may() -> None:
    random = np.random.default_rng(0)
    point = fit_threshold(random.normal(size=5000).astype(np.float32), random.normal(4, 1, 500).astype(np.float32))
    # The normal distribution's 98th percentile; 5000 values leave an error of 0.04.
    assert point.unfamiliar_above == pytest.approx(2.054, abs=0.15)
    assert point.lost_interval[0] <= LOST <= point.lost_interval[1]
    assert point.kept == pytest.approx(0.026, abs=0.02)  # of a normal distribution around 4


def test_images_are_the_same_every_time_and_differ_by_seed() -> None:
    faces = np.random.default_rng(0).integers(0, 256, (4, 48, 48)).astype(np.uint8)
    first = strange_images(faces, 2)
    assert first.shape == (2 * (len(MADE_UP) + len(FROM_FACES)), 48, 48)
    assert np.array_equal(first, strange_images(faces, 2))
    assert not np.array_equal(first, strange_images(faces, 2, seed=1))


def test_every_file_has_the_output_and_its_certificate(exported: Exported) -> None:
    answers = []
    for model in exported.report.models:
        assert model.point is not None
        loaded = load_model(model.path)
        assert loaded.metadata.unfamiliar_above == model.point.unfamiliar_above
        certificate = parse_certificate(loaded.metadata, source="it")
        assert certificate.model_unfamiliarity is not None
        own = unfamiliarity_of(model.path.read_bytes(), certificate.faces)
        np.testing.assert_allclose(own, certificate.model_unfamiliarity, rtol=1e-5, atol=1e-4)
        answers.append(unfamiliarity_of(model.path.read_bytes(), load_faces(exported.data, "validation").faces))
    # The layer is the same. Eight bits add noise to its units, at most the share of their spread that the gate allows;
    # how much there is depends on the trained weights, which differ from processor to processor.
    for other in answers[1:]:
        assert np.corrcoef(answers[0], other)[0, 1] > 1 / math.hypot(1, UnitLimits().noise)


def test_eight_bits_hardly_move_what_ships() -> None:
    fp32, int8 = (find_model("v0", precision=precision).read_bytes() for precision in ("fp32", "int8"))
    faces = candidate_faces(256, shape=(48, 48))
    assert np.corrcoef(unfamiliarity_of(fp32, faces), unfamiliarity_of(int8, faces))[0, 1] > 0.99


def test_int8_gives_the_same_unfamiliarity_in_the_reference_evaluator_bit_by_bit(exported: Exported) -> None:
    content = (exported.models_dir / "narrow.int8.onnx").read_bytes()
    faces = np.random.default_rng(3).integers(0, 256, (12, 48, 48)).astype(np.uint8)
    (expected,) = ReferenceEvaluator(onnx.load_model_from_string(content)).run(["unfamiliarity"], {"faces": faces})
    found = unfamiliarity_of(content, faces)
    assert len(np.unique(found)) > 6
    np.testing.assert_array_equal(found, expected)


def test_the_recognizer_names_noise_and_not_the_faces(exported: Exported) -> None:
    noise = np.random.default_rng(7).integers(0, 256, (40, 48, 48)).astype(np.uint8)
    known = load_faces(exported.data, "train").faces
    with Recognizer(exported.models_dir / "narrow.int8.onnx", detector="whole") as recognizer:
        strange = ["unfamiliar" in recognizer.predict(face).faces[0].reasons for face in noise]
        faces = ["unfamiliar" in recognizer.predict(face).faces[0].reasons for face in known[:100]]
    assert np.mean(strange) > 0.9
    assert np.mean(faces) < 0.1


def test_self_test_finds_another_unfamiliarity(exported: Exported) -> None:
    (model,) = [published for published in exported.report.models if published.precision == "fp32"]
    loaded = load_model(model.path)
    changed = onnx.load_model_from_string(loaded.content)
    (weights,) = [tensor for tensor in changed.graph.initializer if tensor.name == "unfamiliarity_weights"]
    values = onnx.numpy_helper.to_array(weights).copy()
    values[:, 0] *= 1.5  # of one unit: a single weight may read what no golden face switches on
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    content = changed.SerializeToString()
    other = model.path.with_name("other.onnx")
    other.write_bytes(content)
    failed = {check.name for check in run_self_test(other).checks if not check.passed}
    assert failed == {"digest", "unfamiliarity"}


def test_an_output_of_another_shape_is_refused(exported: Exported) -> None:
    (model,) = [published for published in exported.report.models if published.precision == "fp32"]
    changed = onnx.load_model_from_string(model.path.read_bytes())
    changed.graph.output[2].type.tensor_type.shape.dim.add().dim_value = 1
    other = model.path.with_name("shape.onnx")
    other.write_bytes(changed.SerializeToString())
    with pytest.raises(ModelFileError, match="unfamiliarity float32"):
        load_model(other)


@pytest.mark.parametrize(("name", "shape", "is_flat"), [("narrow", (8, 3, 3), True), ("v2", (192, 3, 3), False)])
def test_the_maps_are_those_before_the_linear_layers(
    name: str,
    shape: tuple[int, ...],
    is_flat: bool,
    narrow_graph: onnx.ModelProto,
    residual_graph: ResidualGraph,
) -> None:
    maps = find_maps(narrow_graph if name == "narrow" else residual_graph(name)[1])
    assert maps is not None
    assert maps.shape == shape
    assert (maps.flat is not None) == is_flat
