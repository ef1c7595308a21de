"""What the replay of a certificate notices: every change of the file, and a machine that computes something else."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)
from onnx import numpy_helper
from tests.runtime.tiny_models import write_band_model

from fer_runtime.cli import main
from fer_runtime.errors import ModelFileError
from fer_runtime.model.certificate import Certificate, parse_certificate
from fer_runtime.model.find import find_model
from fer_runtime.model.integers import integer_checksums
from fer_runtime.model.load import load_model
from fer_runtime.model.metadata import METADATA_KEY, parse_metadata
from fer_runtime.model.onnx_file import content_digest
from fer_runtime.model.parity import Outputs, Tolerance
from fer_runtime.model.self_test import SelfTestReport, _unfamiliarity_checks, run_self_test
from fer_runtime.model.signature import load_private_key, sign_file


@pytest.fixture(params=["fp32", "int8"])
def shipped(request: pytest.FixtureRequest) -> Path:
    return find_model("v0", precision=request.param)


def _failures(report: SelfTestReport) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


def _change_metadata(path: Path, target: Path, change: Callable[[dict[str, Any]], None], *, sealed: bool) -> Path:
    """Write `path` with changed metadata; `sealed` computes the digest anew, as a thorough forger would."""
    model = onnx.load(path)
    entry = next(prop for prop in model.metadata_props if prop.key == METADATA_KEY)
    values = json.loads(entry.value)
    change(values)
    entry.value = json.dumps(values, sort_keys=True)
    if sealed:
        values["certificate"]["digest"] = content_digest(model.SerializeToString())
        entry.value = json.dumps(values, sort_keys=True)
    onnx.save(model, target)
    return target


def test_shipped_files_compute_here_what_was_trained(shipped: Path) -> None:
    report = run_self_test(shipped)
    assert report.passed, report.to_text()
    assert report.provider == "CPU"
    assert report.comparison.faces >= 12  # as many as switch every live unit on


def test_a_weight_changed_by_one_percent_is_noticed(shipped: Path, tmp_path: Path) -> None:
    model = onnx.load(shipped)
    tensor = max(model.graph.initializer, key=lambda constant: len(constant.raw_data))
    values = numpy_helper.to_array(tensor).copy()
    largest = np.unravel_index(np.abs(values.astype(np.float64)).argmax(), values.shape)
    values[largest] = values[largest] * 0.99
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "a.onnx")
    assert "digest" in _failures(run_self_test(tmp_path / "a.onnx"))


def test_an_exchanged_layer_is_noticed_by_its_numbers_even_with_a_new_digest(shipped: Path, tmp_path: Path) -> None:
    model = onnx.load(shipped)
    tensor = next(constant for constant in model.graph.initializer if constant.name.endswith("fc_layer.4.weight"))
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(tensor)[::-1]), tensor.name))
    onnx.save(model, tmp_path / "a.onnx")
    resealed = _change_metadata(tmp_path / "a.onnx", tmp_path / "b.onnx", lambda values: None, sealed=True)
    assert "logits" in _failures(run_self_test(resealed))


def _labels_key(values: dict[str, Any]) -> str:
    return "labels" if values["schema"] > 1 else "expressions"


def _swap_labels(values: dict[str, Any]) -> None:
    values[_labels_key(values)][0], values[_labels_key(values)][1] = values[_labels_key(values)][1::-1]


def _rename_label(values: dict[str, Any]) -> None:
    values[_labels_key(values)][0] = "bored"


def _change_temperature(values: dict[str, Any]) -> None:
    values["temperature"] *= 1.5


def _change_golden_logit(values: dict[str, Any]) -> None:
    values["certificate"]["model_logits"][3][2] += 0.5


@pytest.mark.parametrize(
    ("change", "noticed_by"),
    [
        (_swap_labels, "labels"),
        (_rename_label, "labels"),
        (_change_temperature, "probabilities"),
        (_change_golden_logit, "logits"),
    ],
)
def test_changed_metadata_is_noticed(
    change: Callable[[dict[str, Any]], None], noticed_by: str, shipped: Path, tmp_path: Path
) -> None:
    changed = _change_metadata(shipped, tmp_path / "a.onnx", change, sealed=False)
    assert {"digest", noticed_by} <= _failures(run_self_test(changed))


def _certify_integers(path: Path, target: Path) -> Path:
    """Write v0's int8 file with one more tensor, which no output depends on, and the checksums of all."""
    model = onnx.load(find_model("v0", precision="int8"))
    written = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    step = numpy_helper.from_array(np.array(3, np.float32), "aside_step")
    model.graph.initializer.append(step)
    model.graph.node.append(
        onnx.helper.make_node("QuantizeLinear", [written[0].input[0], "aside_step", written[0].input[2]], ["aside_u8"])
    )
    onnx.save(model, path)
    names = [*(node.output[0] for node in written), "aside_u8"]
    faces = parse_certificate(load_model(path).metadata, source=str(path)).faces
    checksums = integer_checksums(path.read_bytes(), names, faces)
    return _change_metadata(
        path, target, lambda values: values["certificate"].update(integers=list(checksums.items())), sealed=True
    )


