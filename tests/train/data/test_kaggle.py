"""The download through kagglehub's own client, against a loopback server that answers like Kaggle's."""

from __future__ import annotations

import io
import json
import os
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.commands import run_python_text

from fer_runtime.expressions import EXPRESSIONS

_DOWNLOAD = (
    "from fer_train.data.kaggle import download_dataset; import sys; sys.stderr.write(f'{download_dataset()}\\n')"
)


def _archive() -> bytes:
    """The dataset's layout with one image per class and split."""
    _, image = cv2.imencode(".png", np.full((48, 48), 90, np.uint8))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for split in ("train", "validation"):
            for name in EXPRESSIONS:
                archive.writestr(f"images/{split}/{name}/1.png", image.tobytes())
    return buffer.getvalue()


class _Kaggle(ThreadingHTTPServer):
    """Kaggle's two calls; counts the downloads, and breaks them off when told to."""

    archive = _archive()
    downloads = 0
    breaks_off = False


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, _Kaggle)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/GetDataset"):
            answer = json.dumps({"ref": "jonathanoheix/face-expression-recognition-dataset", "currentVersionNumber": 1})
            self._send(answer.encode(), "application/json")
        elif self.path.endswith("/DownloadDataset"):
            server.downloads += 1
            self._send(server.archive, "application/zip", cut=server.breaks_off)
        else:
            self.send_error(404)

    def _send(self, content: bytes, kind: str, *, cut: bool = False) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def kaggle() -> Iterator[_Kaggle]:
    server = _Kaggle(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def _download(server: _Kaggle, home: Path) -> subprocess.CompletedProcess[str]:
    # kagglehub's environment "LOCALHOST" speaks plain HTTP to port 80, which only root may serve;
    # as a proxy our server receives the same requests on a port of its own.
    return _run(home, KAGGLE_API_ENVIRONMENT="LOCALHOST", http_proxy=f"http://127.0.0.1:{server.server_address[1]}")


def _run(home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower() and "KAGGLE" not in key}
    environment = kept | {"HOME": str(home), "KAGGLEHUB_CACHE": str(home / "cache")} | variables
    return run_python_text("-c", _DOWNLOAD, env=environment)


def _root(run: subprocess.CompletedProcess[str]) -> Path:
    assert run.returncode == 0, run.stderr
    return Path(run.stderr.splitlines()[-1])


def test_the_archive_is_downloaded_once_and_then_comes_from_the_cache(kaggle: _Kaggle, tmp_path: Path) -> None:
    root = _root(_download(kaggle, tmp_path))
    images = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    assert images == sorted(f"images/{split}/{name}/1.png" for split in ("train", "validation") for name in EXPRESSIONS)
    assert _root(_download(kaggle, tmp_path)) == root
    assert kaggle.downloads == 1


def test_a_broken_download_is_no_dataset_and_the_next_one_is_whole(kaggle: _Kaggle, tmp_path: Path) -> None:
    kaggle.breaks_off = True
    broken = _download(kaggle, tmp_path)
    assert broken.returncode != 0
    assert "DownloadError" in broken.stderr
    assert not list((tmp_path / "cache").rglob("*.png"))
    kaggle.breaks_off = False
    assert len(list(_root(_download(kaggle, tmp_path)).rglob("*.png"))) == 2 * len(EXPRESSIONS)


def test_without_a_network_the_error_says_where_to_get_the_dataset(tmp_path: Path) -> None:
    # Nothing listens on port 9 of the loopback address.
    run = _run(tmp_path, KAGGLE_API_ENVIRONMENT="LOCALHOST", http_proxy="http://127.0.0.1:9")
    assert run.returncode != 0
    assert "https://www.kaggle.com/datasets/jonathanoheix/face-expression-recognition-dataset" in run.stderr
    assert "--data data" in run.stderr
