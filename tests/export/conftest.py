"""A v0 that has learned made-up faces in two seconds, and one export of it that many tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch
from tests.train.images import write_images

from fer_export import pipeline
from fer_export.gate.accuracy import Budget
from fer_export.gate.report import ExportReport
from fer_export.graph import export_graph, serialize
from fer_export.pipeline import export_model
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.model.metadata import ModelMetadata
from fer_train.checkpoints import Checkpoint, save_checkpoint
from fer_train.data.folders import load_faces
from fer_train.networks.registry import create_network, to_network_input

TEMPERATURE = 1.6  # of the models that tests make by hand


@dataclass(frozen=True)
class Exported:
    """A folder with a checkpoint and its three models."""

    models_dir: Path
    data: Path
    checkpoint: Path
    report: ExportReport


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("faces"), train=30, validation=12)


@pytest.fixture(scope="session")
def trained_v0(dataset: Path) -> Checkpoint:
    """Forty steps: enough that faces differ in their logits and BatchNorm's statistics are not trivial."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train = load_faces(dataset, "train")
    network = create_network("v0")
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    faces, labels = torch.from_numpy(train.faces), torch.from_numpy(train.labels)
    for _ in range(40):
        chosen = torch.randperm(len(labels))[:64]
        loss = torch.nn.functional.cross_entropy(network(to_network_input(faces[chosen])), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.set_num_threads(threads)
    return Checkpoint(name="v0", state_dict=network.state_dict(), training={"recipe": "test", "accuracy": 0.5})


@pytest.fixture(scope="session")
def v0_graph(trained_v0: Checkpoint) -> onnx.ModelProto:
    return export_graph(trained_v0, temperature=TEMPERATURE)


@pytest.fixture
def v0_content(v0_graph: onnx.ModelProto) -> bytes:
    return serialize(v0_graph, v0_metadata())


def v0_metadata() -> ModelMetadata:
    return ModelMetadata(name="v0", labels=EXPRESSIONS, precision="fp32", opset=18, temperature=TEMPERATURE)


@pytest.fixture(scope="session")
def exported(
    trained_v0: Checkpoint,
    dataset: Path,
    tmp_path_factory: pytest.TempPathFactory,
    exported_graphs: dict[str, onnx.ModelProto],
) -> Exported:
    """fp32, fp16 and int8; int8 may be slower here, where other tests run beside it."""
    models_dir = tmp_path_factory.mktemp("models")
    checkpoint = models_dir / "model_0.pth"
    save_checkpoint(checkpoint, trained_v0)
    with exporting_once(exported_graphs):
        report = export_model(
            "v0",
            precisions=("fp32", "fp16", "int8"),
            data=dataset,
            models_dir=models_dir,
            budget=Budget(accuracy=5, macro_f1=5, recall=20),
            keep_anyway=True,
        )
    return Exported(models_dir=models_dir, data=dataset, checkpoint=checkpoint, report=report)


@pytest.fixture(scope="session")
def exported_graphs() -> dict[str, onnx.ModelProto]:
    return {}


@contextmanager
def exporting_once(graphs: dict[str, onnx.ModelProto]) -> Iterator[None]:
    """PyTorch's exporter takes seconds: equal weights and settings are exported once for all tests.

    Args:
        graphs: the fixture `exported_graphs`.
    """

    def export(checkpoint: Checkpoint, *, temperature: float, opset: int) -> onnx.ModelProto:
        weights = sum(float(value.double().sum()) for value in checkpoint.state_dict.values())
        key = f"{weights!r} {temperature!r} {opset}"
        if key not in graphs:
            graphs[key] = export_graph(checkpoint, temperature=temperature, opset=opset)
        copy = onnx.ModelProto()
        copy.CopyFrom(graphs[key])
        return copy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "export_graph", export)
        yield


@pytest.fixture
def exports_once(exported_graphs: dict[str, onnx.ModelProto]) -> Iterator[None]:
    with exporting_once(exported_graphs):
        yield
