"""/live: a stream with faces, watched by a program and in Chromium."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from tests.processes import started
from tests.runtime.server.serving import Service, serving
from tests.runtime.video.films import write_film
from tests.runtime.video.served import Served, free_port, mjpeg_arguments, needs_ffmpeg

from fer_runtime.batch.sources import sample_images
from fer_runtime.cli.serve import main
from fer_runtime.model.find import find_model
from fer_runtime.server import ServerSettings, live
from fer_runtime.server.app import open_recognition
from fer_runtime.server.live import LiveView
from fer_runtime.server.metrics import Metrics
from fer_runtime.server.models import open_model
from fer_runtime.server.recognition import Recognition

pytest.importorskip("playwright", reason="needs Playwright: pip install playwright")

from tests.chromium import launched, visiting

TOKEN = "0123/567+9abcdef; 0123=="  # as from: openssl rand -base64, and what a cookie cannot hold
_SECRET = "hunter2"


@contextmanager
def filmed(folder: Path) -> Iterator[str]:
    """The address of a camera that sees a photograph of two people, for one reader."""
    photo: Any = cv2.imread(sample_images()[2])
    photo = cv2.resize(photo, (640, 416))
    write_film(folder / "film.avi", "MJPG", frames=[np.roll(photo, shift, axis=1) for shift in range(20)], rate=10)
    port = free_port()
    loop = ("-re", "-stream_loop", "-1", "-i", str(folder / "film.avi"))
    address = f"http://127.0.0.1:{port}/"
    command = ["ffmpeg", "-loglevel", "quiet", *loop, "-c", "copy", "-f", "mpjpeg", "-listen", "1", address]
    with started(command, stdin=subprocess.DEVNULL):
        yield f"http://admin:{_SECRET}@127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    pytest.importorskip("av", reason="PyAV is missing: pip install 'fer-edge[stream]'")
    folder = tmp_path_factory.mktemp("service")
    with (
        filmed(folder) as address,
        serving(
            folder / "empty", "--model", "v0", "--detector", "haar", "--stream", address, "--name", "door"
        ) as running,
    ):
        yield running
        # With a page open: SIGTERM ends the streams, too.
        connection = HTTPConnection("127.0.0.1", running.port, timeout=60)
        connection.request("GET", "/live/events")
        connection.getresponse().readline()
        assert running.stop() == 0
        connection.close()


def was(service: Service, result: str) -> int:
    return sum(line["event"] == "camera" and line["result"] == result for line in service.lines)


@needs_ffmpeg
def test_the_page_shows_the_faces_and_that_the_camera_is_on(service: Service) -> None:
    assert was(service, "on") == 0  # nobody looks
    address = f"http://127.0.0.1:{service.port}/live"
    with (
        launched() as browser,
        visiting(browser, address) as wide,
        visiting(browser, address, width=390, dark=True) as phone,
    ):
        for visit in (wide, phone):
            visit.wait_for("document.getElementById('notice').dataset.camera === 'on'")
            assert visit.evaluate("document.getElementById('notice').textContent") == "Camera is on: door"
            visit.wait_for("document.getElementById('picture').naturalWidth === 640")
            visit.wait_for("document.querySelectorAll('#faces li').length >= 2")
            assert "neutral" in visit.evaluate("document.getElementById('faces').textContent")
            doubts = "reasons: ['low_confidence', 'small']"
            doubted = f"{{track: 3, expression: 'sad', confidence: 0.4, probabilities: {{}}, {doubts}}}"
            assert visit.evaluate(f"show({doubted}).textContent") == "3: sad 40 %low confidence, small"
            assert visit.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert visit.complaints == []
            assert [request for request in visit.requests if not request.startswith(f"{address}/")] == []
    assert was(service, "on") == 1  # one camera for both
    # The camera is closed a moment after the last one has left.
    deadline = time.monotonic() + 60
    while was(service, "off") < was(service, "on"):
        assert time.monotonic() < deadline, service.lines[-5:]
        time.sleep(0.1)
    assert _SECRET not in json.dumps(service.lines)


class _FakeCamera:
    """Stands for cv2.VideoCapture: gray frames without end."""

    released = 0

    def isOpened(self) -> bool:  # noqa: N802  (as in OpenCV)
        return True

    def read(self) -> tuple[bool, Any]:
        time.sleep(0.01)
        return True, np.full((120, 160, 3), 128, np.uint8)

    def release(self) -> None:
        self.released += 1


def test_a_camera_is_turned_off_after_the_last_viewer_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = _FakeCamera()
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: camera)
    monkeypatch.setattr(live, "_KEPT_SECONDS", 0.0)
    recognition = open_recognition(ServerSettings(models=("v0",), detector="haar"))
    view = LiveView(0, "camera 0", recognition)
    failures: list[Any] = []

    async def visit_twice() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
        for is_last in (False, True):
            watching: Any = view._watch()
            while (await anext(watching)).jpeg is None:
                pass
            if is_last:
                view.end()
            await watching.aclose()
            while not is_last and (not camera.released or view._moment.jpeg is not None):
                await asyncio.sleep(0.01)

    try:
        asyncio.run(asyncio.wait_for(visit_twice(), 60))
        view.join()
    finally:
        recognition.close()
    assert failures == []
    assert camera.released == 2


def test_the_page_says_that_no_model_is_served_and_takes_the_newest(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: _FakeCamera())
    monkeypatch.setattr(live, "_AGAIN_SECONDS", 0.3)
    settings = ServerSettings(detector="haar")
    recognition = Recognition(settings, [], Metrics())
    view = LiveView(0, "camera 0", recognition)
    path = find_model("v0")

    async def watch() -> None:
        watching: Any = view._watch()
        for reason in ("no model is served yet", "another model is served now"):
            while json.loads((await anext(watching)).text)["reason"] != reason:
                pass
            recognition.models.put(open_model(path, settings))
            while (await anext(watching)).jpeg is None:
                pass
            recognition.models.put(open_model(path, settings))
        view.end()
        await watching.aclose()

    try:
        asyncio.run(asyncio.wait_for(watch(), 30))
        view.join()
    finally:
        recognition.close()
    assert "exception" not in capfd.readouterr().err


@needs_ffmpeg
def test_the_page_says_that_the_stream_is_lost_until_it_is_back() -> None:
    pytest.importorskip("av", reason="PyAV is missing: pip install 'fer-edge[stream]'")
    port = free_port()
    recognition = open_recognition(ServerSettings(models=("v0",), detector="whole"))
    view = LiveView(f"http://admin:{_SECRET}@127.0.0.1:{port}/", "door", recognition)
    camera = Served(*mjpeg_arguments(port))
    reasons: list[str] = []

    async def watch() -> None:
        watching: Any = view._watch()
        for _ in range(2):  # it is off, on, off, and on again
            while "connecting again" not in str(json.loads((moment := await anext(watching)).text)["reason"]):
                pass
            assert moment.jpeg is None
            reasons.append(json.loads(moment.text)["reason"])
            camera.start()
            while (await anext(watching)).jpeg is None:
                pass
            camera.kill()
        view.end()
        await watching.aclose()

    try:
        asyncio.run(asyncio.wait_for(watch(), 60))
        view.join()
    finally:
        camera.kill()
        recognition.close()
    assert reasons[0].startswith("Connection refused")
    assert _SECRET not in str(reasons)


def test_requests_do_not_wait_for_a_stream_that_is_closed() -> None:
    class Stalled:
        """A stream whose reading thread waits for a server that does not answer."""

        def close(self) -> None:
            closes.set()
            is_over.wait(60)

    closes, is_over = threading.Event(), threading.Event()
    view = LiveView("rtsp://camera.local/main", "door", Recognition(ServerSettings(), [], Metrics()))
    view._open = Stalled()
    started = time.monotonic()
    view.end()  # in the event loop
    assert time.monotonic() - started < 30
    assert closes.wait(60)
    is_over.set()


@pytest.mark.parametrize("name", ["video", "events"])
def test_nginx_is_asked_to_pass_on_each_moment_at_once(name: str) -> None:
    view: Any = LiveView(0, "camera 0", Recognition(ServerSettings(), [], Metrics()))
    answer = asyncio.run(getattr(view, name)(None))
    assert answer.headers["X-Accel-Buffering"] == "no"  # nginx's documentation of proxy_buffering


@needs_ffmpeg
def test_events_and_pictures_are_the_same_moment(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is missing: pip install 'fer-edge[stream]'")
    with (
        filmed(tmp_path) as address,
        serving(tmp_path / "empty", "--model", "v0", "--detector", "haar", "--stream", address) as running,
    ):
        events = HTTPConnection("127.0.0.1", running.port, timeout=60)
        events.request("GET", "/live/events")
        lines = events.getresponse()
        while not (event := json.loads(next_event(lines)))["camera"]:
            assert _SECRET not in json.dumps(event)
        assert len(event["faces"]) >= 2
        assert event["source"] == address.replace(f"admin:{_SECRET}@", "").rstrip("/")
        video = HTTPConnection("127.0.0.1", running.port, timeout=60)
        video.request("GET", "/live/video")
        stream = video.getresponse()
        assert stream.headers["Content-Type"] == "multipart/x-mixed-replace; boundary=fer-frame"
        for _ in range(2):
            picture: Any = cv2.imdecode(np.frombuffer(next_picture(stream), np.uint8), cv2.IMREAD_COLOR)
            assert picture.shape == (416, 640, 3)
        video.close()
        events.close()


def next_event(lines: Any) -> str:
    while not (line := lines.readline()).startswith(b"data: "):
        assert line
    return str(line[6:].decode())


def next_picture(stream: Any) -> bytes:
    size = 0
    while (line := stream.readline()) != b"\r\n" or not size:
        assert line
        if line.lower().startswith(b"content-length:"):
            size = int(line.split(b":")[1])
    return bytes(stream.read(size))


def test_the_page_needs_the_token_once(tmp_path: Path) -> None:
    with serving(tmp_path / "empty", "--model", "v0", "--camera", "63", FER_SERVE_TOKEN=TOKEN) as running:
        assert running.ask("GET", "/live").status == 401
        assert running.ask("GET", "/live?token=wrong").status == 401
        assert running.ask("GET", f"/live?token={quote_plus(TOKEN)}").status == 303
        given = running.ask("GET", f"/live?token={quote(TOKEN, safe='/+')}")
        assert (given.status, given.headers["location"]) == (303, "/live")
        cookie = given.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        page = running.ask("GET", "/live", Cookie=cookie.partition(";")[0])
        assert page.status == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        # A camera that is not there is a message on the page, and no end of the service.
        events = HTTPConnection("127.0.0.1", running.port, timeout=60)
        events.request("GET", "/live/events", headers={"Cookie": cookie.partition(";")[0]})
        lines = events.getresponse()
        while "63" not in next_event(lines):
            pass
        events.close()


def test_one_source_is_shown() -> None:
    both = CliRunner().invoke(main, ["--camera", "0", "--stream", "rtsp://camera/"])
    assert both.exit_code == 2
    assert "give --camera or --stream" in both.output
    assert CliRunner().invoke(main, ["--stream", "film.mp4"]).exit_code == 2
    assert CliRunner().invoke(main, ["--name", "door"]).exit_code == 2
