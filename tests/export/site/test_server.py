"""The server of a site: this machine's browser only, the site's files only."""

from __future__ import annotations

import http.client
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fer_export.site.server import _MOST_CONNECTIONS, create_server, served


@contextmanager
def served_at_port(folder: Path) -> Iterator[int]:
    with served(folder) as address:
        yield int(address.rstrip("/").rpartition(":")[2])


def _get(port: int, path: str, host: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    (site / "empty").mkdir(parents=True)
    (site / "index.html").write_text("the page")
    (site / "app.js").write_text("the code")
    (tmp_path / "secret.txt").write_text("a secret")
    return site


def test_the_server_listens_on_loopback_only(folder: Path) -> None:
    with create_server(folder, port=0) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_the_sites_files_are_served(folder: Path) -> None:
    with served_at_port(folder) as port:
        assert _get(port, "/") == (200, b"the page")
        assert _get(port, "/app.js?version=2", host=f"localhost:{port}") == (200, b"the code")


@pytest.mark.parametrize("host", ["attacker.example", "attacker.example:80", "127.0.0.1:1", "127.0.0.1.example", ""])
def test_another_name_for_this_machine_is_refused(folder: Path, host: str) -> None:
    """DNS rebinding: a page of another site whose name resolves to 127.0.0.1."""
    with served_at_port(folder) as port:
        assert _get(port, "/app.js", host=host)[0] == 421


@pytest.mark.parametrize(
    "path",
    ["/empty/", "/empty", "/../secret.txt", "/%2e%2e/secret.txt", "/a%00b", "/%00", "/" + "x" * 5000, "/none.js"],
)
def test_nothing_else_is_served(folder: Path, path: str) -> None:
    with served_at_port(folder) as port:
        status, content = _get(port, path)
        assert status == 404
        assert b"secret" not in content
        assert b"app.js" not in content


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_are_not_followed(folder: Path) -> None:
    os.symlink(folder.parent / "secret.txt", folder / "link.txt")
    os.symlink(folder.parent, folder / "up")
    os.symlink(folder / "app.js", folder / "inner.js")
    with served_at_port(folder) as port:
        for path in ("/link.txt", "/up/secret.txt", "/inner.js"):
            assert _get(port, path)[0] == 404


def test_idle_connections_do_not_make_threads_without_end(folder: Path) -> None:
    with served_at_port(folder) as port:
        before = threading.active_count()
        idle = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(_MOST_CONNECTIONS + 20)]
        try:
            # The accepting loop waits for a free place, so that further connections get no thread.
            connection = socket.create_connection(("127.0.0.1", port), timeout=60)
            connection.close()
            assert threading.active_count() - before <= _MOST_CONNECTIONS
        finally:
            for opened in idle:
                opened.close()