def test_an_integer_that_no_output_shows_is_noticed(tmp_path: Path) -> None:
    path = _certify_integers(tmp_path / "a.onnx", tmp_path / "b.onnx")
    report = run_self_test(path)
    assert report.passed
    assert str(report.checks[-2]).endswith("0 of 5 tensors between the layers differ")
    model = onnx.load(path)
    step = next(tensor for tensor in model.graph.initializer if tensor.name == "aside_step")
    step.CopyFrom(numpy_helper.from_array(np.array(4, np.float32), "aside_step"))
    onnx.save(model, path)
    report = run_self_test(path)
    assert _failures(report) == {"digest", "integers"}
    assert str(report.checks[-2]).endswith("1 of 5 tensors between the layers differ, the first is aside_u8")


def test_a_session_that_runs_already_is_not_opened_again_for_its_integers(tmp_path: Path) -> None:
    path = _certify_integers(tmp_path / "a.onnx", tmp_path / "b.onnx")
    report = run_self_test(path, loaded=load_model(path))
    assert report.passed
    assert "integers" not in {check.name for check in report.checks}


def test_last_bits_of_another_machine_pass(shipped: Path, tmp_path: Path) -> None:
    """Another architecture adds in another order: logits that differ by some float32 steps are the same answer."""

    def last_bits(values: dict[str, Any]) -> None:
        rows = values["certificate"]["model_logits"]
        values["certificate"]["model_logits"] = [[value * (1 + 3e-6) + 1e-6 for value in row] for row in rows]

    changed = _change_metadata(shipped, tmp_path / "a.onnx", last_bits, sealed=True)
    assert run_self_test(changed).passed


def _loosen(values: dict[str, Any]) -> None:
    values["certificate"]["tolerance"]["logits"] = 10.0


def _repeat_one_face(values: dict[str, Any]) -> None:
    faces = np.zeros(values["certificate"]["faces"]["shape"], np.uint8).tobytes()
    values["certificate"]["faces"]["zlib_base64"] = base64.b64encode(zlib.compress(faces)).decode()


def _keep_faces(count: int) -> Callable[[dict[str, Any]], None]:
    def keep(values: dict[str, Any]) -> None:
        certificate = values["certificate"]
        pixels = zlib.decompress(base64.b64decode(certificate["faces"]["zlib_base64"]))[: count * 48 * 48]
        packed = base64.b64encode(zlib.compress(pixels)).decode()
        certificate["faces"] = {"shape": [count, 48, 48], "zlib_base64": packed}
        for name in ("network_logits", "model_logits"):
            certificate[name] = certificate[name][:count]

    return keep


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_loosen, "a tolerance of 10.0 for logits"),
        (lambda values: values["certificate"]["tolerance"].update(probabilities=0), "a tolerance of 0 for prob"),
        (lambda values: values["certificate"]["tolerance"].update(margin="a"), "a tolerance of 'a' for margin"),
        (lambda values: values["certificate"].update(tolerance=[1]), "cannot be read"),
        (_keep_faces(1), "1 golden faces, not 8 to 4096"),
        (_repeat_one_face, "fewer than 8 different golden faces"),
        (lambda values: values["certificate"]["model_logits"][0].__setitem__(0, 1e300), "not finite"),
        (lambda values: values["certificate"]["model_logits"][0].__setitem__(0, "a"), "cannot be read"),
    ],
)
def test_a_file_does_not_decide_how_well_it_is_tested(
    change: Callable[[dict[str, Any]], None], told: str, shipped: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=told):
        run_self_test(_change_metadata(shipped, tmp_path / "a.onnx", change, sealed=True))


def test_a_float_model_that_certifies_its_own_wrong_answers_fails(tmp_path: Path) -> None:
    def own_answers(values: dict[str, Any]) -> None:
        rows = values["certificate"]["network_logits"]
        values["certificate"]["network_logits"] = [[value + 0.5 for value in row] for row in rows]

    shipped = find_model("v0", precision="fp32")
    report = run_self_test(_change_metadata(shipped, tmp_path / "a.onnx", own_answers, sealed=True))
    assert _failures(report) == {"network"}


