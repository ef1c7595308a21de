"""What an image file says about itself, read before any decoder sees it.

Decoders allocate what the header asks for, and some crash on headers that contradict the file. So the format, the size
in pixels and the structure are checked here, and content of a format that is not listed here is never decoded.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator

from fer_runtime.errors import ImageError
from fer_runtime.images import tiff
from fer_runtime.video.signatures import HEAD_BYTES, looks_like_a_video

DAMAGED = "cannot be decoded: damaged, or not an image"
_CUT_SHORT = "cannot be decoded: its end is missing"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What decides how a PNG looks. Everything else (animation, text, colour profiles) stays away from the decoder.
_PNG_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"))
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_MOST_CHUNKS = 1_000_000  # of a PNG or boxes of an AVIF; real files have hundreds
# Cameras and encoders write about ten scans. A scan takes time for every pixel, however few bytes it has.
_MOST_SCANS = 100
_MOST_SCANNED_PIXELS = 2_000_000_000
# Compiled when they are first used, which most runs never do.
# A marker in a JPEG's compressed data: neither a stuffed zero, nor a restart marker, nor a fill byte.
_JPEG_MARKER = rb"\xff([\x01-\xcf\xd8-\xfe])"
_BLANK = rb"(?:\s|#[^\r\n]*[\r\n])+"  # with comments
_PNM_HEADER = rb"P[1-6]%b(\d{1,10})%b(\d{1,10})(?:%b(\d{1,10}))?" % (_BLANK, _BLANK, _BLANK)
_PAM_LINE = rb"(WIDTH|HEIGHT|DEPTH|MAXVAL)\s+(\d{1,10})\s"
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
# Compressions of TIFF (tag 259) by their registered numbers. OpenCV's own libtiff reads these:
_TIFF_READ = frozenset((1, 2, 3, 4, 5, 6, 7, 8, 32766, 32771, 32773, 32809, 32909, 32946, 34676, 34677))
_TIFF_SIGNED = (2, 5, 6)  # formats of samples: signed, and complex of both kinds
_TIFF_BITS = (1, 8, 10, 12, 14, 16)
# These depend on how libtiff was built.
_TIFF_RARE = {34661: "JBIG", 34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP"}
_TIFF_RARE |= {50002: "JPEG XL", 52546: "JPEG XL"}
_FLOAT = "stores brightness as floating-point numbers without a fixed range; convert it to 8 or 16 bits first"


class Header:
    """Format and size of an image; a plain class, because one is created for every image."""

    __slots__ = (
        "bytes_per_pixel",
        "content",
        "height",
        "is_16_bit",
        "is_negative",
        "is_plain",
        "kind",
        "maxval",
        "refusal",
        "transforms",
        "width",
    )

    def __init__(
        self,
        kind: str,
        width: int,
        height: int,
        bytes_per_pixel: int,
        content: bytes,
        is_plain: bool = False,
        is_16_bit: bool = False,
        transforms: tuple[tuple[bytes, int], ...] = (),
        refusal: str = DAMAGED,
        is_negative: bool = False,
        maxval: int = 255,
    ) -> None:
        """Describe an image.

        Args:
            kind: the format's name, such as "JPEG".
            width: pixels before any rotation.
            height: pixels before any rotation.
            bytes_per_pixel: memory that decoding takes at most, measured with OpenCV 4.14 and rounded up.
            content: the file's bytes, without the parts that no decoder needs to see.
            is_plain: it is a baseline JPEG, or a PNG without anything unusual.
            is_16_bit: the samples have more than 8 bits.
            transforms: AVIF's own, in their order: b"irot" and quarter turns counter-clockwise, or b"imir" and 1
                where left and right are exchanged, 0 where top and bottom are.
            refusal: the reason to give if the decoder refuses it.
            is_negative: 0 is white, which the decoder does not know.
            maxval: the value of white in samples of 8 bits, which the decoder leaves as they are.
        """
        self.kind = kind
        self.width = width
        self.height = height
        self.bytes_per_pixel = bytes_per_pixel
        self.content = content
        self.is_plain = is_plain
        self.is_16_bit = is_16_bit
        self.transforms = transforms
        self.refusal = refusal
        self.is_negative = is_negative
        self.maxval = maxval


def read_header(content: bytes) -> Header:
    """The header of a whole image file.

    Raises:
        ImageError: it is not an image of a format that is read, or its structure is damaged.
    """
    try:
        for signature, parse in _PARSERS:
            if content.startswith(signature):
                header = parse(content)
                break
        else:
            parse_other = _other_parser(content)
            if parse_other is None:
                raise ImageError(kind_not_read(content) or DAMAGED)
            header = parse_other(content)
    except (
        IndexError,
        ValueError,
        OverflowError,
        struct.error,
    ) as error:  # the header goes on behind the end of the file
        raise ImageError(_CUT_SHORT) from error
    if header.width < 1 or header.height < 1:
        raise ImageError(f"cannot be decoded: its header says {header.width} x {header.height} pixels")
    return header


def kind_not_read(content: bytes) -> str | None:
    """Explain why `content` is not a supported image (HEIC, JPEG XL, floats, video), or return None."""
    brands = _brands(content)
    if brands & _HEIC_BRANDS and not brands & _AVIF_BRANDS:
        return "is a HEIC image, which OpenCV does not read; convert it to JPEG first"
    if content.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "is a JPEG XL image, which OpenCV does not read; convert it to JPEG first"
    if content.startswith((b"#?RADIANCE", b"#?RGBE", b"\x76\x2f\x31\x01", b"PF\n", b"Pf\n")):
        return f"is a Radiance HDR, OpenEXR or PFM image, which {_FLOAT}"
    if looks_like_a_video(content[:HEAD_BYTES]):
        return (
            "is a video; give it by name, without the suffix of an image, in a run of its own, or pipe it with "
            "--input-format auto"
        )
    return None


def _other_parser(content: bytes) -> Callable[[bytes], Header] | None:
    """The parser of a format whose signature is more than its first bytes."""
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return _webp
    if _brands(content) & _AVIF_BRANDS:
        return _avif
    if content[:1] == b"P" and b"1" <= content[1:2] <= b"7" and (content[2:3].isspace() or content[2:3] == b"#"):
        return _pam if content[1:2] == b"7" else _pnm
    return None


_WITHOUT_SEGMENT = frozenset((0x00, 0x01, *range(0xD0, 0xD9), 0xFF))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_FRAME = struct.Struct(">BHHB")  # precision, height, width, components
_LONGEST_SHARED = 4096  # bytes
# Every byte of the last baseline JPEG up to its pixels, and what they say: width, height, and whether it is plain. The
# crops of one program share them.
_shared_head: tuple[bytes, int, int, bool] = (b"\0", 0, 0, False)  # no JPEG begins so


def _jpeg(content: bytes) -> Header:
    global _shared_head
    head, width, height, is_plain = _shared_head
    if content.startswith(head):
        return Header("JPEG", width, height, 6, content, is_plain)
    at, frame = 2, None
    while True:
        # Decoders look for the next marker over whatever is between two segments.
        if content[at] != 0xFF:
            at = content.index(b"\xff", at)
        marker = content[at + 1]
        at += 1 if marker == 0xFF else 2
        if marker == 0xDA:
            break
        if marker == 0xD9:
            raise ImageError(_CUT_SHORT)
        if marker in _WITHOUT_SEGMENT:
            continue
        if marker in _FRAMES:
            if frame is not None:
                raise ImageError(DAMAGED)
            frame = (marker, *_FRAME.unpack_from(content, at + 2))
        at += max(content[at] << 8 | content[at + 1], 2)
    if frame is None:
        raise ImageError(DAMAGED)
    kind, precision, height, width, components = frame
    is_interleaved = content[at + 2] == components
    is_baseline = kind <= 0xC1 and is_interleaved
    is_plain = is_baseline and precision == 8 and components in (1, 3)
    if is_baseline:
        if at < _LONGEST_SHARED:
            _shared_head = (content[: at + 3], width, height, is_plain)
    else:
        scans = _count_scans(content, at)
        if scans > _MOST_SCANS or scans * width * height > _MOST_SCANNED_PIXELS:
            raise ImageError(
                f"is a JPEG of {scans} scans over {width} x {height} pixels, which takes minutes to decode; "
                "save it again as a baseline JPEG"
            )
    return Header(
        "JPEG",
        width,
        height,
        6 if is_baseline else 10,  # all coefficients of a progressive one are kept until its last scan
        content,
        is_plain,
    )


def _count_scans(content: bytes, at: int) -> int:
    """Scans of a JPEG whose first one starts at `at`; the count stops above the limit."""
    scans, marker_pattern = 1, re.compile(_JPEG_MARKER)
    while scans <= _MOST_SCANS * 100 and (found := marker_pattern.search(content, at)):
        marker, at = found[1][0], found.end()
        if marker == 0xD9:
            break
        scans += marker == 0xDA
        if marker not in (0x01, 0xD8) and len(content) >= at + 2:
            at += max(content[at] << 8 | content[at + 1], 2)
    return scans


def _png(content: bytes) -> Header:
    if not content.startswith(_PNG_SIGNATURE):
        raise ImageError(DAMAGED)
    kept, dropped = [_PNG_SIGNATURE], False
    at, size = 8, len(content)
    names: list[bytes] = []
    for _ in range(_MOST_CHUNKS):
        if at + 12 > size:
            if names[-1:] != [b"IDAT"]:
                raise ImageError(_CUT_SHORT)
            # Only the end marker is missing, or part of it; the data has a checksum of its own.
            kept.append(_PNG_END)
            names.append(b"IEND")
            dropped = True
            break
        length, name = struct.unpack_from(">I4s", content, at)
        if not name.isalpha() or (at == 8) != (name == b"IHDR"):
            raise ImageError(DAMAGED)
        end = at + 12 + length
        if end > size:
            raise ImageError(
                f"{_CUT_SHORT}: its {name.decode()} chunk of {length} bytes reaches beyond the end of the file"
            )
        if name in _PNG_CHUNKS:
            kept.append(content[at:end])
            if not (names and names[-1] == name == b"IDAT"):
                names.append(name)
        else:
            dropped = True
        at = end
        if name == b"IEND":
            break
    else:
        raise ImageError(f"has more than {_MOST_CHUNKS:,} PNG chunks; save it again")
    # Each once, the palette before what refers to it, the data in one run: what every encoder writes.
    is_ordered = names in (
        [b"IHDR", *((b"PLTE",) if has_palette else ()), *((b"tRNS",) if has_transparency else ()), b"IDAT", b"IEND"]
        for has_palette in (False, True)
        for has_transparency in (False, True)
    )
    width, height, depth, color, compression, filtering, interlace = struct.unpack_from(">IIBBBBB", content, 16)
    if len(kept[1]) != 25 or compression or filtering:
        raise ImageError(DAMAGED)
    if b"IDAT" not in names:
        raise ImageError("cannot be decoded: it has no image data")
    return Header(
        "PNG",
        width,
        height,
        6 if depth <= 8 else 16,
        b"".join(kept) if dropped else content,
        is_plain=is_ordered
        and not interlace
        and depth == 8
        and (color in (0, 2, 4, 6) or (color == 3 and b"PLTE" in names)),
        is_16_bit=depth == 16,
    )


def _gif(content: bytes) -> Header:
    width, height = struct.unpack_from("<HH", content, 6)
    # An end marker more than there should be is not read.
    return Header("GIF", width, height, 12, content + b";")


def _bmp(content: bytes) -> Header:
    (header_size,) = struct.unpack_from("<I", content, 14)
    width, height = struct.unpack_from("<HH" if header_size == 12 else "<ii", content, 18)
    return Header("BMP", abs(width), abs(height), 6, content)


def _sun_raster(content: bytes) -> Header:
    width, height = struct.unpack_from(">II", content, 4)
    return Header("Sun raster", width, height, 6, content)


def _jpeg_2000(content: bytes) -> Header:
    at = content.find(b"\xff\x4f\xff\x51")  # start of the codestream, and the segment with its size
    if at < 0:
        raise ImageError(DAMAGED)
    right, bottom, left, top = struct.unpack_from(">IIII", content, at + 8)
    (components,) = struct.unpack_from(">H", content, at + 40)
    (depth,) = struct.unpack_from(">B", content, at + 42)
    # OpenJPEG keeps every sample in 32 bits.
    return Header(
        "JPEG 2000", right - left, bottom - top, 8 + 4 * components, content, is_16_bit=(depth & 0x7F) + 1 > 8
    )


def _webp(content: bytes) -> Header:
    name = content[12:16]
    if name == b"VP8X":
        width, height = (1 + int.from_bytes(content[at : at + 3], "little") for at in (24, 27))
        # An animation is painted on two canvases of four channels.
        return Header("WebP", width, height, 16 if content[20] & 2 else 8, content)
    if name == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return Header("WebP", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), 12, content)
    if name == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return Header("WebP", width & 0x3FFF, height & 0x3FFF, 8, content)
    raise ImageError(DAMAGED)


def _pnm(content: bytes) -> Header:
    found = re.match(_PNM_HEADER, content[: 1 << 16])
    if found is None:
        raise ImageError(DAMAGED)
    white = 255 if content[1:2] in b"14" else int(found[3] or 0)  # bitmaps have none
    is_16_bit = white > 255
    # OpenCV scales samples that are written as text, and no others.
    maxval = white if content[1:2] in b"56" and 0 < white < 255 else 255
    bytes_per_pixel = 10 if is_16_bit else 6
    return Header("PNM", int(found[1]), int(found[2]), bytes_per_pixel, content, is_16_bit=is_16_bit, maxval=maxval)


def _pam(content: bytes) -> Header:
    head = content[: max(content.find(b"ENDHDR", 0, 1 << 16), 0)]
    values = {b"WIDTH": 0, b"HEIGHT": 0, b"DEPTH": 1, b"MAXVAL": 0}
    for name, digits in re.findall(_PAM_LINE, head):
        values[name] = max(values[name], int(digits))
    if values[b"DEPTH"] > 4:
        raise ImageError(f"is a PAM image of {values[b'DEPTH']} channels; at most 4 can be read")
    white = values[b"MAXVAL"] or 255
    if white == 1:  # OpenCV takes its bytes for bits
        raise ImageError("is a PAM image of black and white (MAXVAL 1), which cannot be read; convert it to PNG first")
    is_16_bit = white > 255
    return Header(
        "PAM",
        values[b"WIDTH"],
        values[b"HEIGHT"],
        16 if is_16_bit else 8,
        content,
        is_16_bit=is_16_bit,
        maxval=min(white, 255),
    )


def _tiff(content: bytes) -> Header:
    tags = tiff.read_tags(content)
    bits = tags.get(tiff.BITS, 1)
    if tags.get(tiff.SAMPLE_FORMAT) == 3:
        raise ImageError(f"is a TIFF that {_FLOAT}")
    if tags.get(tiff.SAMPLE_FORMAT) in _TIFF_SIGNED:
        raise ImageError(
            "is a TIFF of signed or complex numbers, which cannot be read; convert it to 8 or 16 bits first"
        )
    other_bits = f"is a TIFF with {bits} bits per sample, which cannot be read; convert it to 8 or 16 bits first"
    if bits > 16:
        raise ImageError(other_bits)
    if bits > 8 and tags.get(tiff.PLANES) == 2 and tags.get(tiff.CHANNELS, 1) > 1:  # OpenCV mixes rows of several
        raise ImageError(
            f"is a TIFF of {bits} bits whose channels are stored one after another, which cannot be read; save it "
            "with interleaved channels"
        )
    compression, refusal = tags.get(tiff.COMPRESSION, 1), DAMAGED if bits in _TIFF_BITS else other_bits
    if compression not in _TIFF_READ:
        name = _TIFF_RARE.get(compression, f"number {compression}")
        refusal = f"is a TIFF with the compression {name}, which this OpenCV does not read; save it with LZW or Deflate"
        if compression not in _TIFF_RARE:
            raise ImageError(refusal)  # OpenCV would give a black image
    channels, height = max(tags.get(tiff.CHANNELS, 1), 3), tags.get(tiff.HEIGHT, 0)
    # The rows of a strip are in memory twice more: as they are in the file, and unpacked. Without the tag all rows are.
    strip = min(1.0, tags.get(tiff.ROWS_PER_STRIP, height) / max(height, 1))
    return Header(
        "TIFF",
        tags.get(tiff.WIDTH, 0),
        height,
        math.ceil((1 if bits <= 8 else 2) * channels * (2 + strip)) + 2,
        content,
        is_16_bit=8 < bits <= 16,
        refusal=refusal,
        # OpenCV turns such images of 8 bits alone.
        is_negative=bits > 8 and tags.get(tiff.PHOTOMETRIC) == tiff.MIN_IS_WHITE,
    )


def _avif(content: bytes) -> Header:
    sizes, transforms, depth = [(0, 0)], [], 8
    meta = next((body for name, body in _boxes(content) if name == b"meta"), b"")
    inside = list(_boxes(meta, 4))
    properties = next((list(_boxes(body)) for name, body in inside if name == b"iprp"), [])
    shared = next((list(_boxes(body)) for name, body in properties if name == b"ipco"), [])
    for name, body in shared:
        if name == b"ispe":
            sizes.append(struct.unpack_from(">II", body, 4))
        elif name == b"av1C" and body[2] & 0x40:
            depth = 16
    primary = next((_item_number(body) for name, body in inside if name == b"pitm"), 1)
    for name, body in properties:
        if name == b"ipma":
            for index in _associated(body, primary):
                if 1 <= index <= len(shared):
                    kind, value = shared[index - 1]
                    if kind in (b"irot", b"imir"):
                        transforms.append((kind, value[0] & (3 if kind == b"irot" else 1)))
    # A sequence may have its size in the track's description alone.
    at = content.find(b"av01", 0, 1 << 20) if b"avis" in _brands(content) else -1
    if at >= 0 and len(content) >= at + 32:
        sizes.append(struct.unpack_from(">HH", content, at + 28))
    width, height = map(max, zip(*sizes, strict=True))
    return Header("AVIF", width, height, 18 if depth == 8 else 30, content, transforms=tuple(transforms))


def _item_number(body: bytes) -> int:
    return int(struct.unpack_from(">H" if body[0] == 0 else ">I", body, 4)[0])


def _associated(body: bytes, item: int) -> list[int]:
    """The properties of an item, by their numbers, in the order in which they apply."""
    version, is_wide = body[0], body[3] & 1
    (count,) = struct.unpack_from(">I", body, 4)
    at = 8
    for _ in range(min(count, _MOST_CHUNKS)):
        number, at = struct.unpack_from(">H" if version < 1 else ">I", body, at)[0], at + (2 if version < 1 else 4)
        length, at = body[at], at + 1
        if is_wide:
            indices = [value & 0x7FFF for value in struct.unpack_from(f">{length}H", body, at)]
        else:
            indices = [value & 0x7F for value in struct.unpack_from(f">{length}B", body, at)]
        at += length * (2 if is_wide else 1)
        if number == item:
            return indices
    return []


def _boxes(content: bytes, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """The boxes of an ISO base media file (ISO/IEC 14496-12), one level deep."""
    at = start
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(content):
            return
        size, name = struct.unpack_from(">I4s", content, at)
        body = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", content, body)
            body += 8
        end = len(content) if size == 0 else at + size
        if end < body:
            return
        # What holds the pixels may be large, and is not looked into.
        yield name, b"" if name == b"mdat" else content[body:end]
        at = end


def _brands(content: bytes) -> frozenset[bytes]:
    """The kinds of file that an ISO base media file says it is; none of another file."""
    if content[4:8] != b"ftyp":
        return frozenset()
    size, start = int.from_bytes(content[:4], "big"), 8
    if size == 1:
        size, start = int.from_bytes(content[8:16], "big"), 16
    return frozenset(content[at : at + 4] for at in (start, *range(start + 8, min(size, 1024) - 3, 4)))


_PARSERS: tuple[tuple[bytes, Callable[[bytes], Header]], ...] = (
    (b"\xff\xd8\xff", _jpeg),
    (b"\x89PNG", _png),
    (b"BM", _bmp),
    (b"GIF87a", _gif),
    (b"GIF89a", _gif),
    (b"II*\0", _tiff),
    (b"MM\0*", _tiff),
    (b"II+\0", _tiff),
    (b"MM\0+", _tiff),
    (b"\xff\x4f\xff\x51", _jpeg_2000),
    (b"\0\0\0\x0cjP  \r\n\x87\n", _jpeg_2000),
    (b"\x59\xa6\x6a\x95", _sun_raster),
)
