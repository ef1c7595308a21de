"""Reading pictures: what OpenCV decodes equals Pillow's answer, and what is no picture is named."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fer_runtime.errors import ImageError
from fer_runtime.images import decode_image, read_bytes, read_image, to_gray


def _picture(seed: int = 0, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm"])
def test_lossless_formats_are_read_as_pillow_reads_them(tmp_path: Path, suffix: str) -> None:
    rgb = _picture()
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(rgb).save(path, lossless=True)  # other writers than WebP's leave that option unread
    assert np.array_equal(read_image(path)[:, :, ::-1], rgb)


@pytest.mark.parametrize("suffix", ["gif", "jp2", "avif"])
def test_formats_of_newer_wheels_are_read_as_pillow_reads_them(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    smooth = np.add.outer(np.arange(48) * 2, np.arange(64)).astype(np.uint8)
    Image.fromarray(smooth).save(path, quality=100)  # of AVIF; the others lose nothing
    if not cv2.haveImageReader(str(path)):
        pytest.skip("this OpenCV does not decode it")
    expected = np.asarray(Image.open(path).convert("L")).astype(int)
    # AVIF keeps brightness and colour apart, and they are put together again in another rounding.
    assert np.abs(to_gray(read_image(path)).astype(int) - expected).max() <= (2 if suffix == "avif" else 0)


def test_what_is_taken_for_a_picture_is_called_by_its_name() -> None:
    box = b"\0\0\0\x18ftyp"
    for content, reason in (
        (box + b"heic\0\0\0\0mif1heic", "HEIC picture.*convert it to JPEG first"),
        (box + b"mif1\0\0\0\0mif1heic", "HEIC picture"),
        (box + b"mif1\0\0\0\0mif1avif", "damaged, or no picture"),
        (b"\xff\x0a" + bytes(30), "JPEG XL picture"),
        (box + b"isom\0\0\0\0isommp42", "is a video; give it by name"),
        (box + b"qt  \0\0\0\0qt  ", "is a video"),
        (b"RIFF\0\0\0\0AVI LIST", "is a video"),
        (b"\x1aE\xdf\xa3" + bytes(30), "is a video"),
        (b"RIFF\0\0\0\0WAVEfmt ", "damaged, or no picture"),
    ):
        with pytest.raises(ImageError, match=reason):
            decode_image(content)


def test_jpeg_is_read_as_pillow_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    smooth = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    Image.fromarray(smooth).save(path, quality=90)
    # Both decode with libjpeg-turbo; other builds may round one level apart.
    assert np.abs(read_image(path).astype(int) - np.asarray(Image.open(path)).astype(int)).max() <= 1


def test_grayscale_stays_one_channel(tmp_path: Path) -> None:
    path = tmp_path / "gray.png"
    Image.fromarray(_picture()[:, :, 0]).save(path)
    assert read_image(path).shape == (40, 60)


def test_alpha_palette_and_16_bits_become_8_bit_pictures(tmp_path: Path) -> None:
    rgb = _picture()
    alpha = np.dstack([rgb, np.full(rgb.shape[:2], 128, np.uint8)])
    Image.fromarray(alpha, "RGBA").save(tmp_path / "alpha.png")
    assert np.array_equal(read_image(tmp_path / "alpha.png")[:, :, ::-1], rgb)
    palette = Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png")[:, :, ::-1], np.asarray(palette.convert("RGB")))
    deep = rgb[:, :, 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png"), rgb[:, :, 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_upright_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    path = tmp_path / "turned.jpg"
    smooth = np.add.outer(np.arange(48) * 2, np.arange(64)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(smooth).save(path, quality=95, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert read_image(path).shape == upright.shape
    assert np.abs(read_image(path).astype(int) - upright.astype(int)).max() <= 1


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match="regular file"):
        read_image(tmp_path)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match="0 bytes"):
        read_image(tmp_path / "empty.jpg")
    with pytest.raises(ImageError, match="no picture"):
        decode_image(b"GIF no, not this")
    with pytest.raises(ImageError, match="null"):
        read_image("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_without_a_writer_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="no regular file"):
        read_image(tmp_path / "pipe.jpg")


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    content = zlib.compress(bytes(1000))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match="more pixels than the limit"):
        decode_image(bomb)


def test_gray_is_the_standard_luma() -> None:
    # ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B.
    bgr = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert to_gray(bgr).tolist() == [[29, 150, 76]]


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="needs a file whose size the system says is 0")
def test_a_file_is_read_to_its_end_whatever_its_size_is_said_to_be() -> None:
    # The system makes it up while it is read; Python's own reading says how much there is, give or take a few maps.
    maps = Path("/proc/self/smaps")
    assert len(read_bytes(maps)) > 0.8 * len(maps.read_bytes()) > 20_000
