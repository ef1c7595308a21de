"""Frames that know their number, served by Debian's ffmpeg on this machine's loopback address."""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic, sleep
from typing import Any, BinaryIO

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


class RtspServer:
    """A camera's RTSP server for one reader at a time.

    Args:
        folder: for ffmpeg's description of the stream.
        has_tcp: RTP goes over the RTSP connection itself where the reader asks for that, as most cameras do it.
            Otherwise it goes in datagrams only.
    """

    def __init__(self, folder: Path, *, has_tcp: bool) -> None:
        self._description = folder / "door.sdp"
        self._has_tcp = has_tcp
        self._packets = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._packets.bind(("127.0.0.1", 0))
        self._packets.settimeout(20)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(20)
        self.transports: list[str] = []  # that the readers asked for
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def address(self) -> str:
        return f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}/door"

    def arguments(self) -> tuple[str, ...]:
        """ffmpeg's arguments for frames that this server sends on."""
        target = f"rtp://127.0.0.1:{self._packets.getsockname()[1]}?pkt_size=1200"
        return "-c:v", "mpeg2video", "-q:v", "3", "-f", "rtp", "-sdp_file", str(self._description), target

    def close(self) -> None:
        self._listener.close()
        self._packets.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with suppress(OSError), connection, connection.makefile("rb") as lines:
                    is_playing = False
                    while not is_playing:
                        is_playing = self._answer(connection, lines)
                    self._send(connection)

    def _answer(self, connection: socket.socket, lines: BinaryIO) -> bool:
        """Answer one request of RTSP (RFC 2326); whether the stream begins."""
        method = lines.readline().decode().partition(" ")[0]
        if not method:
            raise OSError
        headers = {}
        while line := lines.readline().decode().strip():
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        status, more, body = "200 OK", "", b""
        if method == "DESCRIBE":
            while not self._description.exists():
                sleep(0.05)
            body, more = self._description.read_bytes(), "Content-Type: application/sdp\r\n"
        elif method == "SETUP":
            self.transports.append(headers["transport"])
            port = self._packets.getsockname()[1]
            if "/TCP" not in self.transports[-1]:
                more = f"Transport: {self.transports[-1]};server_port={port}-{port + 1}\r\n"
            elif self._has_tcp:
                more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            else:
                status = "461 Unsupported Transport"
        head = (
            f"RTSP/1.0 {status}\r\nCSeq: {headers['cseq']}\r\nSession: 1\r\n{more}Content-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        return method == "PLAY"

    def _send(self, connection: socket.socket) -> None:
        _, _, datagrams = self.transports[-1].partition("client_port=")
        while packet := self._packets.recv(2048):
            if datagrams:
                self._packets.sendto(packet, ("127.0.0.1", int(datagrams.partition("-")[0])))
            else:
                connection.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing, where the base class writes on stderr."""


class _BreaksOnce(_Quiet):
    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Send half of the first file."""
        content = source.read()
        breaks, self.server.has_broken = not hasattr(self.server, "has_broken"), True  # type: ignore[attr-defined]
        outputfile.write(content[: len(content) // 2] if breaks else content)


@contextmanager
def web_server(folder: Path, certificate: Path | None = None, *, breaks_once: bool = False) -> Iterator[str]:
    """The address of a server of the files in `folder`; https with a certificate and its key in one file."""
    handler = _BreaksOnce if breaks_once else _Quiet
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        # A client that does not trust it breaks off in the thread of its connection, not in the one that accepts.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http{'' if certificate is None else 's'}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
