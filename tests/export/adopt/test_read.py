"""Somebody else's file: the same scores for the same faces, or a refusal that names the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.export.adopt.foreign_models import FERPLUS, Builder, ferplus_like, mobilefacenet_like

from fer_export.adopt.inputs import FaceInput, parse_input
from fer_export.adopt.read import Adopted, adopt_file
from fer_export.fp16 import halve_model
from fer_export.gate.roundings import graph_check
from fer_runtime.errors import ModelFileError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.model.session import open_session

GRAY = FaceInput(color="gray", size=64, low=0, high=255)


def _adopted(model: onnx.ModelProto, folder: Path, faces: FaceInput, **more: Any) -> Adopted:
    path = folder / "foreign.onnx"
    path.write_bytes(model.SerializeToString())
    return adopt_file(path, name="foreign", faces=faces, **more)


def _logits(content: bytes, inputs: dict[str, Any], output: str) -> Any:
    return open_session(content).session.run([output], inputs)[0]


def test_a_file_like_ferplus_is_any_batch_of_gray_faces(tmp_path: Path) -> None:
    model = ferplus_like()
    adopted = _adopted(model, tmp_path, GRAY, labels=FERPLUS)
    faces = np.random.default_rng(0).integers(0, 256, (7, 64, 64), dtype=np.uint8)
    # As its own program would run it: one face of 0 to 255 after the other.
    output = model.graph.output[0].name
    pixels = faces.astype(np.float32)[:, None]
    expected = np.concatenate([_logits(model.SerializeToString(), {"Input3": image[None]}, output) for image in pixels])
    found = _logits(adopted.graph.SerializeToString(), {"faces": faces}, "logits")
    assert found.shape == (7, 8)
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.array_equal(adopted.original.logits(faces), expected)
    # Everything before the first convolution is in its weights: ours have no other operators than these.
    kinds = {node.op_type for node in adopted.graph.graph.node}
    assert kinds == {"Cast", "Unsqueeze", "Sub", "Conv", "Relu", "MaxPool", "Reshape", "Gemm", "Softmax"}


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_colours_are_given_as_the_file_takes_them(color: str, layout: str, tmp_path: Path) -> None:
    model = mobilefacenet_like(32)
    if layout == "nhwc":
        _take_channels_last(model)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    taken = FaceInput(color=color, size=32, mean=mean, std=std)
    adopted = _adopted(model, tmp_path, taken, labels=EXPRESSIONS)
    faces = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)  # RGB
    ordered = faces if color == "rgb" else faces[..., ::-1]
    pixels = ((ordered / 255 - mean) / std).astype(np.float32)
    pixels = pixels if layout == "nhwc" else pixels.transpose(0, 3, 1, 2)
    expected = _logits(model.SerializeToString(), {"Input3": pixels}, model.graph.output[0].name)
    found = _logits(adopted.graph.SerializeToString(), {"faces": faces}, "probabilities")
    assert np.allclose(found, expected, atol=1e-4)
    assert np.ptp(expected, axis=0).max() > 0.01  # the faces differ


def _take_channels_last(model: onnx.ModelProto) -> None:
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    dimensions[1].dim_value, dimensions[3].dim_value = 32, 3
    model.graph.node[0].input[0] = "planes"
    model.graph.node.insert(0, helper.make_node("Transpose", ["Input3"], ["planes"], name="first", perm=[0, 3, 1, 2]))


def test_gray_faces_fill_the_three_channels_of_a_colour_network(tmp_path: Path) -> None:
    taken = FaceInput(color="gray", size=32, low=-1, high=1)
    adopted = _adopted(mobilefacenet_like(32), tmp_path, taken, labels=EXPRESSIONS)
    assert adopted.original.face_shape == (32, 32)
    faces = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    found = _logits(adopted.graph.SerializeToString(), {"faces": faces}, "logits")
    assert np.allclose(found, adopted.original.logits(faces), rtol=1e-3, atol=1e-3)


def test_a_file_of_bytes_gets_bytes(tmp_path: Path) -> None:
    build = Builder()
    x = build.node("Cast", ["Input3"], to=TensorProto.FLOAT)
    x = build.node("GlobalAveragePool", [build.node("Conv", [x, build.weights("w", 4, 3, 3, 3)])])
    x = build.node("Flatten", [x])
    x = build.node("Gemm", [x, build.weights("f", 4, 3)])
    model = build.model(["N", 3, 32, 32], x, 3, opset=13, kind=TensorProto.UINT8)
    taken = FaceInput(color="rgb", size=32, low=0, high=255)
    adopted = _adopted(model, tmp_path, taken, labels=("a", "b", "c"))
    faces = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    expected = _logits(model.SerializeToString(), {"Input3": faces.transpose(0, 3, 1, 2)}, x)
    found = _logits(adopted.graph.SerializeToString(), {"faces": faces}, "logits")
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-3)  # of values up to 255
    halved = halve_model(adopted.graph)
    assert np.allclose(_logits(halved.SerializeToString(), {"faces": faces}, "logits"), expected, rtol=0.01, atol=0.5)
    assert graph_check(adopted.graph, halved).passed
    with pytest.raises(ModelFileError, match=r"takes uint8, so it needs --range 0\.\.255"):
        _adopted(model, tmp_path, FaceInput(color="rgb", size=32), labels=("a", "b", "c"))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("labels", '["a", "b", "c", "d", "e", "f", "g"]'),
        ("id2label", '{"1": "b", "0": "a", "2": "c", "3": "d", "4": "e", "5": "f", "6": "g"}'),
        ("names", "{0: 'a', 1: 'b', 2: 'c', 3: 'd', 4: 'e', 5: 'f', 6: 'g'}"),  # as Ultralytics writes them
    ],
)
def test_labels_are_read_from_the_metadata(key: str, text: str, tmp_path: Path) -> None:
    model = mobilefacenet_like(32)
    model.metadata_props.add(key=key, value=text)
    adopted = _adopted(model, tmp_path, FaceInput(color="rgb", size=32))
    assert adopted.original.labels == tuple("abcdefg")
    assert any(f"metadata entry {key}" in note for note in adopted.notes)


def test_an_infinite_number_of_a_label_is_none(tmp_path: Path) -> None:
    model = mobilefacenet_like(32)
    model.metadata_props.add(key="names", value="{1e400: 'a', 2: 'b'}")
    with pytest.raises(ModelFileError, match="no labels in its metadata"):
        _adopted(model, tmp_path, FaceInput(color="rgb", size=32))


def test_no_code_of_the_metadata_runs(tmp_path: Path) -> None:
    model = mobilefacenet_like(32)
    model.metadata_props.add(key="names", value=f"[open({str(tmp_path / 'ran')!r}, 'w')]")
    with pytest.raises(ModelFileError, match="no labels in its metadata"):
        _adopted(model, tmp_path, FaceInput(color="rgb", size=32))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("text", "expected"), [("gray64", ("gray", 64)), ("RGB112", ("rgb", 112))])
def test_colour_and_size_are_read(text: str, expected: tuple[str, int]) -> None:
    assert parse_input(text) == expected


@pytest.mark.parametrize("text", ["64", "gray", "gray8", "gray1024", "rgba64", "gray64x64", ""])
def test_another_colour_or_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a colour and size"):
        parse_input(text)


# What stands in the way, planted into a file that is otherwise right.


def _appended(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """Put nodes behind the output `scores`; the first reads it, the last writes `answer`."""
    old = model.graph.output[0].name
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = "scores" if name == old else name
    model.graph.node.extend(nodes)
    model.graph.output[0].name = "answer"


def _loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )
    _constant(model, "many", np.array(2**62))
    _constant(model, "true", np.array(True))
    model.graph.node.insert(0, helper.make_node("Loop", ["many", "true"], [], body=body))


def _constant(model: onnx.ModelProto, name: str, values: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))


def _function(model: onnx.ModelProto) -> None:
    model.functions.append(
        helper.make_function("", "Relu", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], model.opset_import)
    )


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def _other_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    model.graph.node[2].domain = "com.evil"


def _two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("gain", TensorProto.FLOAT, [1]))


def _double(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def _volume(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim.add().dim_value = 3


def _second_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info(model.graph.node[2].output[0], TensorProto.FLOAT, None))


def _sigmoid(model: onnx.ModelProto) -> None:
    _appended(model, helper.make_node("Sigmoid", ["scores"], ["answer"]))


def _probabilities_by_hand(model: onnx.ModelProto) -> None:
    _constant(model, "sum_axes", np.array([1]))
    _appended(
        model,
        helper.make_node("Exp", ["scores"], ["powers"]),
        helper.make_node("ReduceSum", ["powers", "sum_axes"], ["sum"], keepdims=1),
        helper.make_node("Div", ["powers", "sum"], ["answer"]),
    )


def _softmax_over_faces(model: onnx.ModelProto) -> None:
    _appended(
        model,
        helper.make_node("Softmax", ["scores"], ["shares"], name="leak", axis=0),
        helper.make_node("Add", ["scores", "shares"], ["answer"]),
    )


def _the_same_for_all(model: onnx.ModelProto) -> None:
    _constant(model, "nothing", np.float32(0))
    _appended(model, helper.make_node("Mul", ["scores", "nothing"], ["answer"]))


def _not_finite(model: onnx.ModelProto) -> None:
    _constant(model, "zero_", np.float32(0))
    _appended(model, helper.make_node("Div", ["scores", "zero_"], ["answer"]))


def _quantized(model: onnx.ModelProto) -> None:
    _constant(model, "step", np.float32(0.1))
    _constant(model, "point", np.uint8(128))
    _appended(
        model,
        helper.make_node("QuantizeLinear", ["scores", "step", "point"], ["bytes"]),
        helper.make_node("DequantizeLinear", ["bytes", "step", "point"], ["answer"]),
    )


def _ours(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="fer", value="{}")


def _escapes(model: onnx.ModelProto) -> None:
    model.graph.node[2].op_type = "\x1b[31mverdict: passed\n"


_CASES: list[tuple[Callable[[onnx.ModelProto], None], str]] = [
    (_loop, "has the operator Loop"),
    (_function, "1 functions of its own"),
    (_external, "are in another file"),
    (_other_domain, r"the operator com\.evil\.PRelu"),
    (_two_inputs, r"has 2 inputs \(Input3, gain\)"),
    (_double, "takes float64; float32 and uint8"),
    (_volume, "an image has four dimensions"),
    (_second_output, "has 2 outputs .*--scores NAME"),
    (_sigmoid, "ends in Sigmoid"),
    (_probabilities_by_hand, "its scores are probabilities"),
    (_softmax_over_faces, "Softmax leak runs over the faces"),
    (_the_same_for_all, "answers all synthetic faces with the same scores"),
    (_not_finite, "not finite"),
    (_quantized, "the operator QuantizeLinear"),
    (_ours, "is a model of fer-export already"),
    (_escapes, r"the operator \\x1b\[31mverdict"),
]


def test_a_log_softmax_at_the_end_is_taken_off_and_stays_refused_elsewhere(tmp_path: Path) -> None:
    faces = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    taken = FaceInput(color="rgb", size=32)
    expected = _adopted(mobilefacenet_like(32), tmp_path, taken, labels=EXPRESSIONS)
    model = mobilefacenet_like(32)
    (last,) = (node for node in model.graph.node if node.op_type == "Softmax")
    last.op_type = "LogSoftmax"
    found = _adopted(model, tmp_path, taken, labels=EXPRESSIONS)
    assert any(note.endswith("through the file's LogSoftmax") for note in found.notes)
    for name in ("logits", "probabilities"):
        answers = [_logits(each.graph.SerializeToString(), {"faces": faces}, name) for each in (found, expected)]
        assert np.array_equal(*answers)
    last.attribute[0].i = 0
    with pytest.raises(ModelFileError, match=r"Softmax .*runs over the faces"):
        _adopted(model, tmp_path, taken, labels=EXPRESSIONS)
    last.attribute[0].i = 1
    model.graph.node.append(helper.make_node("Neg", [last.output[0]], ["negative"]))
    model.graph.output[0].name = "negative"
    with pytest.raises(ModelFileError, match=r"LogSoftmax .*is not among the operators"):
        _adopted(model, tmp_path, taken, labels=EXPRESSIONS)


@pytest.mark.parametrize(("fault", "message"), _CASES, ids=[fault.__name__ for fault, _ in _CASES])
def test_what_is_in_the_way_is_named(fault: Callable[[onnx.ModelProto], None], message: str, tmp_path: Path) -> None:
    model = mobilefacenet_like(32, softmax=False)
    fault(model)
    with pytest.raises(ModelFileError, match=message):
        _adopted(model, tmp_path, FaceInput(color="rgb", size=32), labels=EXPRESSIONS)


@pytest.mark.parametrize(
    ("faces", "message"),
    [
        (FaceInput(color="rgb", size=48), r"Input3 of shape \(batch, 3, 32, 32\), which is not rgb48"),
        (FaceInput(color="rgb", size=32, layout="nhwc"), "which is not rgb32 in NHWC"),
    ],
)
def test_another_input_than_the_file_has_is_refused(faces: FaceInput, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=message):
        _adopted(mobilefacenet_like(32), tmp_path, faces, labels=EXPRESSIONS)


def test_one_channel_is_not_three(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"of shape \(1, 1, 64, 64\), which is not rgb64"):
        _adopted(ferplus_like(), tmp_path, FaceInput(color="rgb", size=64), labels=FERPLUS)


def test_three_means_need_three_channels(tmp_path: Path) -> None:
    three = FaceInput(color="gray", size=64, mean=(0.5, 0.4, 0.6))
    with pytest.raises(ModelFileError, match=r"with one channel, and --mean or --std has 3 numbers; give one"):
        _adopted(ferplus_like(), tmp_path, three, labels=FERPLUS)
    _adopted(mobilefacenet_like(32), tmp_path, FaceInput(color="gray", size=32, std=three.mean), labels=EXPRESSIONS)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_named(number: float) -> None:
    with pytest.raises(ValueError, match=rf"range, mean and std need finite numbers, got {number}"):
        FaceInput(color="gray", size=64, mean=(number,))


def test_an_operator_without_inputs_is_named(tmp_path: Path) -> None:
    model = ferplus_like()
    model.graph.node.append(helper.make_node("Softmax", [], ["none"], name="last"))
    model.graph.output.append(helper.make_tensor_value_info("none", TensorProto.FLOAT, [1, 8]))
    with pytest.raises(ModelFileError, match="Softmax last is computed from constants alone"):
        _adopted(model, tmp_path, GRAY, labels=FERPLUS, scores="none")


def test_an_output_without_the_scores_is_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[onnx.ModelProto] = []

    def spy(content: bytes, **options: Any) -> Any:
        opened.append(onnx.load_model_from_string(content))
        return open_session(content, **options)

    monkeypatch.setattr("fer_export.adopt.foreign.open_session", spy)
    model = ferplus_like()
    scores, nodes = model.graph.output[0].name, list(model.graph.node)
    more = [helper.make_node("Relu", [scores if not place else f"r{place}"], [f"r{place + 1}"]) for place in range(9)]
    model.graph.node.extend(more)
    model.graph.output.append(helper.make_tensor_value_info("r9", TensorProto.FLOAT, [1, 8]))
    adopted = _adopted(model, tmp_path, GRAY, labels=FERPLUS, scores=scores)
    assert [list(found.graph.node) for found in opened] == [nodes]
    face = np.zeros((1, 64, 64), np.uint8)
    assert np.array_equal(
        adopted.original.logits(face),
        _logits(model.SerializeToString(), {"Input3": face[:, None].astype(np.float32)}, scores),
    )


def test_a_file_can_be_halved(tmp_path: Path) -> None:
    adopted = _adopted(ferplus_like(), tmp_path, GRAY, labels=FERPLUS)
    faces = np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8)
    halved = _logits(halve_model(adopted.graph).SerializeToString(), {"faces": faces}, "logits")
    expected = adopted.original.logits(faces)
    # 11 bits of mantissa in each weight and sum
    assert np.abs(halved - expected).max() < 0.01 * (1 + np.abs(expected).max())


def test_labels_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="has 8 scores, but 7 labels are named"):
        _adopted(ferplus_like(), tmp_path, GRAY, labels=EXPRESSIONS)
    with pytest.raises(ModelFileError, match="has 8 scores and no labels in its metadata"):
        _adopted(ferplus_like(), tmp_path, GRAY)


@pytest.mark.parametrize("seed", range(24))
def test_a_damaged_file_is_one_error(seed: int, tmp_path: Path) -> None:
    """Bytes of the graph, not of the weights, are changed: an answer or one error, nothing else."""
    random = np.random.default_rng(seed)
    content = bytearray(ferplus_like().SerializeToString())
    end = content.find(b"F0")  # from here on most bytes are weights
    for place in random.integers(0, end if seed % 2 else len(content), 1 + seed % 5):
        content[place] = random.integers(256)
    path = tmp_path / "damaged.onnx"
    path.write_bytes(bytes(content) if seed % 8 else bytes(content[: random.integers(1, len(content))]))
    message = ""
    try:
        adopt_file(path, name="damaged", faces=GRAY, labels=FERPLUS)
    except ModelFileError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 1500
