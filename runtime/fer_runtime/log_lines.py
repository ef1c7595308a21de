"""`--log-format json`: the messages of a command on stderr, one JSON object per line."""

from __future__ import annotations

import io
import json
import threading
from datetime import datetime, timezone
from typing import TextIO

_LEVELS = {"warning: ": "warning", "Error: ": "error"}


class JsonLines(io.TextIOBase):
    """A text stream that turns each line into `{"time", "level", "message"}` on another one."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._line = ""
        self._lock = threading.Lock()  # streams write from threads of their own

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"text is needed, not {type(text).__name__}")
        with self._lock:
            *lines, self._line = (self._line + text).split("\n")
            for line in lines:
                self._write_line(line)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        """Write what has no line end; the stream below stays open."""
        with self._lock:
            if self._line:
                self._write_line(self._line)
            self._line = ""

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def _write_line(self, line: str) -> None:
        line = line.strip()
        if not line:
            return
        if _is_json_object(line):  # fer-serve's own log
            self._stream.write(line + "\n")
            return
        prefix = next((level for level in _LEVELS if line.startswith(level)), "")
        clock = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        values = {"time": clock, "level": _LEVELS.get(prefix, "info"), "message": line[len(prefix) :]}
        self._stream.write(json.dumps(values) + "\n")


def _is_json_object(line: str) -> bool:
    try:
        return line.startswith("{") and isinstance(json.loads(line), dict)
    except ValueError:
        return False
