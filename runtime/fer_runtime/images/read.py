"""Read images from disk safely: format, size and structure are checked before anything is decoded."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import cv2

from fer_runtime.errors import NO_MEMORY, ImageError
from fer_runtime.images.decode import Uint8Array, decode_here, decode_leniently
from fer_runtime.images.headers import Header, read_header

# Width times height, for formats that decode with `_BYTES_PER_PIXEL` or less; fewer for the others, so that no image
# takes more than 0.8 GB.
MAX_PIXELS = 100_000_000
_BYTES_PER_PIXEL = 8
MAX_FILE_BYTES = 512 * 1024 * 1024
# O_NONBLOCK: opening a FIFO without a writer would wait for ever.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
# What OpenCV's wheels decode, except formats that store floats (.hdr, .exr, .pfm).
IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif", ".jp2", ".j2k"),
        *(".bmp", ".dib", ".tif", ".tiff", ".pgm", ".ppm", ".pbm", ".pnm", ".pam", ".ras", ".sr"),
    )
)


def read_image(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> Uint8Array:
    """Read an image as OpenCV does, rotated upright by its EXIF orientation.

    Args:
        max_pixels: largest width times height; see `decode_image`.

    Returns:
        image_bgr, uint8 (height, width, 3), or uint8 (height, width) of a grayscale image.

    Raises:
        ImageError: the path is not a readable file, or its content is not an image. The message does not contain the
            path; it continues it, as in "cannot be opened: ...".
    """
    return decode_image(read_bytes(path), max_pixels=max_pixels)


def read_bytes(path: Path | str) -> bytes:
    """Read a regular file.

    Raises:
        ImageError: it is missing, unreadable, empty, too large, or not a regular file.
    """
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except OSError as error:
        raise ImageError(f"cannot be opened: {error.strerror}") from error
    except ValueError as error:  # a null byte in the name
        raise ImageError(f"cannot be opened: {error}") from error
    try:
        status = os.fstat(descriptor)
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            if stat.S_ISDIR(status.st_mode):
                raise ImageError("is a folder; list its images with fer_runtime.find_images")
            raise ImageError("is not a regular file")
        if size > MAX_FILE_BYTES:
            raise ImageError(f"has {size} bytes, more than the limit of {MAX_FILE_BYTES}")
        # Plain reads: a file object costs as much as half of a face crop's decoding.
        content = os.read(descriptor, size + 1)
        # The size was wrong: the file is changing, or the system returns it in parts.
        while len(content) != size and (more := os.read(descriptor, 1 << 20)):
            content += more
            if len(content) > MAX_FILE_BYTES:
                raise ImageError(f"has more bytes than the limit of {MAX_FILE_BYTES}")
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if not content:
        raise ImageError("is empty (0 bytes)")
    return content


def decode_image(content: bytes, *, max_pixels: int = MAX_PIXELS, isolated: bool = False) -> Uint8Array:
    """Decode the content of an image file; see `read_image` for the result.

    Baseline JPEGs and plain PNGs are decoded in this process. All others are decoded in a separate process, within
    limits of memory and time, so that a decoder that crashes costs one image.

    Args:
        max_pixels: largest width times height. Formats whose decoders take more than 8 bytes a pixel have a
            proportionally lower limit.
        isolated: decode in a separate process whatever the format.

    Raises:
        ImageError: the content is not an image of a supported format, is truncated, or has too many pixels.
    """
    header = read_header(content)
    limit = max_pixels
    if header.bytes_per_pixel > _BYTES_PER_PIXEL:
        limit = max_pixels * _BYTES_PER_PIXEL // header.bytes_per_pixel
    if header.width * header.height > limit:
        raise ImageError(_too_large(header, limit))
    if header.is_plain and not isolated:
        image = decode_here(header)
        if image is not None:
            return image
    # Loads what starting a process takes: runs over JPEGs never do.
    from fer_runtime.images.isolated import UnavailableError, decode_apart

    try:
        return decode_apart(header.content)
    except UnavailableError:  # in a frozen program, or inside another one
        return decode_leniently(header)
    except MemoryError as error:
        raise ImageError(NO_MEMORY) from error


def check_pixels(image: Uint8Array, max_pixels: int) -> None:
    """Apply the pixel limit of files to an array: OpenCV crashes on sizes that it cannot count.

    Raises:
        ImageError: it has too many pixels.
    """
    height, width = image.shape[:2]
    if width * height > max_pixels:
        raise ImageError(
            f"{_more_pixels(width, height, max_pixels)}; raise it with max_pixels={width * height}, or shrink the image"
        )


def _too_large(header: Header, limit: int) -> str:
    reason = _more_pixels(header.width, header.height, limit)
    if header.bytes_per_pixel > _BYTES_PER_PIXEL:
        reason += f" for {header.kind}, which takes {header.bytes_per_pixel} bytes of memory a pixel"
    pixels = header.width * header.height
    needed = -(-pixels * max(header.bytes_per_pixel, _BYTES_PER_PIXEL) // _BYTES_PER_PIXEL)
    return f"{reason}; raise it with --max-pixels {needed}, or shrink the image"


def _more_pixels(width: int, height: int, limit: int) -> str:
    return f"has {width} x {height} pixels, more than the limit of {limit:,}"


def to_gray(image: Uint8Array) -> Uint8Array:
    """Convert an image, uint8 (height, width, 3) in BGR or (height, width), to grayscale (height, width)."""
    if image.ndim == 2:
        return image
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)  # type: ignore[return-value]
