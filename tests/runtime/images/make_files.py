"""Image files that no encoder writes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunk(name: bytes, content: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_header(width: int, height: int, *, depth: int = 8, color: int = 0, interlace: int = 0) -> bytes:
    """The chunk IHDR."""
    return png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace))


def make_png(width: int, height: int, rows: bytes, *chunks: bytes, **options: int) -> bytes:
    """A PNG of these rows, each with its filter byte in front; `chunks` come before the data."""
    data = png_chunk(b"IDAT", zlib.compress(rows))
    return PNG_SIGNATURE + png_header(width, height, **options) + b"".join(chunks) + data + png_chunk(b"IEND", b"")


def rows_of(image: np.ndarray) -> bytes:
    """An image's rows as a PNG has them, unfiltered."""
    return b"".join(b"\0" + row.tobytes() for row in image)


def make_crashing_apng() -> bytes:
    """An animated PNG with an empty frame, at which OpenCV 4.11 to 4.14 end with a segmentation fault."""
    control = struct.pack(">IIIIIHHBB", 0, 96, 80, 0, 0, 1, 20, 0, 0)
    animation = png_chunk(b"acTL", struct.pack(">II", 4, 0))
    still = make_png(96, 80, (b"\0" + bytes(range(96)) * 4) * 80, animation, color=6)
    end = len(still) - len(png_chunk(b"IEND", b""))
    return still[:end] + png_chunk(b"fcTL", control) + png_chunk(b"fdAT", b"") + still[end:]


def make_tiff(
    blocks: Sequence[bytes], tags: Mapping[int, Sequence[int]], *, order: str = "<", is_big: bool = False
) -> bytes:
    """A TIFF of these strips, or tiles where the tags have their size; the directory comes before them."""
    places, lengths = (324, 325) if 322 in tags else (273, 279)
    values = {**tags, places: [0] * len(blocks), lengths: [len(block) for block in blocks]}
    head, count, entry, number, inline = (16, "Q", "HHQ", "Q", 8) if is_big else (8, "H", "HHI", "I", 4)
    size = struct.calcsize(order + entry) + inline
    after = head + struct.calcsize(order + count) + size * len(values) + inline
    elsewhere = sum(4 * len(value) for value in values.values() if 4 * len(value) > inline)
    starts = accumulate(map(len, blocks), initial=after + elsewhere)
    values[places] = [start for start, _ in zip(starts, blocks, strict=False)]
    table, rest = struct.pack(order + count, len(values)), b""
    for tag in sorted(values):
        packed = struct.pack(f"{order}{len(values[tag])}I", *values[tag])
        table += struct.pack(order + entry, tag, 4, len(values[tag]))
        if len(packed) > inline:
            table += struct.pack(order + number, after + len(rest))
            rest += packed
        else:
            table += packed.ljust(inline, b"\0")
    name = b"II" if order == "<" else b"MM"
    version = struct.pack(order + "HHHQ", 43, 8, 0, 16) if is_big else struct.pack(order + "HI", 42, 8)
    return name + version + table + bytes(inline) + rest + b"".join(blocks)
