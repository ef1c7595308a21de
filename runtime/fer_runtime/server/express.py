"""A fast path for binary inference requests that skips h11, ASGI and the routes, which cost more than a face does.

A request takes it if its head has the plainest form of HTTP/1.1 and nothing is wrong with it. Any other request goes,
with every byte, to the application, which names what is wrong.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from fer_runtime.server.batching import Outputs
from fer_runtime.server.bodies import BodyBudget
from fer_runtime.server.errors import RequestError
from fer_runtime.server.guard import CLOSED, FAULT, SAFE_HEADERS, late_error
from fer_runtime.server.logs import RequestLog, log_exception
from fer_runtime.server.models import ServedModel
from fer_runtime.server.protocol import HEADER, Plan, answer, parse_plan
from fer_runtime.server.recognition import Recognition

# Each text matches in one way at most, or a hostile one would keep the event loop busy for hours.
_HEAD = re.compile(
    rb"POST (/v2/models/([A-Za-z0-9._-]{1,100})/infer) HTTP/1\.1\r\n((?:[A-Za-z0-9-]+:[\x20-\x7e]*\r\n){1,50})\r\n"
)
BEGINNING = b"POST /v2/models/"  # of such a head
MAX_HEAD = 2048  # bytes
_MAX_BODY = 256 << 10
# They change how a request is read, or how it is answered.
_NOT_HERE = {b"transfer-encoding", b"content-encoding", b"expect", b"upgrade", b"te", b"trailer"}
_MAX_KEPT = 256  # heads, and plans of a model: clients send the same ones again and again
_ROUTE = "/v2/models/{name}/infer"


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a request that may take the short way."""

    model: str
    size: int  # bytes of the head
    total: int  # and with the body
    json_size: int


@dataclass(slots=True)
class Running:
    """A request that the model has."""

    head: Head
    model: ServedModel
    plan: Plan
    faces: int
    answers: asyncio.Future[Outputs]


class Express:
    """What all connections share.

    Args:
        recognition: models, threads and limits.
        budget: of bodies in memory.
        check: refuses those who may not ask: headers and path.
    """

    def __init__(
        self,
        recognition: Recognition,
        budget: BodyBudget,
        check: Callable[[list[tuple[bytes, bytes]], str], None],
    ) -> None:
        self.timeout = recognition.settings.timeout
        self._recognition = recognition
        self._budget = budget
        self._check = check
        self._heads: dict[bytes, Head] = {}
        metrics = recognition.metrics
        self._seconds = metrics.seconds.labels(_ROUTE)
        self._log = RequestLog("POST", _ROUTE)

    def head(self, text: bytes) -> Head | None:
        """The head of a request, or None where the application must answer it."""
        known = self._heads.get(text)
        if known is None:
            known = self._parse(text)
            if known is not None:
                if len(self._heads) >= _MAX_KEPT:
                    self._heads.clear()
                self._heads[text] = known
        return known

    def _parse(self, text: bytes) -> Head | None:
        match = _HEAD.fullmatch(text)
        if match is None:
            return None
        path, model, lines = match.groups()
        headers: dict[bytes, bytes] = {}
        for line in lines.split(b"\r\n")[:-1]:
            name, _, value = line.partition(b":")
            if name.lower() in headers:
                return None
            headers[name.lower()] = value.strip(b" ")
        length, json_size = headers.get(b"content-length", b""), headers.get(HEADER.lower().encode(), b"")
        if not _is_size(length) or not _is_size(json_size) or not int(json_size) < int(length) <= _MAX_BODY:
            return None
        if _NOT_HERE & set(headers) or headers.get(b"connection", b"keep-alive").lower() != b"keep-alive":
            return None
        if not headers.get(b"host"):
            return None
        try:
            self._check(list(headers.items()), path.decode())
        except RequestError:
            return None
        return Head(model.decode(), len(text), len(text) + int(length), int(json_size))

    def begin(self, head: Head, content: bytes) -> Running | None:
        """Give the request's faces to the model; None where the application must answer.

        Args:
            head: of the request.
            content: from the head on.
        """
        recognition = self._recognition
        if recognition.active >= recognition.settings.max_requests:
            return None
        start = head.size + head.json_size
        text = content[head.size : start]
        try:
            model = recognition.models.get(head.model)
            plan = model.plans.get(text)
            if plan is None:
                plan = parse_plan(text, model)
                if plan.pixels is not None or plan.shape[0] > recognition.settings.batch_size:
                    return None
                if len(model.plans) >= _MAX_KEPT:
                    model.plans.clear()
                model.plans[text] = plan
            faces = plan.faces(content[: head.total], start)
            assert model.batcher is not None
            model.batcher.admit(len(faces))
            self._budget.take(head.total)
        except RequestError:
            return None
        recognition.active += 1
        recognition.metrics.in_progress.inc()
        return Running(head, model, plan, len(faces), recognition.submit(model, faces))

    def end(self, running: Running, started: float, *, is_late: bool) -> tuple[int, bytes, list[bytes]]:
        """The request has ended: its status, the JSON of the answer, and the tensors behind it."""
        recognition = self._recognition
        recognition.active -= 1
        recognition.metrics.in_progress.dec()
        self._budget.used -= running.head.total
        status = 200
        tensors: list[bytes] = []
        if running.answers.cancelled():
            error = late_error(self.timeout)
            status, reason, text = (error.status, error.reason, str(error)) if is_late else (CLOSED, "closed", "")
        elif (failed := running.answers.exception()) is not None:
            log_exception(failed)
            status, reason, text = 500, "fault", FAULT
        else:
            body, tensors = answer(running.plan, running.answers.result(), running.model)
            recognition.metrics.inferences.labels(running.model.name).inc(running.faces)
        if status != 200:
            recognition.metrics.refused.labels(reason).inc()
            body = json.dumps({"error": text}).encode()
        seconds = perf_counter() - started
        recognition.metrics.requests.labels(_ROUTE, str(status)).inc()
        self._seconds.observe(seconds)
        self._log.add(status, seconds, running.faces)
        return status, body, tensors


def _is_size(text: bytes) -> bool:
    return text.isdigit() and len(text) <= 7


def response_of(
    status: int, body: bytes, tensors: list[bytes], default_headers: list[tuple[bytes, bytes]], *, closes: bool
) -> bytes:
    """A whole response."""
    size = len(body) + sum(map(len, tensors))
    kind = _OCTETS % len(body) if tensors else _JSON
    lines = [_STATUS[status], *(b"%b: %b\r\n" % header for header in default_headers), kind]
    if status == 503:
        lines.append(b"retry-after: 1\r\n")
    if closes:
        lines.append(b"connection: close\r\n")
    return b"".join([*lines, _SAFE, b"content-length: %d\r\n\r\n" % size, body, *tensors])


_STATUS = {
    200: b"HTTP/1.1 200 OK\r\n",
    500: b"HTTP/1.1 500 Internal Server Error\r\n",
    503: b"HTTP/1.1 503 Service Unavailable\r\n",
}
_OCTETS = b"content-type: application/octet-stream\r\n" + HEADER.lower().encode() + b": %d\r\n"
_JSON = b"content-type: application/json\r\n"
_SAFE = b"".join(b"%b: %b\r\n" % header for header in SAFE_HEADERS)
