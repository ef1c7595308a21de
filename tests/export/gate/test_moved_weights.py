"""The shipped certificates notice a moved weight; `python -m tests.export.moved_weights` tries every unit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.export.conftest import Exported
from tests.export.moved_weights import Replayed

from fer_runtime.model.find import packaged_models_dir
from fer_runtime.model.self_test import run_self_test

_MODELS = sorted(packaged_models_dir().glob("*.onnx"))
# One live unit in so many, and at least one of each layer.
_EVERY = {"model_0.onnx": 8, "model_0.int8.onnx": 8, "model_v3.int8.onnx": 2000, "model_v1.int8.onnx": 2000}
_LAYERS = {"model_0.onnx": 7, "model_0.int8.onnx": 7, "model_v3.int8.onnx": 19, "model_v1.int8.onnx": 24}


def test_no_moved_weight_of_a_small_network_is_unnoticed(exported: Exported) -> None:
    replayed = Replayed(exported.models_dir / "narrow.int8.onnx")
    chosen = list(replayed.weights(np.random.default_rng(0)))
    assert len(chosen) > 60
    noticed = [replayed.replay(layer, place) for layer, place in chosen]
    assert all(noticed)
    # The integer that a weight moves by a step shows it, whatever the layers behind it do with that.
    assert all("integers" in failed for (layer, _), failed in zip(chosen, noticed, strict=True) if layer.is_rounded)


@pytest.mark.parametrize("path", [path for path in _MODELS if path.name in _EVERY], ids=lambda path: path.name)
def test_a_moved_weight_of_any_layer_fails_the_replay(path: Path) -> None:
    replayed = Replayed(path)
    # The hidden units of `unfamiliarity` may be in a layer of the network.
    assert len(replayed.layers) == _LAYERS[path.name] - (replayed.shared is not None)
    assert run_self_test(path, loaded=replayed.loaded).passed
    chosen = list(replayed.weights(np.random.default_rng(0), every=_EVERY[path.name]))
    assert {layer.name for layer, _ in chosen} == {layer.name for layer in replayed.layers}
    if path.name == "model_v1.int8.onnx":  # 11 MB, which take a quarter of a second a time
        chosen = chosen[::4]
    unnoticed = [(layer.name, place) for layer, place in chosen if not replayed.replay(layer, place)]
    assert not unnoticed
