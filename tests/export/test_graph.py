"""The exported graph against the network it came from."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from tests.export.conftest import TEMPERATURE, ResidualGraph, narrow_metadata
from tests.export.narrow import CHANNELS
from torch import nn

from fer_export.gate.golden import synthetic_faces, textures
from fer_export.gate.original import network_logits, original_of
from fer_export.gate.parity import FileSpec, check_parity
from fer_export.graph import export_graph, fold_preprocessing, serialize
from fer_runtime.errors import CheckpointError
from fer_runtime.model.parity import run_model
from fer_runtime.model.session import open_session
from fer_train.checkpoints import Checkpoint
from fer_train.networks.registry import to_network_input


def test_one_plane_of_pixels_gives_what_three_scaled_planes_gave(trained_narrow: Checkpoint) -> None:
    network = trained_narrow.network()
    faces = torch.from_numpy(synthetic_faces())
    with torch.inference_mode():
        expected = network(to_network_input(faces, std=0.25))
        actual = fold_preprocessing(network, std=0.25)(faces.float()[:, None])
    # The sum of three products rounds differently from one product: a few float32 steps.
    assert torch.allclose(expected, actual, rtol=1e-4, atol=1e-4)


def test_folding_leaves_the_network_alone(trained_narrow: Checkpoint) -> None:
    network = trained_narrow.network()
    fold_preprocessing(network)
    assert network.get_parameter("conv_block_1.0.weight").shape == (CHANNELS[0], 3, 3, 3)


def test_a_network_without_three_channels_is_refused() -> None:
    with pytest.raises(CheckpointError, match="three channels"):
        fold_preprocessing(nn.Sequential(nn.Conv2d(1, 4, 3)))


def test_mean_and_std_of_a_recipe_are_exact_beside_the_border(trained_narrow: Checkpoint) -> None:
    """A mean folded into the bias would be wrong where the padding adds zeros."""
    checkpoint = dataclasses.replace(trained_narrow, mean=0.5, std=0.25)
    content = serialize(export_graph(checkpoint, temperature=TEMPERATURE), narrow_metadata())
    assert check_parity(
        content, FileSpec(original=original_of(checkpoint), temperature=TEMPERATURE), synthetic_faces()
    ).passed


def test_the_file_holds_no_paths_and_nothing_beside_it(narrow_graph: onnx.ModelProto, narrow_content: bytes) -> None:
    assert b"site-packages" not in narrow_content
    assert b".py" not in narrow_content
    assert not any(
        tensor.HasField("data_location") and tensor.data_location for tensor in narrow_graph.graph.initializer
    )


def test_the_batch_axis_is_named_and_free(narrow_graph: onnx.ModelProto) -> None:
    batch, height, width = narrow_graph.graph.input[0].type.tensor_type.shape.dim
    assert (batch.dim_param, height.dim_value, width.dim_value) == ("batch", 48, 48)


def test_equal_checkpoints_give_equal_bytes(trained_narrow: Checkpoint, narrow_content: bytes) -> None:
    again = export_graph(trained_narrow, temperature=narrow_metadata().temperature)
    assert serialize(again, narrow_metadata()) == narrow_content


@pytest.mark.parametrize(("name", "convolutions"), [("v1", 20), ("v2", 16)])
def test_a_residual_network_is_exported_right(name: str, convolutions: int, residual_graph: ResidualGraph) -> None:
    checkpoint, model = residual_graph(name)
    assert sum(node.op_type == "Conv" for node in model.graph.node) == convolutions
    faces = np.concatenate([synthetic_faces(), textures(8)])
    logits = run_model(open_session(model.SerializeToString()).session, faces).logits
    # float32 sums of up to 4608 products in another order, through 18 layers.
    assert np.allclose(logits, network_logits(checkpoint, faces), rtol=1e-3, atol=1e-3)
