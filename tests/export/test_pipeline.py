"""Whole exports: what is published, what is refused, and what a killed one leaves behind."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tests.export.conftest import Exported

from fer_export import candidates, pipeline
from fer_export.gate import publish as publishing
from fer_export.gate import subject
from fer_export.gate.accuracy import Budget, Quality, budget_checks, proof_shortfall
from fer_export.gate.calibration import fit_temperature
from fer_export.gate.coverage import cover_units
from fer_export.gate.judge import order_check
from fer_export.gate.report import ExportRefusedError
from fer_export.int8.quantize import quantize_model
from fer_export.int8.shared import find_shared
from fer_export.options import ExportOptions
from fer_export.pipeline import export_model
from fer_export.unfamiliar import head
from fer_export.unfamiliar.head import fit_head
from fer_export.unfamiliar.images import strange_images
from fer_runtime.errors import CheckpointError, DataError, ModelFileError, OutputError, ParityError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.model.find import packaged_models_dir
from fer_runtime.model.inspect import inspect_model
from fer_runtime.model.parity import run_model
from fer_runtime.model.self_test import run_self_test
from fer_runtime.model.session import open_session
from fer_train.checkpoints import Checkpoint, save_checkpoint
from fer_train.data.folders import load_faces
from fer_train.networks.registry import create_network

pytestmark = pytest.mark.usefixtures("exports_once")


def _models(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".onnx", ".partial"))


def _weight_bytes(path: Path) -> int:
    """Of the network; the layers of `unfamiliarity` stay float32 in fp16, and share a layer of it in int8."""
    model = onnx.load(path)
    shared = find_shared(model, "unfamiliarity")
    bytes_of = {tensor.name: numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer}
    total = sum(count for name, count in bytes_of.items() if not name.startswith("unfamiliarity"))
    if shared is not None:
        units = len(shared.places), len(shared.score_places)
        total -= bytes_of[shared.weights] * units[1] // sum(units)
    return total


def test_three_precisions_are_published_and_say_what_they_are(exported: Exported) -> None:
    assert _models(exported.models_dir) == ["narrow.fp16.onnx", "narrow.int8.onnx", "narrow.onnx"]
    facts = {model.precision: inspect_model(model.path) for model in exported.report.models}
    assert {name: fact.arithmetic for name, fact in facts.items()} == {"fp32": "fp32", "fp16": "fp16", "int8": "int8"}
    sizes = {model.precision: _weight_bytes(model.path) for model in exported.report.models}
    assert sizes["int8"] < 0.35 * sizes["fp32"]
    assert sizes["fp16"] < 0.55 * sizes["fp32"]
    for name, fact in facts.items():
        assert fact.metadata is not None
        assert fact.metadata.precision == name
        assert fact.is_unchanged


def test_each_file_is_calibrated_on_its_own_answers(exported: Exported) -> None:
    faces = load_faces(exported.data, "validation")
    for model in exported.report.models:
        metadata = inspect_model(model.path).metadata
        assert metadata is not None
        assert metadata.calibration["faces"] == 84
        logits = run_model(open_session(model.path).session, faces.faces).logits
        # fp32's was fitted on PyTorch's logits, some roundings away.
        assert metadata.temperature == pytest.approx(fit_temperature(logits, faces.labels), rel=1e-3)


def test_every_published_file_passes_its_own_replay(exported: Exported) -> None:
    for model in exported.report.models:
        assert run_self_test(model.path).passed


def test_the_report_on_disk_holds_every_check(exported: Exported) -> None:
    report = json.loads(exported.report.path.read_text())
    assert set(report["files"]) == {"fp32", "fp16", "int8"}
    names = [check["name"] for check in report["files"]["int8"]["checks"]]
    assert {
        *("container", "operators", "face by face", "batch", "repeat", "unoptimized", "reference"),
        *("agreement", "difference", "logit error", "units", "accuracy", "recall", "calibration", "integers", "speed"),
    } <= set(names)
    assert report["files"]["fp32"]["worst"]["max_probability_difference"] < 1e-3


def test_equal_exports_give_equal_files(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "cover_units", cover_units)  # again, and not what the first export computed
    monkeypatch.setattr(subject, "fit_head", fit_head)
    monkeypatch.setattr(head, "strange_images", strange_images)
    shutil.copy(exported.checkpoint, tmp_path / "narrow.pth")
    export_model(
        "narrow",
        ExportOptions(
            precisions=("int8", "fp32"),
            data=exported.data,
            models_dir=tmp_path,
            budget=Budget(accuracy=5, macro_f1=5, recall=20),
            keep_anyway=True,
        ),
    )
    assert (tmp_path / "narrow.onnx").read_bytes() == (exported.models_dir / "narrow.onnx").read_bytes()
    assert (tmp_path / "narrow.int8.onnx").read_bytes() == (exported.models_dir / "narrow.int8.onnx").read_bytes()


def test_int8_beyond_its_budget_is_refused_and_nothing_is_left(exported: Exported, tmp_path: Path) -> None:
    shutil.copy(exported.checkpoint, tmp_path / "narrow.pth")
    impossible = Budget(accuracy=-200)
    with pytest.raises(
        ExportRefusedError, match=r"narrow\.int8\.onnx is not published.*accuracy.*--precision fp32"
    ) as refused:
        export_model(
            "narrow", ExportOptions(precisions=("int8",), data=exported.data, models_dir=tmp_path, budget=impossible)
        )
    assert _models(tmp_path) == []
    assert [model.is_published for model in refused.value.report.models] == [False]
    assert json.loads((tmp_path / "narrow.parity.json").read_text())["files"]["int8"]["passed"] is False


def test_a_file_kept_anyway_carries_its_verdict(exported: Exported, tmp_path: Path) -> None:
    shutil.copy(exported.checkpoint, tmp_path / "narrow.pth")
    export_model(
        "narrow",
        ExportOptions(
            precisions=("int8",),
            data=exported.data,
            models_dir=tmp_path,
            budget=Budget(accuracy=-200),
            keep_anyway=True,
        ),
    )
    facts = inspect_model(tmp_path / "narrow.int8.onnx")
    assert facts.metadata is not None
    assert facts.metadata.verdict["passed"] is False
    assert any(failure.startswith("accuracy") for failure in facts.metadata.verdict["failures"])
    assert "DID NOT PASS" in facts.to_text()


def test_a_wrong_fp32_graph_is_never_published(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(exported.checkpoint, tmp_path / "narrow.pth")
    (tmp_path / "narrow.onnx").write_bytes(b"the file before")
    right = pipeline.export_graph  # type: ignore[attr-defined]

    def wrong(checkpoint: Checkpoint, *, temperature: float, opset: int) -> onnx.ModelProto:
        model = right(checkpoint, temperature=temperature, opset=opset)
        for tensor in model.graph.initializer:
            if tensor.name.endswith(("weight", "bias")):
                values = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(values * np.float32(1.01), tensor.name))
        return model

    monkeypatch.setattr(pipeline, "export_graph", wrong)
    with pytest.raises(ParityError, match="logits"):
        export_model(
            "narrow", ExportOptions(precisions=("fp32", "fp16"), models_dir=tmp_path, keep_anyway=True, replace=True)
        )
    assert _models(tmp_path) == ["narrow.onnx"]
    assert (tmp_path / "narrow.onnx").read_bytes() == b"the file before"


def test_without_labelled_faces_the_file_says_that_it_is_not_calibrated(
    trained_narrow: Checkpoint, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "narrow.pth", trained_narrow)
    report = export_model("narrow", ExportOptions(models_dir=tmp_path))
    facts = inspect_model(tmp_path / "narrow.onnx")
    assert facts.metadata is not None
    assert (facts.metadata.temperature, facts.metadata.uncertain_below) == (1.0, None)
    assert facts.metadata.calibration["faces"] == 0
    assert facts.metadata.verdict["real_faces"] == 0
    assert report.models[0].parity.faces >= 256


def test_a_calibration_is_kept_when_the_same_weights_are_exported_without_faces(
    exported: Exported, tmp_path: Path
) -> None:
    for name in ("narrow.pth", "narrow.onnx"):
        shutil.copy(exported.models_dir / name, tmp_path / name)
    report = export_model("narrow", ExportOptions(precisions=("fp16",), models_dir=tmp_path))
    assert report.calibration.temperature == exported.report.calibration.temperature
    assert report.calibration.faces == 84


def test_int8_without_faces_says_what_to_give(exported: Exported) -> None:
    with pytest.raises(DataError, match="--data"):
        export_model("narrow", ExportOptions(precisions=("int8",), models_dir=exported.models_dir))


def test_a_missing_checkpoint_says_how_to_train_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="fer-train --model v1"):
        export_model("v1", ExportOptions(models_dir=tmp_path))


def test_an_opset_that_cannot_be_written_or_run_is_named(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"opset 99.*--opset 18"):
        export_model("narrow", ExportOptions(models_dir=tmp_path), checkpoint=exported.checkpoint, opset=99)
    assert _models(tmp_path) == []


def test_a_folder_that_is_a_file_is_named(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("no folder")
    with pytest.raises(OutputError, match=r"models.*another folder"):
        export_model("narrow", ExportOptions(models_dir=tmp_path / "models"), checkpoint=exported.checkpoint)


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").write_text("no folder")
    monkeypatch.setattr(pipeline, "export_graph", lambda *given, **options: pytest.fail("exported first"))
    with pytest.raises(OutputError, match="another folder"):
        export_model("narrow", ExportOptions(models_dir=tmp_path / "models"), checkpoint=exported.checkpoint)


def test_an_export_that_ends_before_its_gate_leaves_no_folder(tmp_path: Path) -> None:
    options = ExportOptions(models_dir=tmp_path / "new" / "models", data=tmp_path / "none")
    with pytest.raises(DataError):
        export_model("v0", options, checkpoint=packaged_models_dir() / "model_0.pth")
    assert not list(tmp_path.iterdir())
    (tmp_path / "model_0.onnx").mkdir()
    with pytest.raises(OutputError, match=r"model_0\.onnx: it is not a regular file"):
        export_model(
            "v0",
            ExportOptions(models_dir=tmp_path, data=tmp_path / "none", replace=True),
            checkpoint=packaged_models_dir() / "model_0.pth",
        )


def test_a_network_of_ones_own_that_pytorch_cannot_export_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deciding(torch.nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.last = torch.nn.Linear(48 * 48, classes)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.last(images[:, 0].flatten(1))
            return answer if images.sum().item() > 0 else -answer

    monkeypatch.setattr("fer_train.networks.foreign.load_function", lambda _: Deciding)
    network = create_network("own:deciding")
    save_checkpoint(tmp_path / "mine.pth", Checkpoint(name="own:deciding", state_dict=network.state_dict()))
    with pytest.raises(ModelFileError, match=r"PyTorch cannot export own:deciding \(.*data-dependent"):
        export_model("own:deciding", ExportOptions(models_dir=tmp_path), own_name="mine")


def test_an_export_leaves_pytorchs_threads_as_they_were(exported: Exported, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(DataError):
            export_model("narrow", ExportOptions(precisions=("int8",), models_dir=exported.models_dir))
        export_model("narrow", ExportOptions(models_dir=tmp_path), checkpoint=exported.checkpoint)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of a POSIX system")
def test_a_full_disk_leaves_the_file_before(exported: Exported, tmp_path: Path) -> None:
    """A file of more than 20 kB cannot be written, as on a full disk."""
    import resource

    (tmp_path / "narrow.onnx").write_bytes(b"the file before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # Python ignores the signal, and write() fails
    try:
        with pytest.raises(OutputError, match=r"cannot write.*as it was before"):
            export_model("narrow", ExportOptions(models_dir=tmp_path, replace=True), checkpoint=exported.checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert _models(tmp_path) == ["narrow.onnx"]
    assert (tmp_path / "narrow.onnx").read_bytes() == b"the file before"


def test_killed_before_the_rename_the_file_before_stands(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill while the written file is replayed leaves what the folder holds at that moment."""
    (tmp_path / "narrow.onnx").write_bytes(b"the file before")
    left: dict[str, bytes] = {}

    class Killed(BaseException):
        pass

    def kill(path: Path) -> None:
        left.update({file.name: file.read_bytes() for file in tmp_path.iterdir()})
        raise Killed

    monkeypatch.setattr(publishing, "run_self_test", kill)
    with pytest.raises(Killed):
        export_model("narrow", ExportOptions(models_dir=tmp_path, replace=True), checkpoint=exported.checkpoint)
    assert left.pop("narrow.onnx") == b"the file before"
    assert left
    assert all(name.startswith(".") and name.endswith(".partial") for name in left), list(left)


