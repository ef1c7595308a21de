"""Which models are served, and when they are not."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.tiny_models import write_band_model

from fer_runtime.errors import ModelFileError
from fer_runtime.model.find import find_model
from fer_runtime.model.load import load_model

pytest.importorskip("starlette", reason="needs the extra serve: pip install 'fer-edge[serve]'")

from fer_runtime.server.app import create_app, open_recognition
from fer_runtime.server.errors import RequestError
from fer_runtime.server.models import ModelSet, open_models
from fer_runtime.server.settings import ServerSettings


def test_health_fails_and_requests_are_refused_while_the_session_computes_something_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("fer_runtime.server.models._FRESH_SECONDS", 0.0)
    (model,) = open_models(ServerSettings(models=("v0",)))
    models = ModelSet([model], lambda model: None)
    right, other = model._loaded, load_model(write_band_model(tmp_path / "bands.onnx"))
    with ThreadPoolExecutor(1) as executor:
        assert asyncio.run(model.checked(executor)) == []
        assert models.get("v0") is model
        # What a faulty memory or driver would do: the same file, another answer.
        model._loaded = right._replace(session=other.session)
        assert "logits" in asyncio.run(model.checked(executor))
        with pytest.raises(RequestError, match="fails its self-test here") as refused:
            models.get("v0")
        assert refused.value.status == 503
        model._loaded = right
        assert asyncio.run(model.checked(executor)) == []
        assert models.get("v0") is model


def test_a_fault_of_ours_is_a_500_without_what_the_client_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recognition = open_recognition(ServerSettings(models=("v0",)))

    async def fail(*_: object) -> None:
        raise ValueError("secret")

    monkeypatch.setattr(recognition, "recognize", fail)
    sent: list[Any] = []

    async def ask() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"secret", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/images", "query_string": b"", "http_version": "1.1"}
        await create_app(recognition)({**scope, "headers": [(b"host", b"localhost")]}, receive, send)

    try:
        asyncio.run(ask())
    finally:
        recognition.close()
    assert sent[0]["status"] == 500
    assert json.loads(sent[1]["body"]) == {"error": "the service failed; its log says where"}
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (fault,) = [line for line in lines if line["event"] == "exception"]
    assert fault["type"] == "ValueError"
    assert any("test_models.py" in place for place in fault["places"])
    assert "secret" not in json.dumps(lines)


def test_a_model_without_a_certificate_is_not_served(tmp_path: Path) -> None:
    path = write_band_model(tmp_path / "bands.onnx")
    with pytest.raises(ModelFileError, match="carries no parity certificate"):
        open_models(ServerSettings(models=(str(path),)))


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for precision in ("int8", "fp32"):
        source = find_model("v0", precision=precision)
        (tmp_path / source.name).write_bytes(source.read_bytes())
    both = tuple(str(path) for path in sorted(tmp_path.iterdir()))
    with pytest.raises(ModelFileError, match="would both be served as v0"):
        open_models(ServerSettings(models=both))
