"""Headers: sizes equal what the writers were asked for, and structures that contradict the file are refused."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from tests.runtime.images.make_files import (
    PNG_SIGNATURE,
    make_crashing_apng,
    make_png,
    png_chunk,
    png_header,
    rows_of,
)

from fer_runtime.errors import ImageError
from fer_runtime.images import decode_image
from fer_runtime.images.headers import read_header

_IMAGE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)


@pytest.mark.parametrize(
    "suffix",
    [".jpg", ".png", ".bmp", ".webp", ".tiff", ".ppm", ".pgm", ".pbm", ".pam", ".ras", ".jp2", ".gif", ".avif"],
)
def test_the_size_in_a_header_is_the_size_that_was_written(suffix: str) -> None:
    if not cv2.haveImageWriter("image" + suffix):
        pytest.skip("this OpenCV does not write it")
    image = _IMAGE if suffix not in (".pgm", ".pbm") else _IMAGE[:, :, 0]
    header = read_header(cv2.imencode(suffix, image)[1].tobytes())
    assert (header.width, header.height) == (53, 37)


def test_sizes_of_old_and_large_variants_are_read() -> None:
    windows_2 = b"BM" + bytes(12) + struct.pack("<IHHHH", 12, 53, 37, 1, 24)
    upside_down = b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 53, -37, 1, 24)
    big_tiff = struct.pack(">2sHHHQQ", b"MM", 43, 8, 0, 16, 2) + b"".join(
        struct.pack(">HHQ", tag, kind, 1) + value
        for tag, kind, value in ((256, 3, struct.pack(">H6x", 53)), (257, 4, struct.pack(">I4x", 37)))
    )
    commented = b"P5 # a comment\n#another 99\n53\t37\n255\n"
    extended = b"RIFF\0\0\0\0WEBPVP8X" + struct.pack("<II", 10, 0) + b"\x34\0\0\x24\0\0"
    for content in (windows_2, upside_down, big_tiff, commented, extended):
        header = read_header(content)
        assert (header.width, header.height) == (53, 37), content


def test_what_a_jpeg_shares_with_the_one_before_it_is_all_of_its_head() -> None:
    first = cv2.imencode(".jpg", _IMAGE[:, :, 0])[1].tobytes()
    second = cv2.imencode(".jpg", _IMAGE[:, :, 1])[1].tobytes()
    wider = cv2.imencode(".jpg", np.hstack([_IMAGE, _IMAGE])[:, :, 0])[1].tobytes()
    progressive = cv2.imencode(".jpg", _IMAGE[:, :, 0], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    precise = bytearray(first)
    precise[first.index(b"\xff\xc0") + 4] = 12  # bits
    for content, size, is_plain in (
        (first, (53, 37), True),
        (second, (53, 37), True),
        (wider, (106, 37), True),
        (progressive, (53, 37), False),
        (second, (53, 37), True),
        (bytes(precise), (53, 37), False),
        (first, (53, 37), True),
    ):
        header = read_header(content)
        assert (header.width, header.height, header.is_plain, header.content) == (*size, is_plain, content)
    for length in (3, 40, first.index(b"\xff\xda") + 4):
        with pytest.raises(ImageError, match="its end is missing"):
            read_header(first[:length])


def test_a_png_is_plain_where_it_has_nothing_unusual() -> None:
    gray = rows_of(_IMAGE[:, :, 0])
    assert read_header(make_png(53, 37, gray)).is_plain
    assert read_header(make_png(53, 37, gray, png_chunk(b"tEXt", b"hello"))).is_plain
    for unusual in (
        make_png(53, 37, gray, interlace=1),
        make_png(53, 37, gray, depth=16),
        make_png(53, 37, gray, color=3),  # without its palette
        make_png(53, 37, gray, png_chunk(b"eXIf", b"MM")),
        make_png(53, 37, gray, png_chunk(b"tRNS", b"\0\0"), png_chunk(b"tRNS", b"\0\0")),
    ):
        assert not read_header(unusual).is_plain


def test_an_animated_png_shows_its_still_image_whatever_its_frames_are() -> None:
    content = make_crashing_apng()
    expected = np.tile(np.arange(96, dtype=np.uint8), 4).reshape(96, 4)
    assert np.array_equal(decode_image(content)[0], expected[:, [2, 1, 0]])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (PNG_SIGNATURE + b"\xff\xff\xff\xfbIHDR", "its end is missing"),
        (PNG_SIGNATURE + png_header(4, 4), "its end is missing"),
        (
            PNG_SIGNATURE + png_header(4, 4) + struct.pack(">I4s", 1 << 31, b"IDAT") + bytes(99),
            "IDAT chunk of 2147483648",
        ),
        (PNG_SIGNATURE + png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b""), "damaged"),
        (PNG_SIGNATURE + png_header(4, 4) + png_chunk(b"IEND", b""), "no image data"),
        (PNG_SIGNATURE + png_header(4, 4) + png_header(9, 9) + png_chunk(b"IEND", b""), "damaged"),
        (PNG_SIGNATURE + png_header(0, 4) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b""), "0 x 4 pixels"),
        (b"II*\0\xff\xff\xff\xff" + bytes(40), "its end is missing"),
        (b"\xff\xd8\xff\xe0\xff\xff", "its end is missing"),
        (b"\xff\xd8\xff" + bytes(1000), "its end is missing"),
        (b"P7\nWIDTH 4\nHEIGHT 4\nDEPTH 70000\nMAXVAL 255\nENDHDR\n", "70000 channels"),
        (b"P5 99999999999999999999 4 255\n", "damaged"),
        (b"II+\0\x08\0\0\0" + b"\xff" * 40, "its end is missing"),
        (b"GIF89a", "its end is missing"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_header_that_contradicts_its_file_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode_image(content)


def test_blanks_without_end_in_a_header_take_no_time() -> None:
    for blank in (b" ", b"#\n", b"\n#"):
        with pytest.raises(ImageError):
            read_header(b"P6" + blank * 500_000)


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    content = cv2.imencode(".jpg", _IMAGE, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    assert decode_image(content).shape == _IMAGE.shape
    last = content.rindex(b"\xff\xda")
    scan = content[last : content.index(b"\xff\xd9", last)]
    with pytest.raises(ImageError, match=r"is a JPEG of .* scans over 53 x 37 pixels.* baseline"):
        decode_image(content[:last] + scan * 3000 + b"\xff\xd9")


def test_the_rows_of_a_tiff_strip_count_twice_more() -> None:
    def stated(**tags: int) -> int:
        numbers = {256: 64, 257: 200, 258: 8, 277: tags["channels"]} | ({278: tags["rows"]} if "rows" in tags else {})
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in numbers.items())
        return read_header(b"II*\0\x08\0\0\0" + struct.pack("<H", len(numbers)) + entries + bytes(4)).bytes_per_pixel

    # OpenCV 4.14 takes, for one strip of 10,000 x 10,000 pixels in RGB, three bytes a pixel for the image, four for the
    # strip as it unpacks it, and three for the strip as it is in the file.
    assert stated(channels=3, rows=200) == stated(channels=3) >= 10
    assert stated(channels=3, rows=1) < stated(channels=3, rows=100) < stated(channels=3) < stated(channels=4)
