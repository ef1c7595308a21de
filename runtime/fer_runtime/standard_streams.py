"""Make stdout and stderr robust: full disks, closed pipes, closed streams and old encodings."""

from __future__ import annotations

import codecs
import io
import os
from abc import abstractmethod
from contextlib import suppress
from typing import IO, TextIO

from fer_runtime.errors import OutputError


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a person reads `stream`; None is one that the shell closed, as in `2>&-`."""
    return stream is not None and stream.isatty()


class _Stream(io.TextIOBase):
    """Text for one of the process's streams."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream."""
        return getattr(self._stream, "encoding", "utf-8")

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """That of the stream."""
        return getattr(self._stream, "errors", "backslashreplace")

    def write(self, text: str) -> int:
        if not isinstance(text, str):  # click tries b"" and "" to tell text from bytes
            raise TypeError(f"text is needed, not {type(text).__name__}")
        try:
            if self._stream is not None and text:
                self._stream.write(text)
        except OSError as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except OSError as error:
            self._failed(error)

    def close(self) -> None:
        """Leave the stream open: it is the process's."""

    def isatty(self) -> bool:
        return is_terminal(self._stream)

    def writable(self) -> bool:
        return True

    @abstractmethod
    def _failed(self, error: OSError) -> None:
        """Answer an error of `write` or `flush`."""

    def _lose(self) -> None:
        """Let go of the text that waits in the stream's buffer: it would fail again when the process ends."""
        with suppress(OSError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)


class Messages(_Stream):
    """stderr: what cannot be written there is lost, and does not end the run.

    The disk of a log file may be full, its reader may have gone, or the shell closed it (then `stream` is None).
    """

    def fileno(self) -> int:
        return 2 if self._stream is None else self._stream.fileno()

    def _failed(self, error: OSError) -> None:
        self._lose()


class Results(_Stream):
    """stdout: what cannot be written there is an error of the run; a letter that its encoding lacks is none.

    Raises:
        OutputError: by `write` and `flush`, such as for a full disk. A reader that has gone stays a BrokenPipeError.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        if isinstance(stream, io.TextIOWrapper):
            # Windows' cp1252 has no "Δ"; as escapes it is on stderr already. ASCII is what a bare container says, and
            # click would write UTF-8 there, past this class.
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding="utf-8" if is_ascii else None, errors="backslashreplace")

    def fileno(self) -> int:
        return self._stream.fileno()  # type: ignore[union-attr]

    def _failed(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            raise error
        self._lose()
        raise OutputError(f"cannot write to standard output: {error.strerror or error}; make room") from error