def test_the_budget_is_in_points_of_fp32_class_by_class() -> None:
    faces = {**dict.fromkeys(EXPRESSIONS, 500), "disgust": 20}
    recalls = dict.fromkeys(EXPRESSIONS, 0.6)
    before = Quality(faces=1000, accuracy=0.600, macro_f1=0.55, per_class_recall=recalls, per_class_faces=faces)
    # 0.6 points of accuracy are more than 0.5. Disgust lost one of its 20 faces, the least that it can lose.
    after = dataclasses.replace(before, accuracy=0.594, per_class_recall={**recalls, "disgust": 0.55, "fear": 0.59})
    found = {check.name: check.passed for check in budget_checks(after, before, Budget())}
    assert found == {"accuracy": False, "macro-F1": True, "recall": True}
    # The weakest class is as good as before; happy, the best one, lost three points.
    before = dataclasses.replace(before, per_class_recall={**recalls, "happy": 0.9})
    after = dataclasses.replace(before, per_class_recall={**recalls, "happy": 0.87})
    found = {check.name: check.passed for check in budget_checks(after, before, Budget())}
    assert found == {"accuracy": True, "macro-F1": True, "recall": False}


def test_another_order_of_the_labels_is_told_from_chance() -> None:
    """Six faces of three labels, two of them mistaken for each other, say nothing; 40 exchanged ones of 140 do."""
    names = ("bored", "engaged", "tired")
    labels = np.array([0, 0, 1, 1, 2, 2])
    few = order_check(np.eye(3, dtype=np.float32)[[1, 0, 0, 1, 2, 2]] * 5, labels, names)
    assert few.passed
    wrong = order_check(np.eye(3, dtype=np.float32)[[1, 1, 0, 0, 2, 2]] * 5, labels, names)
    assert wrong.passed  # four faces may be chance
    labels = np.repeat(np.arange(7), 20)
    turned = np.array([1, 0, 2, 3, 4, 5, 6])[labels]
    told = order_check(np.eye(7, dtype=np.float32)[turned] * 5, labels, EXPRESSIONS)
    assert not told.passed
    assert "100.00% as disgust,angry,fear" in told.detail