def _key(folder: Path) -> tuple[Path, Path]:
    """A private and its public key, in PEM."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / "key.pem", folder / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_a_signature_says_who_made_the_file(shipped: Path, tmp_path: Path) -> None:
    private, public = _key(tmp_path)
    model = tmp_path / "model.onnx"
    model.write_bytes(shipped.read_bytes())
    with pytest.raises(ModelFileError, match=r"cannot read .*model\.onnx\.sig"):
        run_self_test(model, trusted=public)
    signature = sign_file(model, load_private_key(private))
    report = run_self_test(model, trusted=public)
    assert report.passed
    assert report.checks[0].name == "signature"
    # Ed25519's own verification, without our code (RFC 8032).
    load_pem_public_key(public.read_bytes()).verify(signature.read_bytes(), model.read_bytes())  # type: ignore[call-arg, union-attr]

    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ModelFileError, match="is not signed by the holder"):
        run_self_test(model, trusted=_key(other)[1])
    # A thorough forger computes the digest anew, and cannot sign.
    _change_metadata(shipped, model, lambda values: None, sealed=True)
    changed = bytearray(model.read_bytes())
    changed[len(changed) // 2] ^= 1
    model.write_bytes(changed)
    with pytest.raises(ModelFileError, match="or was changed since"):
        run_self_test(model, trusted=public)
    signature.write_bytes(b"short")
    with pytest.raises(ModelFileError, match="or was changed since"):
        run_self_test(model, trusted=public)


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_something_else_than_a_key_is_named(content: bytes, shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(ModelFileError, match="is not an Ed25519 private key"):
        load_private_key(tmp_path / "key")
    with pytest.raises(ModelFileError, match="is not an Ed25519 public key"):
        run_self_test(shipped, trusted=tmp_path / "key")
    ec = generate_private_key(SECP256R1())
    (tmp_path / "ec").write_bytes(ec.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ModelFileError, match="a key of another kind"):
        load_private_key(tmp_path / "ec")


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["certificate"]["faces"].update(zlib_base64="AAAA"),
        lambda values: values["certificate"]["faces"].update(shape=[10**9, 48, 48]),
        lambda values: values["certificate"].update(model_logits=[[1.0]]),
        lambda values: values["certificate"].pop("tolerance"),
        lambda values: values["certificate"].update(network_logits=[["\x1b" * 5000]]),
        lambda values: values["certificate"].update(integers=[["relu_u8", 1]]),
        lambda values: values["certificate"].update(integers=[["relu_u8", "0" * 7]]),
        lambda values: values["certificate"].update(integers=[[f"relu_{number}", "0" * 8] for number in range(1025)]),
    ],
)
def test_a_damaged_certificate_is_our_own_error(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    changed = _change_metadata(find_model("v0", precision="fp32"), tmp_path / "a.onnx", change, sealed=False)
    with pytest.raises(ModelFileError, match="certificate") as refused:
        run_self_test(changed)
    assert len(str(refused.value)) < 500


def test_a_file_without_certificate_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no parity certificate"):
        run_self_test(write_band_model(tmp_path / "a.onnx"))


def test_certificates_survive_their_own_json() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(8, 7)).astype(np.float32)
    made = Certificate(
        faces=random.integers(0, 256, (8, 48, 48), np.uint8),
        network_logits=logits,
        model_logits=logits * 3,
        labels=tuple("abcdefg"),
        tolerance=Tolerance(logits=5e-4),
        digest="abc",
    )
    metadata = parse_metadata(_metadata_text(made), source="it")
    read = parse_certificate(metadata, source="it")
    assert np.array_equal(read.faces, made.faces)
    assert np.array_equal(read.network_logits, logits)  # every bit
    assert np.array_equal(read.model_logits, logits * 3)
    assert (read.tolerance, read.digest) == (made.tolerance, "abc")


def _metadata_text(certificate: Certificate) -> str:
    values = {"schema": 1, "name": "v0", "expressions": list("abcdefg"), "precision": "fp32", "opset": 18}
    return json.dumps({**values, "certificate": certificate.to_dict()})


def test_the_command_exits_1_on_a_difference(tmp_path: Path) -> None:
    shipped = find_model("v0", precision="fp32")
    good = CliRunner().invoke(main, ["--self-test", "--model", str(shipped)])
    assert good.exit_code == 0
    assert "This machine computes what was trained." in good.output
    changed = _change_metadata(shipped, tmp_path / "a.onnx", _swap_labels, sealed=False)
    bad = CliRunner().invoke(main, ["--self-test", "--model", str(changed)])
    assert bad.exit_code == 1
    assert "FAIL  digest" in bad.output


@pytest.mark.parametrize("place", [0, 1])
def test_nan_in_either_run_of_the_unfamiliarity_fails(place: int) -> None:
    expected = np.linspace(0, 2, 8, dtype=np.float32)
    blank = np.zeros((8, 7), np.float32)
    found = [expected.copy(), expected.copy()]
    found[place][3] = np.nan
    certificate: Any = SimpleNamespace(model_unfamiliarity=expected)
    runs = [Outputs(logits=blank, probabilities=blank, unfamiliarity=values) for values in found]
    (check,) = _unfamiliarity_checks(certificate, runs, Tolerance(), is_fine=True)
    assert not check.passed
