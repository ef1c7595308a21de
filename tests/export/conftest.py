"""A small network that has learned made-up faces, and one export of it that many tests look at.

What an export does the same way each time is done once for all tests of all processes. No test depends on how fast int8
runs here.
"""

from __future__ import annotations

import functools
import importlib
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tests.export import narrow as narrow  # registers it
from tests.train.images import write_images

from fer_export import pipeline
from fer_export.gate import batches as batch
from fer_export.gate import coverage, interpreters, parity, subject
from fer_export.gate.accuracy import Budget
from fer_export.gate.batches import batch_checks
from fer_export.gate.coverage import cover_units
from fer_export.gate.golden import candidate_faces
from fer_export.gate.interpreters import interpreter_checks
from fer_export.gate.report import ExportReport
from fer_export.gate.timing import Timing
from fer_export.graph import export_graph, serialize, set_temperature
from fer_export.options import ExportOptions
from fer_export.pipeline import export_model
from fer_export.unfamiliar import head
from fer_export.unfamiliar.head import fit_head
from fer_export.unfamiliar.images import strange_images
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.model.metadata import ModelMetadata
from fer_train.checkpoints import Checkpoint, save_checkpoint
from fer_train.data.folders import load_faces
from fer_train.networks.registry import create_network, to_network_input

Kept = dict[tuple[str, ...], Any]  # results by function and arguments
ResidualGraph = Callable[[str], tuple[Checkpoint, onnx.ModelProto]]  # by the network's name

TEMPERATURE = 1.6  # of the models that tests make by hand


@dataclass(frozen=True)
class Exported:
    """A folder with a checkpoint and its three models."""

    models_dir: Path
    data: Path
    checkpoint: Path
    report: ExportReport


@pytest.fixture(scope="session", autouse=True)
def _operators_once() -> Iterator[None]:
    """PyTorch's exporter compiles its five hundred operators for each export: more than half of a small one's time."""
    onnxscript_apis = importlib.import_module("torch.onnx._internal._lazy_import").onnxscript_apis
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxscript_apis, "get_torchlib_ops", functools.cache(onnxscript_apis.get_torchlib_ops))
        yield


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("faces"), train=30, validation=12)


@pytest.fixture(scope="session")
def trained_narrow(dataset: Path, kept: Kept) -> Checkpoint:
    """Forty steps: enough that faces differ in their logits and BatchNorm's statistics are not trivial."""
    if (key := ("trained_narrow",)) in kept:
        others: Checkpoint = kept[key]
        return others
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train = load_faces(dataset, "train")
    network = create_network("narrow")
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    faces, labels = torch.from_numpy(train.faces), torch.from_numpy(train.labels)
    for _ in range(40):
        chosen = torch.randperm(len(labels))[:64]
        loss = torch.nn.functional.cross_entropy(network(to_network_input(faces[chosen])), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.set_num_threads(threads)
    training = {"recipe": "test", "accuracy": 0.5}
    kept[key] = checkpoint = Checkpoint(name="narrow", state_dict=network.state_dict(), training=training)
    return checkpoint


@pytest.fixture(scope="session")
def narrow_graph(trained_narrow: Checkpoint, kept: Kept) -> onnx.ModelProto:
    if (key := ("narrow_graph",)) not in kept:
        kept[key] = export_graph(trained_narrow, temperature=TEMPERATURE)
    graph: onnx.ModelProto = kept[key]
    return graph


@pytest.fixture(scope="session")
def residual_graph(kept: Kept) -> ResidualGraph:
    """A network by name, with weights that nothing has trained, and its float32 graph."""

    def exported(name: str) -> tuple[Checkpoint, onnx.ModelProto]:
        if (key := ("residual_graph", name)) not in kept:
            torch.manual_seed(1)
            network = create_network(name)
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):  # fresh statistics would hide a wrong fold
                    torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
                    torch.nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            checkpoint = Checkpoint(name=name, state_dict=network.state_dict())
            kept[key] = checkpoint, export_graph(checkpoint, temperature=TEMPERATURE)
        checkpoint, graph = kept[key]
        return checkpoint, graph

    return exported


@pytest.fixture
def narrow_content(narrow_graph: onnx.ModelProto) -> bytes:
    return serialize(narrow_graph, narrow_metadata())


def narrow_metadata() -> ModelMetadata:
    return ModelMetadata(name="narrow", labels=EXPRESSIONS, precision="fp32", opset=18, temperature=TEMPERATURE)


