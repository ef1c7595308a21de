"""A watched folder: files come, fail and are replaced while requests are answered."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
from tests.runtime.server.serving import Service, serving

from fer_runtime.model.find import find_model

FACE = np.random.default_rng(0).integers(0, 256, (1, 48, 48), np.uint8)


def put(content: bytes, path: Path) -> None:
    """As a careful copy does it: whole from the first moment."""
    path.with_suffix(".partial").write_bytes(content)
    os.replace(path.with_suffix(".partial"), path)


def sha256_served(service: Service) -> str | None:
    models = service.ask("GET", "/v1/models").json["models"]
    return next((model["sha256"] for model in models if model["name"] == "mine"), None)


def wait_for(condition: object, service: Service) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, service.lines[-3:]
        time.sleep(0.1)


def test_a_new_file_goes_live_after_its_self_test_and_no_request_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    first, second = (find_model("v0", precision=precision).read_bytes() for precision in ("fp32", "int8"))
    with serving(tmp_path / "empty", "--watch", str(folder)) as service:
        assert service.ask("GET", "/health/ready").status == 503
        assert service.ask("POST", "/v1/images", b"x").status == 503
        put(first, folder / "mine.onnx")
        wait_for(lambda: sha256_served(service) is not None, service)
        before = sha256_served(service)
        assert service.ask("GET", "/health/ready").status == 200

        statuses: Counter[int] = Counter()
        answers: Counter[str] = Counter()
        stop = threading.Event()
        tensor = {"name": "faces", "shape": [1, 48, 48], "datatype": "UINT8", "data": FACE.tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()

        def load() -> None:
            connection = HTTPConnection("127.0.0.1", service.port, timeout=60)
            while not stop.is_set():
                connection.request("POST", "/v2/models/mine/infer", body)
                response = connection.getresponse()
                content = response.read()
                statuses[response.status] += 1
                answers[content.decode()] += 1
                time.sleep(0.005)
            connection.close()

        clients = [threading.Thread(target=load) for _ in range(4)]
        for client in clients:
            client.start()
        try:
            # A damaged file, and one whose weights were changed: the old one goes on.
            put(second[:-1000], folder / "mine.onnx")
            wait_for(lambda: any(line.get("result") == "refused" for line in service.lines), service)
            assert sha256_served(service) == before
            put(second, folder / "mine.onnx")
            wait_for(lambda: sha256_served(service) != before, service)
            seen = len(answers)
            os.remove(folder / "mine.onnx")
            count = sum(statuses.values())
            wait_for(lambda: sum(statuses.values()) > count + 20, service)
        finally:
            stop.set()
            for client in clients:
                client.join(60)
        assert set(statuses) == {200}
        assert len(answers) >= seen >= 1
        assert len(answers) > 1  # fp32's and int8's
        refused = next(line for line in service.lines if line.get("result") == "refused")
        assert refused["file"] == "mine.onnx"
        assert str(folder) not in json.dumps(service.lines)
