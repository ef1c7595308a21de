"""The short way of binary requests: the same answers as the application's, and no request of another kind."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tests.runtime.server.serving import Service, serving

pytest.importorskip("uvicorn", reason="needs the extra serve: pip install 'fer-edge[serve]'")

import h11

from fer_runtime.server.batching import Batcher
from fer_runtime.server.bodies import BodyBudget
from fer_runtime.server.express import Express
from fer_runtime.server.metrics import Metrics
from fer_runtime.server.recognition import Recognition
from fer_runtime.server.settings import ServerSettings

FACES = np.random.default_rng(0).integers(0, 256, (8, 48, 48), np.uint8)
LENGTHS = b"Content-Length: %d\r\nInference-Header-Content-Length: %d\r\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service") / "empty", "--model", "v0") as running:
        yield running


def request_of(faces: np.ndarray, headers: bytes = b"", *, path: str = "/v2/models/v0/infer") -> bytes:
    sizes = {"binary_data_size": faces.size}
    tensor = {"name": "faces", "shape": list(faces.shape), "datatype": "UINT8", "parameters": sizes}
    outputs = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    text = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    lengths = LENGTHS % (len(text) + faces.size, len(text))
    return (
        b"POST %s HTTP/1.1\r\nHost: localhost\r\n%b%b\r\n" % (path.encode(), lengths, headers) + text + faces.tobytes()
    )


def answer_on(connection: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of the next answer."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(1)
    head = received.lower()
    size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    body = b""
    while len(body) < size:
        body += connection.recv(size - len(body))
    return head, body


def ask(service: Service, *parts: bytes, pause: float = 0.05) -> tuple[bytes, bytes]:
    with service.connect() as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        return answer_on(connection)


def test_the_answer_is_the_applications(service: Service) -> None:
    """Whatever way: an address with a version, and a head that closes, go through h11 and the routes."""
    content = request_of(FACES[:3])
    head, body = ask(service, content)
    for other in (request_of(FACES[:3], path="/v2/models/v0/versions/1/infer"), request_of(FACES[:3], b"TE: x\r\n")):
        other_head, other_body = ask(service, other)
        assert body == other_body
        assert names(head) == names(other_head)
    # In two packets, as most clients send it; slowly, so that the application reads the rest; a byte at a time.
    start = content.index(b"\r\n\r\n") + 4
    assert ask(service, content[:start], content[start:])[1] == body
    assert ask(service, content[:-9], content[-9:], pause=0.4)[1] == body
    assert ask(service, *(content[at : at + 1] for at in range(300)), content[300:], pause=0.0)[1] == body


def names(head: bytes) -> list[bytes]:
    return sorted(line.partition(b":")[0] for line in head.splitlines())


def test_requests_behind_one_another_are_answered_in_turn(service: Service) -> None:
    with service.connect() as connection:
        pieces = [request_of(FACES[at : at + 1]) for at in range(4)]
        health = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connection.sendall(b"".join((*pieces[:2], health, *pieces[2:])))
        answers = [answer_on(connection) for _ in range(5)]
        alone = [ask(service, piece)[1] for piece in pieces]
    assert [json.loads(answers[2][1])["live"]] == [True]
    assert [body for _, body in (*answers[:2], *answers[3:])] == alone


def test_a_client_that_only_stops_sending_gets_its_answer(service: Service) -> None:
    # An answer may leave before the end of sending arrives, but not each time.
    answers = [service.send_raw(request_of(FACES[:1]), ends=True) for _ in range(20)]
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    assert any(b"connection: close" in answer for answer in answers)
    assert service.send_raw(request_of(FACES[:1])[:-1], ends=True).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (request_of(FACES[:1], b"Content-Length: 7\r\n"), 400),
        (request_of(FACES[:1], b"Content-Encoding: gzip\r\n"), 415),
        (request_of(FACES[:1], b"Origin: http://evil.example\r\n"), 403),
        (request_of(FACES[:1], b"Origin: http://[\r\n"), 403),
        (request_of(FACES[:1]).replace(b"Host: localhost", b"Host: evil.example"), 421),
        (request_of(FACES[:1]).replace(b"Host: localhost\r\n", b""), 400),
        (request_of(FACES[:1]).replace(b"UINT8", b"INT32"), 400),
        (request_of(FACES[:1]).replace(b'"binary_data_size": 2304', b'"binary_data_size": 2303'), 400),
        (request_of(FACES[:1]).replace(b"[1, 48, 48]", b"[2, 48, 48]"), 400),
        (request_of(FACES[:1]).replace(b'"name": "probabilities", ', b'"name":["probabilities"],'), 400),
        (request_of(FACES[:1], path="/v2/models/mine/infer"), 404),
    ],
)
def test_what_is_wrong_is_said_by_the_application(service: Service, content: bytes, status: int) -> None:
    answer = service.send_raw(content, ends=True)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert b'{"error":' in answer


def test_a_client_that_hangs_up_is_no_fault(service: Service) -> None:
    photo = b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf"
    for content in (photo, request_of(FACES)[:-1]):
        with service.connect() as connection:
            connection.sendall(content)
            time.sleep(0.3)  # in which the application begins to read
            # Closing resets the connection, as when a device loses power.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    deadline = time.monotonic() + 30
    while len(left := [line for line in service.lines if line.get("status") == 499]) < 2:
        assert time.monotonic() < deadline, service.lines[-5:]
        time.sleep(0.05)
    assert {line["route"] for line in left} == {"/v1/images", "/v2/models/{name}/infer"}
    assert {line["level"] for line in left} == {"info"}
    # One that only stops sending can still read why.
    with service.connect() as connection:
        connection.sendall(photo)
        time.sleep(0.1)
        connection.shutdown(socket.SHUT_WR)
        assert answer_on(connection)[0].startswith(b"http/1.1 400 ")
    while service.lines[-1].get("status") != 400:
        assert time.monotonic() < deadline, service.lines[-5:]
        time.sleep(0.05)


def test_sigterm_finishes_what_went_the_short_way(tmp_path: Any) -> None:
    content = request_of(FACES)
    with serving(tmp_path / "empty", "--model", "v0") as running, running.connect() as connection:
        connection.sendall(content[:-1])
        assert running.ask("GET", "/health/live").status == 200
        running.process.terminate()
        time.sleep(0.3)
        connection.sendall(content[-1:])
        assert answer_on(connection)[0].startswith(b"http/1.1 200 ")
        assert running.process.wait(60) == 0


def test_a_head_is_taken_only_where_h11_reads_the_same() -> None:
    recognition = Recognition(ServerSettings(), [], Metrics())
    seen: list[tuple[list[tuple[bytes, bytes]], str]] = []

    def check(headers: list[tuple[bytes, bytes]], path: str) -> None:
        seen.append((headers, path))

    express = Express(recognition, BodyBudget(1 << 20), check)
    whole = request_of(FACES[:1], b"Accept: */*\r\nConnection: keep-alive\r\n")
    seed = whole[: whole.index(b"\r\n\r\n") + 4]
    chooser = random.Random(4)
    taken = 0
    for _ in range(4000):
        text = mutated(seed, chooser)
        if (head := express.head(text)) is None or not seen:
            continue
        taken += 1
        ((headers, path),) = seen
        seen.clear()
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(text)
        request = connection.next_event()
        assert isinstance(request, h11.Request), text
        assert request.target == path.encode() == b"/v2/models/%b/infer" % head.model.encode()
        assert [(name, bytes(value)) for name, value in request.headers] == headers
        assert int(dict(headers)[b"content-length"]) == head.total - head.size
        assert int(dict(headers)[b"inference-header-content-length"]) == head.json_size
        assert connection.their_state is h11.SEND_BODY
        assert not connection.client_is_waiting_for_100_continue
    assert recognition.close()
    assert taken > 200
    # Refused at once: a pattern that can match in many ways would try all of them.
    assert express.head(b"POST /v2/models/v0/infer HTTP/1.1\r\n" + b"A: b\r\n" * 49 + b"A: \0\r\n\r\n") is None


def mutated(seed: bytes, chooser: random.Random) -> bytes:
    content = bytearray(seed)
    for _ in range(chooser.choice((1, 1, 2))):
        place = chooser.randrange(len(content))
        kind = chooser.randrange(4)
        if kind == 0:
            content[place] ^= 1 << chooser.randrange(8)
        elif kind == 1:
            del content[place : place + chooser.randrange(1, 12)]
        elif kind == 2:
            content[place:place] = chooser.choice(
                (
                    b"\r\n",
                    b"\n",
                    b" ",
                    b"\t",
                    b"\0",
                    b": ",
                    b"chunked",
                    b"\r\nTransfer-Encoding: chunked",
                    b"\r\nExpect: x",
                    b"0",
                    b",",
                )
            )
        else:
            start = chooser.randrange(len(content))
            content[place:place] = content[start : start + chooser.randrange(1, 40)]
    return bytes(content)


def run_batcher(run: Callable[[Any], dict[str, Any]], use: Callable[[Batcher], Any], note: Callable[..., None]) -> Any:
    from concurrent.futures import ThreadPoolExecutor

    async def main() -> Any:
        with ThreadPoolExecutor(1) as threads:
            batcher = Batcher(
                run, executor=threads, slots=1, size=4, wait=0.01, coming=lambda: 0, longest=10, on_batch=note
            )
            return await asyncio.wait_for(use(batcher), 30)

    return asyncio.run(main())


def test_nobody_waits_for_a_batch_that_fails() -> None:
    """Neither of those that were in it, nor of those behind it."""
    calls: list[int] = []

    def run(faces: Any) -> dict[str, Any]:
        calls.append(len(faces))
        if len(calls) == 1:
            raise MemoryError
        return {"sums": faces.sum(axis=(1, 2))}

    async def use(batcher: Batcher) -> list[Any]:
        first = [batcher.submit(FACES[:2]), batcher.submit(FACES[2:4])]
        later = [batcher.submit(FACES[4:5]), asyncio.ensure_future(batcher.classify(FACES))]
        first[1].cancel()
        return await asyncio.gather(*first, *later, return_exceptions=True)

    def note(*values: Any) -> None:
        raise ZeroDivisionError  # what only counts must keep nobody waiting

    failed, cancelled, single, all_of_them = run_batcher(run, use, note)
    assert isinstance(failed, MemoryError)
    assert isinstance(cancelled, asyncio.CancelledError)
    assert single["sums"] == [FACES[4].sum()]
    assert list(all_of_them["sums"]) == [face.sum() for face in FACES]