def test_one_face_of_few_is_within_the_budget() -> None:
    """Of 44 faces one is 2.3 points; two of them are a loss."""
    names = ("bored", "engaged")
    counts = dict.fromkeys(names, 22)
    before = Quality(
        faces=44,
        accuracy=40 / 44,
        macro_f1=0.909,
        per_class_recall=dict.fromkeys(names, 20 / 22),
        per_class_faces=counts,
    )
    one_less = dataclasses.replace(
        before, accuracy=39 / 44, macro_f1=0.886, per_class_recall={"bored": 20 / 22, "engaged": 19 / 22}
    )
    two_less = dataclasses.replace(
        before, accuracy=38 / 44, macro_f1=0.863, per_class_recall={"bored": 19 / 22, "engaged": 19 / 22}
    )
    assert {check.name: check.passed for check in budget_checks(one_less, before, Budget())} == {
        "accuracy": True,
        "macro-F1": True,
        "recall": True,
    }
    assert not all(check.passed for check in budget_checks(two_less, before, Budget()))
    # A negative budget asks for a gain: no face lost is not enough, and one face less still less.
    gain = Budget(accuracy=-1, macro_f1=-1)
    for same_or_less in (before, one_less):
        assert [check.passed for check in budget_checks(same_or_less, before, gain)][:2] == [False, False]
    # Of many faces the budget alone decides: 5 of 1,000 faces, and macro-F1 on its own.
    many = dataclasses.replace(before, faces=1000, accuracy=0.9)
    few_points = dataclasses.replace(many, macro_f1=many.macro_f1 - 0.006)
    assert [check.passed for check in budget_checks(few_points, many, Budget())][:2] == [True, False]
    assert proof_shortfall(one_less, Budget())  # and nothing is proven by so few


