"""Sources of frames: video files and cameras."""

from __future__ import annotations

import io
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import cv2

from fer_runtime.errors import ImageError
from fer_runtime.images import Uint8Array
from fer_runtime.video import LAST_CAMERA
from fer_runtime.video.addresses import is_stream, stream_name
from fer_runtime.video.kinds import read_head
from fer_runtime.video.timing import FrameTimes, asf_seconds, ends_within_packet, stated_seconds, states_length

_DEFAULT_RATE = 25.0  # frames per second of a file that states no rate
_SEARCHED_BYTES = 1 << 20  # at each end of a file that cannot be opened
# A stated duration is rounded, and the sound may go on a little longer than the frames.
_LEAST_MISSING_SECONDS, _LEAST_MISSING_SHARE = 0.5, 0.02


@dataclass(slots=True)
class FrameCounts:
    """Counts of processed, skipped, dropped and missing frames, and the duration that the file states."""

    processed: int = 0
    skipped: int = 0  # left out by `every`, or before `start`
    dropped: int = 0  # camera, stream: arrived while another frame was processed; file: could not be converted
    # Frames that should be in the file but could not be read; None if unknown: cameras, files without time stamps, and
    # variable frame rates.
    missing: int | None = None
    damaged: int = 0  # packets of a stream that could not be decoded
    missing_seconds: float = 0.0  # how much earlier the file ended than it says
    stated_seconds: float = 0.0  # duration that the file states; 0 if it states none
    is_cut: bool = False  # the file ends within a packet; how much is missing is not known
    is_end_known: bool = True  # False if the file states no duration, so that a missing end is not noticed
    end: float = 0.0  # seconds: when the last frame that was read ends

    @property
    def total(self) -> int:
        """All frames that the source gave."""
        return self.processed + self.skipped + self.dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFrame:
    """A frame to be processed."""

    number: int  # from 0
    time: float  # seconds since the first frame
    image: Uint8Array  # (height, width, 3) in BGR
    clock: datetime | None = None  # UTC, when a live source gave it


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A period in which a stream gave no frame."""

    start: float  # seconds since the first frame, of the last frame before the gap
    end: float
    clock: datetime  # UTC, of `start`
    reason: str  # such as "the connection was closed"


class FrameSource(Protocol):
    """A camera, a file or a stream that is open."""

    def read(
        self, *, every: int, start: float, duration: float | None, counts: FrameCounts
    ) -> Iterator[SourceFrame | Gap]:
        """The frames that are asked for, and the gaps between them."""
        ...

    def close(self) -> None:
        """Release it."""
        ...


class NamedSource(FrameSource, Protocol):
    """A source that you opened, such as `fer_runtime.video.streams.Stream`."""

    name: str  # in rows


def source_name(source: Path | str | int | NamedSource) -> str:
    """A video's name in the rows: its path, "camera N", or the name of a stream.

    Raises:
        TypeError: `source` is something else.
    """
    if isinstance(source, int):
        return f"camera {source}"
    if isinstance(source, (str, Path)):
        return stream_name(source) if isinstance(source, str) and is_stream(source) else str(source)
    if isinstance(source, io.IOBase) or not (hasattr(source, "name") and hasattr(source, "read")):
        raise TypeError(
            "a video must be a path, the number of a camera, the address of a stream or an open Stream, not "
            f"{type(source).__name__}; for frames of your own: fer_runtime.Tracker(recognizer).update(frame, seconds)"
        )
    return source.name


def native_path(path: Path) -> Any:
    """`path` as cv2's videos take it.

    It is absolute, because FFmpeg takes "a:b.mp4" for a file of the protocol "a".

    Raises:
        ImageError: this OpenCV cannot open a file of that name.
    """
    name = os.path.abspath(path)
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        # As str, such a name crashes the process.
        if _opencv_version() < (4, 12):
            raise ImageError(
                f"{path} has a name that is not UTF-8, which OpenCV {cv2.__version__} cannot open; rename it, or "
                "install opencv-python-headless 4.12 or later"
            ) from None
        return os.fsencode(name)
    return name


def open_capture(path: Path) -> cv2.VideoCapture:
    """An opened video file.

    Raises:
        ImageError: it is missing, unreadable, no regular file, or no video that OpenCV reads.
    """
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            # OpenCV does not say why it cannot open a file.
            os.close(os.open(path, os.O_RDONLY))
    except FileNotFoundError:
        raise ImageError(f"no video at {path}; give the path of a file") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path} cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{path} is not a regular file")
    if not status.st_size:
        raise ImageError(f"{path} is empty (0 bytes)")
    # FFmpeg alone: another backend takes "film%02d.mp4" for a pattern of image files.
    capture = cv2.VideoCapture(native_path(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise ImageError(f"{path} {_why_not_opened(path)}")
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # OpenCV 4.11 turns no frames upright unless asked
    return capture


def _why_not_opened(path: Path) -> str:
    """The reason why OpenCV did not open the file, as the end of a sentence that begins with its path."""
    try:
        with path.open("rb") as file:
            content = file.read(_SEARCHED_BYTES)
            file.seek(max(len(content), os.fstat(file.fileno()).st_size - _SEARCHED_BYTES))
            content += file.read()  # an MP4 may describe itself at its end
    except (OSError, ValueError):
        content = b""
    if content.startswith((b"#EXTM3U", b"ffconcat")):
        return "is a playlist, which is not followed; give the videos themselves"
    is_mp4, is_matroska = content[4:8] == b"ftyp", content.startswith(b"\x1a\x45\xdf\xa3")
    has_sound = (is_mp4 and b"soun" in content) or (is_matroska and b"A_" in content)
    if has_sound and not (is_mp4 and b"vide" in content) and not (is_matroska and b"V_" in content):
        return "has sound and no frames"
    return "cannot be opened as a video: damaged, or of a kind that OpenCV does not read"


class VideoFile:
    """Frames of a video file.

    Raises:
        ImageError: the file cannot be opened as a video.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._capture = open_capture(path)
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        is_rate = 0 < rate < 1000
        self.rate = rate if is_rate else _DEFAULT_RATE
        # Some containers state the number of frames, for others OpenCV computes it from the duration and the rate.
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._stated_frames = round(count) if is_rate and 0 < count < 1e12 else 0
        self._stated = stated_seconds(path)
        head = read_head(path) or b""
        self._is_avi = head[8:12] == b"AVI "
        self._asf_seconds = asf_seconds(head)
        self._states_length = states_length(head)
        self._is_cut = ends_within_packet(path, head)

    def read(self, *, every: int, start: float, duration: float | None, counts: FrameCounts) -> Iterator[SourceFrame]:
        """The frames that are asked for.

        Raises:
            ImageError: there is no such frame.
        """
        by_count = self._stated_frames / self.rate or self._asf_seconds or 0.0
        counts.stated_seconds = by_count if self._stated is None else min(by_count, self._stated)
        times = FrameTimes(self.rate)
        frame, first_pts, has_frames = -1, 0.0, False
        # grab() decodes without converting to pixels: a frame that is left out costs a fraction.
        while self._capture.grab():
            frame += 1
            if frame == 0:
                first_pts = max(0.0, self._capture.get(cv2.CAP_PROP_PTS) / self.rate)
            time = times.add(self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
            if duration is not None and time >= start + duration:
                counts.missing = times.missing()
                return
            counts.end = times.end
            if time < start or frame % every:
                counts.skipped += 1
                continue
            is_read, image = self._capture.retrieve()
            if not is_read or image is None:
                counts.dropped += 1
                continue
            has_frames = True
            yield SourceFrame(number=frame, time=time, image=image)  # type: ignore[arg-type]
        self._account(times, counts, first_pts, frames=frame + 1)
        if not has_frames:
            raise ImageError(f"{self._path} {self._why_no_frame(counts, start, every)}")

    def _account(self, times: FrameTimes, counts: FrameCounts, first_pts: float, *, frames: int) -> None:
        """Compare what was read to the end, so many frames, with what the file says."""
        counts.missing = times.missing()
        counts.is_cut = self._is_cut
        counts.is_end_known = self._states_length and counts.stated_seconds > 0
        # Some containers count the seconds from the first frame, others from 0.
        missing = counts.stated_seconds - max(times.end, first_pts + times.end)
        if missing > max(_LEAST_MISSING_SECONDS, _LEAST_MISSING_SHARE * counts.stated_seconds):
            counts.missing_seconds = missing
        if not self._stated_frames:
            return
        shown = None if self._stated is None else self._stated * self.rate  # frames
        if shown is not None and (self._stated_frames <= shown + 1.5 or shown < 1):
            # MP4 lists every frame; but where only a part of them is shown, the others are left out on purpose.
            # Less than one frame is no such part: then the file's times contradict each other.
            counts.missing = max(0, self._stated_frames - frames)
        elif self._is_avi:
            # AVI lists every frame, too. Times of frames that the recorder left out are no damage.
            counts.missing = max(0, self._stated_frames - frames - (counts.missing or 0))

    def _why_no_frame(self, counts: FrameCounts, start: float, every: int) -> str:
        if reason := no_frame_from(counts, start, every):
            return reason
        if counts.dropped:
            return f"has {counts.dropped} frames, and OpenCV can convert none of them"
        stated = f" of the {self._stated_frames} that it states" if self._stated_frames else ""
        return f"has no frame that can be decoded{stated}: damaged, or of a codec that OpenCV does not read"

    def close(self) -> None:
        """Release the file."""
        self._capture.release()


def no_frame_from(counts: FrameCounts, start: float, every: int) -> str | None:
    """Why none of the frames was asked for, as the end of a sentence; None if there was no frame."""
    if not counts.skipped:
        return None
    taken = f" that --every {every} takes" if counts.end > start else ""
    return f"has no frame from {start:g} s on{taken}: it ends at {counts.end:.1f} s"


@dataclass(slots=True)
class _Newest:
    """The frame that a camera gave last, until it is taken."""

    frame: tuple[int, float, datetime, Any] | None = None  # number, seconds, UTC, pixels
    grabbed: int = 0
    ends: bool = False
    is_lost: bool = False  # the camera gave no frame
    condition: threading.Condition = field(default_factory=threading.Condition)


class Camera:
    """The newest frame of a camera each time; a thread takes the others off and counts them.

    Raises:
        ImageError: there is no such camera.
        ValueError: `number` is none of a camera.
    """

    def __init__(self, number: int) -> None:
        if not 0 <= number <= LAST_CAMERA:
            raise ValueError(f"the number of a camera must be from 0 to {LAST_CAMERA}, not {number}")
        self._number = number
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise ImageError(f"no camera {number}; is it plugged in, and may you read /dev/video{number}?")
        self._newest = _Newest()
        self._started = perf_counter()
        self._thread = threading.Thread(target=self._grab, name="fer-camera", daemon=True)
        self._thread.start()

    def read(self, *, every: int, start: float, duration: float | None, counts: FrameCounts) -> Iterator[SourceFrame]:
        """The frames that are asked for, until it is closed.

        Raises:
            ImageError: the camera gives no more frames.
        """
        taken, newest = 0, self._newest
        while True:
            with newest.condition:
                newest.condition.wait_for(lambda: newest.frame is not None or newest.ends)
                if newest.frame is None and newest.is_lost:
                    more = " more" if taken else ""
                    raise ImageError(f"camera {self._number} gives no{more} frames; is it still plugged in?")
                if newest.frame is None:
                    return
                frame, time, clock, image = newest.frame
                newest.frame = None
            counts.dropped += frame - taken
            taken = frame + 1
            if duration is not None and time >= start + duration:
                counts.skipped += 1
                return
            counts.end = time
            if time < start or frame % every:
                counts.skipped += 1
                continue
            yield SourceFrame(number=frame, time=time, image=image, clock=clock)

    def close(self) -> None:
        """Release the camera."""
        self._newest.ends = True
        # The garbage collector may run this in the camera's own thread, for a generator that nobody closed.
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=2)

    def _grab(self) -> None:
        newest = self._newest
        while not newest.ends:
            is_read, image = self._capture.read()
            with newest.condition:
                if not is_read:
                    newest.ends = newest.is_lost = True
                else:
                    newest.frame = (
                        newest.grabbed,
                        perf_counter() - self._started,
                        datetime.now(timezone.utc),
                        image,
                    )
                    newest.grabbed += 1
                newest.condition.notify()
        # Here, for a camera that hangs: releasing it in the middle of a read crashes.
        self._capture.release()


def _opencv_version() -> tuple[int, int]:
    major, minor, *_ = cv2.__version__.split(".")
    return int(major), int(minor)
