"""Images from files and bytes to arrays, safely; everything else in this folder is private to it."""

from __future__ import annotations

from fer_runtime.images.read import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from fer_runtime.images.read import MAX_FILE_BYTES as MAX_FILE_BYTES
from fer_runtime.images.read import MAX_PIXELS as MAX_PIXELS
from fer_runtime.images.read import Uint8Array as Uint8Array
from fer_runtime.images.read import decode_image as decode_image
from fer_runtime.images.read import kind_not_read as kind_not_read
from fer_runtime.images.read import read_bytes as read_bytes
from fer_runtime.images.read import read_image as read_image
from fer_runtime.images.read import to_gray as to_gray
