"""From the bytes of an image to its pixels, by OpenCV, in this process."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from fer_runtime.errors import NO_MEMORY, ImageError
from fer_runtime.images.headers import Header
from fer_runtime.images.tiff import as_deep_gray

Uint8Array = npt.NDArray[np.uint8]

_INCOMPLETE = "cannot be decoded: damaged, or its end is missing"
# An end marker, and the same behind bytes that decode to different pixels wherever pixels are missing.
_ENDS = (b"\xff\xd9", b"\x5a" * 32 + b"\xff\xd9", b"\xa5" * 32 + b"\xff\xd9")


def decode_here(header: Header) -> Uint8Array | None:
    """The image, upright, uint8 (height, width, 3) in BGR or (height, width); None where the decoder refuses it.

    Raises:
        ImageError: there is not enough memory.
    """
    # IMREAD_ANYCOLOR keeps a grayscale image at one channel: a third of the work for FER2013's
    # crops. Alpha is dropped, palettes become colours, and EXIF turns the image upright.
    flags = cv2.IMREAD_ANYCOLOR
    if header.is_16_bit:
        flags |= cv2.IMREAD_ANYDEPTH
    if header.kind == "AVIF":
        flags |= cv2.IMREAD_IGNORE_ORIENTATION  # the format has transforms of its own, and EXIF's repeats them
    try:
        image: Any = cv2.imdecode(np.frombuffer(header.content, np.uint8), flags)
    except cv2.error as error:
        if is_no_memory(error):
            raise ImageError(NO_MEMORY) from error
        return None
    except MemoryError as error:
        raise ImageError(NO_MEMORY) from error
    if image is None:
        _check_memory(header)
        return None
    if image.ndim == 3 and image.shape[2] == 4:
        image = image[:, :, :3]
    if header.is_16_bit and image.dtype == np.uint16:
        image = _to_8_bits(image)
    if header.maxval < 255:
        scaled = np.rint(np.arange(256) / header.maxval * 255)
        image = np.minimum(scaled, 255).astype(np.uint8)[image]
    if header.is_negative:
        image = 255 - image
    if image.dtype != np.uint8 or not (image.ndim == 2 or image.shape[2] == 3):
        return None  # nobody here expects it, and behind a pipe its bytes would be those of the next image
    for name, value in header.transforms:
        image = np.rot90(image, value) if name == b"irot" else np.flip(image, value)
    decoded: Uint8Array = np.ascontiguousarray(image) if header.transforms else image
    return decoded


def is_no_memory(error: cv2.error) -> bool:
    """Whether OpenCV failed for want of memory, which is no MemoryError there."""
    return error.code == cv2.Error.StsNoMem


def decode_leniently(header: Header) -> Uint8Array:
    """As `decode_here`; a JPEG is also read if only its end marker is missing, and a TIFF only if no strip is damaged.

    Raises:
        ImageError: the image cannot be decoded.
    """
    if header.kind == "TIFF":
        _refuse_damaged_strips(header)
    image = decode_here(header)
    if image is None and header.kind == "JPEG":
        content = header.content.rstrip(b"\xff")  # half a marker; in compressed data a zero follows
        for end in _ENDS:
            header.content = content + end
            completed = decode_here(header)
            # libjpeg invents what is missing. Where it invents different pixels for different ends, pixels are missing.
            if completed is None or (image is not None and not np.array_equal(image, completed)):
                raise ImageError(_INCOMPLETE)
            image = completed
    if image is None:
        raise ImageError(header.refusal)
    return image


def _refuse_damaged_strips(header: Header) -> None:
    """Raise an ImageError where OpenCV would leave a part of a TIFF black."""
    strict = as_deep_gray(header.content)
    if strict is None:
        return
    try:
        is_whole = cv2.imdecode(np.frombuffer(strict, np.uint8), cv2.IMREAD_ANYDEPTH) is not None
    except (cv2.error, MemoryError):  # of its own size or memory: nothing is known of the strips
        return
    if not is_whole:
        _check_memory(header)
        raise ImageError(_INCOMPLETE)


def _to_8_bits(image: Any) -> Any:
    """The upper 8 of the bits that are used: cameras store 10, 12 or 14 bits in samples of 16."""
    used = int(image.max()).bit_length()
    bits = next(depth for depth in (8, 10, 12, 14, 16) if used <= depth)
    return (image >> (bits - 8)).astype(np.uint8)


def _check_memory(header: Header) -> None:
    """Stop where a decoder failed in a process that has no memory left for the image.

    Raises:
        ImageError: there is not enough memory.
    """
    try:
        np.empty(header.width * header.height * header.bytes_per_pixel, np.uint8)
    except MemoryError as error:
        raise ImageError(NO_MEMORY) from error