def test_few_faces_prove_nothing() -> None:
    recalls, faces = dict.fromkeys(EXPRESSIONS, 0.6), dict.fromkeys(EXPRESSIONS, 85)
    quality = Quality(faces=599, accuracy=0.6, macro_f1=0.55, per_class_recall=recalls, per_class_faces=faces)
    # With no changed label among n faces, a share of 3 / n is excluded with 95 % confidence: 0.5 points at 600.
    assert "600 are needed" in proof_shortfall(quality, Budget())
    assert not proof_shortfall(dataclasses.replace(quality, faces=600), Budget())
    assert "no number of them" in proof_shortfall(dataclasses.replace(quality, faces=10**9), Budget(accuracy=0))
    nobody = dataclasses.replace(quality, faces=600, per_class_faces={**faces, "disgust": 0})
    assert "no labelled face of disgust" in proof_shortfall(nobody, Budget())


def test_too_few_faces_are_no_pass(exported: Exported, tmp_path: Path) -> None:
    shutil.copy(exported.checkpoint, tmp_path / "narrow.pth")
    export_model(
        "narrow",
        ExportOptions(
            precisions=("int8",),
            data=exported.data,
            models_dir=tmp_path,
            budget=Budget(accuracy=3, macro_f1=5, recall=20),  # 100 faces are needed, 84 are there
            keep_anyway=True,
        ),
    )
    metadata = inspect_model(tmp_path / "narrow.int8.onnx").metadata
    assert metadata is not None
    assert metadata.verdict["outcome"] == "not proven"
    assert metadata.verdict["passed"] is False
    assert any("84 labelled faces; 100 are needed" in failure for failure in metadata.verdict["failures"])


