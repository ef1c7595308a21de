"""/v2: the Open Inference Protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.runtime.server.serving import Service, serving

from fer_runtime.model.find import find_model
from fer_runtime.model.session import open_session

FACES = np.random.default_rng(0).integers(0, 256, (40, 48, 48), np.uint8)
INFER = "/v2/models/v0/infer"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    options = ("--model", "v0", "--model", "v3")
    with serving(tmp_path_factory.mktemp("service") / "empty", *options) as running:
        yield running


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    """The bare session's answers, face by face: batches change the last digits of float32."""
    session = open_session(find_model("v0")).session
    answers = [session.run(["logits", "probabilities"], {"faces": face[None]}) for face in FACES]
    logits, probabilities = (np.concatenate(outputs) for outputs in zip(*answers, strict=True))
    return {"logits": logits, "probabilities": probabilities}


def request_of(faces: Any, **others: Any) -> bytes:
    tensor = {"name": "faces", "shape": list(faces.shape), "datatype": "UINT8", "data": faces.tolist()}
    return json.dumps({"inputs": [tensor], **others}).encode()


def close(given: Any, wanted: np.ndarray) -> bool:
    # float32 sums of a few hundred terms in another order; logits are below 100.
    return bool(np.allclose(np.reshape(given, wanted.shape), wanted, rtol=1e-4, atol=1e-4))


def test_json_gives_what_the_session_gives(service: Service, expected: dict[str, np.ndarray]) -> None:
    answer = service.ask("POST", INFER, request_of(FACES[:3], id="seven")).json
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("v0", "1", "seven")
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert {"logits", "probabilities"} <= set(outputs)
    for name, wanted in expected.items():
        assert outputs[name]["shape"] == [3, 7]
        assert outputs[name]["datatype"] == "FP32"
        assert close(outputs[name]["data"], wanted[:3])


def test_flat_pixels_are_the_same_as_nested_ones(service: Service) -> None:
    nested = request_of(FACES[:2])
    flat = json.loads(nested)
    flat["inputs"][0]["data"] = FACES[:2].reshape(-1).tolist()
    assert service.ask("POST", INFER, json.dumps(flat).encode()).json == service.ask("POST", INFER, nested).json


def test_binary_tensors_go_both_ways(service: Service, expected: dict[str, np.ndarray]) -> None:
    """Forty faces are more than a batch."""
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "faces",
                    "shape": [40, 48, 48],
                    "datatype": "UINT8",
                    "parameters": {"binary_data_size": FACES.size},
                }
            ],
            "outputs": [{"name": "logits", "parameters": {"binary_data": True}}, {"name": "probabilities"}],
        }
    ).encode()
    answer = service.ask("POST", INFER, head + FACES.tobytes(), Inference_Header_Content_Length=str(len(head)))
    length = int(answer.headers["inference-header-content-length"])
    logits, probabilities = json.loads(answer.body[:length])["outputs"]
    assert logits["parameters"] == {"binary_data_size": 40 * 7 * 4}
    assert close(np.frombuffer(answer.body[length:], "<f4"), expected["logits"])
    assert close(probabilities["data"], expected["probabilities"])


def test_the_model_describes_itself(service: Service) -> None:
    assert service.ask("GET", "/v2/health/ready").status == 200
    assert service.ask("GET", "/v2").json["extensions"] == ["binary_tensor_data"]
    described = service.ask("GET", "/v2/models/v3").json
    assert described["inputs"] == [{"name": "faces", "datatype": "UINT8", "shape": [-1, 48, 48]}]
    outputs = {output["name"]: output["shape"] for output in described["outputs"]}
    assert outputs["probabilities"] == [-1, 7]
    assert service.ask("GET", "/v2/models/v3/versions/1/ready").json == {"name": "v3", "ready": True}
    for path in ("/v2/models/mine", "/v2/models/v3/versions/2", "/v2/models/mine/ready"):
        assert service.ask("GET", path).status == 404


