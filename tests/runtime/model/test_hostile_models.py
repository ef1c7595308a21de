"""Model files that are made to hurt: each is refused in one line, in little time, before ONNX Runtime sees it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from tests.runtime.tiny_models import write_band_model

from fer_runtime import Recognizer
from fer_runtime.cli import main
from fer_runtime.detectors.yunet import YuNetDetector
from fer_runtime.errors import FerError, ModelFileError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.model import session
from fer_runtime.model.find import packaged_models_dir
from fer_runtime.model.inspect import inspect_model
from fer_runtime.model.load import load_model
from fer_runtime.model.onnx_file import MAX_FIELDS, read_onnx
from fer_runtime.model.self_test import run_self_test
from fer_runtime.model.shapes import infer_shapes
from fer_runtime.untrusted_json import parse_json

Change = Callable[[onnx.ModelProto], object]


def _append(model: onnx.ModelProto, op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
    model.graph.node.append(helper.make_node(op_type, inputs, outputs, **attributes))


def _constant(model: onnx.ModelProto, name: str, values: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))


def _loop_for_ever(model: onnx.ModelProto) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["again"])],
        "body",
        [
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("again", TensorProto.BOOL, [])],
    )
    _constant(model, "yes", np.array(True))
    _append(model, "Loop", ["", "yes"], [], body=body)


def _graph_in_a_plain_operator(model: onnx.ModelProto) -> None:
    node = model.graph.node[0]
    graph = helper.make_graph([], "inside", [], [])
    node.attribute.append(AttributeProto(name="body", type=AttributeProto.GRAPH, g=graph))


def _dimensions(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer.add(name="many", data_type=TensorProto.FLOAT)
    tensor.dims.extend([1 << 40] * 60_000)


def _empty_gigabytes(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="large", data_type=TensorProto.FLOAT, dims=[1 << 15, 1 << 15])


def _broadcast(model: onnx.ModelProto) -> None:
    _constant(model, "column", np.ones((1 << 12, 1), np.float32))
    _constant(model, "row", np.ones((1, 1 << 12), np.float32))
    _append(model, "Add", ["column", "row"], ["table"])


def _padding(model: onnx.ModelProto) -> None:
    _constant(model, "one", np.ones((1, 1, 1, 1), np.float32))
    _append(model, "Conv", ["one", "one"], ["padded"], pads=[1 << 15] * 4)


def _much_work(model: onnx.ModelProto) -> None:
    _constant(model, "input", np.ones((1, 1, 1024, 1024), np.float32))
    _constant(model, "kernel", np.ones((2, 1, 512, 512), np.float32))
    _append(model, "Conv", ["input", "kernel"], ["worked"], pads=[256, 256, 255, 255])


def _many_values(model: onnx.ModelProto) -> None:
    _constant(model, "values", np.ones((1 << 11, 1 << 11), np.float32))
    for place in range(1100):
        _append(model, "Relu", ["values" if not place else f"r{place}"], [f"r{place + 1}"])


def _large_window(model: onnx.ModelProto) -> None:
    _constant(model, "map", np.ones((1, 1, 256, 256), np.float32))
    _append(model, "MaxPool", ["map"], ["pooled"], kernel_shape=[257, 257], pads=[128] * 4)


def _function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("", "Relu", ["x"], ["y"], [], [helper.make_opsetid("", 18)]))


def _sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


def _second_entry(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="fer", value=model.metadata_props[0].value)


def _long_name(model: onnx.ModelProto) -> None:
    _append(model, "Relu" * 1000, ["logits"], ["unused"])


GRAPHS: dict[str, tuple[Change, str]] = {
    "loop": (_loop_for_ever, "the operator Loop"),
    "inner graph": (_graph_in_a_plain_operator, "a graph inside the operator Cast"),
    "dimensions": (_dimensions, "'many' has 60000 dimensions"),
    "empty gigabytes": (_empty_gigabytes, "'large' has 1073741824 values and 0 bytes"),
    "broadcast": (_broadcast, "Add 'table' gives 16,777,216 values"),
    "padding": (_padding, "Conv 'padded' gives"),
    "work": (_much_work, "multiplications for one face"),
    "many values": (_many_values, "its operators take 4,6"),
    "large window": (_large_window, "its operators take 4,3"),
    "function": (_function, "1 functions of its own"),
    "sparse": (_sparse, "1 sparse constants"),
    "second entry": (_second_entry, "two entries 'fer'"),
    "long name": (_long_name, "a name in it has 4,000 bytes"),
    "random": (
        lambda model: _append(model, "RandomNormalLike", ["logits"], ["noise"]),
        "the operator RandomNormalLike",
    ),
    "own domain": (lambda model: _append(model, "Relu", ["logits"], ["x"], domain="evil"), "the operator evil.Relu"),
    "strings": (lambda model: _append(model, "StringNormalizer", ["logits"], ["x"]), "the operator StringNormalizer"),
    "no inputs": (lambda model: _append(model, "Conv", [], []), "multiplications for one face"),
    "no such input": (lambda model: _append(model, "Gemm", ["gone", "gone"], ["x"]), "Gemm 'x' cannot be known"),
    "stride 0": (
        lambda model: _append(model, "MaxPool", ["logits"], ["x"], kernel_shape=[1], strides=[0]),
        "MaxPool 'x' cannot be known",
    ),
    "output shape": (
        lambda model: (
            model.graph.node[-1].output.__setitem__(0, "x"),
            _append(model, "Transpose", ["x"], ["probabilities"]),  # type: ignore[func-returns-value]
        ),
        "for 'probabilities', but computes the shape [7, 1]",
    ),
    "outputs": (lambda model: model.graph.output.pop(), "not faces uint8 (batch, 48, 48) to logits"),
    "no graph": (lambda model: model.ClearField("graph"), "has no"),
    "constant twice": (
        lambda model: model.graph.initializer.append(model.graph.initializer[0]),
        "two constants have the name 'weights'",
    ),
    "result twice": (
        lambda model: _append(model, "Relu", ["logits"], ["probabilities"]),
        "two results of operators have the name 'probabilities'",
    ),
    "output twice": (
        lambda model: model.graph.output.append(model.graph.output[0]),
        "two outputs have the name 'logits'",
    ),
}


@pytest.fixture
def never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime must not see these files."""

    def fail(*_: object) -> None:
        raise AssertionError("a session was opened")

    monkeypatch.setattr(session, "_create_session", fail)


