"""Damaged image files by format: each mutator knows its format's structure, so that the damage gets past the signature.

A mutator takes a random generator and gives the bytes of one file. About half of what it changes keeps lengths and
checksums right, because a decoder that stops at the first checksum tests nothing behind it.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import PIL.Image
from tests.runtime.images.make_files import PNG_SIGNATURE, png_chunk

Mutator = Callable[[random.Random], bytes]

_EXTREMES = (
    *(0, 1, 2, 3, 4, 7, 8, 15, 16, 127, 128, 255, 256, 4095),
    *(32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1),
)


def _number(chooser: random.Random, bits: int = 32) -> int:
    """A size or offset: mostly small, sometimes at a limit of its type."""
    if chooser.random() < 0.85:
        return chooser.randrange(1, 200)
    extreme: int = chooser.choice(_EXTREMES)
    return extreme & ((1 << bits) - 1)


def _noise(chooser: random.Random, most: int = 400) -> bytes:
    return chooser.randbytes(chooser.randrange(most))


@lru_cache
def _pattern(height: int = 40, width: int = 56, channels: int = 3) -> np.ndarray:
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8), (5, 5), 0)
    return image if channels == 3 else np.ascontiguousarray(image[:, :, 0])


@lru_cache
def _encoded(suffix: str, *options: int, channels: int = 3) -> bytes:
    return bytes(cv2.imencode(suffix, _pattern(channels=channels), list(options))[1])


@lru_cache
def _saved(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(_pattern()).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def damaged(chooser: random.Random, content: bytes) -> bytes:
    """Bytes changed, cut, repeated or inserted anywhere; headers decide the most, so half falls on the first bytes."""
    changed = bytearray(content)
    for _ in range(chooser.choice((0, 1, 1, 2, 4, 16))):
        end = len(changed) if chooser.random() < 0.5 else min(len(changed), 80)
        place = chooser.randrange(max(1, end))
        kind = chooser.randrange(6)
        if kind == 0 and changed:
            changed[place] ^= 1 << chooser.randrange(8)
        elif kind == 1 and changed:
            changed[place] = chooser.choice((0, 1, 127, 128, 255))
        elif kind == 2 and chooser.random() < 0.3:
            del changed[place:]
        elif kind == 3:
            del changed[place : place + chooser.randrange(1, 40)]
        elif kind == 4:
            changed[place:place] = changed[place : place + chooser.randrange(1, 40)] * chooser.randrange(1, 5)
        else:
            changed[place : place + 4] = struct.pack(chooser.choice("<>") + "I", chooser.choice(_EXTREMES))
    return bytes(changed)


def _png_rows(chooser: random.Random, width: int, height: int, bits: int, *, interlace: int) -> bytes:
    """The filtered rows of an image or of Adam7's seven passes; of the first 300 pixels of a side that is longer."""
    passes = [(0, 0, 1, 1)]
    if interlace:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = bytearray()
    filters = 5 if chooser.random() < 0.95 else 6
    for left, top, step_x, step_y in passes:
        columns = len(range(left, min(width, 300), step_x))
        for _ in range(len(range(top, min(height, 300), step_y)) if columns else 0):
            rows.append(chooser.randrange(filters))
            rows += chooser.randbytes((columns * bits + 7) // 8)
    return bytes(rows[: 1 << 17])


def _png_data(chooser: random.Random, width: int, height: int, bits: int, *, interlace: int) -> bytes:
    """Compressed rows: whole, too short, or no such thing."""
    rows = _png_rows(chooser, width, height, bits, interlace=interlace)
    end = chooser.choice((*[len(rows)] * 7, len(rows) // 2, 1, 0))
    content = zlib.compress(rows[:end], chooser.choice((0, 1, 9)))
    return chooser.choice((*[content] * 8, content[: chooser.randrange(len(content))], _noise(chooser)))


_PNG_COLORS = (
    *((0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 8), (4, 8), (4, 16), (6, 8), (6, 16)),
    *((3, 16), (5, 8), (2, 3)),  # which the format does not have
)


def _png(chooser: random.Random, *, interlace: int, is_animated: bool) -> bytes:
    width, height = _number(chooser), _number(chooser)
    color, depth = chooser.choice(_PNG_COLORS)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(color, 1)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    chunks = [(b"IHDR", header)]
    if color == 3 or chooser.random() < 0.1:
        chunks.append((b"PLTE", chooser.randbytes(chooser.choice((3, 6, 48, 768, 768, 771, 4, 0)))))
    if chooser.random() < 0.3:
        chunks.append((b"tRNS", chooser.randbytes(chooser.choice((1, 2, 6, 256, 300, 0)))))
    if chooser.random() < 0.2:
        name = chooser.choice(
            (b"eXIf", b"gAMA", b"iCCP", b"sBIT", b"bKGD", b"cHRM", b"pHYs", b"tEXt", b"zTXt", b"cICP", b"IDAT")
        )
        chunks.append((name, _noise(chooser)))
    data = [(b"IDAT", part) for part in _parts(chooser, _png_data(chooser, width, height, bits, interlace=interlace))]
    if is_animated:
        chunks.append(
            (b"acTL", struct.pack(">II", chooser.choice((0, 1, 2, 4, 2**31, 2**32 - 1)), chooser.randrange(3)))
        )
        sequence = 0
        frames: list[tuple[bytes, bytes]] = []
        for number in range(chooser.randrange(5)):
            frame_width, frame_height = chooser.choice(((width, height), (_number(chooser), _number(chooser))))
            left, top = chooser.choice(((0, 0), (_number(chooser), _number(chooser))))
            ends = (chooser.randrange(4), chooser.randrange(3))  # how it is disposed of and blended
            control = struct.pack(">IIIIIHHBB", sequence, frame_width, frame_height, left, top, 1, 20, *ends)
            frames.append((b"fcTL", control[: chooser.choice((26, 26, 26, 25, 0))]))
            sequence += 1
            if number or chooser.random() < 0.5:
                for part in _parts(chooser, _png_data(chooser, frame_width, frame_height, bits, interlace=interlace)):
                    frames.append((b"fdAT", struct.pack(">I", sequence) + part if chooser.random() < 0.9 else part[:3]))
                    sequence += 1
        data = data + frames if chooser.random() < 0.7 else frames + data
    chunks += [*data, (b"IEND", b"")]
    for _ in range(chooser.choice((0, 0, 1, 2))):
        kind, place = chooser.randrange(4), chooser.randrange(len(chunks))
        if kind == 0:
            del chunks[place]
        elif kind == 1:
            chunks.insert(place, chooser.choice(chunks or [(b"IEND", b"")]))
        elif kind == 2:
            chooser.shuffle(chunks)
        else:
            name, content = chunks[place]
            chunks[place] = (name, damaged(chooser, content))
        if not chunks:
            break
    content = PNG_SIGNATURE + b"".join(png_chunk(*chunk) for chunk in chunks)
    return damaged(chooser, content) if chooser.random() < 0.3 else content


def _parts(chooser: random.Random, content: bytes) -> list[bytes]:
    parts: list[bytes] = []
    while content and len(parts) < 4 and chooser.random() < 0.3:
        cut = chooser.randrange(len(content) + 1)
        parts.append(content[:cut])
        content = content[cut:]
    return [*parts, content]


def png(chooser: random.Random) -> bytes:
    """A still PNG of any colour type and depth."""
    return _png(chooser, interlace=0, is_animated=False)


def adam7(chooser: random.Random) -> bytes:
    """An interlaced PNG."""
    return _png(chooser, interlace=1, is_animated=False)


def apng(chooser: random.Random) -> bytes:
    """An animated PNG, whose frames may lie anywhere and have any size."""
    return _png(chooser, interlace=chooser.choice((0, 0, 0, 1)), is_animated=True)


def bmp(chooser: random.Random) -> bytes:
    """A bitmap, mostly run-length encoded, with runs, skips and ends anywhere."""
    compression = chooser.choice((0, 1, 1, 1, 2, 2, 3, 4, 5, 6, 11))
    bits = {1: 8, 2: 4}.get(compression, chooser.choice((1, 4, 8, 16, 24, 32, 2, 0)))
    if chooser.random() < 0.1:
        bits = chooser.choice((1, 4, 8, 24, 32))
    data = bytearray()
    if compression in (1, 2):
        for _ in range(chooser.randrange(300)):
            kind = chooser.randrange(5)
            if kind < 2:
                data += bytes((chooser.randrange(256), chooser.randrange(256)))
            elif kind == 2:
                count = chooser.randrange(3, 256)
                data += bytes((0, count)) + chooser.randbytes(count if chooser.random() < 0.9 else count // 3)
            elif kind == 3:
                data += bytes((0, 2, chooser.randrange(256), chooser.randrange(256)))
            else:
                data += bytes((0, chooser.choice((0, 0, 0, 1))))
    else:
        data += _noise(chooser, 4000)
    palette = chooser.randbytes(4 * chooser.choice((0, 2, 16, 256, 255)))
    colors = chooser.choice((0, len(palette) // 4, _number(chooser)))
    width = _number(chooser)
    height = chooser.choice((1, -1)) * _number(chooser, 31)
    if chooser.random() < 0.15:
        header = struct.pack("<IHHHH", 12, width & 0xFFFF, abs(height) & 0xFFFF, 1, bits)
    else:
        size = chooser.choice((40, 40, 40, 52, 56, 64, 108, 124, _number(chooser)))
        header = struct.pack("<IIiHHIIiiII", size, width, height, 1, bits, compression, len(data), 0, 0, colors, 0)
        header += chooser.randbytes(max(0, min(size, 200) - 40))
    offset = chooser.choice((14 + len(header) + len(palette),) * 4 + (_number(chooser),))
    content = b"BM" + struct.pack("<IHHI", 14 + len(header) + len(palette) + len(data), 0, 0, offset)
    content += header + palette + bytes(data)
    return damaged(chooser, content) if chooser.random() < 0.2 else content


_TIFF_CODINGS = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    32773,
    32771,
    32809,
    32946,
    34661,
    34676,
    34677,
    34712,
    34887,
    34925,
    50000,
    50001,
)


def tiff(chooser: random.Random) -> bytes:
    """A TIFF or BigTIFF of any name, in strips or tiles, of either byte order; or an encoder's, damaged."""
    if chooser.random() < 0.4:
        name = chooser.choice(
            ("raw", "tiff_lzw", "tiff_deflate", "packbits", "tiff_adobe_deflate", "jpeg", "group3", "group4")
        )
        mode = (
            "1"
            if name.startswith("group")
            else chooser.choice(("RGB", "L", "1", "CMYK") if name != "jpeg" else ("RGB", "L"))
        )
        return damaged(chooser, _saved("TIFF", mode, compression=None if name == "raw" else name))
    order, is_big = chooser.choice("<>"), chooser.random() < 0.2
    width, height = _number(chooser), _number(chooser)
    bits = chooser.choice((1, 2, 4, 8, 8, 8, 12, 16, 32, 64))
    samples = chooser.choice((1, 1, 3, 3, 4, 2, 5, _number(chooser, 16)))
    coding = chooser.choice(_TIFF_CODINGS)
    raw = _noise(chooser, 3000)
    body = zlib.compress(raw) if coding in (8, 32946) and chooser.random() < 0.8 else raw
    tags: dict[int, tuple[int, list[int]]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * min(samples, 5)),
        259: (3, [coding]),
        262: (3, [chooser.choice((0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 32803, 32844, 32845))]),
        277: (3, [samples]),
        284: (3, [chooser.choice((1, 1, 2, 3))]),
        317: (3, [chooser.choice((1, 1, 2, 3))]),
        339: (3, [chooser.choice((1, 1, 1, 2, 3, 4))]),
        274: (3, [chooser.randrange(10)]),
        320: (3, [chooser.randrange(65536) for _ in range(3 << min(bits, 8))]),
        530: (3, [chooser.choice((1, 2, 4, 3)), chooser.choice((1, 2, 4, 0))]),
    }
    if chooser.random() < 0.4:
        tags[322], tags[323] = (4, [_number(chooser)]), (4, [_number(chooser)])
        tags[324], tags[325] = (4, [16] * chooser.randrange(1, 5)), (4, [len(body)] * chooser.randrange(1, 5))
    else:
        count = chooser.randrange(1, 5)
        tags[278] = (4, [chooser.choice((height, 1, _number(chooser), 0))])
        tags[273] = (4, [chooser.choice((16, 16, 16, _number(chooser)))] * count)
        tags[279] = (4, [chooser.choice((len(body), len(body), _number(chooser)))] * count)
    for tag in list(tags):
        if chooser.random() < 0.04:
            del tags[tag]
        elif chooser.random() < 0.04:
            tags[tag] = (chooser.choice((1, 3, 4, 5, 9, 11, 12, 16)), [_number(chooser)] * chooser.choice((1, 2, 9)))
    content = bytearray(16) + body
    entries, place = [], len(content)
    letters = {1: "B", 3: "H", 4: "I", 5: "Q", 9: "i", 11: "f", 12: "d", 16: "Q"}
    for tag, (kind, values) in sorted(tags.items()):
        letter = letters[kind]
        limit = {"B": 0xFF, "H": 0xFFFF, "i": 0x7FFFFFFF}.get(letter, 0xFFFFFFFF)
        packed = struct.pack(f"{order}{len(values)}{letter}", *(value & limit for value in values))
        entries.append((tag, kind, len(values), packed))
    inline = 8 if is_big else 4
    step = 20 if is_big else 12
    after = place + (8 if is_big else 2) + step * len(entries) + inline
    table, rest = bytearray(), bytearray()
    for tag, kind, length, packed in entries:
        if len(packed) > inline:
            value = struct.pack(order + ("Q" if is_big else "I"), after + len(rest))
            rest += packed
        else:
            value = packed.ljust(inline, b"\0")
        table += struct.pack(order + ("HHQ" if is_big else "HHI"), tag, kind, length) + value
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if is_big else 42)
    head += struct.pack(order + "HHQ", 8, 0, place) if is_big else struct.pack(order + "I", place)
    content[: len(head)] = head
    content += struct.pack(order + ("Q" if is_big else "H"), len(entries)) + table
    content += (
        chooser.choice((bytes(inline), bytes(inline), struct.pack(order + ("Q" if is_big else "I"), place))) + rest
    )
    return damaged(chooser, bytes(content)) if chooser.random() < 0.2 else bytes(content)


def _boxes(content: bytes, start: int, end: int, found: list[tuple[int, int]]) -> None:
    """Where boxes of an ISO base media file begin and end, those inside others too."""
    at = start
    while at + 8 <= end:
        size, name = struct.unpack_from(">I4s", content, at)
        if size < 8 or at + size > end:
            return
        found.append((at, at + size))
        inside = {b"meta": 12, b"iprp": 8, b"ipco": 8, b"jp2h": 8, b"iinf": 14, b"moov": 8, b"trak": 8}.get(name)
        if inside is not None:
            _boxes(content, at + inside, at + size, found)
        at += size


def _mutated_boxes(chooser: random.Random, content: bytes) -> bytes:
    """Boxes with another size or content, twice, missing, or full of noise."""
    for _ in range(chooser.choice((1, 1, 2, 3))):
        found: list[tuple[int, int]] = []
        _boxes(content, 0, len(content), found)
        if not found:
            break
        start, end = chooser.choice(found)
        kind = chooser.randrange(7)
        box = content[start:end]
        if kind == 0:
            box = struct.pack(">I", _number(chooser)) + box[4:]
        elif kind == 1:
            box = b""
        elif kind == 2:
            box += box * chooser.choice((1, 1, 50))
        elif kind == 3:
            box = box[:8] + chooser.randbytes(len(box) - 8)
        elif kind == 4:
            other = chooser.choice(found)
            box = content[other[0] : other[1]]
        elif kind == 5 and len(box) > 12:
            place = chooser.randrange(8, len(box) - 3)
            box = box[:place] + struct.pack(">I", _number(chooser)) + box[place + 4 :]
        else:
            box = box[:8] + damaged(chooser, box[8:])
            box = struct.pack(">I", len(box)) + box[4:]
        content = content[:start] + box + content[end:]
    return content


@lru_cache
def _deep_avif() -> bytes:
    deep = _pattern().astype(np.uint16) * 4
    return bytes(cv2.imencode(".avif", deep, [cv2.IMWRITE_AVIF_SPEED, 10, cv2.IMWRITE_AVIF_DEPTH, 10])[1])


def avif(chooser: random.Random) -> bytes:
    """An AVIF with its boxes or its AV1 data changed."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    seeds = (
        lambda: _encoded(".avif", cv2.IMWRITE_AVIF_SPEED, 10),
        _deep_avif,
        lambda: _saved("AVIF", "RGBA", speed=10),
        lambda: _saved("AVIF", "RGB", speed=10, exif=exif.tobytes()),
        lambda: _animated("AVIF"),
    )
    content = chooser.choice(seeds)()
    return _mutated_boxes(chooser, content) if chooser.random() < 0.7 else damaged(chooser, content)


@lru_cache
def _animated(kind: str) -> bytes:
    buffer = io.BytesIO()
    frames = [PIL.Image.fromarray(np.roll(_pattern(), 5 * step, 1)) for step in range(3)]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=40)
    return buffer.getvalue()


def jpeg_2000(chooser: random.Random) -> bytes:
    """A JPEG 2000 file or codestream with its sizes, components, tiles or boxes changed."""
    content = chooser.choice(
        (
            lambda: _encoded(".jp2"),
            lambda: _encoded(".jp2", channels=1),
            lambda: _saved("JPEG2000", "RGBA"),
            lambda: _saved("JPEG2000", "RGB", tile_size=(16, 16), num_resolutions=3),
            lambda: _saved("JPEG2000", "RGB", no_jp2=True),
        )
    )()
    kind = chooser.randrange(4)
    if kind == 0:
        return _mutated_boxes(chooser, content)
    if kind == 1:
        return damaged(chooser, content)
    changed = bytearray(content)
    start = content.find(b"\xff\x4f\xff\x51")
    if kind == 2:  # the fields of SIZ
        for _ in range(chooser.choice((1, 1, 2, 4))):
            field = chooser.randrange(9)
            place = start + 8 + 4 * field
            if field == 8:
                struct.pack_into(">H", changed, place, _number(chooser, 16))
            else:
                struct.pack_into(">I", changed, place, _number(chooser))
        return bytes(changed)
    markers = [at for at in range(start, len(content) - 1) if content[at] == 0xFF and 0x4F <= content[at + 1] <= 0x93]
    for _ in range(chooser.choice((1, 2, 3))):
        at = chooser.choice(markers)
        place = min(at + chooser.randrange(1, 16), len(changed) - 1)
        changed[place] = chooser.choice((0, 1, 255, 128, chooser.randrange(256)))
    return bytes(changed)


def gif(chooser: random.Random) -> bytes:
    """A GIF whose frames may lie anywhere, with compressed data that is right or is not."""
    if chooser.random() < 0.3:
        return damaged(chooser, _animated("GIF"))
    width, height = _number(chooser, 16), _number(chooser, 16)
    bits = chooser.randrange(8)
    has_colors = chooser.random() < 0.8
    content = bytearray(chooser.choice((b"GIF87a", b"GIF89a")))
    content += struct.pack("<HHBBB", width, height, has_colors << 7 | bits, chooser.randrange(256), 0)
    if has_colors:
        content += chooser.randbytes(3 << (bits + 1))
    for _ in range(chooser.choice((0, 1, 1, 1, 2, 3))):
        if chooser.random() < 0.5:
            content += b"\x21\xf9\x04" + bytes((chooser.randrange(32), 1, 0, chooser.randrange(256))) + b"\0"
        if chooser.random() < 0.2:
            content += b"\x21" + bytes((chooser.choice((0xFE, 0xFF, 0x01, 0x77)),)) + _blocks(chooser, _noise(chooser))
        frame = chooser.choice(((0, 0, width, height), tuple(_number(chooser, 16) for _ in range(4))))
        local = chooser.random() < 0.3
        content += b"\x2c" + struct.pack("<HHHHB", *frame, local << 7 | (chooser.random() < 0.3) << 6 | bits)
        if local:
            content += chooser.randbytes(3 << (bits + 1))
        code = chooser.choice((2, 4, 8, 8, 0, 1, 11, 12, 255))
        content += bytes((code,)) + _blocks(chooser, _noise(chooser, 1500))
    content += b"\x3b" if chooser.random() < 0.9 else b""
    return damaged(chooser, bytes(content)) if chooser.random() < 0.2 else bytes(content)


def _blocks(chooser: random.Random, content: bytes) -> bytes:
    parts = [content[at : at + 255] for at in range(0, len(content), 255)]
    blocks = b"".join(bytes((len(part),)) + part for part in parts)
    return blocks + (b"\0" if chooser.random() < 0.95 else b"")


def pnm(chooser: random.Random) -> bytes:
    """A PAM, PNM or Sun raster file with a header and data that contradict each other."""
    kind = chooser.choice("1234567777R")
    width, height, data = _number(chooser), _number(chooser), _noise(chooser, 6000)
    if kind == "R":
        values = (
            width,
            height,
            chooser.choice((1, 8, 24, 32, 7)),
            len(data),
            chooser.randrange(6),
            chooser.choice((0, 1, 2)),
        )
        content = (
            b"\x59\xa6\x6a\x95" + struct.pack(">7I", *values, chooser.choice((0, 3, 768, _number(chooser)))) + data
        )
    elif kind == "7":
        lines = [
            f"WIDTH {width}",
            f"HEIGHT {height}",
            f"DEPTH {chooser.choice((1, 2, 3, 4, 5, 0, 65536))}",
            f"MAXVAL {chooser.choice((1, 255, 255, 4095, 65535, 0, 65536))}",
            f"TUPLTYPE {chooser.choice(('RGB', 'GRAYSCALE', 'RGB_ALPHA', 'BLACKANDWHITE', 'X' * 300, ''))}",
            "# comment",
        ]
        if chooser.random() < 0.3:
            chooser.shuffle(lines)
        lines = [line for line in lines if chooser.random() < 0.95]
        content = ("P7\n" + "\n".join(lines) + "\nENDHDR\n").encode() + data
    else:
        most = "" if kind in "14" else f"{chooser.choice((1, 255, 255, 4095, 65535, 0, 65536, 99999999999))}\n"
        blank = chooser.choice((" ", "\n", "\n# comment\n", "\t"))
        text = " ".join(str(chooser.randrange(300)) for _ in range(chooser.randrange(500))).encode()
        content = f"P{kind}{blank}{width}{blank}{height}{blank}{most}".encode() + (text if kind in "123" else data)
    return damaged(chooser, content) if chooser.random() < 0.2 else content


def jpeg(chooser: random.Random) -> bytes:
    """A JPEG with its segments changed: sizes, sampling, tables, scans, restarts; baseline and progressive."""
    content = chooser.choice(
        (
            lambda: _encoded(".jpg"),
            lambda: _encoded(".jpg", channels=1),
            lambda: _encoded(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
            lambda: _encoded(".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
            lambda: _saved("JPEG", "CMYK"),
            lambda: _saved(
                "JPEG", "RGB", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
            ),
        )
    )()
    if chooser.random() < 0.3:
        return damaged(chooser, content)
    segments: list[bytes] = []
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        segments.append(content[at:end])
        at = end
    data = content[at:]
    for _ in range(chooser.choice((1, 1, 2, 3))):
        place = chooser.randrange(len(segments))
        kind = chooser.randrange(6)
        segment = segments[place]
        if kind == 0:
            del segments[place]
        elif kind == 1:
            segments.insert(chooser.randrange(len(segments) + 1), segment)
        elif kind == 2:
            spot = chooser.randrange(4, len(segment))
            segments[place] = segment[:spot] + bytes((chooser.choice((0, 1, 17, 255, 128)),)) + segment[spot + 1 :]
        elif kind == 3:
            segments[place] = segment[:4] + damaged(chooser, segment[4:])
        elif kind == 4 and len(segment) > 9:
            segments[place] = segment[:5] + struct.pack(">HH", _number(chooser, 16), _number(chooser, 16)) + segment[9:]
        else:
            data = chooser.choice((damaged(chooser, data), data[: len(data) // 2], data * 2, data[:-2] + data * 30))
        if not segments:
            break
    return b"\xff\xd8" + b"".join(segments) + data


def webp(chooser: random.Random) -> bytes:
    """A WebP, lossy, lossless, with alpha or animated, with its chunks changed."""
    content = chooser.choice(
        (
            lambda: _saved("WEBP"),
            lambda: _saved("WEBP", "RGB", lossless=True),
            lambda: _saved("WEBP", "RGBA"),
            lambda: _animated("WEBP"),
        )
    )()
    if chooser.random() < 0.3:
        return damaged(chooser, content)
    chunks = []
    at = 12
    while at + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, at)
        chunks.append((name, content[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    for _ in range(chooser.choice((1, 1, 2))):
        place = chooser.randrange(len(chunks))
        name, body = chunks[place]
        kind = chooser.randrange(5)
        if kind == 0 and len(chunks) > 1:
            del chunks[place]
        elif kind == 1:
            chunks.insert(place, chunks[place])
        elif kind == 2:
            name = chooser.choice((b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"EXIF", name))
            chunks[place] = (name, body)
        elif kind == 3 and name in (b"VP8X", b"ANMF") and len(body) > 10:
            chunks[place] = (name, body[:4] + chooser.randbytes(6) + body[10:])
        else:
            chunks[place] = (name, damaged(chooser, body))
    packed = b"".join(name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2) for name, body in chunks)
    return b"RIFF" + struct.pack("<I", chooser.choice((len(packed) + 4, _number(chooser)))) + b"WEBP" + packed


MUTATORS: dict[str, Mutator] = {
    "APNG": apng,
    "PNG": png,
    "PNG, Adam7": adam7,
    "BMP, RLE": bmp,
    "TIFF": tiff,
    "AVIF": avif,
    "JPEG 2000": jpeg_2000,
    "GIF": gif,
    "PAM, PNM, Sun raster": pnm,
    "JPEG": jpeg,
    "WebP": webp,
}
