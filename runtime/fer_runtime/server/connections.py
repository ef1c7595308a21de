"""HTTP connections with limits that uvicorn does not have, for slow clients and for too many.

A connection also has a lane, on which its inference requests may take the short way of `express`.
"""

from __future__ import annotations

import asyncio
import json
from time import perf_counter
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from fer_runtime.server.batching import Outputs
from fer_runtime.server.express import BEGINNING, MAX_HEAD, Express, Head, Running, response_of
from fer_runtime.server.guard import CLOSED

_HEADER_SECONDS = 10.0  # for the headers of a request, from the connection or its first byte
_ANSWER_SECONDS = 30.0  # for a client to read the rest of its answer, once the connection is to close
_LINGER_SECONDS = 2.0  # in which a client may read why its body was not
_BODY_SECONDS = 0.2  # for the rest of a body; then the application reads it, with its own limit
_MAX_BEHIND = 64 << 10  # bytes of requests that were sent before the answer
_MAX_CONNECTIONS = 512
_OTHER_FILES = 128  # descriptors for models, decoders and what libraries open


class LimitedProtocol(H11Protocol):
    """One connection. Headers must arrive in time, and a client that is refused gets the reason."""

    express: Express | None = None
    header_seconds = _HEADER_SECONDS
    answer_seconds = _ANSWER_SECONDS
    max_connections = _MAX_CONNECTIONS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._lingering = False
        self._has_ended = False  # the client's side
        self._header_timer: asyncio.TimerHandle | None = None
        self._lane = None if self.express is None else Lane(self.express, self)
        super().connection_made(_Transport(transport, self))  # type: ignore[arg-type]
        if len(self.connections) > self.max_connections:
            self._answer(503, "too many connections; try again", ("Retry-After", "1"))
        else:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._lane is not None:
            self._lane.lost()
        if self.cycle is not None and not self.cycle.response_complete:
            self._note_closed(CLOSED)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        if self._lane is not None and self._lane.take(data):
            self._unset_keepalive_if_required()
            self._stop_timer()
        else:
            self.pass_on(data)

    @property
    def is_idle(self) -> bool:
        """Whether a new request may begin here, past h11."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and self.conn.our_state is h11.IDLE
            and self.conn.their_state is h11.IDLE
            and not self.conn.trailing_data[0]
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def pass_on(self, data: bytes) -> None:
        """Let h11 and the application have these bytes."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._expect_headers()
        else:
            self._stop_timer()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more; whether the connection stays open for an answer."""
        self._has_ended = True
        if self._lingering:
            return False
        if self._lane is not None and self._lane.ends():
            return True
        if self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body:
            self.cycle.keep_alive = False
            return True
        in_body = self.cycle is not None and not self.cycle.response_complete
        if in_body or self.conn.trailing_data[0]:
            self._answer(400, "the request ends before its end")
        return False

    def shutdown(self) -> None:
        """The service stops: a request in progress is finished first."""
        if self._lane is None or not self._lane.ends():
            super().shutdown()

    def answer_express(self, status: int, body: bytes, tensors: list[bytes], *, closes: bool) -> None:
        """Answer a request that went past h11."""
        self.transport.write(response_of(status, body, tensors, self.server_state.default_headers, closes=closes))
        self.server_state.total_requests += 1
        if closes:
            self.transport.close()
            return
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        self.flow.resume_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._stop_timer()

    def send_400_response(self, msg: str) -> None:
        self._answer(400, "this is no HTTP request")

    def _note_closed(self, status: int) -> None:
        """Tell the log what became of the request that the application has."""
        facts: dict[str, Any] = self.cycle.scope.get("fer", {})  # type: ignore[assignment]
        facts.setdefault("closed", status)

    def linger(self) -> bool:
        """Before a close: whether the client still sends, and must be left to read the answer first.

        Closing at once would reset the connection, and the client would see an error instead of the answer.
        """
        if self._has_ended or self.conn.their_state not in (h11.SEND_BODY, h11.ERROR):
            return False
        self._lingering = True
        self._stop_timer()
        self._unset_keepalive_if_required()
        if self.flow.read_paused:
            self.flow.resume_reading()
        self.loop.call_later(_LINGER_SECONDS, self.transport.abort)
        return True

    def _expect_headers(self) -> None:
        if self._header_timer is None and not self._lingering and not self.transport.is_closing():
            self._header_timer = self.loop.call_later(self.header_seconds, self._on_late_headers)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _on_late_headers(self) -> None:
        self._header_timer = None
        self._answer(408, f"the headers did not arrive within {self.header_seconds:g} s")

    def _answer(self, status: int, message: str, *headers: tuple[str, str]) -> None:
        """Answer without the application, and close."""
        body = json.dumps({"error": message}).encode()
        response = h11.Response(
            status_code=status,
            headers=[
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
                *headers,
            ],
        )
        try:
            answer = self.conn.send(response) or b""
            answer += self.conn.send(h11.Data(data=body)) or b""
            self.transport.write(answer + (self.conn.send(h11.EndOfMessage()) or b""))
        except h11.LocalProtocolError:  # in the middle of an answer
            self.transport.abort()
            return
        if self.cycle is not None and not self.cycle.response_complete:
            # The application must not wait for the rest of the body.
            self._note_closed(status)
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._stop_timer()
        self.transport.close()


class Lane:
    """The short way of one connection, for one request at a time."""

    __slots__ = (
        "_behind",
        "_connection",
        "_content",
        "_express",
        "_head",
        "_is_late",
        "_must_close",
        "_running",
        "_started",
        "_timer",
    )

    def __init__(self, express: Express, connection: LimitedProtocol) -> None:
        self._express = express
        self._connection = connection
        self._head: Head | None = None  # of the request that is being read
        self._content = b""  # of that request
        self._running: Running | None = None
        self._behind = b""  # what came behind the running request
        self._timer: asyncio.TimerHandle | None = None
        self._started = 0.0
        self._is_late = False
        self._must_close = False

    def take(self, data: bytes) -> bool:
        """Whether these bytes go the short way; otherwise they are the application's."""
        if self._running is not None:
            self._behind += data
            if len(self._behind) > _MAX_BEHIND:
                self._connection.flow.pause_reading()
            return True
        if self._head is None:
            if not data.startswith(BEGINNING) or not self._connection.is_idle:
                return False
            end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
            if end < 0:
                return False
            self._head = self._express.head(data[: end + 4])
            if self._head is None:
                return False
            self._content = data
            self._started = perf_counter()
        else:
            self._content += data
        if len(self._content) >= self._head.total:
            self._begin(self._head)
        elif self._timer is None:
            self._timer = self._connection.loop.call_later(_BODY_SECONDS, self.give_up)
        return True

    def give_up(self) -> None:
        """Leave a request that is being read to the application."""
        content, self._content, self._head = self._content, b"", None
        self._stop_timer()
        if content:
            self._connection.pass_on(content)

    def ends(self) -> bool:
        """The client sends no more, or the service stops: whether the connection stays open for an answer."""
        if self._running is None:
            self.give_up()
            return False
        self._must_close = True
        return True

    def lost(self) -> None:
        """The connection is closed."""
        self._content, self._head = b"", None
        self._stop_timer()
        if self._running is not None:
            self._running.answers.cancel()

    def _begin(self, head: Head) -> None:
        self._running = self._express.begin(head, self._content)
        if self._running is None:
            self.give_up()
            return
        self._behind = self._content[head.total :]
        self._content, self._head = b"", None
        self._stop_timer()
        self._is_late = False
        self._timer = self._connection.loop.call_later(self._express.timeout, self._on_late)
        self._running.answers.add_done_callback(self._end)

    def _on_late(self) -> None:
        self._timer = None
        self._is_late = True
        if self._running is not None:
            self._running.answers.cancel()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, answers: asyncio.Future[Outputs]) -> None:
        running, self._running = self._running, None
        self._stop_timer()
        assert running is not None
        status, body, tensors = self._express.end(running, self._started, is_late=self._is_late)
        if status == CLOSED:
            self._connection.transport.abort()
            return
        behind, self._behind = self._behind, b""
        self._connection.answer_express(status, body, tensors, closes=self._must_close)
        if behind and not self._must_close:
            self._connection.data_received(behind)


