"""Connections of clients that read their answers slowly, or not at all."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve: pip install 'fer-edge[serve]'")

import uvicorn

from fer_runtime.server.connections import limited_protocol

_ANSWER = bytes(16 << 20)  # more than the buffers of both ends hold


async def _answers(scope: Any, receive: Any, send: Any) -> None:
    length = str(len(_ANSWER)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": _ANSWER})


@contextmanager
def _served(timeout: float) -> Iterator[tuple[Any, socket.socket]]:
    """A server of one large answer, and a connection with a small buffer that has asked for it."""
    config = uvicorn.Config(
        _answers, http=limited_protocol(timeout), lifespan="off", log_config=None, timeout_keep_alive=1
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        thread.start()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.settimeout(60)
        client.connect(listener.getsockname())
        yield server, client
        client.close()
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_a_client_that_does_not_read_its_answer_loses_its_connection(connection: str) -> None:
    with _served(timeout=0.5) as (server, client):
        client.sendall(f"GET / HTTP/1.1\r\nHost: a\r\nConnection: {connection}\r\n\r\n".encode())
        deadline = time.monotonic() + 30
        while not server.server_state.connections:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        while server.server_state.connections:
            assert time.monotonic() < deadline, "the connection is still open"
            time.sleep(0.05)


def test_a_client_that_reads_slowly_gets_its_whole_answer() -> None:
    with _served(timeout=30.0) as (_, client):
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        started, received = time.monotonic(), 0
        while chunk := client.recv(1 << 20):
            received += len(chunk)
            if time.monotonic() < started + 2.5:  # longer than an idle connection is kept
                time.sleep(0.1)
        assert received > len(_ANSWER)
