"""Damaged requests for a running fer-serve: `python -m tests.runtime.server.requests_fuzz --requests 10000`."""

from __future__ import annotations

import random
import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import cv2
import numpy as np
from tests.runtime.server.serving import multipart, serving

_IMAGE = cv2.imencode(".jpg", np.full((48, 48), 90, np.uint8))[1].tobytes()
_SPLICES = (
    b"\r\n",
    b"\0",
    b"\xff\xff",
    b"--fer-edge-boundary",
    b"99999999999999999999",
    b"-1",
    b"%00",
    b": ",
    b"chunked",
)


def _seeds() -> list[bytes]:
    body, kind = multipart(("a.jpg", _IMAGE), ("b.jpg", _IMAGE))
    tensor = b'{"inputs":[{"name":"faces","shape":[1,48,48],"datatype":"UINT8","data":[%s]}]}' % b",".join(
        [b"9"] * 2304
    )
    head = b"Host: localhost\r\nConnection: close\r\n"
    requests = [
        b"GET /v1/models HTTP/1.1\r\n" + head + b"\r\n",
        b"GET /metrics HTTP/1.1\r\n" + head + b"\r\n",
        b"POST /v1/images?min_confidence=0.5 HTTP/1.1\r\n" + head + b"Transfer-Encoding: chunked\r\n\r\n"
        b"%x\r\n%s\r\n0\r\n\r\n" % (len(_IMAGE), _IMAGE),
    ]
    for path, content, name in (
        ("/v1/images", body, kind),
        ("/v1/crops?model=v0", _IMAGE, "image/jpeg"),
        ("/v2/models/v0/infer", tensor, "application/json"),
    ):
        sizes = f"Content-Type: {name}\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        requests.append(f"POST {path} HTTP/1.1\r\n".encode() + head + sizes + content)
    # The short way of binary tensors.
    tensor = (
        b'{"inputs":[{"name":"faces","shape":[1,48,48],"datatype":"UINT8","parameters":{"binary_data_size":2304}}]}'
    )
    sizes = b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n" % (len(tensor), len(tensor) + 2304)
    requests.append(b"POST /v2/models/v0/infer HTTP/1.1\r\nHost: localhost\r\n" + sizes + tensor + bytes(2304))
    return requests


_SEEDS = _seeds()


def mutated_request(port: int, chooser: random.Random) -> str:
    """Send one; its status, or "closed" where nothing came back."""
    content = bytearray(chooser.choice(_SEEDS))
    for _ in range(chooser.choice((1, 1, 2, 5))):
        # Heads decide the most.
        place = chooser.randrange(len(content) if chooser.random() < 0.4 else min(len(content), 200))
        kind = chooser.randrange(5)
        if kind == 0:
            content[place] ^= 1 << chooser.randrange(8)
        elif kind == 1:
            del content[place : place + chooser.randrange(1, 30)]
        elif kind == 2:
            content[place:place] = chooser.choice(_SPLICES)
        elif kind == 3:
            content[place:place] = content[place : place + chooser.randrange(1, 60)] * chooser.randrange(1, 20)
        else:
            del content[place:]
        if not content:
            content[:] = b"\r\n"
    received = b""
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(content)
        # Half-closed: the rest of a body that was cut does not come.
        connection.shutdown(socket.SHUT_WR)
        while chunk := connection.recv(65536):
            received += chunk
    return received[9:12].decode("latin-1") or "closed"


@click.command()
@click.option("--requests", default=10_000, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(requests: int, seed: int) -> None:
    """Send damaged requests to a service of their own; a 5xx, a traceback or a file ends the run."""
    chooser = random.Random(seed)
    with TemporaryDirectory() as folder, serving(Path(folder) / "empty", "--model", "v0", "--timeout", "2") as service:
        before = service.memory()
        statuses = Counter(mutated_request(service.port, chooser) for _ in range(requests))
        grown = service.memory() - before
    click.echo(f"{dict(statuses)}; memory grew by {grown / 1e6:.1f} MB")
    if any(status.startswith("5") for status in statuses):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
