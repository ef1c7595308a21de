"""/live: one page with the annotated frames of a camera or a stream, for a device without a screen.

The camera is opened when somebody opens the page, and closed when the last one has left.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from fer_runtime.errors import FerError
from fer_runtime.images import Uint8Array
from fer_runtime.output.annotate import draw_faces
from fer_runtime.server.errors import RequestError
from fer_runtime.server.guard import COOKIE
from fer_runtime.server.logs import log, log_exception
from fer_runtime.server.recognition import Recognition
from fer_runtime.video.recognize import recognize_video
from fer_runtime.video.results import FrameResult
from fer_runtime.video.sources import Gap

ENDLESS = frozenset(("/live/video", "/live/events"))
_WEB = Path(__file__).parent / "web"
_MAX_VIEWERS = 8
_LONGEST_SIDE = 1280  # pixels of the frames that are sent
_QUALITY = 80  # of its JPEG, percent
_AGAIN_SECONDS = 3.0  # before a source that ended is opened again
_KEPT_SECONDS = 5.0  # that the camera stays on after the last viewer has left, for a page that is loaded again
_END_SECONDS = 10.0  # that a camera may take to close
_BOUNDARY = "fer-frame"
_UNBUFFERED = {"X-Accel-Buffering": "no"}  # nginx would collect what comes, and send it later
_POLICY = "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'"


@dataclass(frozen=True, slots=True)
class _Moment:
    """The newest annotated frame, and what the page says about it."""

    number: int
    jpeg: bytes | None
    text: str  # JSON


class LiveView:
    """A source that is watched while somebody looks.

    Args:
        source: a camera's number, or the address of a stream.
        name: of the source on the page; an address stays here.
        recognition: whose first model and detector look at the frames.
    """

    def __init__(self, source: int | str, name: str, recognition: Recognition) -> None:
        self._source = source
        self._name = name
        self._recognition = recognition
        self._viewers = 0
        self._thread: threading.Thread | None = None  # of the camera that is on
        self._threads: list[threading.Thread] = []  # and those that are about to end
        self._stop = threading.Event()
        self._open: Any = None  # the stream, to close it from outside
        self._moment = _Moment(0, None, self._text(False, "the camera is off"))
        self._changed: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._has_ended = False

    def routes(self) -> list[Route]:
        """The page's addresses."""
        return [
            Route("/live", self.page, methods=["GET"]),
            *(Route(f"/live/{name}", _file(name), methods=["GET"]) for name in ("live.css", "live.js", "icon.svg")),
            Route("/live/video", self.video, methods=["GET"]),
            Route("/live/events", self.events, methods=["GET"]),
        ]

    async def page(self, request: Request) -> Response:
        """GET /live; `?token=` becomes a cookie, because an <img> sends no header."""
        if "token" in request.query_params:
            answer: Response = RedirectResponse("/live", 303)
            # The guard has let the request in, so that it may have the token.
            if (token := self._recognition.settings.token) is not None:
                answer.set_cookie(COOKIE, quote(token, safe=""), path="/live", httponly=True, samesite="strict")
            return answer
        return FileResponse(_WEB / "live.html", headers={"Content-Security-Policy": _POLICY})

    async def video(self, request: Request) -> Response:
        """GET /live/video: motion JPEG."""
        self._check_room()

        async def parts() -> AsyncIterator[bytes]:
            async for moment in self._watch():
                if moment.jpeg is not None:
                    head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(moment.jpeg)}\r\n\r\n"
                    yield head.encode() + moment.jpeg + b"\r\n"

        kind = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"
        return StreamingResponse(parts(), media_type=kind, headers=_UNBUFFERED)

    async def events(self, request: Request) -> Response:
        """GET /live/events: the faces, and whether the camera is on, as server-sent events."""
        self._check_room()

        async def lines() -> AsyncIterator[bytes]:
            async for moment in self._watch():
                yield f"data: {moment.text}\n\n".encode()

        return StreamingResponse(lines(), media_type="text/event-stream", headers=_UNBUFFERED)

    def end(self) -> None:
        """End the streams and close the camera: the service stops."""
        self._has_ended = True
        self._turn_off()
        if self._changed is not None:
            self._changed.set()

    def join(self) -> None:
        """Wait for the camera to be closed, after `end`: FFmpeg's threads must not outlive the interpreter."""
        for thread in self._threads:
            thread.join(_END_SECONDS)

    def _check_room(self) -> None:
        if self._viewers >= 2 * _MAX_VIEWERS:  # a page has two connections
            raise RequestError(503, "viewers", f"{_MAX_VIEWERS} pages show the camera already; close one")

    async def _watch(self) -> AsyncIterator[_Moment]:
        """The present moment, and each later one that there is time for."""
        self._loop = asyncio.get_running_loop()
        if self._changed is None:
            self._changed = asyncio.Event()
        self._viewers += 1
        self._recognition.metrics.viewers.inc()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._thread is None:
            self._turn_on()
        seen = -1
        try:
            while not self._has_ended:
                changed, moment = self._changed, self._moment
                if moment.number != seen:
                    seen = moment.number
                    yield moment
                else:
                    await changed.wait()
        finally:
            self._viewers -= 1
            self._recognition.metrics.viewers.dec()
            if self._viewers == 0 and not self._has_ended:
                self._timer = self._loop.call_later(_KEPT_SECONDS, self._turn_off)

    def _turn_on(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._stop,), name="fer-live", daemon=True)
        self._threads = [thread for thread in self._threads if thread.is_alive()] + [self._thread]
        self._thread.start()

    def _turn_off(self) -> None:
        self._stop.set()
        self._thread = None
        self._timer = None
        # A stream that waits for frames ends at once; a camera after its next frame. Requests do not wait for either.
        if self._open is not None:
            threading.Thread(target=self._open.close, name="fer-close", daemon=True).start()

    def _run(self, stop: threading.Event) -> None:
        """The thread that looks."""
        log("camera", result="on")
        while not stop.is_set():
            try:
                reason = self._look(stop)
            except (FerError, RequestError) as error:
                reason = str(error)
            except Exception as error:
                log_exception(error)
                reason = "the camera failed; the service's log says where"
            if not stop.is_set():
                self._publish(stop, None, self._text(False, reason))
                stop.wait(_AGAIN_SECONDS)
        self._publish(stop, None, self._text(False, "the camera is off"))
        log("camera", result="off")

    def _look(self, stop: threading.Event) -> str:
        """Look until the source ends, or the model does; the reason for the page.

        Raises:
            FerError: the source cannot be read.
            RequestError: there is no model, or it fails its self-test.
        """

        def show(image: Uint8Array, result: FrameResult) -> None:
            self._publish(stop, _picture(image, result), self._text(True, None, result))

        def note(gap: Gap) -> None:
            self._publish(stop, None, self._text(False, gap.reason))

        recognizer = self._recognition.models.get().recognizer
        self._publish(stop, None, self._text(False, "the camera is being opened"))
        source, stream = self._open_source(stop)
        self._open = stream
        try:
            if stop.is_set() and stream is not None:  # turned off before there was anything to close
                stream.close()
            with closing(recognize_video(recognizer, source, on_frame=show, on_gap=note)) as results:
                for _ in results:
                    if stop.is_set():
                        break
                    if self._recognition.models.get().recognizer is not recognizer:
                        return "another model is served now"
            return "the source has ended"
        finally:
            if self._open is stream:  # not that of a thread that has begun meanwhile
                self._open = None

    def _open_source(self, stop: threading.Event) -> tuple[Any, Any]:
        """What `recognize_video` takes, and the stream among them; a camera has none."""
        if isinstance(self._source, int):
            return self._source, None
        from fer_runtime.video.streams import Stream

        def tell(message: str) -> None:
            # Not that the connection is back: the frames say so.
            if self._open is None or self._open.is_lost:
                reason = message.removeprefix(f"{self._name}: ")
                self._publish(stop, None, self._text(False, reason))

        stream = Stream(self._source, name=self._name, reconnect=float("inf"), on_message=tell)
        return stream, stream

    def _publish(self, stop: threading.Event, jpeg: bytes | None, text: str) -> None:
        loop = self._loop
        # A thread whose camera was turned off says no more, but for its last word.
        if loop is None or loop.is_closed() or (stop.is_set() and stop is not self._stop):
            return
        loop.call_soon_threadsafe(self._take, jpeg, text)

    def _take(self, jpeg: bytes | None, text: str) -> None:
        self._moment = _Moment(self._moment.number + 1, jpeg, text)
        if self._changed is not None:
            # Those who wait go on; the next ones wait for another event.
            before, self._changed = self._changed, asyncio.Event()
            before.set()

    def _text(self, is_on: bool, reason: str | None, result: FrameResult | None = None) -> str:
        row = {} if result is None else result.to_dict()
        row.pop("path", None)
        return json.dumps({"source": self._name, "camera": is_on, "reason": reason, **row})


def _picture(image: Uint8Array, result: FrameResult) -> bytes | None:
    """The frame with its faces drawn in, as JPEG."""
    drawn: Any = draw_faces(
        image, [tracked.face for tracked in result.faces], numbers=[tracked.track for tracked in result.faces]
    )
    factor = _LONGEST_SIDE / max(drawn.shape[:2])
    if factor < 1:
        drawn = cv2.resize(drawn, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    encoded, content = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return content.tobytes() if encoded else None


def _file(name: str) -> Callable[[Request], Any]:
    async def send(request: Request) -> Response:
        return FileResponse(_WEB / name)

    return send
