"""TIFFs: what Pillow writes is read, and strips that do not decode are not taken for black ones."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from tests.runtime.images.make_files import make_tiff

from fer_runtime.errors import ImageError
from fer_runtime.images import decode_image
from fer_runtime.images.decode import decode_here
from fer_runtime.images.headers import Header
from fer_runtime.images.tiff import as_deep_gray

_BYTEWISE = {"tiff_lzw": 5, "tiff_adobe_deflate": 8, "packbits": 32773, "tiff_deflate": 32946}
_Layout = Callable[[np.ndarray, str], tuple[list[bytes], dict[int, Sequence[int]]]]
_SIZE = (37, 53)  # rows of an odd number of bytes, and no whole number of strips or tiles


def _photo(channels: int = 3) -> np.ndarray:
    """Smooth, with noise that takes some bits of a byte: no compression keeps it as it is."""
    chooser = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(_SIZE[0]) * 3, np.arange(_SIZE[1]) * 2)[:, :, None]
    return (ramp + chooser.integers(1, 30, (*_SIZE, channels))).astype(np.uint8)


def _saved(image: Image.Image, compression: str | None, strip_bytes: int = 65536, **options: bool) -> bytes:
    content = io.BytesIO()
    before = TiffImagePlugin.STRIP_SIZE
    TiffImagePlugin.STRIP_SIZE = strip_bytes
    try:
        image.save(content, "TIFF", compression=compression, **options)
    finally:
        TiffImagePlugin.STRIP_SIZE = before
    return content.getvalue()


def _compressed(data: bytes, compression: str) -> bytes:
    """One strip, as libtiff writes it."""
    content = _saved(Image.frombytes("L", (len(data), 1), data), compression, 1 << 20)
    with Image.open(io.BytesIO(content)) as image:
        (place,), (length,) = image.tag_v2[273], image.tag_v2[279]
    return content[place : place + length]


@pytest.mark.parametrize("compression", [None, *_BYTEWISE, "jpeg", "group3", "group4", "tiff_ccitt"])
def test_every_tiff_that_pillow_writes_is_read(compression: str | None) -> None:
    rgb = Image.fromarray(_photo())
    modes = (
        ("1",) if compression in ("group3", "group4", "tiff_ccitt") else ("L", "RGB", "RGBA", "CMYK", "1", "P", "LA")
    )
    for mode in modes if compression != "jpeg" else ("L", "RGB"):
        image = rgb.convert(mode)
        for strip_bytes in (700, 65536):
            for is_big in (False, True):
                content = _saved(image, compression, strip_bytes, big_tiff=is_big)
                expected = np.asarray(image.convert("RGB"))
                decoded = decode_image(content)
                decoded = decoded[:, :, ::-1] if decoded.ndim == 3 else np.dstack([decoded] * 3)
                assert decoded.shape == expected.shape
                if compression != "jpeg" and mode in ("L", "RGB", "1", "P"):
                    assert np.array_equal(decoded, expected), (mode, strip_bytes, is_big)


def _strips(image: np.ndarray, compression: str) -> tuple[list[bytes], dict[int, Sequence[int]]]:
    strips = [_compressed(image[at : at + 8].tobytes(), compression) for at in range(0, len(image), 8)]
    return strips, {278: [8], 284: [1]}


def _planes(image: np.ndarray, compression: str) -> tuple[list[bytes], dict[int, Sequence[int]]]:
    planes = [np.ascontiguousarray(image[:, :, channel]) for channel in range(3)]
    return [_compressed(plane.tobytes(), compression) for plane in planes], {278: [len(image)], 284: [2]}


def _tiles(image: np.ndarray, compression: str) -> tuple[list[bytes], dict[int, Sequence[int]]]:
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % 16), (0, -width % 32), (0, 0)))
    tiles = [
        _compressed(padded[top : top + 16, left : left + 32].tobytes(), compression)
        for top in range(0, height, 16)
        for left in range(0, width, 32)
    ]
    return tiles, {322: [32], 323: [16], 284: [1]}


@pytest.mark.parametrize("compression", _BYTEWISE)
@pytest.mark.parametrize("layout", [_strips, _planes, _tiles])
def test_a_strip_that_does_not_decode_is_not_taken_for_a_black_one(layout: _Layout, compression: str) -> None:
    image = _photo()
    blocks, tags = layout(image, compression)
    tags |= {256: [_SIZE[1]], 257: [_SIZE[0]], 258: [8, 8, 8], 259: [_BYTEWISE[compression]], 262: [2], 277: [3]}
    for order, is_big in (("<", False), (">", False), ("<", True), (">", True)):
        content = make_tiff(blocks, tags, order=order, is_big=is_big)
        assert np.array_equal(decode_image(content)[:, :, ::-1], image)
        for number, block in enumerate(blocks):
            for damaged in (bytes(len(block)), block[: len(block) * 9 // 10]):
                content = make_tiff(
                    [*blocks[:number], damaged, *blocks[number + 1 :]], tags, order=order, is_big=is_big
                )
                with pytest.raises(ImageError, match=r"^cannot be decoded: damaged, or its end is missing$"):
                    decode_image(content)


@pytest.mark.parametrize(
    "more",
    [
        {280: [0, 0, 0], 281: [255, 255, 255]},  # smallest and largest value of each channel
        {340: [0, 0, 0], 341: [255, 255, 255]},
        {301: [*range(256)] * 3},  # transfer function
        {332: [2], 334: [3]},  # inks
        {532: [0, 255] * 3, 274: [3], 700: [65] * 99},
    ],
    ids=lambda more: "-".join(map(str, more)),
)
def test_tags_about_the_channels_are_no_damage(more: dict[int, Sequence[int]]) -> None:
    image = _photo()
    blocks, tags = _strips(image, "tiff_lzw")
    tags |= {256: [_SIZE[1]], 257: [_SIZE[0]], 258: [8, 8, 8], 259: [5], 262: [2], 277: [3]} | more
    read = cv2.imdecode(np.frombuffer(make_tiff(blocks, tags), np.uint8), cv2.IMREAD_COLOR)
    assert read is not None
    assert np.array_equal(decode_image(make_tiff(blocks, tags)), read)
    with pytest.raises(ImageError, match="damaged, or its end is missing"):
        decode_image(make_tiff([*blocks[:-1], bytes(len(blocks[-1]))], tags))


def test_an_image_of_more_channels_than_opencv_counts_is_not_looked_at_strip_by_strip() -> None:
    tags = {256: [90_000], 257: [1], 258: [8], 259: [5], 262: [1], 277: [65535], 278: [1]}
    assert as_deep_gray(make_tiff([b"\x80"], tags)) is None
    assert as_deep_gray(make_tiff([b"\x80"], tags | {277: [1]})) is not None


def test_subsampled_colours_are_left_to_opencv() -> None:
    # Four samples of brightness and one of each colour for two by two pixels: half of three bytes a pixel.
    blocks = [_compressed(bytes([200] * 4 + [128] * 2) * 8 * 8, "tiff_lzw")]
    tags = {256: [16], 257: [16], 258: [8, 8, 8], 259: [5], 262: [6], 277: [3], 278: [16], 284: [1], 530: [2, 2]}
    decoded = cv2.imdecode(np.frombuffer(make_tiff(blocks, tags), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert np.array_equal(decode_image(make_tiff(blocks, tags)), decoded)


@pytest.mark.parametrize("order", ["<", ">"])
def test_deep_gray_where_0_is_white_is_no_negative(order: str) -> None:
    photo = _photo(1)[:, :, 0]
    values = np.arange(256) << 8
    stored = (65535 - values[photo]).astype(f"{order}u2")
    tags = {256: [_SIZE[1]], 257: [_SIZE[0]], 258: [16], 259: [1], 262: [0], 277: [1], 278: [_SIZE[0]]}
    assert np.array_equal(decode_image(make_tiff([stored.tobytes()], tags, order=order)), photo)


def test_a_number_of_bits_that_opencv_does_not_read_is_named() -> None:
    tags = {256: [8], 257: [8], 258: [4], 259: [1], 262: [1], 277: [1], 278: [8]}
    with pytest.raises(ImageError, match="is a TIFF with 4 bits per sample, which cannot be read; convert it to 8"):
        decode_image(make_tiff([bytes(32)], tags))


@pytest.mark.parametrize("bits", [8, 16])
def test_signed_numbers_are_refused_and_leave_the_next_image_alone(bits: int) -> None:
    photo = _photo(1)[:, :, 0]
    tags = {256: [_SIZE[1]], 257: [_SIZE[0]], 258: [bits], 259: [1], 262: [1], 277: [1], 278: [_SIZE[0]], 339: [2]}
    content = make_tiff([(photo // 2).astype(f"<i{bits // 8}").tobytes()], tags)
    with pytest.raises(ImageError, match="is a TIFF of signed or complex numbers"):
        decode_image(content)
    # What OpenCV makes of it is no image: behind the pipe of a decoding process, the rest of its bytes would be there.
    if bits == 16:
        assert decode_here(Header("TIFF", _SIZE[1], _SIZE[0], 8, content, is_16_bit=True)) is None
    assert np.array_equal(decode_image(_saved(Image.fromarray(photo), None)), photo)


def test_deep_channels_that_are_stored_apart_are_refused() -> None:
    tags = {256: [4], 257: [4], 258: [16] * 3, 259: [1], 262: [2], 277: [3], 278: [4], 284: [2]}
    with pytest.raises(ImageError, match="is a TIFF of 16 bits whose channels are stored one after another"):
        decode_image(make_tiff([bytes(32)] * 3, tags))
