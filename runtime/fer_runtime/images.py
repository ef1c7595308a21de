"""Pictures read from disk safely: sizes are checked before anything is decoded."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_runtime.errors import ImageError

# OpenCV reads these when it is imported. A picture of more pixels is refused before it is decoded
# (a decompression bomb of 50 kB can ask for 50 GB); the log would print beside our own errors.
MAX_PIXELS = 100_000_000
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET

import cv2  # noqa: E402

# The decoders answer for their own threads; parallel work is the caller's.
cv2.setNumThreads(1)

Uint8Array = npt.NDArray[np.uint8]

MAX_FILE_BYTES = 512 * 1024 * 1024
# What OpenCV's wheels decode, but for floats (.hdr, .exr, .pfm), whose brightness has no end at 255.
IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif", ".jp2", ".j2k"),
        *(".bmp", ".dib", ".tif", ".tiff", ".pgm", ".ppm", ".pbm", ".pnm", ".pam", ".ras", ".sr"),
    )
)
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))


def read_image(path: Path | str) -> Uint8Array:
    """A picture as OpenCV reads it, upright by its EXIF orientation.

    Returns:
        image_bgr, uint8 (height, width, 3), or uint8 (height, width) of a grayscale picture.

    Raises:
        ImageError: the path is no readable file, or its content no picture.
    """
    return decode_image(read_bytes(path))


def read_bytes(path: Path | str) -> bytes:
    """The content of a regular file.

    Raises:
        ImageError: it is missing, unreadable, empty, too large, or no regular file.
    """
    try:
        # O_NONBLOCK: opening a FIFO without a writer would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise ImageError(f"cannot be opened: {error.strerror}") from error
    except ValueError as error:  # a null byte in the name
        raise ImageError(f"cannot be opened: {error}") from error
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError("is a folder, no regular file; fer_runtime.batch.sources.Inputs lists its pictures")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("is no regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(f"has {status.st_size} bytes, more than the limit of {MAX_FILE_BYTES}")
        # Plain reads: a file object costs as much as half of a face crop's decoding.
        content = os.read(descriptor, max(status.st_size + 1, 4096))
        # Another number of bytes than it had a moment ago: it changes, or the system gives it in parts.
        while len(content) != status.st_size and (more := os.read(descriptor, 1 << 20)):
            content += more
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if not content:
        raise ImageError("is empty (0 bytes)")
    return content


def decode_image(content: bytes) -> Uint8Array:
    """A picture from its file's content; see `read_image`.

    Raises:
        ImageError: the content is no picture that OpenCV reads, is truncated, or has too many pixels.
    """
    if content.startswith(b"\x89PNG") and b"IEND" not in content:
        # libpng would refuse it as well, and print so on stderr without the picture's name.
        raise ImageError("cannot be decoded: its end is missing")
    # IMREAD_ANYCOLOR keeps a grayscale picture at one channel: a third of the work for FER2013's
    # crops. Alpha is dropped, 16 bits become 8, palettes colours, and EXIF turns the picture upright.
    try:
        image: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_ANYCOLOR)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise ImageError(f"has more pixels than the limit of {MAX_PIXELS}") from error
        raise ImageError(_why_undecoded(content)) from error
    except MemoryError as error:
        raise ImageError("needs more memory than there is") from error
    if image is None:
        raise ImageError(_why_undecoded(content))
    if image.ndim == 3 and image.shape[2] == 4:
        image = image[:, :, :3]
    decoded: Uint8Array = image
    return decoded


def kind_not_read(content: bytes) -> str | None:
    """What `content` begins as, in words, where that is a kind of file that is taken for pictures and is none here."""
    brand = content[8:12] if content[4:8] == b"ftyp" else b""
    if brand in _HEIC_BRANDS and b"avif" not in content[:64]:
        return "is a HEIC picture, which OpenCV does not read; convert it to JPEG first"
    if content.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "is a JPEG XL picture, which OpenCV does not read; convert it to JPEG first"
    is_video = (
        (brand and brand not in (b"avif", b"avis", *_HEIC_BRANDS))
        or content.startswith((b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"0&\xb2u\x8ef\xcf\x11"))  # Matroska, MPEG, WMV
        or (content.startswith(b"RIFF") and content[8:12] == b"AVI ")
    )
    return "is a video; give it by name, with a video's suffix such as .mp4, in a run of its own" if is_video else None


def _why_undecoded(content: bytes) -> str:
    return kind_not_read(content) or "cannot be decoded: damaged, or no picture"


def to_gray(image: Uint8Array) -> Uint8Array:
    """A picture, uint8 (height, width, 3) in BGR or (height, width), as grayscale (height, width)."""
    if image.ndim == 2:
        return image
    gray: Any = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    plane: Uint8Array = gray
    return plane
