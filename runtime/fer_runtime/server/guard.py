"""Middleware around every request: access, number of requests in progress, and time limit."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from time import perf_counter
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fer_runtime.server.errors import RequestError
from fer_runtime.server.logs import log, log_exception
from fer_runtime.server.recognition import Recognition
from fer_runtime.server.settings import LOOPBACK

# Answered without a token: they tell no more than whether the service works.
_OPEN = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
FAULT = "the service failed; its log says where"
COOKIE = "fer_token"  # of the live page, whose <img> sends no header; quoted, because a cookie holds few characters
_TOKEN = b"token="  # in the page's address
SAFE_HEADERS = (  # of every answer
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
CLOSED = 499  # nginx's status for a client that hung up before its answer; nobody receives it


def error_response(error: RequestError) -> Response:
    """The answer to a request that is refused."""
    return JSONResponse({"error": str(error)}, error.status, headers=error.headers)


def late_error(timeout: float) -> RequestError:
    """A request took longer than it may."""
    return RequestError(503, "time", f"no answer within {timeout:g} s; send fewer or smaller images")


class Guard:
    """Wraps the application.

    Args:
        app: with routes.
        recognition: whose settings hold.
        route_of: the template of the route that answered, for the metrics.
        endless: routes that may last for ever.
    """

    def __init__(
        self, app: ASGIApp, recognition: Recognition, route_of: Callable[[Scope], str], endless: frozenset[str]
    ) -> None:
        self._app = app
        self._recognition = recognition
        self._settings = recognition.settings
        self._metrics = recognition.metrics
        self._route_of = route_of
        self._endless = endless

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        status = 0
        facts: dict[str, Any] = {}
        scope["fer"] = facts  # images and faces, for the log, and how it ended before its answer

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name.lower() for name, _ in message["headers"]}
                added = [header for header in SAFE_HEADERS if header[0] not in given]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        # Those that carry work; a health check must be answered while the service is full.
        is_work = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        admitted = False
        try:
            self.check(scope["headers"], scope["path"], scope["query_string"])
            if is_work:
                self._admit()
                admitted = True
            if scope["path"] in self._endless:

                async def send_in_time(message: Message) -> None:
                    # A viewer who does not read would keep the camera on.
                    await asyncio.wait_for(send_noted(message), self._settings.timeout)

                await self._app(scope, receive, send_in_time)
            else:
                await self._in_time(scope, receive, send_noted)
        except RequestError as error:
            self._metrics.refused.labels(error.reason).inc()
            if status == 0:
                await error_response(error)(scope, receive, send_noted)
        except (ClientDisconnect, asyncio.TimeoutError):
            facts.setdefault("closed", CLOSED)
        except Exception as error:
            log_exception(error)
            self._metrics.refused.labels("fault").inc()
            if status == 0:
                await JSONResponse({"error": FAULT}, 500)(scope, receive, send_noted)
        finally:
            if admitted:
                self._recognition.active -= 1
                self._metrics.in_progress.dec()
            self._note(scope, status, perf_counter() - started)

    def _admit(self) -> None:
        """Count a request among those in progress.

        Raises:
            RequestError: there are as many as there may be.
        """
        if self._recognition.active >= self._settings.max_requests:
            raise RequestError(503, "queue", "too many requests in progress; try again")
        self._recognition.active += 1
        self._metrics.in_progress.inc()

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request that has ended, and log it.

        Args:
            status: of its answer; 0 where it had none.
        """
        facts = scope["fer"]
        # The connection notes it, too. A viewer of the live page leaves it in no other way.
        closed = facts.pop("closed", None)
        if closed is not None and scope["path"] not in self._endless:
            status = closed
            self._metrics.refused.labels("closed").inc()
        route = self._route_of(scope)
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        log("request", method=scope["method"][:16], route=route, status=status, ms=round(1000 * seconds, 2), **facts)

    async def _in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, at most for the time limit.

        Raises:
            RequestError: it took longer.
        """
        task = asyncio.current_task()
        assert task is not None
        is_late = False

        def stop() -> None:
            nonlocal is_late
            is_late = True
            task.cancel()

        timer = asyncio.get_running_loop().call_later(self._settings.timeout, stop)
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not is_late:
                raise
            if hasattr(task, "uncancel"):  # since Python 3.11
                task.uncancel()
            if scope["fer"].get("body") == "reading":
                limit = f"{self._settings.timeout:g} s"
                raise RequestError(408, "slow body", f"the body did not arrive within {limit}") from None
            raise late_error(self._settings.timeout) from None
        finally:
            timer.cancel()

    def check(self, given_headers: list[tuple[bytes, bytes]], path: str, query: bytes = b"") -> None:
        """Refuse a request without access.

        Raises:
            RequestError: another host's page or a wrong token.
        """
        headers = Headers(raw=given_headers)
        host = headers.get("host", "")
        # A page of another origin may have its own name resolve to 127.0.0.1 (DNS rebinding).
        if self._settings.is_loopback and _host_name(host) not in (*LOOPBACK, self._settings.host):
            raise RequestError(
                421, "host", "the service answers to localhost and 127.0.0.1 only; a proxy must send Host: localhost"
            )
        # No CORS: a browser keeps the answers from other sites' pages, and here they cannot even ask.
        origin = headers.get("origin")
        if (origin is not None and _host_of(origin) != host) or headers.get("sec-fetch-site") == "cross-site":
            raise RequestError(403, "origin", "pages of other sites may not use the service")
        token = self._settings.token
        if token is None or path in _OPEN:
            return
        if path == "/live" and any(_is_token(given, token) for given in _query_tokens(query)):
            return
        given = headers.get("authorization", "")
        given = given[7:] if given[:7].lower() == "bearer " else _cookie(headers.get("cookie", ""))
        if not _is_token(given.encode("utf-8", "surrogateescape"), token):
            raise RequestError(401, "token", "send the service's token: Authorization: Bearer TOKEN")


def _is_token(given: bytes, token: str) -> bool:
    return hmac.compare_digest(given, token.encode())


def _host_of(origin: str) -> str | None:
    """The host and port of an `Origin` header; None where it is malformed."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _host_name(host: str) -> str:
    """`host` without its port, in lower case: names of hosts are equal in any."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _query_tokens(query: bytes) -> list[bytes]:
    """What `token=` in an address may mean: a plus sign is itself where somebody typed it, and a space in a form."""
    given = [part[len(_TOKEN) :] for part in query.split(b"&") if part.startswith(_TOKEN)]
    return [unquote_to_bytes(text) for value in given for text in (value, value.replace(b"+", b" "))]


def _cookie(text: str) -> str:
    for part in text.split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return unquote(value)
    return ""
