"""A browser and onnxruntime-web for the tests of the site and of the npm package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import cv2
import pytest
from playwright.sync_api import Browser, BrowserContext
from tests.chromium import launched, new_profile
from tests.export.site.pages import camera_frame

from fer_export.site.server import served
from fer_export.site.write import ORT_WEB_INTEGRITY, ORT_WEB_VERSION, fetch_npm_package
from fer_runtime.errors import DownloadError


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A Chromium whose camera shows Eileen Collins in the middle of a frame of 640 x 480 pixels."""
    film = tmp_path_factory.mktemp("film") / "camera.mjpeg"
    is_encoded, jpeg = cv2.imencode(".jpg", camera_frame(), [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert is_encoded
    film.write_bytes(jpeg.tobytes() * 10)
    flags = [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={film}",
    ]
    with launched(*flags) as browser:
        yield browser


@pytest.fixture(scope="module")
def profile(browser: Browser) -> Iterator[BrowserContext]:
    """A profile that visits sites again and again."""
    with new_profile(browser) as profile:
        yield profile


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[Path], str]]:
    """Serves a folder until the module's end, so that no later site has an address that the profile knows."""
    with ExitStack() as stack:
        yield lambda folder: stack.enter_context(served(folder))


@pytest.fixture(scope="module")
def has_ort_web() -> None:
    try:
        fetch_npm_package("onnxruntime-web", ORT_WEB_VERSION, ORT_WEB_INTEGRITY)
    except DownloadError as error:
        pytest.skip(f"needs onnxruntime-web {ORT_WEB_VERSION}: {error}")
