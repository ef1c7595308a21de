"""The command as a user types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from tests.export.conftest import Exported

from fer_export.cli import main
from fer_export.gate.original import network_logits
from fer_runtime.cli import main as infer
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.model.parity import run_model
from fer_runtime.model.session import open_session
from fer_train.checkpoints import Checkpoint

pytestmark = pytest.mark.usefixtures("exports_once")


def test_an_export_prints_its_checks_and_a_table(exported: Exported, tmp_path: Path) -> None:
    shutil.copy(exported.checkpoint, tmp_path / "narrow.pth")
    done = CliRunner().invoke(main, ["--model", "narrow", "--models-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "ok    logits" in done.stdout
    assert "narrow.onnx" in done.stdout
    assert "passed" in done.stdout
    assert "not calibrated" in done.stdout
    assert (tmp_path / "narrow.parity.json").is_file()


def test_a_refused_export_prints_its_checks_and_exits_1(exported: Exported, tmp_path: Path) -> None:
    shutil.copy(exported.checkpoint, tmp_path / "narrow.pth")
    options = {"--precision": "int8", "--data": exported.data, "--models-dir": tmp_path, "--budget": "-200,1,1"}
    arguments = [str(part) for option in options.items() for part in option]
    done = CliRunner().invoke(main, ["--model", "narrow", *arguments])
    assert done.exit_code == 1
    assert "FAIL  accuracy" in done.stdout
    assert "Error: " in done.stderr
    assert not list(tmp_path.glob("*.onnx"))


def test_inspect_tells_in_words_and_as_json(exported: Exported) -> None:
    path = str(exported.models_dir / "narrow.int8.onnx")
    words = CliRunner().invoke(main, ["--inspect", path])
    assert words.exit_code == 0
    assert "narrow int8: faces uint8 (batch, 48, 48)" in words.stdout
    facts = json.loads(CliRunner().invoke(main, ["--inspect", path, "--json"]).stdout)
    assert facts["arithmetic"] == "int8"
    assert facts["metadata"]["labels"][0] == "angry"
    assert facts["metadata"]["certificate"]["faces"][1:] == [48, 48]
    coverage = facts["metadata"]["certificate"]["coverage"]
    assert 0.98 * coverage["live"] <= coverage["covered"] <= coverage["live"]


def test_wrong_usage_exits_2() -> None:
    assert CliRunner().invoke(main, []).exit_code == 2
    for budget in ("much", "nan,nan,nan", "inf,1,1"):
        assert CliRunner().invoke(main, ["--model", "narrow", "--budget", budget]).exit_code == 2
    assert CliRunner().invoke(main, ["--model", "v9"]).exit_code == 2


def test_inspect_of_something_else_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"hello world")
    done = CliRunner().invoke(main, ["--inspect", str(tmp_path / "a.onnx")])
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


def test_a_checkpoint_in_another_label_order_becomes_the_same_model(trained_narrow: Checkpoint, tmp_path: Path) -> None:
    order = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    state = dict(trained_narrow.state_dict)
    for kind in ("weight", "bias"):
        state[f"fc_layer.4.{kind}"] = state[f"fc_layer.4.{kind}"][[EXPRESSIONS.index(label) for label in order]]
    torch.save({"state_dict": {f"model.{key}": value for key, value in state.items()}}, tmp_path / "lightning.ckpt")
    options = ["--model", "narrow", "--checkpoint", str(tmp_path / "lightning.ckpt"), "--models-dir", str(tmp_path)]
    result = CliRunner().invoke(main, [*options, "--labels", ",".join(order)])
    assert result.exit_code == 0, result.output
    assert "weights found at state_dict, prefix model." in result.output
    assert "label order assumed" not in result.output
    faces = np.random.default_rng(0).integers(0, 256, (5, 48, 48), np.uint8)
    expected = network_logits(trained_narrow, faces)
    actual = run_model(open_session(tmp_path / "narrow.onnx").session, faces).logits
    # float32 sums of 2,304 products in another order.
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)

    result = CliRunner().invoke(main, options)
    assert "label order assumed: angry, disgust, fear, happy, neutral, sad, surprise" in result.output
    refused = CliRunner().invoke(main, [*options, "--labels", "angry,angry"])
    assert refused.exit_code == 2
    assert "occurs twice" in refused.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            ("--inspect", "a.onnx", "--data", "/nosuch", "--budget", "junk"),
            "--inspect does not use --data, --budget; leave them out",
        ),
        (("--inspect", "a.onnx", "--model", "narrow"), "--inspect does not use --model;"),
        (("--site", "page", "--opset", "18", "--keep-anyway"), "--site does not use --opset, --keep-anyway;"),
        (("--model", "narrow", "--json", "--yunet", "y"), "an export does not use --json, --yunet;"),
        (("--model", "narrow", "--budget", "1,1,1"), "--budget: only with --precision int8"),
        (("--model", "narrow", "--keep-anyway"), "--keep-anyway: only with --precision int8 or fp16"),
        (("--site", "page", "--precision", "int8", "--precision", "fp32"), "--site runs one model"),
        (("--site", "page", "--model", "v0", "--name", "mine"), "--model: not beside --name"),
        (("--target", "ort", "--model", "v0", "--name", "mine"), "--model: not beside --name"),
    ],
)
def test_an_option_that_is_not_used_is_named(arguments: tuple[str, ...], named: str) -> None:
    run = CliRunner().invoke(main, arguments)
    assert run.exit_code == 2
    message = " ".join(run.stderr.partition("Error: ")[2].split())
    assert message.startswith(named)


def test_a_missing_checkpoint_is_answered_with_those_that_are_there(tmp_path: Path) -> None:
    def refused(*options: str) -> str:
        run = CliRunner().invoke(main, [*options, "--models-dir", str(tmp_path)])
        assert run.exit_code == 1
        return run.stderr

    start = f"Error: no checkpoint named w: {tmp_path / 'w.pth'} is not there, and the folder has "
    advice = "; give another --models-dir, or train it with: fer-train --model "
    assert refused("--name", "w") == f"{start}no others{advice}NAME --name w\n"
    for name in ("model_0.pth", "mine.pth", "mine.resume.pth", "mine.onnx"):
        (tmp_path / name).touch()
    assert refused("--name", "w", "--model", "v1") == f"{start}mine, v0{advice}v1 --name w\n"
    assert refused("--model", "v1").endswith(
        "has mine, v0; give another --models-dir, or train it with: fer-train --model v1\n"
    )


def test_a_network_that_there_is_not_is_no_network_to_export(tmp_path: Path) -> None:
    run = CliRunner().invoke(main, ["--model", "mine", "--models-dir", str(tmp_path)])
    assert run.exit_code == 2
    message = " ".join(run.stderr.split())
    assert "no network named 'mine'; one of: v0" in message
    assert "exported with --name mine" in message


def test_a_signed_export_is_trusted_by_its_public_key(exported: Exported, tmp_path: Path) -> None:
    shutil.copy(exported.checkpoint, tmp_path / "narrow.pth")
    key = Ed25519PrivateKey.generate()
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(public)
    options = ["--model", "narrow", "--models-dir", str(tmp_path)]
    refused = CliRunner().invoke(main, [*options, "--sign", str(tmp_path / "narrow.pth")])
    assert refused.exit_code == 1
    assert "is not an Ed25519 private key" in refused.output
    # A command that the user copies must not write over the file that was given by mistake.
    assert "-out NEW.pem" in refused.output
    assert not (tmp_path / "narrow.onnx").exists()
    done = CliRunner().invoke(main, [*options, "--sign", str(tmp_path / "key.pem")])
    assert done.exit_code == 0, done.output
    assert f"signed: {tmp_path / 'narrow.onnx.sig'}" in done.output
    replay = [
        "--self-test",
        "--model",
        "narrow",
        "--models-dir",
        str(tmp_path),
        "--trust",
        str(tmp_path / "public.pem"),
    ]
    trusted = CliRunner().invoke(infer, replay)
    assert trusted.exit_code == 0, trusted.output
    assert "ok    signature" in trusted.output
    unsigned = CliRunner().invoke(main, options)
    assert f"{tmp_path / 'narrow.onnx.sig'} is of the file before; sign this one, too" in unsigned.stderr


def test_int8_without_faces_is_answered_with_the_command_for_the_same_model(exported: Exported, tmp_path: Path) -> None:
    shutil.copy(exported.checkpoint, tmp_path / "mine.pth")
    for options, command in (
        (("--name", "mine"), "--name mine"),
        (("--model", "narrow", "--checkpoint", str(tmp_path / "mine.pth")), "--model narrow"),
    ):
        run = CliRunner().invoke(main, [*options, "--precision", "int8", "--models-dir", str(tmp_path)])
        assert f"dataset's root: fer-export {command} --precision int8 --data DIR" in run.stderr
