"""Read the directory of a TIFF, and rewrite it so that OpenCV reports damaged strips."""

from __future__ import annotations

import struct
from collections.abc import Iterator

MOST_ENTRIES = 1_000_000  # of a directory; real files have dozens
_LETTERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # of the field types that hold whole numbers
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, CHANNELS, ROWS_PER_STRIP = 256, 257, 258, 259, 262, 277, 278
SAMPLE_FORMAT = 339
PLANES, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT = 284, 317, 322, 323
# How strips and tiles are stored: order of the bits, places and lengths.
_STORAGE = frozenset((266, 273, 279, 324, 325, COMPRESSION, HEIGHT, ROWS_PER_STRIP, _TILE_HEIGHT))
_NUMBERS = frozenset(
    (
        *(WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, CHANNELS, ROWS_PER_STRIP, SAMPLE_FORMAT),
        *(PLANES, _TILE_WIDTH, _TILE_HEIGHT),
    )
)
_BYTEWISE = frozenset((5, 8, 32773, 32946))  # LZW, Deflate, PackBits: they compress bytes, whatever these stand for
MIN_IS_WHITE, _YCBCR = 0, 6  # values of PHOTOMETRIC
_LARGEST = (1 << 31) - 1


def read_tags(content: bytes) -> dict[int, int]:
    """The first value of each tag that says how the image is stored.

    Raises:
        struct.error: the directory goes on behind the end of the file.
    """
    order, is_big = _layout(content)
    tags = {}
    for place, tag, kind, length in _entries(content):
        letter = _LETTERS.get(kind)
        if letter is None or tag not in _NUMBERS:
            continue
        value = place + (12 if is_big else 8)
        if length * struct.calcsize(order + letter) > (8 if is_big else 4):  # kept elsewhere
            (value,) = struct.unpack_from(order + ("Q" if is_big else "I"), content, value)
        (tags[tag],) = struct.unpack_from(order + letter, content, value)
    return tags


def as_deep_gray(content: bytes) -> bytearray | None:
    """The same strips or tiles under a directory that says: 16 bits, one channel. None where that is not possible.

    OpenCV 4.14 leaves the rest of a strip black where its data is damaged or too short, and says nothing of it. At 16
    bits it refuses such a file. LZW, Deflate and PackBits do not depend on what the bytes stand for.
    """
    tags = read_tags(content)
    channels, bits = tags.get(CHANNELS, 1), tags.get(BITS, 1)
    # YCbCr may store less than a sample per pixel and channel. A strip of planes has one channel.
    if tags.get(COMPRESSION) not in _BYTEWISE or bits > 8 or tags.get(PHOTOMETRIC) == _YCBCR:
        return None
    is_planar = tags.get(PLANES, 1) == 2
    is_tiled = _TILE_WIDTH in tags
    width = tags[_TILE_WIDTH] if is_tiled else tags.get(WIDTH, 0)
    half = width * bits * (1 if is_planar else channels) // 16  # pixels of 16 bits; an odd byte is not looked at
    height = tags.get(HEIGHT, 0)
    rows = tags.get(_TILE_HEIGHT if is_tiled else ROWS_PER_STRIP, height)
    if not half or not width or not rows or (is_planar and not is_tiled and height % rows):
        return None
    changed = {BITS: 16, CHANNELS: 1, PHOTOMETRIC: 1, SAMPLE_FORMAT: 1, PLANES: 1, _PREDICTOR: 1}
    changed |= {WIDTH: half * -(-tags.get(WIDTH, 0) // width) if is_tiled else half}
    if is_tiled:
        changed[_TILE_WIDTH] = half
    if is_planar:
        changed[HEIGHT] = -(-height // rows) * rows * channels
    if max(changed.values()) > _LARGEST:
        return None
    order, is_big = _layout(content)
    kept = []
    for place, tag, _, _ in _entries(content):
        if tag in changed:
            # The value is a number of 32 bits, at the front of its place.
            entry = struct.pack(order + ("HHQI4x" if is_big else "HHII"), tag, 4, 1, changed[tag])
        elif tag in _STORAGE:
            entry = content[place : place + (20 if is_big else 12)]
        else:  # of so many channels or bits as there are no longer
            continue
        kept.append(entry)
    (at,) = struct.unpack_from(order + ("Q" if is_big else "I"), content, 8 if is_big else 4)
    directory = struct.pack(order + ("Q" if is_big else "H"), len(kept)) + b"".join(kept) + bytes(8 if is_big else 4)
    copy = bytearray(content)
    copy[at : at + len(directory)] = directory
    return copy


def _layout(content: bytes) -> tuple[str, bool]:
    """The byte order in the words of `struct`, and whether it is a BigTIFF."""
    order = "<" if content[:2] == b"II" else ">"
    return order, struct.unpack_from(order + "H", content, 2)[0] != 42


def _entries(content: bytes) -> Iterator[tuple[int, int, int, int]]:
    """The entries of the first directory: where each is, its tag, its field type and its number of values."""
    order, is_big = _layout(content)
    (at,) = struct.unpack_from(order + ("Q" if is_big else "I"), content, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), content, at)
    entry, step, at = (order + "HHQ", 20, at + 8) if is_big else (order + "HHI", 12, at + 2)
    for place in range(at, at + min(count, MOST_ENTRIES) * step, step):
        yield place, *struct.unpack_from(entry, content, place)
