"""From images of one's own labels to a model that names them: train, export, recognize."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click import Command
from click.testing import CliRunner, Result
from tests.runtime.server.serving import serving
from tests.train.own_images import write_own_images

import fer_export.cli
import fer_runtime.cli
import fer_train.cli
from fer_runtime import Recognizer
from fer_runtime.faces import prepare_face
from fer_runtime.images import read_image
from fer_train.checkpoints import load_checkpoint
from fer_train.networks.registry import predict_logits

LABELS = ("gelangweilt, sehr", "müde", "wach")


def _run(command: Command, *arguments: object) -> Result:
    done = CliRunner().invoke(command, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.parametrize(("size", "color"), [(48, "gray")])
def test_own_labels_go_the_whole_way(size: int, color: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_own_images(tmp_path / "data" / "train", LABELS, 16, size=80).parent
    training = (
        "--epochs",
        6,
        "--batch-size",
        8,
        "--set",
        "augmentation=none",
        "--device",
        "cpu",
        "--no-plots",
        "--seed",
        5,
    )
    trained = _run(
        fer_train.cli.main,
        "--name",
        "mine",
        "--model",
        "narrow",
        "--data",
        data,
        "--size",
        size,
        "--color",
        color,
        *training,
    )
    assert "6 of 48 images of train are held out" in trained.stderr
    exported = _run(fer_export.cli.main, "--name", "mine", "--data", data)
    assert "ok    labels        gelangweilt, sehr, müde, wach" in exported.stdout
    assert "mine.onnx" in exported.stdout
    assert "6 labelled faces" in exported.stderr  # those that the training held out
    metadata = json.loads(_run(fer_export.cli.main, "--inspect", "models/mine.onnx", "--json").stdout)["metadata"]
    assert (metadata["labels"], metadata["size"], metadata["color"]) == (list(LABELS), size, color)
    assert metadata["verdict"]["passed"] is True
    converted = _run(fer_export.cli.main, "--name", "mine", "--target", "ort", "--data", data)
    assert "of 3 classes" in converted.stdout
    recognizing = (data, "--recursive", "--model", "mine", "--detector", "whole", "--output", "rows.jsonl")
    _run(fer_runtime.cli.main, *recognizing)
    found = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert len(found) == 48
    # PyTorch on the same files: the file's labels are the network's.
    network = load_checkpoint(tmp_path / "models" / "mine.pth", name="narrow").network()
    for row in found[::5]:
        face = prepare_face(read_image(row["path"]), size=size, color=color)
        logits = predict_logits(network, torch.from_numpy(face[None]))
        assert row["faces"][0]["expression"] == LABELS[int(logits.argmax())]
    with Recognizer(tmp_path / "models" / "mine.onnx") as recognizer:
        assert recognizer.labels == LABELS
    with serving(tmp_path / "service", "--model", str(tmp_path / "models" / "mine.onnx")) as service:
        image = Path(found[0]["path"]).read_bytes()
        answer = service.ask("POST", "/v1/images?detector=whole", image, content_type="image/png").json
        assert answer["images"][0]["faces"] == found[0]["faces"]
        assert service.ask("GET", "/v1/models").json["models"][0]["labels"] == list(LABELS)
