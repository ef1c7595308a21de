"""The load of `fer-bench serve`: what it counts, not how fast it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fer_bench import serving
from fer_bench.serving import measure_serving, serving_table
from fer_runtime.errors import ServeError
from fer_runtime.model.find import find_model

# Says that it listens, and answers nothing.
_SILENT = """
import json, signal, socket, sys, time
print("a warning of a library", file=sys.stderr)
signal.signal(signal.SIGTERM, signal.{action})
listener = socket.create_server(("127.0.0.1", 0))
address = {{"url": f"http://127.0.0.1:{{listener.getsockname()[1]}}", "models": ["v0"]}}
print(json.dumps(address), file=sys.stderr, flush=True)
time.sleep(100)
"""


def test_every_service_answers_every_load() -> None:
    pytest.importorskip("starlette", reason="needs the extra serve: pip install 'fer-edge[serve]'")
    results = measure_serving(find_model("v0"), clients=(3,), faces=(1, 2), seconds=0.1, rounds=2)
    assert {result.service for result in results} == {"bare model", "plain", "fer-serve"}
    for result in results:
        assert result.errors == 0
        assert result.requests >= 2 * result.clients  # each client has an answer in each round
        assert 0 < result.p50_ms <= result.p99_ms
        assert result.faces_per_second == pytest.approx(result.requests_per_second * result.faces, rel=0.5)
    lines = serving_table(results).splitlines()
    assert len(lines) == 1 + 2 + 2 * 2
    # The bare model's rate of single faces is held against its rate in batches, as the services' are.
    bare = [line.split() for line in lines if line.startswith("bare model")]
    assert [(line[3], line[7]) for line in bare if line[3] == "32"] == [("32", "100%")]
    assert {line[3] for line in bare} == {"1", "32"}


def test_a_service_that_does_not_start_answer_or_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Path("model.onnx")  # no program here reads it

    def silent(action: str) -> str:
        return _SILENT.format(action=action)

    with (
        pytest.raises(ServeError, match="does not start: no such model"),
        serving._service("exit('no such model')", model),
    ):
        pass
    monkeypatch.setattr(serving, "_ANSWER_SECONDS", 0.3)
    with serving._service(silent("SIG_DFL"), model) as service:
        request = serving.inference_request("v0", np.zeros((1, 48, 48), np.uint8))
        with pytest.raises(ServeError, match=r"fer-serve left 2 of 2 clients without an answer for 0\.3 s"):
            serving._load("fer-serve", service.port, request, 2, 0.0)
    monkeypatch.setattr(serving, "_END_SECONDS", 0.3)
    with pytest.raises(ServeError, match="does not end within"), serving._service(silent("SIG_IGN"), model):
        pass
    monkeypatch.setattr(serving, "_START_SECONDS", 0.3)
    with (
        pytest.raises(ServeError, match="does not listen within"),
        serving._service("import time; time.sleep(100)", model),
    ):
        pass


def test_a_client_that_is_refused_comes_again_when_it_is_told() -> None:
    program = """
import json, socket, sys, time
refusals, refused = 2, 0
listener = socket.create_server(("127.0.0.1", 0))
address = {"url": f"http://127.0.0.1:{listener.getsockname()[1]}", "models": ["v0"]}
print(json.dumps(address), file=sys.stderr, flush=True)
client = listener.accept()[0]
while client.recv(1 << 20):
    if refused and time.monotonic() < refused + 0.9:
        client.sendall(b"HTTP/1.1 500 Too early\\r\\nContent-Length: 0\\r\\n\\r\\n")
        continue
    refused = 0
    if refusals:
        refusals, refused = refusals - 1, time.monotonic()
        client.sendall(b"HTTP/1.1 503 Service Unavailable\\r\\nRetry-After: 1\\r\\nContent-Length: 0\\r\\n\\r\\n")
    else:
        client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
"""
    with serving._service(program, Path("model.onnx")) as service:
        request = serving.inference_request("v0", np.zeros((1, 48, 48), np.uint8))
        times, statuses = serving._load("fer-serve", service.port, request, 1, 4.0)
    assert statuses[503] == 2
    assert statuses[200] == len(times) > 0
    assert set(statuses) == {200, 503}
