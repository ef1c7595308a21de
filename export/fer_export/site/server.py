"""A server of a site's files on this machine, for `--serve` and the browser benchmark."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from socket import socket
from typing import Any, BinaryIO, ClassVar

_FIRST_PORT = 8000
_MOST_CONNECTIONS = 32  # a browser opens six for one site
_IDLE_SECONDS = 15  # then a connection is closed and makes room
# Pages sent with these may share memory between threads, and their clock resolves 5 microseconds instead of 100.
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


class _Handler(SimpleHTTPRequestHandler):
    """Static files with their right types, whatever the system's own table says."""

    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".json": "application/json",
        ".css": "text/css",
        ".svg": "image/svg+xml",
        ".wasm": "application/wasm",
    }
    extra_headers: ClassVar[dict[str, str]] = {}

    def send_head(self) -> BytesIO | BinaryIO | None:
        # A page of another origin may have its own name resolve to 127.0.0.1 (DNS rebinding); the browser then sends
        # that name as Host.
        name, _, port = (self.headers.get("Host") or "").partition(":")
        if name not in ("127.0.0.1", "localhost") or port not in ("", str(self.connection.getsockname()[1])):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return None
        if not self._is_servable():
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def _is_servable(self) -> bool:
        """Whether the path is a regular file of the folder, or a folder with an index.html, without links."""
        root = Path(self.directory).resolve()
        try:
            path = Path(self.translate_path(self.path))
            if path.is_dir():
                path = path / "index.html"
            # A link anywhere in the path resolves to another place than its own.
            inside = path.relative_to(self.directory)
            return path.is_file() and path.resolve() == root / inside
        except (OSError, ValueError):  # names that are too long, or with a zero byte (%00)
            return False

    def list_directory(self, path: Any) -> None:
        """No listings."""
        self.send_error(HTTPStatus.NOT_FOUND)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in self.extra_headers.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Silent: a page's requests are expected."""


class SiteServer(ThreadingHTTPServer):
    """A thread for each connection, up to a limit; further connections wait."""

    request_queue_size = 64  # that wait; the system makes any beyond them try again after seconds

    def __init__(self, address: tuple[str, int], handler: Any) -> None:
        self._slots = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        self._slots.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: browsers often close connections early."""


def create_server(folder: Path, *, port: int | None = None, headers: dict[str, str] | None = None) -> SiteServer:
    """A server of `folder` on this machine's loopback address only; `serve_forever` starts it.

    Args:
        port: None takes 8000, or any free one where 8000 is taken.
        headers: sent with every answer besides the usual ones.
    """
    handler = type("_SiteHandler", (_Handler,), {"extra_headers": headers or {}})

    def listen(number: int) -> SiteServer:
        return SiteServer(("127.0.0.1", number), partial(handler, directory=str(folder)))

    if port is not None:
        return listen(port)
    try:
        return listen(_FIRST_PORT)
    except OSError:
        return listen(0)


@contextmanager
def served(folder: Path, *, headers: dict[str, str] | None = None) -> Iterator[str]:
    """The address of `folder`, served in a thread until the block ends; `headers` as for `create_server`."""
    with create_server(folder, port=0, headers=headers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()
