"""YuNet's model file: where it lies, and how it is fetched when somebody asks for it."""

from __future__ import annotations

from pathlib import Path

from fer_runtime.errors import DownloadError
from fer_runtime.files import cache_folder, sha256_of, write_atomically

# The OpenCV Zoo keeps the file in Git LFS; this address gives its bytes, not the pointer.
URL = (
    "https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models/face_detection_yunet/"
    "face_detection_yunet_2023mar.onnx"
)
SIZE = 232_589  # bytes
SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
ADVICE = "download one with: fer-infer --fetch-yunet"  # the next step where the file is missing or another
_TIMEOUT = 30  # seconds


def yunet_path() -> Path:
    """Where `fetch_yunet` leaves the file."""
    return cache_folder() / "face_detection_yunet_2023mar.onnx"


def fetch_yunet(*, url: str = URL) -> Path:
    """Download YuNet to the cache folder, unless it is there; nothing but the pinned bytes is kept.

    Raises:
        DownloadError: no network, or another file came.
        OutputError: the cache folder cannot be written.
    """
    # Every run asks for the path, few fetch: OpenSSL and the HTTP client take 30 ms to load.
    import hashlib
    import urllib.request
    from http.client import HTTPException

    path = yunet_path()
    if path.is_file() and sha256_of(path) == SHA256:
        return path
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
            # One byte more than is right tells a longer file apart without reading all of it.
            content = response.read(SIZE + 1)
    except (OSError, ValueError, HTTPException) as error:
        raise DownloadError(
            f"cannot download {url} ({error}); fetch it elsewhere and give --yunet FILE, or put it at {path}"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if len(content) != SIZE or digest != SHA256:
        raise DownloadError(
            f"{url} gave other bytes than expected (SHA-256 {digest[:12]}…, not {SHA256[:12]}…); nothing was kept, "
            "fetch it elsewhere and give --yunet FILE"
        )
    write_atomically(path, content)
    return path
