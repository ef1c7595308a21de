"""The reader of .onnx files against the onnx package."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.runtime.tiny_models import write_band_model

from fer_runtime.errors import ModelFileError
from fer_runtime.model.find import packaged_models_dir
from fer_runtime.model.onnx_file import content_digest, read_onnx, read_onnx_file
from fer_runtime.model.session import open_session

SHIPPED = sorted(packaged_models_dir().glob("*.onnx"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_read_as_the_onnx_package_reads_them(path: Path) -> None:
    file, content = read_onnx_file(path)
    model = onnx.load_from_string(content)
    graph = model.graph
    assert [node.op_type for node in file.nodes] == [node.op_type for node in graph.node]
    assert [node.inputs for node in file.nodes] == [tuple(node.input) for node in graph.node]
    for ours, theirs in zip(file.nodes, graph.node, strict=True):
        for attribute in theirs.attribute:
            value = helper.get_attribute_value(attribute)
            if isinstance(value, bytes):
                value = value.decode()
            assert ours.attributes[attribute.name] == (pytest.approx(value) if isinstance(value, float) else value)
    assert {name: tensor.shape for name, tensor in file.tensors.items()} == {
        constant.name: tuple(constant.dims) for constant in graph.initializer
    }
    assert {name: tensor.dtype for name, tensor in file.tensors.items()} == {
        constant.name: numpy_helper.to_array(constant).dtype.name for constant in graph.initializer
    }
    for constant in graph.initializer:
        if constant.data_type == onnx.TensorProto.INT64:
            assert file.tensors[constant.name].integers == tuple(numpy_helper.to_array(constant).ravel())
    assert file.opsets[""] == model.opset_import[0].version
    assert file.metadata == {entry.key: entry.value for entry in model.metadata_props}
    assert file.inputs[0].shape == ("batch", 48, 48)
    assert file.ir_version == model.ir_version


def test_integers_in_any_encoding_are_read() -> None:
    values = np.array([-1, 0, 3, 2**40], np.int64)
    typed = helper.make_tensor("typed", onnx.TensorProto.INT64, [4], values.tolist())
    raw = numpy_helper.from_array(values, "raw")
    node = helper.make_node("Foo", ["raw"], ["y"], numbers=[-5, 7], share=0.5, text="a", number=-2)
    graph = helper.make_graph([node], "g", [], [], [typed, raw])
    file = read_onnx(helper.make_model(graph).SerializeToString(), source="it")
    assert file.tensors["typed"].integers == file.tensors["raw"].integers == (-1, 0, 3, 2**40)
    assert file.nodes[0].attributes == {"numbers": [-5, 7], "share": 0.5, "text": "a", "number": -2}


def test_every_truncation_is_our_own_error(tmp_path: Path) -> None:
    content = write_band_model(tmp_path / "a.onnx").read_bytes()
    for end in range(0, len(content), 97):
        with pytest.raises(ModelFileError, match=r"a\.onnx"):
            read_onnx(content[:end], source="a.onnx")


def test_noise_is_our_own_error_or_no_model() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        noise = random.integers(0, 256, int(random.integers(1, 200)), np.uint8).tobytes()
        with suppress(ModelFileError):
            assert read_onnx(noise, source="noise").nodes == ()


def test_a_missing_file_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="fer-export"):
        read_onnx_file(tmp_path / "none.onnx")
    with pytest.raises(ModelFileError, match="No such file or directory; ask the cat"):
        read_onnx_file(tmp_path / "none.onnx", advice="ask the cat")


def test_the_digest_covers_weights_and_metadata_and_not_their_order(tmp_path: Path) -> None:
    content = write_band_model(tmp_path / "a.onnx").read_bytes()
    digest = content_digest(content)
    model = onnx.load_from_string(content)
    model.metadata_props.add(key="a", value="1")
    with_one_entry = content_digest(model.SerializeToString())
    model.metadata_props.insert(0, onnx.StringStringEntryProto(key="b", value="2"))
    with_two_entries = content_digest(model.SerializeToString())
    model.metadata_props.reverse()
    assert content_digest(model.SerializeToString()) == with_two_entries
    assert len({digest, with_one_entry, with_two_entries}) == 3
    changed = bytearray(content)
    changed[content.index(b"weights") + 40] ^= 1
    assert content_digest(bytes(changed)) != digest


def test_a_file_that_cannot_be_read_is_not_answered_with_how_to_write_one(tmp_path: Path) -> None:
    for read in (read_onnx_file, open_session):
        with pytest.raises(ModelFileError, match=r"No such file or directory; write one with: fer-export"):
            read(tmp_path / "missing.onnx")
        with pytest.raises(ModelFileError, match=r"Is a directory; give a file that can be read$"):
            read(tmp_path)


def test_an_empty_file_is_answered_like_a_damaged_one() -> None:
    with pytest.raises(ModelFileError, match=r"^it is empty; ask its author$"):
        read_onnx(b"", source="it", advice="ask its author")
