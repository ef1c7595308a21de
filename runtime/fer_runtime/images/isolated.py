"""Decoding in processes of their own: a decoder that crashes, hangs or takes too much memory costs one image.

Each process decodes one image at a time, within limits of memory and CPU time that follow from the image's header. It
takes a length and that many bytes on its standard input, and answers on its standard output with `_ANSWER` and the
pixels, or the words of an error. It ends when its standard input does.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import signal
import struct
import sys
import threading
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from fer_runtime.errors import NO_MEMORY, ImageError
from fer_runtime.images.decode import Uint8Array, decode_leniently
from fer_runtime.images.headers import read_header
from fer_runtime.system import available_cpus

_LENGTH = struct.Struct("<Q")
_ANSWER = struct.Struct("<IIII")  # height, width, channels, and bytes of an error's text, 0 without one
_SERVE = "from fer_runtime.images.isolated import serve; serve()"
_READY = b"ready\n"
_AT_ONCE = 1 << 16  # bytes that a pipe takes without waiting
_SPARE_BYTES = 128 << 20  # for what a decoder allocates besides pixels
# CPU time, so that a busy machine fails no image: about ten times what the slowest format needs on a small computer.
_LEAST_SECONDS = 30.0
_SECONDS_PER_MEGAPIXEL = 5.0
# What a fault of the decoder looks like; another signal came from outside, and the image deserves a second try.
_FAULTS = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL", "SIGPROF", "SIGSYS", "SIGTRAP")
_NOT_LIMITED = str(1 << 62)


# Why no process can be started at present: too many processes or open files, or no memory.
_PASSING = frozenset((errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE))


class UnavailableError(Exception):
    """No such process can be started here.

    Args:
        is_passing: the next image may have one.
    """

    def __init__(self, *, is_passing: bool = False) -> None:
        super().__init__()
        self.is_passing = is_passing


def decode_apart(content: bytes) -> Uint8Array:
    """Decode in another process; see `decode_leniently`.

    Args:
        content: of a file whose header has been checked.

    Raises:
        ImageError: the image cannot be decoded, or its decoder crashed.
        UnavailableError: no other process can be started here.
    """
    return _helpers.decode(content)


class _Helper:
    """One process that decodes."""

    def __init__(self) -> None:
        """Start it.

        Raises:
            UnavailableError: it does not start.
        """
        # A frozen program would start itself, and so would an interpreter inside another program.
        name = os.path.basename(sys.executable or "").lower()
        if getattr(sys, "frozen", False) or not name.startswith(("python", "pypy")):
            raise UnavailableError
        places = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
        code = f"import sys; sys.path[:] = {places!r}; {_SERVE}"
        import subprocess  # takes 10 ms to load, and most runs decode nothing here

        environment = os.environ | {
            "OPENCV_IO_MAX_IMAGE_PIXELS": _NOT_LIMITED,  # the header has been checked against our own limit
            "OPENCV_IO_MAX_IMAGE_WIDTH": str(1 << 30),
            "OPENCV_IO_MAX_IMAGE_HEIGHT": str(1 << 30),
            "OPENCV_LOG_LEVEL": "OFF",
            "OPENBLAS_NUM_THREADS": "1",  # each of its threads would reserve memory
            "OMP_NUM_THREADS": "1",
        }
        options: dict[str, Any] = {"start_new_session": True}  # Ctrl-C is for the run, which ends this process
        if sys.platform == "win32":
            options = {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
        try:
            self.process = subprocess.Popen(
                # Isolated, without site, without .pyc files: it reads and leaves no file of the folder or the user.
                [sys.executable, "-I", "-S", "-B", "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=environment,
                **options,
            )
        except (OSError, ValueError) as error:
            raise UnavailableError(is_passing=getattr(error, "errno", None) in _PASSING) from error
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._to: IO[bytes] = self.process.stdin
        self._from: IO[bytes] = self.process.stdout
        if self._from.read(len(_READY)) != _READY:
            # Killed from outside, as by a system without memory, it may start the next time.
            raise UnavailableError(is_passing=not self.why_ended()[1])

    def decode(self, content: bytes) -> Uint8Array:
        """Decode one image.

        Raises:
            ImageError: it cannot be decoded.
            EOFError: the process has ended.
        """
        try:
            if len(content) < _AT_ONCE:
                _write_all(self._to, _LENGTH.pack(len(content)) + content)
            else:
                _write_all(self._to, _LENGTH.pack(len(content)))
                _write_all(self._to, content)
            answer = self._from.read(_AT_ONCE)
        except OSError as error:  # a broken pipe
            raise EOFError from error
        if len(answer) < _ANSWER.size:
            raise EOFError
        height, width, channels, error_size = _ANSWER.unpack_from(answer)
        try:
            received = np.empty(error_size or height * width * channels, np.uint8)
        except MemoryError as error:
            self.close()
            raise ImageError(NO_MEMORY) from error
        first = answer[_ANSWER.size :]
        received[: len(first)] = np.frombuffer(first, np.uint8)
        _read_into(self._from, received.data[len(first) :])
        if error_size:
            raise ImageError(received.tobytes().decode())
        return received.reshape((height, width) if channels == 1 else (height, width, channels))

    def why_ended(self) -> tuple[str, bool]:
        """Why the process has ended, in words, and whether the image is at fault."""
        import subprocess

        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:
            code = 0
        self.close()
        if code >= 0:
            return f"its decoder stopped (exit code {code:#x})", code != 0
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        if name == "SIGPROF":
            return "takes too long to decode", True
        return f"its decoder crashed ({name})", name in _FAULTS

    def close(self) -> None:
        """End the process."""
        for pipe in (self._to, self._from):
            pipe.close()
        self.process.kill()
        self.process.wait()


class _Helpers:
    """At most as many of them as there are CPUs; each is started when it is needed and then kept."""

    def __init__(self) -> None:
        self._idle: list[_Helper] = []
        self._places = threading.BoundedSemaphore(available_cpus())
        self._is_available = True

    def decode(self, content: bytes) -> Uint8Array:
        if not self._is_available:
            raise UnavailableError
        with self._places:
            reason, is_fault = "", False
            for _ in range(2):
                helper = self._take()
                try:
                    image = helper.decode(content)
                except ImageError:
                    self._give_back(helper)
                    raise
                except EOFError:
                    reason, is_fault = helper.why_ended()
                    if is_fault:
                        break
                except BaseException:  # Ctrl-C in the middle of an answer
                    helper.close()
                    raise
                else:
                    self._give_back(helper)
                    return image
            raise ImageError(f"cannot be decoded: {reason}")

    def _take(self) -> _Helper:
        while self._idle:
            try:
                helper = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if helper.process.poll() is None:
                return helper
            helper.close()
        try:
            return _Helper()
        except UnavailableError as error:
            self._is_available = error.is_passing
            raise

    def _give_back(self, helper: _Helper) -> None:
        if not helper.process.stdin or helper.process.stdin.closed:
            return
        self._idle.append(helper)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def abandon(self) -> None:
        """Leave the processes to the process that this one was forked from."""
        for helper in self._idle:
            for pipe in (helper.process.stdin, helper.process.stdout):
                if pipe is not None:
                    pipe.close()
            helper.process.returncode = 0  # or its finaliser would warn of a process that still runs


_helpers = _Helpers()


def _start_anew_after_fork() -> None:
    global _helpers
    _helpers.abandon()
    _helpers = _Helpers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_after_fork)
atexit.register(lambda: _helpers.close())


def serve() -> None:
    """Decode what comes on standard input until it ends; the whole life of one of these processes."""
    cv2.setNumThreads(1)
    # What a library prints must not get among the answers.
    source, sink = io.FileIO(os.dup(0), "rb"), io.FileIO(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    limits = _Limits()
    _write_all(sink, _READY)
    while len(head := source.read(_LENGTH.size)) == _LENGTH.size:
        buffer = bytearray(_LENGTH.unpack(head)[0])
        _read_into(source, memoryview(buffer))
        content = bytes(buffer)
        del buffer
        try:
            header = read_header(content)
            # JPEGs without an end, and TIFFs, are copied once more.
            limits.begin(header.width * header.height, header.bytes_per_pixel, len(content))
            image: Any = decode_leniently(header)
            height, width = image.shape[:2]
            answer = _ANSWER.pack(height, width, 1 if image.ndim == 2 else 3, 0)
            pixels: Any = np.ascontiguousarray(image).reshape(-1).data
        except (ImageError, MemoryError) as error:
            pixels = (str(error) if isinstance(error, ImageError) else NO_MEMORY).encode()
            answer = _ANSWER.pack(0, 0, 0, len(pixels))
        limits.end()
        if len(pixels) < _AT_ONCE:
            _write_all(sink, answer + bytes(pixels))
        else:
            _write_all(sink, answer)
            _write_all(sink, pixels)
        image = pixels = None  # not kept beside the next image


class _Limits:
    """Memory and CPU time of this process while it decodes one image; without effect where the system has none."""

    def __init__(self) -> None:
        self._resource: Any = None
        try:
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            self._hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            self._infinity = resource.RLIM_INFINITY
            self._resource = resource
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
        except (ImportError, OSError, ValueError, AttributeError):
            pass

    def begin(self, pixels: int, bytes_per_pixel: int, file_bytes: int) -> None:
        """Allow what an image of that many pixels may take."""
        if self._resource is None:
            return
        signal.setitimer(signal.ITIMER_PROF, _LEAST_SECONDS + _SECONDS_PER_MEGAPIXEL * pixels / 1e6)
        try:
            used = int(Path("/proc/self/statm").read_bytes().split()[0]) * self._resource.getpagesize()
        except (OSError, ValueError):  # not Linux
            return
        limit = used + pixels * bytes_per_pixel + file_bytes + _SPARE_BYTES
        if self._hard != self._infinity:
            limit = min(limit, self._hard)
        self._resource.setrlimit(self._resource.RLIMIT_AS, (limit, self._hard))

    def end(self) -> None:
        if self._resource is None:
            return
        signal.setitimer(signal.ITIMER_PROF, 0)
        self._resource.setrlimit(self._resource.RLIMIT_AS, (self._hard, self._hard))


def _write_all(stream: Any, content: Any) -> None:
    view = memoryview(content)
    while len(view):
        view = view[stream.write(view) :]


def _read_into(stream: Any, view: memoryview) -> None:
    """Fill `view`.

    Raises:
        EOFError: the stream ends before.
    """
    while len(view):
        count = stream.readinto(view)
        if not count:
            raise EOFError
        view = view[count:]
