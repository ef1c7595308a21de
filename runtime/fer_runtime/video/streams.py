"""Network streams and piped video, decoded by PyAV (extra `stream`).

A network stream gives its newest frame. Every frame that came while another one was processed is counted, every time
without frames becomes a `Gap`, and a lost connection is made again:

    with Stream("rtsp://user:password@camera.local/main", name="door") as stream:
        for result in recognize_video(recognizer, stream, on_gap=print):
            print(result.clock, result.faces)
"""

from __future__ import annotations

import errno
import re
import ssl
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timezone
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2

from fer_runtime.errors import ImageError
from fer_runtime.extras import needs_extra
from fer_runtime.images import MAX_PIXELS, Uint8Array
from fer_runtime.video.addresses import PROTOCOLS, is_stream, stream_name
from fer_runtime.video.sources import FrameCounts, Gap, SourceFrame, no_frame_from
from fer_runtime.video.timing import FrameTimes

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds before the connection is made again: doubled each time
# A time without frames is a gap when it is longer than this, and than several frames of a slow stream take.
_LEAST_GAP, _GAP_INTERVALS = 2.0, 5
_RECENT_FRAMES = 25
_DEFAULT_RATE = 25.0  # frames per second of a video that states no rate
# Answers that another try would not change, unless the stream has worked before.
_FINAL_REASONS = {
    "HTTPBadRequestError": "the server does not understand the address (HTTP 400)",
    "HTTPUnauthorizedError": "the server asks for another user or password (HTTP 401)",
    "HTTPForbiddenError": "the server forbids it (HTTP 403)",
    "HTTPNotFoundError": "the server has no such stream (HTTP 404)",
    "HTTPOtherClientError": "the server refuses the request (HTTP 4xx)",
    "ProtocolNotFoundError": "this PyAV does not know the protocol",
}
_REASONS = {
    "ExitError": "no data arrived in time",
    "TimeoutError": "no data arrived in time",
    "EOFError": "the connection was closed",
    "InvalidDataError": "FFmpeg finds no video in what arrives",
    "HTTPServerError": "the server reports an error (HTTP 5xx)",
}
_NO_WHOLE_FRAME = "has no frame that can be decoded: damaged, or cut short"
# FFmpeg's names for still images, which a server would be asked for again and again.
_STILL_FORMATS = ("image2", "_pipe", "gif")
_TURNS = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}


class _UnusableError(Exception):
    """There is an answer, but no video in it: trying again is of no use."""


@dataclass(slots=True)
class _Shared:
    """What the reading thread hands to `read`; guarded by the condition."""

    condition: threading.Condition = field(default_factory=threading.Condition)
    frame: tuple[int, float, datetime, VideoFrame] | None = None  # number, time, clock, pixels
    gaps: deque[Gap] = field(default_factory=deque)
    frames: int = 0  # decoded so far
    damaged: int = 0  # packets that could not be decoded
    last: tuple[float, datetime] | None = None  # when the last frame came: seconds since the first one, and UTC
    lost: str | None = None  # why there is no connection
    failure: str | None = None  # why the source ended
    has_ended: bool = False
    is_closed: bool = False