@pytest.fixture(scope="session")
def exported(
    trained_narrow: Checkpoint, dataset: Path, tmp_path_factory: pytest.TempPathFactory, kept: Kept
) -> Exported:
    """fp32, fp16 and int8."""
    if (key := ("exported",)) in kept:
        others: Exported = kept[key]
        return others
    models_dir = tmp_path_factory.mktemp("models")
    checkpoint = models_dir / "narrow.pth"
    save_checkpoint(checkpoint, trained_narrow)
    with exporting_once(kept):
        report = export_model(
            "narrow",
            ExportOptions(
                precisions=("fp32", "fp16", "int8"),
                data=dataset,
                models_dir=models_dir,
                budget=Budget(accuracy=5, macro_f1=5, recall=20),
                keep_anyway=True,
            ),
        )
    made = Exported(models_dir=models_dir, data=dataset, checkpoint=checkpoint, report=report)
    kept[key] = made
    return made


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return {}
    # The folder that all processes of this run share.
    return KeptByAll(tmp_path_factory.getbasetemp().parent / "kept")


class KeptByAll(Kept):
    """What another process of the same run has computed is there as well; of two at the same time, either counts."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        folder.mkdir(exist_ok=True)
        self._folder = folder

    def __contains__(self, key: object) -> bool:
        if not super().__contains__(key) and self._file(key).exists():
            super().__setitem__(key, pickle.loads(self._file(key).read_bytes()))  # type: ignore[index]
        return super().__contains__(key)

    def __setitem__(self, key: tuple[str, ...], value: Any) -> None:
        super().__setitem__(key, value)
        with NamedTemporaryFile(dir=self._folder, delete=False) as file:
            file.write(pickle.dumps(value))
        Path(file.name).replace(self._file(key))

    def _file(self, key: object) -> Path:
        return self._folder / sha256(repr(key).encode()).hexdigest()


@contextmanager
def exporting_once(kept: Kept) -> Iterator[None]:
    """Compute once what depends on its arguments alone: graphs, made-up images, what a file does in many runs.

    int8 is always twice as fast as fp32; gate/test_timing.py tests the measurement.

    Args:
        kept: the fixture of that name.
    """

    def once(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: object, **named: object) -> Any:
            key = function.__name__, *map(digest, given), *map(digest, named.values())
            if key not in kept:
                kept[key] = function(*given, **named)
            return kept[key]

        return call

    def timed(models: Mapping[str, bytes], faces: object, *, batch: int = 1, rounds: int = 1) -> dict[str, Timing]:
        milliseconds = {name: 1.0 if name == "int8" else 2.0 for name in models}
        return {
            name: Timing(batch=batch, undisturbed_ms=time, p50_ms=time, runs=rounds, turns_ms=(time,) * rounds)
            for name, time in milliseconds.items()
        }

    def export(checkpoint: Checkpoint, *, temperature: float, opset: int) -> onnx.ModelProto:
        key = "export_graph", digest(checkpoint), str(opset)
        if key not in kept:
            kept[key] = temperature, export_graph(checkpoint, temperature=temperature, opset=opset)
        its_own, model = kept[key]
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy if temperature == its_own else set_temperature(copy, temperature)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "export_graph", export)
        patch.setattr(subject, "cover_units", once(cover_units))
        patch.setattr(subject, "fit_head", once(fit_head))
        patch.setattr(coverage, "candidate_faces", once(candidate_faces))
        patch.setattr(head, "strange_images", once(strange_images))
        patch.setattr(parity, "batch_checks", once(batch_checks))
        patch.setattr(parity, "interpreter_checks", once(interpreter_checks))
        patch.setattr(pipeline, "measure_in_turns", timed)
        yield


def digest(value: object) -> str:
    """The same for equal values."""
    if isinstance(value, Checkpoint):
        weights = sum(float(tensor.double().sum()) for tensor in value.state_dict.values())
        return f"{value.name} {weights!r} {value.mean} {value.std}"
    if isinstance(value, onnx.ModelProto):
        return sha256(value.SerializeToString(deterministic=True)).hexdigest()
    if isinstance(value, bytes):
        return sha256(value).hexdigest()
    if isinstance(value, np.ndarray):
        return f"{value.shape} {sha256(value.tobytes()).hexdigest()}"
    return repr(value)


@pytest.fixture
def exports_once(kept: Kept) -> Iterator[None]:
    with exporting_once(kept):
        yield


@contextmanager
def few_runs(batches: Sequence[int] | None = (2, 13, 64)) -> Iterator[None]:
    """A gate that repeats few runs of few faces, for faults that another check finds.

    Args:
        batches: sizes to try; None for all of them, each face at each of its places.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "_REPEATS", 5)
        patch.setattr(parity, "INTERPRETED_FACES", 8)
        patch.setattr(interpreters, "_REFERENCE_FACES", 1)
        if batches is not None:
            patch.setattr(parity, "batch_checks", functools.partial(batch_checks, batches=batches))
            patch.setattr(batch, "_FACES", 16)
            patch.setattr(batch, "_ROTATED", (3,))
        yield
