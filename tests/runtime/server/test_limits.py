"""Hostile and clumsy clients: each gets an answer of its own, and the service goes on."""

from __future__ import annotations

import json
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from tests.runtime.fuzz import mutations, picture_seeds
from tests.runtime.images.make_files import PNG_SIGNATURE, make_crashing_apng, png_chunk, png_header
from tests.runtime.server.requests_fuzz import mutated_request
from tests.runtime.server.serving import PROGRAM, Answer, Service, multipart, serving

from fer_runtime.batch.sources import sample_images
from fer_runtime.cli.serve import main

TOKEN = "0123456789abcdef0123"
JPEG = cv2.imencode(".jpg", np.full((48, 48), 90, np.uint8))[1].tobytes()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with small limits."""
    options = ("--model", "v0", "--max-body", "1", "--max-requests", "4", "--timeout", "2", "--max-pixels", "1000000")
    with serving(tmp_path_factory.mktemp("service") / "empty", *options) as running:
        yield running


@pytest.fixture(autouse=True)
def _goes_on(service: Service) -> Iterator[None]:
    """After every test the service is alive and answers."""
    yield
    assert patiently(service, JPEG).json["images"][0]["faces"]


def patiently(service: Service, image: bytes) -> Answer:
    """The answer for an image; again where a busy machine took longer than the service's short limit."""
    deadline = time.monotonic() + 60
    while (answer := service.ask("POST", "/v1/images", image)).status == 503:
        assert time.monotonic() < deadline
    return answer


