"""Frames that know their number, served by Debian's ffmpeg on this machine's loopback address."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest

from fer_runtime.images import Uint8Array

WIDTH, HEIGHT, RATE = 256, 64, 25
_BITS = 16

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is missing: apt-get install ffmpeg")


def numbered_frame(number: int) -> Uint8Array:
    """A gray frame, uint8 (HEIGHT, WIDTH), with `number` as black and white bars that survive a lossy codec."""
    bits = [(number >> bit) & 1 for bit in range(_BITS)]
    return np.repeat(np.repeat(np.array([bits], np.uint8) * 200 + 20, WIDTH // _BITS, axis=1), HEIGHT, axis=0)


def number_of(image: Uint8Array) -> int:
    """The number that `numbered_frame` has drawn into a frame in BGR."""
    middle = image[HEIGHT // 2, WIDTH // _BITS // 2 :: WIDTH // _BITS, 0]
    return sum(int(level > 120) << bit for bit, level in enumerate(middle))


def free_port() -> int:
    """A TCP port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """A camera: numbered frames in real time, encoded and served by ffmpeg, which may be killed and paused.

    Args:
        arguments: of ffmpeg, what to do with the frames.
        image: a still image to serve instead.
    """

    def __init__(self, *arguments: str, image: str | None = None) -> None:
        self._arguments = arguments
        self._image = image
        self._number = 0  # of the next frame; goes on when the server is started again
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to serve."""
        size = f"{WIDTH}x{HEIGHT}"
        raw: tuple[str, ...] = ("-f", "rawvideo", "-pix_fmt", "gray", "-s", size, "-r", str(RATE), "-i", "-", "-g", "5")
        if self._image is not None:
            raw = ("-re", "-loop", "1", "-framerate", str(RATE), "-i", self._image, "-pix_fmt", "yuv420p")
        command = ["ffmpeg", "-hide_banner", "-loglevel", "quiet", *raw, *self._arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if self._image is not None:
            return
        threading.Thread(target=self._feed, args=(self.process,), daemon=True).start()

    def _feed(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        started, sent = monotonic(), 0
        try:
            while process.poll() is None:
                sleep(max(0.0, started + sent / RATE - monotonic()))
                process.stdin.write(numbered_frame(self._number).tobytes())
                process.stdin.flush()
                self._number += 1
                sent += 1
        except (OSError, ValueError):
            return

    def kill(self) -> None:
        """End it as a power cut does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def pause(self) -> None:
        """Stop sending without closing the connection."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End the pause."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def served(*arguments: str) -> Iterator[Served]:
    """A camera that is on."""
    camera = Served(*arguments)
    camera.start()
    try:
        yield camera
    finally:
        camera.kill()


def mpegts_arguments(port: int) -> tuple[str, ...]:
    """ffmpeg's arguments for an MPEG transport stream at `http://127.0.0.1:PORT/`, for one reader."""
    return "-c:v", "mpeg2video", "-q:v", "3", "-f", "mpegts", "-listen", "1", f"http://127.0.0.1:{port}/"


def mjpeg_arguments(port: int) -> tuple[str, ...]:
    """The same for the motion JPEG of web cameras."""
    return "-c:v", "mjpeg", "-q:v", "3", "-f", "mpjpeg", "-listen", "1", f"http://127.0.0.1:{port}/"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing, where the base class writes on stderr."""


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """The address of a server of the files in `folder`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
