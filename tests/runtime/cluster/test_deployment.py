"""The service on a Ray cluster: two replicas, one of which is killed under load."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray.serve", reason="needs Ray Serve: pip install 'ray[serve]'", exc_type=ImportError)
pytest.importorskip("starlette", reason="needs the extra serve: pip install 'fer-edge[serve]'")

import ray
from ray import serve
from tests.runtime.video.served import free_port

from fer_runtime.cluster.deployment import app
from fer_runtime.errors import ServeError
from fer_runtime.model.find import find_model
from fer_runtime.model.session import open_session

_FACE = np.random.default_rng(0).integers(0, 256, (1, 48, 48), np.uint8)
_CLIENTS = 4


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    number = free_port()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"  # a busy machine needs more than Ray's 5
    runtime = {"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}}
    memory = 100 << 20
    ray.init(num_cpus=3, include_dashboard=False, object_store_memory=memory, runtime_env=runtime, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": number})
        serve.run(app({"model": "v0", "replicas": "2"}), name=f"fer{number}")
        yield number
    finally:
        serve.shutdown()
        ray.shutdown()


def replicas(port: int) -> list[int]:
    """Process numbers, by the titles that Ray gives its processes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(f"ray::ServeReplica:fer{port}:".encode()):
                found.append(int(folder.name))
    return found


def test_a_replica_that_is_killed_costs_only_the_requests_that_it_had(port: int) -> None:
    tensor = {"name": "faces", "shape": [1, 48, 48], "datatype": "UINT8", "data": _FACE.tolist()}
    body = json.dumps({"inputs": [tensor], "outputs": [{"name": "logits"}]}).encode()
    (expected,) = open_session(find_model("v0")).session.run(["logits"], {"faces": _FACE})
    counts: Counter[str] = Counter()
    stop = threading.Event()

    def ask() -> list[float] | None:
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("POST", "/v2/models/v0/infer", body)
            response = connection.getresponse()
            content = response.read()
            return json.loads(content)["outputs"][0]["data"] if response.status == 200 else None
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()

    def load() -> None:
        while not stop.is_set():
            tries: int = 0
            answer: Any = None
            end = time.monotonic() + 60
            while answer is None and time.monotonic() < end:
                answer = ask()
                tries += 1
                if answer is None:
                    time.sleep(0.2)
            counts["answered" if answer is not None else "lost"] += 1
            counts["retried"] += tries > 1
            counts["wrong"] += answer is not None and not np.allclose(answer, expected[0], rtol=1e-4, atol=1e-4)

    clients = [threading.Thread(target=load, daemon=True) for _ in range(_CLIENTS)]
    for client in clients:
        client.start()
    try:
        _wait(lambda: counts["answered"] > 20)
        before = replicas(port)
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        answered = counts["answered"]
        _wait(lambda: counts["answered"] > answered + 50)
        # Ray starts another one.
        _wait(lambda: len(set(replicas(port)) - {before[0]}) == 2)
    finally:
        stop.set()
        for client in clients:
            client.join(120)
    assert counts["lost"] == 0
    assert counts["wrong"] == 0
    # Each client has one request at a time, and the router may send it to the dead replica once more.
    assert counts["retried"] <= 2 * _CLIENTS


def _wait(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(ServeError, match="unknown argument batch"):
        app({"batch": "3"})
    with pytest.raises(ServeError, match="whole numbers"):
        app({"replicas": "many"})
    # In a replica it would be a ValueError, and Ray would start one replica after another.
    with pytest.raises(ServeError, match="a number from 0 to 1"):
        app({"min_confidence": "60"})
