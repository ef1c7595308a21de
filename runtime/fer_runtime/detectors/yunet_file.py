"""YuNet's model file: its place in the cache folder, its check, and its download on request."""

from __future__ import annotations

import os
import threading
from functools import lru_cache
from importlib import import_module
from pathlib import Path

from fer_runtime.errors import DownloadError, ModelFileError
from fer_runtime.files import cache_folder, sha256_of, write_atomically

# The OpenCV Zoo keeps the file in Git LFS; this address gives its bytes, not the pointer.
URL = (
    "https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models/face_detection_yunet/"
    "face_detection_yunet_2023mar.onnx"
)
SIZE = 232_589  # bytes
SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
ADVICE = "download one with: fer-infer --fetch-yunet"  # the next step where the file is missing or a different one
_TIMEOUT = 30  # seconds without an answer
_TOTAL_SECONDS = 120.0  # for the whole download of 233 kB


def yunet_path() -> Path:
    """Where `fetch_yunet` writes the file."""
    return cache_folder() / "face_detection_yunet_2023mar.onnx"


def given_yunet(path: Path) -> Path:
    """`path`, which is a file.

    Raises:
        ModelFileError: it is missing.
    """
    if not os.path.isfile(path):
        raise ModelFileError(f"no YuNet at {path}; download it with: fer-infer --fetch-yunet, or give --yunet FILE")
    return path


def cached_yunet() -> Path:
    """The file in the cache folder, after its hash has been checked.

    Raises:
        ModelFileError: it is missing, or its bytes are not those that were downloaded.
    """
    path = given_yunet(yunet_path())
    try:
        status = os.stat(path)
        _check(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}; give --yunet FILE") from error
    return path


@lru_cache(maxsize=1)
def _check(path: Path, modified_ns: int, size: int) -> None:
    digest = _sha256(path.read_bytes())
    if digest != SHA256:
        raise ModelFileError(
            f"{path} is damaged or another file (SHA-256 {digest[:12]}..., not {SHA256[:12]}...); download it again "
            "with: fer-infer --fetch-yunet, or give --yunet FILE"
        )


def _sha256(content: bytes) -> str:
    # hashlib loads OpenSSL, which takes as long as a tenth of a run over one image. CPython has SHA-256 of its own,
    # in a module that is named differently from version to version.
    for name in ("_sha2", "_sha256", "hashlib"):
        try:
            return str(import_module(name).sha256(content).hexdigest())
        except (ImportError, AttributeError):
            continue
    raise AssertionError("hashlib has sha256 everywhere")


def fetch_yunet(*, url: str = URL) -> Path:
    """Download YuNet to the cache folder, unless it is there; only the pinned bytes are kept.

    Raises:
        DownloadError: no network, or another file came.
        OutputError: the cache folder cannot be written.
    """
    path = yunet_path()
    if os.path.isfile(path) and sha256_of(path) == SHA256:
        return path
    advice = f"fetch it elsewhere and give --yunet FILE, or put it at {path}"
    answers: list[bytes | Exception] = []
    # In a thread, because looking up a name has no time limit, and a server may send a byte now and then for ever.
    thread = threading.Thread(target=lambda: answers.append(_download(url)), daemon=True)
    thread.start()
    thread.join(_TOTAL_SECONDS)
    if not answers:
        raise DownloadError(f"cannot download {url} (not complete after {_TOTAL_SECONDS:.0f} s); {advice}")
    (content,) = answers
    if isinstance(content, Exception):
        raise DownloadError(f"cannot download {url} ({content}); {advice}") from content
    digest = _sha256(content)
    if len(content) != SIZE or digest != SHA256:
        raise DownloadError(
            f"{url} gave other bytes than expected (SHA-256 {digest[:12]}..., not {SHA256[:12]}...); nothing was kept, "
            "fetch it elsewhere and give --yunet FILE"
        )
    write_atomically(path, content)
    return path


def _download(url: str) -> bytes | Exception:
    # Every run asks for the path, few download: OpenSSL and the HTTP client take 30 ms to load.
    import urllib.request
    from http.client import HTTPException

    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
            # One byte more than is right tells a longer file apart without reading all of it.
            content: bytes = response.read(SIZE + 1)
    except (OSError, ValueError, HTTPException) as error:
        return error
    return content