@pytest.mark.parametrize(
    "damage",
    [
        lambda request: request["inputs"].clear(),
        lambda request: request["inputs"].append({}),
        lambda request: request.update(inputs=7),
        lambda request: request["inputs"][0].update(name="images"),
        lambda request: request["inputs"][0].update(datatype="FP32"),
        lambda request: request["inputs"][0].update(shape=[1, 48, 48]),
        lambda request: request["inputs"][0].update(shape=[0, 48, 48]),
        lambda request: request["inputs"][0].update(shape=[1 << 40, 48, 48]),
        lambda request: request["inputs"][0].update(shape=[True, 48, 48]),
        lambda request: request["inputs"][0].update(data=None),
        lambda request: request["inputs"][0].update(data=[[1], [1, 2]]),
        lambda request: request["inputs"][0]["data"][0][0].__setitem__(0, 256),
        lambda request: request["inputs"][0]["data"][0][0].__setitem__(0, -1),
        lambda request: request["inputs"][0]["data"][0][0].__setitem__(0, 0.5),
        lambda request: request["inputs"][0]["data"][0][0].__setitem__(0, "a"),
        lambda request: request["inputs"][0].update(parameters={"binary_data_size": 4608}),
        lambda request: request["inputs"][0].update(parameters=[]),
        lambda request: request.update(outputs=[{"name": "features"}]),
        lambda request: request.update(outputs=[{"name": ["logits"]}]),
        lambda request: request.update(outputs=[{"name": "logits"}, {"name": "logits"}]),
        lambda request: request.update(outputs=[{"name": "logits", "parameters": {"classification": 2}}]),
        lambda request: request.update(id=7),
    ],
)
def test_a_request_that_fits_nothing_is_a_400(service: Service, damage: Any) -> None:
    request = json.loads(request_of(FACES[:2]))
    damage(request)
    answer = service.ask("POST", INFER, json.dumps(request).encode())
    assert answer.status == 400
    assert answer.json["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000, b'{"inputs": [' + b"9" * 5000 + b"]}", b"\xff\xfe"])
def test_what_is_no_json_object_is_a_400(service: Service, body: bytes) -> None:
    assert service.ask("POST", INFER, body).status == 400


@pytest.mark.parametrize("length", ["-1", "x", "999999", "9" * 30, ""])
def test_a_wrong_length_of_the_json_is_a_400(service: Service, length: str) -> None:
    assert service.ask("POST", INFER, request_of(FACES[:1]), Inference_Header_Content_Length=length).status == 400


def test_json_is_limited_more_than_bytes(service: Service) -> None:
    assert service.ask("POST", INFER, b" " * ((4 << 20) + 1)).status == 413


def test_tritons_client_works_unchanged(service: Service, expected: dict[str, np.ndarray]) -> None:
    http = pytest.importorskip(
        "tritonclient.http", reason="needs Triton's client: pip install 'tritonclient[http]'", exc_type=ImportError
    )
    client = http.InferenceServerClient(f"127.0.0.1:{service.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("v0")
    assert not client.is_model_ready("mine")
    assert client.get_server_metadata()["name"] == "fer-serve"
    assert client.get_model_metadata("v0")["inputs"][0]["shape"] == [-1, 48, 48]
    assert {model["name"] for model in client.get_model_repository_index()} == {"v0", "v3"}
    for is_binary in (True, False):
        tensor = http.InferInput("faces", [5, 48, 48], "UINT8")
        tensor.set_data_from_numpy(FACES[:5], binary_data=is_binary)
        wanted = [http.InferRequestedOutput(name, binary_data=is_binary) for name in ("logits", "probabilities")]
        for outputs in (wanted, None):
            result = client.infer("v0", [tensor], outputs=outputs, request_id="a")
            for name in ("logits", "probabilities"):
                assert close(result.as_numpy(name), expected[name][:5])
    with pytest.raises(Exception, match="no such model"):
        client.infer("mine", [tensor])
    client.close()
