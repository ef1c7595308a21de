"""Bodies of requests, read into memory within limits; nothing is written to disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from fer_runtime.server.errors import RequestError

MAX_IMAGES = 256  # of a request
_MAX_NAME = 300  # characters of a file's name
_HEADER_BYTES = 4096  # of a part
_PARTS_IN_WORK = 4  # bodies of the full size that memory is set aside for
_LEAST_BUDGET = 128 << 20


@dataclass(slots=True)
class Upload:
    """One file of a request."""

    name: str  # as the client gives it, "" without one
    content: bytes


class BodyBudget:
    """Bytes of all bodies in memory, and how many there may be."""

    def __init__(self, max_body: int) -> None:
        self.max_body = max_body
        self._most = max(_PARTS_IN_WORK * max_body, _LEAST_BUDGET)
        self.used = 0

    def take(self, count: int) -> None:
        """Count bytes that arrived.

        Raises:
            RequestError: there are too many.
        """
        if self.used + count > self._most:
            raise RequestError(503, "memory", "too many large requests at a time; try again")
        self.used += count


class Body:
    """The body of one request: counted while it is read, given back when the request ends."""

    def __init__(self, request: Request, budget: BodyBudget) -> None:
        self._request = request
        self._budget = budget
        self._taken = 0
        self.is_complete = False

    def release(self) -> None:
        """The request has ended."""
        self._budget.used -= self._taken
        self._taken = 0

    async def read(self, *, limit: int | None = None) -> bytes:
        """The whole body.

        Args:
            limit: bytes at most; the service's limit by default.

        Raises:
            RequestError: it is too long, compressed, or does not arrive.
        """
        content = bytearray()
        async for chunk in self._chunks(self._budget.max_body if limit is None else limit):
            content += chunk
        return bytes(content)

    async def read_images(self) -> list[Upload]:
        """One image as the whole body, or the files of a multipart body.

        Raises:
            RequestError: as for `read`; it is malformed, or has no file.
        """
        kind, options = parse_options_header(self._request.headers.get("content-type"))
        if kind == b"multipart/form-data":
            uploads = await self._read_parts(options)
        elif kind == b"application/json":
            raise RequestError(415, "type", "send an image, or files as multipart/form-data (-F image=@photo.jpg)")
        else:
            # Whatever the type says: curl --data-binary calls everything a form.
            uploads = [Upload("", await self.read())]
        if not uploads or not any(upload.content for upload in uploads):
            raise RequestError(
                400,
                "empty",
                "there is no image; send one as the body, or as multipart/form-data: -F image=@photo.jpg",
            )
        return uploads

    async def _read_parts(self, options: Mapping[bytes, bytes]) -> list[Upload]:
        boundary = options.get(b"boundary", b"")
        if not 1 <= len(boundary) <= 70:  # RFC 2046
            raise RequestError(400, "multipart", "multipart/form-data needs a boundary of 1 to 70 characters")
        parts = _Parts()
        try:
            parser = MultipartParser(boundary, parts.callbacks(), max_header_size=_HEADER_BYTES)
            async for chunk in self._chunks(self._budget.max_body):
                parser.write(chunk)
        except FormParserError as error:
            raise RequestError(400, "multipart", "the multipart body is malformed") from error
        if not parts.has_ended:
            raise RequestError(400, "multipart", "the multipart body ends before its last boundary")
        return parts.uploads

    async def _chunks(self, limit: int) -> Any:
        headers = self._request.headers
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestError(415, "encoding", "compressed bodies are not taken; leave Content-Encoding out")
        length = headers.get("content-length", "")
        # h11 has checked that it is a number.
        if length and int(length) > limit:
            raise RequestError(413, "body", f"the body has {length} bytes, more than the limit of {limit}")
        size = 0
        async for chunk in self._request.stream():
            size += len(chunk)
            if size > limit:
                raise RequestError(413, "body", f"the body has more bytes than the limit of {limit}")
            self._budget.take(len(chunk))
            self._taken += len(chunk)
            yield chunk
        self.is_complete = True


@dataclass(slots=True)
class _Parts:
    """The parts of a multipart body, kept in memory."""

    uploads: list[Upload] = field(default_factory=list)
    has_ended: bool = False
    _count: int = 0
    _header: tuple[bytearray, bytearray] = field(default_factory=lambda: (bytearray(), bytearray()))
    _disposition: bytes = b""
    _type: bytes = b""
    _content: bytearray | None = None
    _name: str = ""

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._count += 1
        if self._count > MAX_IMAGES:
            raise RequestError(413, "parts", f"more than {MAX_IMAGES} parts in a request; send several requests")
        self._disposition, self._type, self._content = b"", b"", None

    def _end_header(self) -> None:
        name, value = self._header
        if bytes(name).lower() == b"content-disposition":
            self._disposition = bytes(value)
        elif bytes(name).lower() == b"content-type":
            self._type = bytes(value).lower()
        self._header = (bytearray(), bytearray())

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" not in options and not self._type.startswith((b"image/", b"application/octet-stream")):
            raise RequestError(
                400, "field", "a form field is not a file; options go into the address: ?min_confidence=0.5"
            )
        self._name = options.get(b"filename", b"").decode("utf-8", "replace")[-_MAX_NAME:]
        self._content = bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._content is None:
            raise RequestError(400, "multipart", "a part of the multipart body has no headers")
        self._content += data[start:end]

    def _end(self) -> None:
        if self._content is not None:
            self.uploads.append(Upload(self._name, bytes(self._content)))
        self._content = None

    def _finish(self) -> None:
        self.has_ended = True
