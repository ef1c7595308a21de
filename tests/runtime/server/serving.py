"""fer-serve as a process, and clients for it."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

PROGRAM = "from fer_runtime.cli.serve import main; main()"
_START_SECONDS = 120.0


@dataclass(slots=True)
class Answer:
    """What a request got."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class Service:
    """A running fer-serve."""

    process: subprocess.Popen[str]
    port: int
    folder: Path  # its working folder, home and folder for temporary files
    lines: list[dict[str, Any]] = field(default_factory=list)  # of its log

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request on a connection of its own; `content_type` stands for the header Content-Type."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def send_raw(self, content: bytes, *, ends: bool = False) -> bytes:
        """What comes back for these bytes until the service closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            received = b""
            with suppress(ConnectionError):
                connection.sendall(content)
                if ends:
                    connection.shutdown(socket.SHUT_WR)
                while chunk := connection.recv(65536):
                    received += chunk
            return received

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def memory(self) -> int:
        """Bytes in memory, of the service without its decoders."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def serving(folder: Path, *options: str, program: str = PROGRAM, **environment: str) -> Iterator[Service]:
    """fer-serve on a free port, in an empty folder; fails where it leaves a file or a traceback."""
    pytest.importorskip("starlette", reason="needs the extra serve: pip install 'fer-edge[serve]'")
    pytest.importorskip("uvicorn", reason="needs the extra serve: pip install 'fer-edge[serve]'")
    folder.mkdir(exist_ok=True)
    inside = {name: str(folder) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")} | {"FER_SERVE_TOKEN": ""}
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--port", "0", *options],
        cwd=folder,
        env={**os.environ, **inside, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[dict[str, Any]] = []
    heard: queue.SimpleQueue[None] = queue.SimpleQueue()  # the first line, or the end

    def collect() -> None:
        assert process.stderr is not None
        with process.stderr as log:
            for line in log:
                is_ours = line.startswith("{")
                lines.append(json.loads(line) if is_ours else {"event": "foreign", "line": line})
                heard.put(None)
        heard.put(None)

    reader = threading.Thread(target=collect, daemon=True)
    reader.start()
    try:
        with suppress(queue.Empty):
            heard.get(timeout=_START_SECONDS)
        assert [line["event"] for line in lines[:1]] == ["listening"], lines
        service = Service(process, int(lines.pop(0)["url"].rpartition(":")[2]), folder, lines)
        yield service
        if process.poll() is None:
            assert service.stop() == 0
        reader.join(60)
        assert lines[-1]["event"] == "stopped"
        assert [line for line in lines if line["event"] not in ("request", "stopped", "model", "camera")] == []
        assert list(folder.rglob("*")) == []
    finally:
        process.kill()
        process.wait(60)


def multipart(*files: tuple[str, bytes]) -> tuple[bytes, str]:
    """A body of these files, and its type."""
    boundary = "fer-edge-boundary"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