@pytest.mark.usefixtures("never_opened")
@pytest.mark.parametrize("kind", GRAPHS)
def test_a_hostile_graph_is_refused_before_a_session_is_opened(kind: str, tmp_path: Path) -> None:
    change, told = GRAPHS[kind]
    model = onnx.load(write_band_model(tmp_path / "bands.onnx"))
    change(model)
    (tmp_path / "hostile.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError) as refused:
        Recognizer(tmp_path / "hostile.onnx")
    assert told in str(refused.value) or (kind == "no graph" and "cannot be read" in str(refused.value))
    for other in (inspect_model, run_self_test):
        with suppress(FerError):
            other(tmp_path / "hostile.onnx")


def test_many_fields_are_refused() -> None:
    content = b"\x08\x01" * (MAX_FIELDS + 1)
    with pytest.raises(ModelFileError, match="more than 500,000 fields"):
        read_onnx(content, source="it")


def test_a_device_is_no_model() -> None:
    with pytest.raises(ModelFileError, match="/dev/zero is not a regular file"):
        inspect_model(Path("/dev/zero"))


def test_any_operator_opens_a_file_that_the_list_refuses(tmp_path: Path) -> None:
    model = onnx.load(write_band_model(tmp_path / "bands.onnx"))
    model.graph.node[-1].output[0] = "shares"
    _append(model, "Celu", ["shares"], ["probabilities"])
    onnx.save(model, tmp_path / "celu.onnx")
    with pytest.raises(ModelFileError, match=r"the operator Celu, .*--any-operator"):
        load_model(tmp_path / "celu.onnx")
    with Recognizer(tmp_path / "celu.onnx", any_operator=True) as recognizer:
        assert recognizer.classify(np.zeros((3, 48, 48), np.uint8)).shape == (3, 7)
    options = ["--samples", "--output", str(tmp_path / "rows.jsonl"), "--model", str(tmp_path / "celu.onnx")]
    assert CliRunner().invoke(main, options).exit_code == 1
    assert CliRunner().invoke(main, [*options, "--any-operator"]).exit_code == 0


@pytest.mark.parametrize("path", sorted(packaged_models_dir().glob("*.onnx")), ids=lambda path: path.name)
def test_shapes_are_those_of_the_onnx_package(path: Path) -> None:
    file = load_model(path).file
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    theirs = {
        value.name: tuple(size.dim_value or 1 for size in value.type.tensor_type.shape.dim)
        for value in (*model.graph.value_info, *model.graph.output)
    }
    ours = infer_shapes(file)
    assert {name: ours[name] for name in theirs} == theirs


def test_a_fixed_batch_takes_any_number_of_faces(tmp_path: Path) -> None:
    model = onnx.load(write_band_model(tmp_path / "bands.onnx"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "four.onnx")
    faces = np.random.default_rng(0).integers(0, 256, (11, 48, 48), np.uint8)
    with Recognizer(tmp_path / "bands.onnx") as any_batch, Recognizer(tmp_path / "four.onnx") as four:
        np.testing.assert_allclose(four.classify(faces), any_batch.classify(faces), rtol=1e-6)
        assert four.classify(faces[:1]).shape == (1, 7)


def _deep(depth: int) -> str:
    return "[" * depth + "]" * depth


METADATA: dict[str, tuple[dict[str, Any] | str, str]] = {
    "deep": ('{"schema": 1, "training": ' + _deep(100_000) + "}", "nested too deeply"),
    "400 digits": ('{"schema": 1, "temperature": ' + "9" * 400 + "}", "is too large"),
    "exponent": ('{"schema": 1, "temperature": 1e999}', "is too large"),
    "NaN": ('{"schema": 1, "temperature": NaN}', "NaN is not a JSON number"),
    "twice": ('{"schema": 1, "schema": 1}', "a key occurs twice"),
    "no object": ("[1]", "it is not an object"),
    "schema": ({"schema": "1"}, "schema must be a whole number"),
    "schema true": ({"schema": True}, "schema must be a whole number"),
    "temperature 0": ({"temperature": 0}, "temperature must be a number from 0.001 to 1000, got 0"),
    "temperature -1": ({"temperature": -1}, "temperature must be"),
    "temperature text": ({"temperature": "1"}, "temperature must be"),
    "happy": ({"expressions": ["happy"] * 7}, "the label 'happy' occurs twice"),
    "lists": ({"expressions": [[expression] for expression in EXPRESSIONS]}, "a label must be a printable text"),
    "text": ({"expressions": "abcdefg"}, "labels must be a list"),
    "escape": ({"expressions": ["\x1b[2J", *EXPRESSIONS[1:]]}, "a label must be a printable text"),
    "blank": ({"expressions": [" ", *EXPRESSIONS[1:]]}, "a label must be a printable text"),
    "name": ({"name": "v0\n  verdict passed"}, "name must be a printable text"),
    "precision": ({"precision": ["int8"]}, "precision must be a printable text"),
    "opset": ({"opset": 1.5}, "opset must be a whole number"),
    "threshold": ({"uncertain_below": 2}, "uncertain_below must be a number from 0 to 1"),
    "verdict": ({"verdict": "passed"}, "verdict is not an object"),
    "versions": ({"versions": {"torch": ["2"]}}, "versions must hold only texts"),
}


@pytest.mark.usefixtures("never_opened")
@pytest.mark.parametrize("kind", METADATA)
def test_metadata_that_does_not_fit_the_schema_is_refused(kind: str, tmp_path: Path) -> None:
    given, told = METADATA[kind]
    honest = {"schema": 1, "name": "v0", "expressions": list(EXPRESSIONS), "precision": "fp32", "opset": 18}
    text = given if isinstance(given, str) else json.dumps(honest | given)
    path = write_band_model(tmp_path / "a.onnx", metadata=text)
    for command in (["--self-test", "--model", str(path)], ["--samples", "--model", str(path)]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 1
        assert told in result.stderr
        assert len(result.stderr.splitlines()) == 1
    with pytest.raises(ModelFileError, match="metadata that cannot be read"):
        inspect_model(path)


@pytest.mark.parametrize("text", [_deep(1_000_000), "1" * 10_000_000, '"' + "a" * 100, "{" * 100_000, b"\xff", "1e400"])
def test_json_of_any_kind_ends_in_one_kind_of_error(text: str | bytes) -> None:
    started = time.process_time()
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        parse_json(text)
    assert time.process_time() - started < 30


@pytest.mark.usefixtures("never_opened")
def test_a_detector_with_a_loop_is_refused(tmp_path: Path) -> None:
    model = onnx.load(write_band_model(tmp_path / "bands.onnx", metadata=""))
    _loop_for_ever(model)
    (tmp_path / "yunet.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"the operator Loop.*fetch-yunet"):
        YuNetDetector(tmp_path / "yunet.onnx")