def test_a_file_of_another_checkpoint_is_replaced_only_when_told_to(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "narrow.onnx").write_bytes(b"something else")
    with pytest.raises(OutputError, match="--replace"):
        export_model("narrow", ExportOptions(models_dir=tmp_path), checkpoint=exported.checkpoint)
    assert (tmp_path / "narrow.onnx").read_bytes() == b"something else"
    export_model("narrow", ExportOptions(models_dir=tmp_path, replace=True), checkpoint=exported.checkpoint)
    export_model("narrow", ExportOptions(models_dir=tmp_path), checkpoint=exported.checkpoint)  # its own file
    other = torch.load(exported.checkpoint, weights_only=True)
    other["training"] = {"recipe": "another"}
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(OutputError, match="another checkpoint"):
        export_model("narrow", ExportOptions(models_dir=tmp_path), checkpoint=tmp_path / "other.pth")


def test_a_fixed_batch_is_written_beside_the_dynamic_file(exported: Exported, tmp_path: Path) -> None:
    for name in ("narrow.pth", "narrow.parity.json"):
        shutil.copy(exported.models_dir / name, tmp_path / name)
    (report,) = export_model("narrow", ExportOptions(models_dir=tmp_path, batch=1)).models
    # The report keeps what it says of the others.
    files = json.loads((tmp_path / "narrow.parity.json").read_text())["files"]
    assert {name: files[name]["file"] for name in ("fp32", "fp32.batch1")} == {
        "fp32": "narrow.onnx",
        "fp32.batch1": "narrow.batch1.onnx",
    }
    assert report.path.name == "narrow.batch1.onnx"
    assert report.is_published
    session = open_session(report.path).session
    assert session.get_inputs()[0].shape == [1, 48, 48]


