"""The service's log: a JSON object per line on standard error, without images, names of files or addresses."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import traceback
from datetime import datetime, timezone
from typing import Any

_TOGETHER = 16  # lines of a write; a pipe takes 4 KiB in one piece


def log(event: str, *, level: str = "info", **fields: Any) -> None:
    """Write one line."""
    _write(json.dumps({"time": _now(), "level": level, "event": event} | fields) + "\n")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _write(text: str) -> None:
    stream = sys.stderr
    if stream is not None:  # None where it was closed
        # In one write, so that lines of several threads do not mix.
        stream.write(text)
        stream.flush()


class RequestLog:
    """Lines about requests of one kind, written together: each write costs as much as an answer.

    They are written in the next round of the event loop, in which everything here happens.
    """

    def __init__(self, method: str, route: str) -> None:
        self._fields = (
            f'"level": "info", "event": "request", "method": {json.dumps(method)}, "route": {json.dumps(route)}'
        )
        self._lines: list[str] = []

    def add(self, status: int, seconds: float, faces: int) -> None:
        """One line."""
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._write)
        ms = round(1000 * seconds, 2)
        self._lines.append(
            f'{{"time": "{_now()}", {self._fields}, "status": {status}, "ms": {ms}, "faces": {faces}}}\n'
        )

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        for start in range(0, len(lines), _TOGETHER):
            _write("".join(lines[start : start + _TOGETHER]))


def log_exception(error: BaseException) -> None:
    """A fault of ours, with what is needed to mend it."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename.rpartition('fer_runtime')[2] or frame.filename}:{frame.lineno}" for frame in frames]
    # Not the message: it may quote what the client sent.
    log("exception", level="error", type=type(error).__name__, places=places[-12:])


class _Lines(logging.Handler):
    """What libraries log, as lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is not None and record.exc_info[1] is not None:
            log_exception(record.exc_info[1])
        else:
            # The template without its values, which may be addresses.
            log("library", level=record.levelname.lower(), logger=record.name, message=str(record.msg)[:200])


def take_library_logs() -> None:
    """Send the logs of the libraries through ours."""
    for name in ("uvicorn.error", "asyncio", "python_multipart"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [_Lines()]
        logger.propagate = False
        logger.setLevel(logging.ERROR)
