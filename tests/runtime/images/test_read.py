"""Reading images: what OpenCV decodes equals what Pillow decodes, and what cannot be read is named."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tests.runtime.images.make_files import make_png

from fer_runtime.errors import ImageError
from fer_runtime.images import decode_image, read_bytes, read_image, to_gray


def _random_image(seed: int = 0, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm"])
def test_lossless_formats_are_read_as_pillow_reads_them(tmp_path: Path, suffix: str) -> None:
    rgb = _random_image()
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(rgb).save(path, lossless=True)  # other writers than WebP's leave that option unread
    assert np.array_equal(read_image(path)[:, :, ::-1], rgb)


@pytest.mark.parametrize("suffix", ["gif", "jp2", "avif"])
def test_formats_of_newer_wheels_are_read_as_pillow_reads_them(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    smooth = np.add.outer(np.arange(48) * 2, np.arange(64)).astype(np.uint8)
    Image.fromarray(smooth).save(path, quality=100)  # of AVIF; the others lose nothing
    if not cv2.haveImageReader(str(path)):
        pytest.skip("this OpenCV does not decode it")
    expected = np.asarray(Image.open(path).convert("L")).astype(int)
    # AVIF keeps brightness and colour apart, and they are put together again in another rounding.
    assert np.abs(to_gray(read_image(path)).astype(int) - expected).max() <= (2 if suffix == "avif" else 0)


def test_files_of_other_kinds_are_called_by_their_names() -> None:
    box = b"\0\0\0\x18ftyp"
    for content, reason in (
        (box + b"heic\0\0\0\0mif1heic", "HEIC image.*convert it to JPEG first"),
        (box + b"mif1\0\0\0\0mif1heic", "HEIC image"),
        (box + b"mif1\0\0\0\0mif1avif", "header says 0 x 0 pixels"),
        (b"\xff\x0a" + bytes(30), "JPEG XL image"),
        (box + b"isom\0\0\0\0isommp42", "is a video; give it by name"),
        (box + b"qt  \0\0\0\0qt  ", "is a video"),
        (b"RIFF\0\0\0\0AVI LIST", "is a video"),
        (b"\x1aE\xdf\xa3" + bytes(30), "is a video"),
        (b"RIFF\0\0\0\0WAVEfmt ", "damaged, or not an image"),
    ):
        with pytest.raises(ImageError, match=reason):
            decode_image(content)


def test_jpeg_is_read_as_pillow_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    smooth = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    Image.fromarray(smooth).save(path, quality=90)
    # Both decode with libjpeg-turbo; other builds may round one level apart.
    assert np.abs(read_image(path).astype(int) - np.asarray(Image.open(path)).astype(int)).max() <= 1


def test_grayscale_stays_one_channel(tmp_path: Path) -> None:
    path = tmp_path / "gray.png"
    Image.fromarray(_random_image()[:, :, 0]).save(path)
    assert read_image(path).shape == (40, 60)


def test_alpha_palette_and_16_bits_become_8_bit_images(tmp_path: Path) -> None:
    rgb = _random_image()
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
def test_exif_turns_the_image_upright_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    path = tmp_path / "turned.jpg"
    smooth = np.add.outer(np.arange(48) * 2, np.arange(64)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(smooth).save(path, quality=95, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert read_image(path).shape == upright.shape
    assert np.abs(read_image(path).astype(int) - upright.astype(int)).max() <= 1


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match="0 bytes"):
        read_image(tmp_path / "empty.jpg")
    with pytest.raises(ImageError, match="not an image"):
        decode_image(b"GIF no, not this")
    with pytest.raises(ImageError, match="null"):
        read_image("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_without_a_writer_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(tmp_path / "pipe.jpg")


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    with pytest.raises(ImageError, match=r"60000 x 60000 pixels.* limit of 100,000,000; raise it with --max-pixels 36"):
        decode_image(make_png(60_000, 60_000, b"\0" * 1000))


@pytest.mark.parametrize(
    ("used_bits", "shift"), [(8, 0), (10, 2), (12, 4), (14, 6), (16, 8)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_deep_images_are_scaled_by_the_bits_that_they_use(
    tmp_path: Path, suffix: str, used_bits: int, shift: int
) -> None:
    deep = np.linspace(0, 2**used_bits - 1, 40 * 60).reshape(40, 60).astype(np.uint16)
    path = tmp_path / f"deep.{suffix}"
    cv2.imwrite(str(path), deep)
    assert np.array_equal(read_image(path), (deep >> shift).astype(np.uint8))


@pytest.mark.parametrize("white", [1, 15, 100, 254, 255])
def test_white_of_a_portable_image_is_what_its_header_says(tmp_path: Path, white: int) -> None:
    values = np.random.default_rng(0).integers(0, white + 1, (4, 5, 3), np.uint8)
    text = b" ".join(b"%d" % value for value in values.ravel())
    gray = values[:, :, 0]
    for name, content in (
        ("a.pgm", b"P5 5 4 %d\n" % white + gray.tobytes()),
        ("b.ppm", b"P6 5 4 %d\n" % white + values.tobytes()),
        ("c.ppm", b"P3 5 4 %d\n" % white + text + b"\n"),
    ):
        (tmp_path / name).write_bytes(content)
        expected = np.asarray(Image.open(tmp_path / name))
        decoded = read_image(tmp_path / name)
        # Text is scaled by OpenCV, which rounds down.
        difference = (decoded if decoded.ndim == 2 else decoded[:, :, ::-1]) - expected.astype(int)
        assert np.abs(difference).max() <= (1 if name == "c.ppm" else 0)
    head = b"P7\nWIDTH 5\nHEIGHT 4\nDEPTH 1\nMAXVAL %d\nENDHDR\n" % white
    if white > 1:
        assert np.array_equal(decode_image(head + gray.tobytes()), np.rint(gray / white * 255))
    else:
        with pytest.raises(ImageError, match="is a PAM image of black and white"):
            decode_image(head + gray.tobytes())


@pytest.mark.parametrize(("angle", "mirror"), [(None, None), (1, None), (2, 0), (3, 1), (None, 0), (None, 1)])
def test_avif_is_turned_and_mirrored_as_pillow_does(tmp_path: Path, angle: int | None, mirror: int | None) -> None:
    from PIL import ImageOps

    path = tmp_path / "turned.avif"
    smooth = np.add.outer(np.arange(48) * 2, np.arange(64)).astype(np.uint8)
    exif = Image.Exif()
    # Pillow's writer turns an EXIF orientation into AVIF's own transforms.
    exif[0x0112] = {(None, None): 1, (1, None): 8, (2, 0): 2, (3, 1): 5, (None, 0): 4, (None, 1): 2}[angle, mirror]
    Image.fromarray(np.dstack([smooth] * 3)).save(path, quality=100, exif=exif)
    if not cv2.haveImageReader(str(path)):
        pytest.skip("this OpenCV does not decode it")
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("L")).astype(int)
    decoded = to_gray(read_image(path)).astype(int)
    assert decoded.shape == upright.shape
    assert np.abs(decoded - upright).max() <= 2  # brightness and colour are rounded apart


def test_a_jpeg_that_lacks_only_its_end_marker_is_read() -> None:
    smooth = cv2.GaussianBlur(_random_image(size=(120, 160)), (9, 9), 0)
    for options in ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_QUALITY, 100]):
        whole = cv2.imencode(".jpg", smooth, options)[1].tobytes()
        assert whole.endswith(b"\xff\xd9")
        for missing in (1, 2):
            assert np.array_equal(decode_image(whole[:-missing]), decode_image(whole))
        for missing in (5, 10, 100, len(whole) // 2):
            with pytest.raises(ImageError, match="cannot be decoded"):
                decode_image(whole[:-missing])


def test_a_png_or_gif_that_lacks_only_its_end_marker_is_read() -> None:
    image = _random_image(size=(40, 60))
    for suffix, marker_bytes in (".png", 12), (".gif", 1):
        if not cv2.haveImageWriter("image" + suffix):
            continue
        whole = cv2.imencode(suffix, image)[1].tobytes()
        for missing in range(1, marker_bytes + 1):
            assert np.array_equal(decode_image(whole[:-missing]), decode_image(whole))
        with pytest.raises(ImageError, match="cannot be decoded"):
            decode_image(whole[: -marker_bytes - 1])


def test_images_of_floats_are_told_apart_from_damaged_ones() -> None:
    floats = np.linspace(0, 1, 40 * 60, dtype=np.float32).reshape(40, 60)
    for suffix in (".tiff", ".hdr", ".pfm"):
        image = np.dstack([floats] * 3) if suffix == ".hdr" else floats
        with pytest.raises(ImageError, match=r"floating-point numbers.* convert it to 8 or 16 bits first"):
            decode_image(cv2.imencode(suffix, image)[1].tobytes())


@pytest.mark.parametrize(("compression", "name"), [("lzma", "LZMA"), ("zstd", "Zstandard")])
def test_a_tiff_whose_compression_is_not_read_is_told_apart_from_a_damaged_one(compression: str, name: str) -> None:
    content = io.BytesIO()
    try:
        Image.fromarray(_random_image()).save(content, "TIFF", compression=compression)
    except (OSError, RuntimeError):
        pytest.skip(f"this Pillow writes no {name}")
    if cv2.imdecode(np.frombuffer(content.getvalue(), np.uint8), cv2.IMREAD_COLOR) is not None:
        pytest.skip(f"this OpenCV reads {name}")
    with pytest.raises(ImageError, match=f"^is a TIFF with the compression {name}, which this OpenCV does not read; "):
        decode_image(content.getvalue())


def test_a_tiff_of_an_unknown_compression_is_refused_by_its_number() -> None:
    content = io.BytesIO()
    Image.fromarray(_random_image()).save(content, "TIFF")
    entry = struct.pack("<HHI", 259, 3, 1)
    assert content.getvalue().count(entry) == 1
    with pytest.raises(ImageError, match="with the compression number 34713, which"):
        decode_image(content.getvalue().replace(entry + b"\1\0", entry + struct.pack("<H", 34713)))


def test_every_format_has_a_pixel_limit_by_the_memory_that_its_decoder_takes() -> None:
    image = _random_image(size=(100, 100))
    for suffix in (".jpg", ".png", ".bmp", ".webp", ".tiff", ".ppm", ".pam", ".ras", ".jp2", ".gif", ".avif"):
        if not cv2.haveImageWriter("image" + suffix):
            continue
        content = cv2.imencode(suffix, image)[1].tobytes()
        with pytest.raises(ImageError, match=r"100 x 100 pixels.*--max-pixels (\d+)") as caught:
            decode_image(content, max_pixels=4000)
        advice = int(str(caught.value).split("--max-pixels ")[1].split(",")[0])
        with pytest.raises(ImageError, match="more than the limit"):
            decode_image(content, max_pixels=advice - 1)
        assert decode_image(content, max_pixels=advice).shape[:2] == (100, 100)


def test_the_library_leaves_opencv_as_the_application_set_it() -> None:
    script = """
import os
import cv2
before = {name: value for name, value in os.environ.items() if name.startswith("OPENCV")}
cv2.setNumThreads(3)
log_level = getattr(cv2, 'getLogLevel', None) or cv2.utils.logging.getLogLevel  # older and newer OpenCV
level = log_level()
import fer_runtime.batch.jobs, fer_runtime.recognizer
assert cv2.getNumThreads() == 3, cv2.getNumThreads()
assert log_level() == level
assert {name: value for name, value in os.environ.items() if name.startswith("OPENCV")} == before
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")


def test_gray_is_the_standard_luma() -> None:
    # ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B.
    bgr = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert to_gray(bgr).tolist() == [[29, 150, 76]]


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="needs a file whose size the system says is 0")
def test_a_file_is_read_to_its_end_whatever_its_size_is_said_to_be() -> None:
    # The system makes it up while it is read; Python's own reading says how much there is, give or take a few maps.
    maps = Path("/proc/self/smaps")
    assert len(read_bytes(maps)) > 0.8 * len(maps.read_bytes()) > 20_000