def test_a_body_of_a_gigabyte_is_refused_before_it_is_sent(service: Service) -> None:
    before = service.memory()
    head = b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (1 << 30)
    answer = service.send_raw(head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"more than the limit of 1048576" in answer
    assert service.memory() - before < 20 << 20


def test_a_client_that_sends_a_gigabyte_without_listening_reads_why_it_was_refused(service: Service) -> None:
    """A part of it, as fast as the service lets it; a connection that is reset shows no answer."""
    with service.connect() as connection:
        connection.sendall(b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (1 << 30))
        for _ in range(100):
            connection.sendall(bytes(1 << 16))
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_chunks_without_a_length_are_counted(service: Service) -> None:
    head = b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = service.send_raw(head + (b"10000\r\n" + bytes(0x10000) + b"\r\n") * 17)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_compressed_body_is_refused(service: Service) -> None:
    """A kilobyte of gzip may hold a megabyte."""
    assert service.ask("POST", "/v1/images", JPEG, content_encoding="gzip").status == 415


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x\r\n\r\n\r\n--x--\r\n"),
        ("multipart/form-data; boundary=" + "x" * 71, b"--x\r\n\r\n\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"no boundary"),
        ("multipart/form-data; boundary=x", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; filename="a"\r\n\r\nhalf'),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\n: \x00\xff\r\n\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 1000 + b"\r\n\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nA: " + b"b" * 10_000 + b"\r\n\r\n\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x--\r\n"),
        ("image/jpeg", b""),
    ],
)
def test_a_malformed_body_is_a_400(service: Service, kind: str, body: bytes) -> None:
    answer = service.ask("POST", "/v1/images", body, content_type=kind)
    assert answer.status == 400
    assert answer.json["error"]


def test_a_thousand_parts_are_refused(service: Service) -> None:
    body, kind = multipart(*[("a", b"b")] * 1000)
    assert service.ask("POST", "/v1/images", body, content_type=kind).status == 413


def test_bombs_are_refused_before_they_are_decoded(service: Service) -> None:
    before = service.memory()
    rows = png_chunk(b"IDAT", bytes(1000)) + png_chunk(b"IEND", b"")
    bomb = PNG_SIGNATURE + png_header(50_000, 50_000, color=2) + rows
    answer = service.ask("POST", "/v1/images", bomb)
    assert answer.status == 422
    assert "50000 x 50000 pixels, more than the limit of 1,000,000" in answer.json["error"]
    assert service.memory() - before < 20 << 20


def test_an_image_that_crashes_its_decoder_costs_one_answer(service: Service) -> None:
    answer = patiently(service, make_crashing_apng())
    assert answer.status in (200, 422)  # a later OpenCV may read it


def test_mutated_images_are_read_or_refused(service: Service) -> None:
    statuses = Counter(
        patiently(service, content or b"x").status for content in islice(mutations(picture_seeds(), seed=3), 120)
    )
    assert set(statuses) == {200, 422}


def test_mutated_requests_get_an_answer_of_their_own(service: Service) -> None:
    """`make fuzz` sends more of them."""
    chooser = random.Random(5)
    statuses = Counter(mutated_request(service.port, chooser) for _ in range(150))
    assert statuses["200"] < 100
    assert not [status for status in statuses if status.startswith("5") and status != "503"], statuses


def test_headers_that_do_not_end_are_given_up(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
        assert connection.recv(4096) == b""


def test_a_connection_that_says_nothing_is_closed(service: Service) -> None:
    with service.connect() as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_trickles_is_given_up(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nab")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 2 s" in answer


def test_a_full_queue_is_a_503_that_says_when_to_come_again(service: Service) -> None:
    waiting = [service.connect() for _ in range(4)]
    try:
        for connection in waiting:
            connection.sendall(b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
        deadline = time.monotonic() + 30
        while (answer := service.ask("POST", "/v1/images", JPEG)).status != 503:
            assert time.monotonic() < deadline
        assert answer.headers["retry-after"] == "1"
        # Health checks are answered all the same.
        assert service.ask("GET", "/health/ready").status == 200
    finally:
        for connection in waiting:
            connection.close()


def test_connections_beyond_the_file_descriptors_are_told_so(tmp_path: Path) -> None:
    few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160)); "
    with serving(tmp_path / "empty", "--model", "v0", program=few + PROGRAM) as running:
        idle = [running.connect() for _ in range(32)]
        try:
            refused = running.send_raw(b"")
            assert refused.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After: 1" in refused
        finally:
            for connection in idle:
                connection.close()
        deadline = time.monotonic() + 30
        while running.ask("POST", "/v1/images", JPEG).status != 200:
            assert time.monotonic() < deadline


def test_pages_of_other_sites_are_kept_out(service: Service) -> None:
    assert service.ask("GET", "/v1/models", Host=f"evil.example:{service.port}").status == 421
    assert service.ask("GET", "/v1/models", Origin="http://evil.example").status == 403
    assert service.ask("GET", "/v1/models", Origin="http://[").status == 403  # which urlsplit refuses
    assert service.ask("GET", "/v1/models", Sec_Fetch_Site="cross-site").status == 403
    assert service.ask("GET", "/v1/models", Host=f"LocalHost:{service.port}").status == 200
    own = f"127.0.0.1:{service.port}"
    answer = service.ask("GET", "/v1/models", Host=own, Origin=f"http://{own}")
    assert answer.status == 200
    assert "access-control-allow-origin" not in answer.headers


def test_another_address_needs_a_token_or_a_word() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "fer.example"):
        refused = CliRunner().invoke(main, ["--host", host])
        assert refused.exit_code == 2
        assert "--token" in refused.output
        assert "--insecure" in refused.output
    short = CliRunner().invoke(main, ["--host", "0.0.0.0", "--token", "short"])
    assert short.exit_code == 2


def test_a_token_is_asked_for(tmp_path: Path) -> None:
    with serving(tmp_path / "empty", "--model", "v0", "--host", "0.0.0.0", FER_SERVE_TOKEN=TOKEN) as running:
        assert running.ask("POST", "/v1/images", JPEG).status == 401
        assert running.ask("GET", "/metrics", Authorization="Bearer wrong").status == 401
        assert running.ask("POST", "/v1/images", JPEG, Authorization=f"Bearer {TOKEN}").status == 200
        # A probe has none.
        assert running.ask("GET", "/health/ready").status == 200
        assert (
            "token"
            in running.ask("GET", "/openapi.json", Authorization=f"Bearer {TOKEN}").json["components"][
                "securitySchemes"
            ]
        )
    assert TOKEN not in json.dumps(running.lines)


def test_sigterm_finishes_what_has_begun(tmp_path: Path) -> None:
    photo = Path(sample_images()[0]).read_bytes()
    with serving(tmp_path / "empty", "--model", "v0") as running, running.connect() as connection:
        head = b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(photo)
        connection.sendall(head + photo[:1000])
        # An answer on another connection: the first request has reached the service by then.
        assert running.ask("GET", "/health/live").status == 200
        running.process.terminate()
        time.sleep(0.5)  # in which a service that ends at once would end
        connection.sendall(photo[1000:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert running.process.wait(60) == 0


def test_sigterm_is_obeyed_from_the_first_line_of_the_log_on(tmp_path: Path) -> None:
    early = """
import os, signal, fer_runtime.server.run as run
first = run.log
def log(event, **fields):
    first(event, **fields)
    if event == "listening":
        os.kill(os.getpid(), signal.SIGTERM)
run.log = log
"""
    with serving(tmp_path / "empty", "--model", "v0", program=early + PROGRAM) as running:
        assert running.process.wait(60) == 0


def test_sigterm_is_obeyed_while_a_computation_does_not_end(tmp_path: Path) -> None:
    endless = """
import time
from fer_runtime.server.models import ServedModel
ServedModel.compute = lambda self, faces: time.sleep(600)
"""
    options = ("--model", "v0", "--timeout", "0.5")
    with serving(tmp_path / "empty", *options, program=endless + PROGRAM) as running:
        tensor = {"name": "faces", "shape": [1, 48, 48], "datatype": "UINT8", "data": [0] * 48 * 48}
        body = json.dumps({"inputs": [tensor]}).encode()
        assert running.ask("POST", "/v2/models/v0/infer", body).status == 503
        assert running.stop() == 1
    assert running.lines[-1]["reason"] == "an image or a batch is still being computed"


def test_a_model_that_fails_its_self_test_is_not_served(tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    from fer_runtime.model.find import find_model

    model = onnx.load(find_model("v0", precision="fp32"))
    weights = next(
        tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims
    )
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * 1.5, weights.name))
    onnx.save(model, tmp_path / "mine.onnx")
    refused = CliRunner().invoke(main, ["--port", "0", "--model", str(tmp_path / "mine.onnx")])
    assert refused.exit_code == 1
    assert "fails its self-test here and is not served (digest" in refused.output


def test_a_million_threads_are_refused() -> None:
    refused = CliRunner().invoke(main, ["--threads", "1000000"])
    assert refused.exit_code == 2
    assert "'--threads': 1000000 is not in the range 1<=x<=1024" in refused.output


def test_an_address_that_is_taken_is_one_line(service: Service) -> None:
    refused = CliRunner().invoke(main, ["--port", str(service.port)])
    assert refused.exit_code == 1
    assert refused.output.startswith(f"Error: cannot listen on 127.0.0.1:{service.port}: ")
    assert refused.output.endswith("; choose another --port\n")
    assert refused.output.count("\n") == 1


@pytest.mark.parametrize("host", ["a..b", "x" * 300, "192.0.2.1", "nobody"])  # nobody has the third: RFC 5737
def test_an_address_of_another_machine_or_of_none_is_one_line(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(name: str, *rest: Any, **more: Any) -> Any:
        if name == "nobody":  # without a question to a name server
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return known(name, *rest, **more)

    known = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    refused = CliRunner().invoke(main, ["--host", host, "--insecure", "--port", "0"])
    assert refused.exit_code == 1
    assert refused.output.startswith("Error: cannot listen on ")
    assert refused.output.endswith("; choose another --host\n")
    assert refused.output.count("\n") == 1