def limited_protocol(timeout: float, express: Express | None = None) -> type[LimitedProtocol]:
    """The class for connections of a service whose requests may take `timeout` seconds."""
    limits = {
        "header_seconds": min(_HEADER_SECONDS, timeout),
        "answer_seconds": timeout,
        "max_connections": _max_connections(),
        "express": express,
    }
    return type("LimitedProtocol", (LimitedProtocol,), limits)


def _max_connections() -> int:
    """Connections for which there are file descriptors."""
    try:
        import resource
    except ImportError:  # Windows
        return _MAX_CONNECTIONS
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MAX_CONNECTIONS if limit == resource.RLIM_INFINITY else max(8, min(_MAX_CONNECTIONS, limit - _OTHER_FILES))


class _Transport:
    """A transport that lets the client read its answer before it closes."""

    def __init__(self, transport: asyncio.Transport, protocol: LimitedProtocol) -> None:
        self._transport = transport
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._protocol._lingering or self._transport.is_closing()

    def close(self) -> None:
        if self._protocol._lingering:
            return
        if not self._transport.is_closing() and self._protocol.linger():
            if self._transport.can_write_eof():
                self._transport.write_eof()
            return
        self._transport.close()
        # What the client has not read is still sent; one that does not read would keep the connection for ever.
        if self._transport.get_write_buffer_size():
            self._protocol.loop.call_later(self._protocol.answer_seconds, self._transport.abort)