@pytest.mark.usefixtures("exports_once")
def test_a_fixed_batch_larger_than_what_the_interpreters_run(exported: Exported, tmp_path: Path) -> None:
    report = export_model(
        "narrow",
        ExportOptions(
            data=exported.data,
            precisions=("fp32", "fp16", "int8"),
            models_dir=tmp_path,
            budget=Budget(accuracy=5, macro_f1=5, recall=20),
            batch=50,
        ),
        checkpoint=exported.checkpoint,
    )
    for model in report.models:
        assert model.is_published, model.parity.failures
        assert {"batch", "repeat", "unoptimized"} <= {check.name for check in model.parity.checks}
        assert run_self_test(model.path).passed


def test_votes_are_the_labels_where_they_are_given(exported: Exported, tmp_path: Path) -> None:
    faces = load_faces(exported.data, "validation")
    rows = []
    for place, (path, label) in enumerate(zip(faces.paths, faces.labels, strict=True)):
        votes = [0] * 7
        # Every fourth image has no strict majority, and counts for nothing.
        votes[label] = 5 if place % 4 == 0 else 8
        votes[(label + 1) % 7] = 10 - votes[label]
        rows.append(",".join([f"validation/{path}", *map(str, votes)]))
    (tmp_path / "votes.csv").write_text("\n".join([",".join(["image", *EXPRESSIONS]), *rows]))
    report = export_model(
        "narrow",
        ExportOptions(data=exported.data, votes=tmp_path / "votes.csv", models_dir=tmp_path),
        checkpoint=exported.checkpoint,
    )
    (published,) = report.models
    assert published.quality is not None
    assert published.quality.faces == 63  # those with a strict majority
    assert published.calibration.faces == 84  # the raters' shares, of all
    metadata = inspect_model(published.path).metadata
    assert metadata is not None
    assert metadata.calibration["labels"].startswith("votes votes.csv: shares of the raters")
    assert metadata.verdict["labels"] == metadata.calibration["labels"]
    with pytest.raises(DataError, match="--data"):
        export_model(
            "narrow", ExportOptions(votes=tmp_path / "votes.csv", models_dir=tmp_path), checkpoint=exported.checkpoint
        )


def test_a_calibration_is_kept_from_another_precision(exported: Exported, tmp_path: Path) -> None:
    for name in ("narrow.pth", "narrow.int8.onnx"):
        shutil.copy(exported.models_dir / name, tmp_path / name)
    report = export_model("narrow", ExportOptions(models_dir=tmp_path))
    int8 = inspect_model(tmp_path / "narrow.int8.onnx").metadata
    assert int8 is not None
    assert report.models[0].calibration.temperature == int8.temperature
    assert report.models[0].calibration.faces == 84


def test_a_planted_fault_is_refused_by_the_whole_export(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All weight scales 10 % too large: the labels hardly change, the probabilities do."""
    right = quantize_model

    def wrong(*given: object, **options: object) -> onnx.ModelProto:
        model = right(*given, **options)  # type: ignore[arg-type]
        for tensor in model.graph.initializer:
            if tensor.name.endswith("weight_scale"):
                values = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(values * np.float32(1.1), tensor.name))
        return model

    monkeypatch.setattr(candidates, "quantize_model", wrong)
    with pytest.raises(ExportRefusedError, match="units"):
        export_model(
            "narrow",
            ExportOptions(precisions=("int8",), data=exported.data, models_dir=tmp_path),
            checkpoint=exported.checkpoint,
        )
    assert _models(tmp_path) == []