class _Source(ABC):
    """Frames that a thread reads and decodes.

    Args:
        name: of the source in rows and messages.
        reconnect: seconds to try again when there is no connection.
        is_live: frames that come while another one is processed are dropped, and times are those of their arrival.
            Otherwise the reader waits for `read`, and times are those of the video.
        on_message: takes a line of text when the connection is lost, and when it is back.
        timeout: seconds without data after which a connection counts as lost.
    """

    def __init__(
        self,
        name: str,
        *,
        reconnect: float,
        is_live: bool,
        on_message: Callable[[str], object],
        timeout: float = float("inf"),
    ) -> None:
        self.name = name
        self._timeout = timeout
        self.is_live = is_live
        self._reconnect = reconnect
        self._say = on_message
        self._shared = _Shared()
        self._stop = threading.Event()
        self._started: float | None = None  # monotonic seconds of the first frame
        self._intervals: deque[float] = deque(maxlen=_RECENT_FRAMES)
        self._thread = threading.Thread(target=self._run, name="fer-stream", daemon=True)

    _hint = ""  # what else to do where there is no video

    @property
    def is_lost(self) -> bool:
        """Whether there is no connection at present."""
        return self._shared.lost is not None

    @abstractmethod
    def _open(self) -> InputContainer:
        """A new connection."""

    def read(
        self, *, every: int, start: float, duration: float | None, counts: FrameCounts
    ) -> Iterator[SourceFrame | Gap]:
        """The frames that are asked for, and the gaps between them. Ends after `duration`, or when it is closed.

        Raises:
            ImageError: there was no connection for as long as it was tried, or it has ended without such a frame.
        """
        shared, taken, has_frames = self._shared, 0, False
        end = float("inf") if duration is None else start + duration
        try:
            while True:
                with shared.condition:
                    shared.condition.wait_for(self._has_news, timeout=self._patience(end))
                    gaps, frame = list(shared.gaps), shared.frame
                    shared.gaps.clear()
                    shared.frame = None
                    shared.condition.notify_all()
                    counts.damaged = shared.damaged
                    is_over = shared.is_closed or (shared.has_ended and frame is None)
                yield from gaps
                if frame is not None and not shared.is_closed:
                    number, time, clock, pixels = frame
                    counts.dropped += number - taken
                    taken = number + 1
                    is_past = time >= end
                    if not is_past:
                        counts.end = time
                    if is_past or time < start or number % every:
                        counts.skipped += 1
                    else:
                        has_frames = True
                        yield SourceFrame(
                            number=number, time=time, image=_to_bgr(pixels), clock=clock if self.is_live else None
                        )
                else:
                    is_past = self.is_live and self._now() >= end
                if is_over or is_past:
                    if (gap := self._open_gap()) is not None:
                        counts.end = gap.end
                        yield gap
                    failure = shared.failure
                    if failure is None and not has_frames:
                        failure = f"{self.name} {no_frame_from(counts, start, every) or _NO_WHOLE_FRAME}"
                    if failure is not None and not (shared.is_closed or is_past):
                        raise ImageError(failure)
                    return
        finally:
            with shared.condition:
                counts.dropped += max(0, shared.frames - taken)
                counts.damaged = shared.damaged

    def close(self) -> None:
        """Let the connection go. A thread that waits for data ends with its time limit."""
        self._stop.set()
        with self._shared.condition:
            self._shared.is_closed = True
            self._shared.condition.notify_all()
        # The garbage collector may run this in the reading thread, for a generator that nobody closed.
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=1)

    def _has_news(self) -> bool:
        shared = self._shared
        return bool(shared.frame is not None or shared.gaps or shared.has_ended or shared.is_closed)

    def _now(self) -> float:
        """Seconds since the first frame; 0 before it."""
        return 0.0 if self._started is None else monotonic() - self._started

    def _patience(self, end: float) -> float | None:
        """The most seconds that `read` waits for news before it looks at the time; None: no limit.

        The end of a stretch is known with the first frame, so until then it looks every few seconds.
        """
        if not self.is_live or end == float("inf"):
            return None
        return 5.0 if self._started is None else max(0.0, end - self._now())

    def _open_gap(self) -> Gap | None:
        """The time since the last frame, where that is a gap by now."""
        shared = self._shared
        with shared.condition:
            if shared.last is None or not self.is_live:
                return None
            start, clock = shared.last
            passed = self._now() - start
            if shared.lost is None and passed <= self._longest_interval():
                return None
            return Gap(start=start, end=start + passed, clock=clock, reason=shared.lost or _silence(passed))

    def _longest_interval(self) -> float:
        """Seconds without a frame that are no gap yet."""
        intervals = sorted(self._intervals)
        return max(_LEAST_GAP, _GAP_INTERVALS * (intervals[len(intervals) // 2] if intervals else 0.0))

    def _run(self) -> None:
        """Read until the source is closed, has ended, or is lost for too long."""
        shared = self._shared
        wait, lost_at = _FIRST_WAIT, monotonic()
        while not self._stop.is_set():
            before = shared.frames
            reason, is_final = _REASONS["EOFError"], False
            try:
                self._read_connection()
                if shared.frames and (self._reconnect == 0 or not self.is_live):
                    self._end(None)
                    return
            except _UnusableError as error:
                reason, is_final = str(error), True
            except Exception as error:  # FFmpeg's errors are of many classes
                reason, is_final = _reason(error)
            if self._stop.is_set():
                return
            if shared.frames > before:
                wait, lost_at = _FIRST_WAIT, monotonic()
            left = lost_at + self._reconnect - monotonic()
            with shared.condition:
                shared.lost = shared.lost or reason  # the first reason says more than those of further tries
            if left <= 0 or (is_final and not shared.frames):
                self._end(self._failure(reason))
                return
            wait = min(wait, left)
            self._say(f"{self.name}: {reason}; connecting again in {wait:.1f} s")
            self._stop.wait(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    def _failure(self, reason: str) -> str:
        if not self._shared.frames:
            return f"{self.name} cannot be read: {reason}{self._hint if reason == _REASONS['InvalidDataError'] else ''}"
        tried = f"; it did not come back within {self._reconnect:g} s" if self._reconnect else ""
        return f"{self.name} was lost: {reason}{tried}"

    def _end(self, failure: str | None) -> None:
        with self._shared.condition:
            self._shared.failure = failure
            self._shared.has_ended = True
            self._shared.condition.notify_all()

    def _read_connection(self) -> None:
        """Take the frames of one connection until it ends."""
        shared = self._shared
        with closing(self._open()) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                raise _UnusableError("there is no video in it")
            # Frame threads would hold back as many frames as there are threads.
            stream.thread_type = "SLICE"
            if container.duration is not None:
                self.is_live = False  # a film on a server: it has an end, and no frame of it is dropped
            is_paced = self.is_live and container.format.name == "hls"
            times = FrameTimes(float(stream.average_rate or 0) or _DEFAULT_RATE)
            first: tuple[float, float] | None = None  # arrival and time stamp of the first frame
            for packet in container.demux(stream):
                try:
                    frames: list[Any] = packet.decode()
                except Exception as error:
                    # FFmpeg marks a packet that was cut off: the last raw frame of a writer that was stopped.
                    if type(error).__name__ != "InvalidDataError" and not packet.is_corrupt:
                        raise
                    shared.damaged += 1
                    continue
                for frame in frames:
                    if is_paced and frame.time is not None:
                        # HLS comes by the segment: several seconds at once, to be shown at the pace of their times.
                        first = first or (monotonic(), frame.time)
                        self._stop.wait(max(0.0, first[0] + frame.time - first[1] - monotonic()))
                    if self._stop.is_set():
                        return
                    self._take(frame, None if self.is_live else times.add(frame.time or 0.0))

    def _take(self, frame: VideoFrame, time: float | None) -> None:
        """Hand a frame to `read`.

        Args:
            time: seconds since the first frame; None: now.
        """
        shared, now, clock = self._shared, monotonic(), datetime.now(timezone.utc)
        if self._started is None:
            self._started = now
        back = None
        with shared.condition:
            if time is not None:
                if shared.lost is not None and shared.last is not None and time <= shared.last[0]:
                    return  # the connection was made again, and the film begins anew
                shared.condition.wait_for(lambda: shared.frame is None or shared.is_closed)
            else:
                time = now - self._started
                if shared.last is not None and shared.lost is None and time - shared.last[0] >= self._timeout:
                    # What FFmpeg had of a frame when the time limit of its reading was over.
                    shared.damaged += 1
                    return
                if shared.last is not None:
                    back = self._account(time, *shared.last)
                    time = max(time, shared.last[0] + 1e-6)  # times rise, also within a tick of the clock
            shared.lost, shared.last = None, (time, clock)
            if not frame.is_corrupt:
                shared.frame = shared.frames, time, clock, frame
            shared.frames += 1
            shared.condition.notify_all()
        if back is not None:
            self._say(f"{self.name}: frames again after {back:.1f} s")

    def _account(self, time: float, last: float, clock: datetime) -> float | None:
        """Note the time since the last frame; the seconds, where that was a gap."""
        passed = time - last
        if self._shared.lost is None and passed <= self._longest_interval():
            self._intervals.append(passed)
            return None
        reason = self._shared.lost or _silence(passed)
        self._shared.gaps.append(Gap(start=last, end=time, clock=clock, reason=reason))
        return passed


class Stream(_Source):
    """A network stream that gives its newest frame. A thread reads all frames and reconnects.

    Close it, or use it in a `with` block. `recognize_video` takes it as its source.

    Args:
        address: rtsp://, rtsps://, http://, https:// (MJPEG, HLS, MPEG-TS and what else FFmpeg reads) or udp://. It may
            contain user and password, which appear in no row and no message.
        name: of the stream in rows and messages; by default scheme, host and port of the address.
        reconnect: seconds to try again without a connection; `float("inf")`: for ever, 0: not at all.
        timeout: seconds without data after which a connection counts as lost.
        on_message: called with a line of text when the connection is lost, and when it is back.

    Raises:
        ExtraMissingError: PyAV is not installed.
        ValueError: `address` is not the address of a stream.
    """

    def __init__(
        self,
        address: str,
        *,
        name: str | None = None,
        reconnect: float = 60.0,
        timeout: float = 10.0,
        on_message: Callable[[str], object] = lambda text: None,
    ) -> None:
        if not is_stream(address):
            raise ValueError(f"not the address of a stream ({', '.join(f'{protocol}://' for protocol in PROTOCOLS)})")
        _import_av()
        super().__init__(
            stream_name(address) if name is None else name,
            reconnect=reconnect,
            is_live=True,
            on_message=on_message,
            timeout=timeout,
        )
        self._address = address
        self._thread.start()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> InputContainer:
        scheme = self._address.partition("://")[0].lower()
        options = {
            "protocol_whitelist": PROTOCOLS[scheme],
            "max_pixels": str(MAX_PIXELS),
            "flags": "low_delay",  # the decoder holds nothing back
            "analyzeduration": "1000000",  # microseconds
        }
        if scheme.startswith("rtsp"):
            options |= {"allowed_media_types": "video", "rtsp_transport": "tcp"}
        if scheme in ("https", "rtsps"):
            options["tls_verify"] = "1"  # FFmpeg trusts everybody by default
            if (authorities := ssl.get_default_verify_paths().cafile) is not None:
                options["ca_file"] = authorities
        av = _import_av()
        try:
            container = av.open(self._address, options=options, timeout=self._timeout)
        except (av.error.HTTPBadRequestError, av.error.HTTPOtherClientError, OSError) as error:
            refuses = not isinstance(error, OSError) or error.errno == errno.EPROTONOSUPPORT
            if not scheme.startswith("rtsp") or not refuses:
                raise
            # Few servers have RTP over UDP alone, and it loses packets: so it comes second.
            options["rtsp_transport"] = "udp"
            container = av.open(self._address, options=options, timeout=self._timeout)
        if container.format.name.endswith(_STILL_FORMATS):
            container.close()
            raise _UnusableError("it is an image, not a stream; download it, and give the file")
        return container  # type: ignore[no-any-return]


class PipedVideo(_Source):
    """Video, or raw frames, from a file descriptor such as standard input.

    Args:
        descriptor: open for reading.
        input_format: one of FFmpeg's formats (`ffmpeg -demuxers`), "auto" for what it recognizes by itself, or
            "raw:PIXELS:WIDTHxHEIGHT[@RATE]", such as "raw:bgr24:640x480@25", for frames without a header.
        name: in rows and messages.
        is_live: frames that come while another one is processed are dropped; otherwise the writer waits.

    Raises:
        ExtraMissingError: PyAV is not installed.
        ValueError: `input_format` is no such text.
    """

    _hint = "; an MP4 can be piped only if its index comes first (ffmpeg -movflags faststart)"

    def __init__(
        self, descriptor: int, *, input_format: str = "auto", name: str = "standard input", is_live: bool = False
    ) -> None:
        self._format, self._options = _piped_format(input_format)
        _import_av()
        super().__init__(name, reconnect=0.0, is_live=is_live, on_message=lambda text: None)
        self._descriptor = descriptor
        self._thread.start()

    def _open(self) -> InputContainer:
        # Unlike FFmpeg's "pipe:", this also seeks where standard input is a file.
        options = {"protocol_whitelist": "fd", "fd": str(self._descriptor), "max_pixels": str(MAX_PIXELS)}
        return _import_av().open("fd:", format=self._format, options=options | self._options)  # type: ignore[no-any-return]


def _piped_format(text: str) -> tuple[str | None, dict[str, str]]:
    """FFmpeg's format and its options.

    Raises:
        ValueError: `text` is no `input_format`.
    """
    if text == "auto":
        return None, {}
    if text.partition(":")[0] != "raw":
        if text not in _import_av().formats_available:
            raise ValueError(f"FFmpeg has no format {text!r}; `ffmpeg -demuxers` lists them")
        return text, {}
    found = re.fullmatch(r"raw:(\w+):([1-9]\d*)x([1-9]\d*)(?:@(\d+(?:\.\d+)?))?", text)
    if found is None:
        raise ValueError(f"{text!r} is not raw:PIXELS:WIDTHxHEIGHT[@RATE], such as raw:bgr24:640x480@25")
    pixels, width, height, rate = found[1], found[2], found[3], found[4] or f"{_DEFAULT_RATE:g}"
    # FFmpeg's answer to each of these is "Invalid argument".
    if not _is_pixel_format(pixels):
        raise ValueError(f"{text!r}: FFmpeg has no pixels {pixels!r}; `ffmpeg -pix_fmts` lists them")
    if int(width) * int(height) > MAX_PIXELS:
        raise ValueError(f"{text!r}: a frame may have at most {MAX_PIXELS:,} pixels")
    if not 1e-6 <= float(rate) <= 1e6:
        raise ValueError(f"{text!r}: RATE is in frames per second, more than 0 and at most a million")
    return "rawvideo", {"pixel_format": pixels, "video_size": f"{width}x{height}", "framerate": rate}


def _is_pixel_format(name: str) -> bool:
    """Whether FFmpeg knows these pixels, and they are in memory, not on a graphics card."""
    try:
        return bool(_import_av().VideoFormat(name, 16, 16).components)
    except ValueError:
        return False


def _import_av() -> Any:
    with needs_extra("stream"):
        import av
    return av


def _reason(error: Exception) -> tuple[str, bool]:
    """Why there is no connection, without the address, and whether that is final."""
    kind = type(error).__name__
    if kind in _FINAL_REASONS:
        return _FINAL_REASONS[kind], True
    text = _REASONS.get(kind) or getattr(error, "strerror", None) or kind
    if text == "Input/output error":
        text += " (of https:// and rtsps://, also a certificate that is not trusted; SSL_CERT_FILE names others)"
    return text, False


def _silence(seconds: float) -> str:
    return f"no frame for {seconds:.1f} s"


def _to_bgr(frame: VideoFrame) -> Uint8Array:
    image: Any = frame.to_ndarray(format="bgr24")
    turn = _TURNS.get(round(getattr(frame, "rotation", 0)) % 360)
    return image if turn is None else cv2.rotate(image, turn)  # type: ignore[no-any-return]
