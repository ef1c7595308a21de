"""Images from files and bytes to arrays, safely. Everything else in this folder is private to it."""

from __future__ import annotations

from fer_runtime.images.decode import Uint8Array, is_no_memory
from fer_runtime.images.headers import kind_not_read
from fer_runtime.images.read import (
    IMAGE_SUFFIXES,
    MAX_FILE_BYTES,
    MAX_PIXELS,
    check_pixels,
    decode_image,
    read_bytes,
    read_image,
    to_gray,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "Uint8Array",
    "check_pixels",
    "decode_image",
    "is_no_memory",
    "kind_not_read",
    "read_bytes",
    "read_image",
    "to_gray",
]
