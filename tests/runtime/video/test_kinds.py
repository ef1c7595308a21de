"""Videos are told by their content."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.runtime.video.films import write_film
from tests.runtime.video.test_sources import CONTAINERS

from fer_runtime.video.kinds import is_video, is_video_in_folder
from fer_runtime.video.signatures import HEAD_BYTES, looks_like_a_video


@pytest.mark.parametrize(("suffix", "codec"), CONTAINERS)
@pytest.mark.parametrize("name", ["film", "film.bin"])
def test_a_video_is_one_under_any_name(suffix: str, codec: str, name: str, tmp_path: Path) -> None:
    renamed = write_film(tmp_path / f"film{suffix}", codec, frames=10).rename(tmp_path / name)
    assert is_video(renamed)
    assert is_video_in_folder(str(renamed)) == (name == "film")


@pytest.mark.parametrize(
    "head",
    [
        # First bytes of streams that ffmpeg 5.1 wrote: H.264, H.265, MPEG-4, DV, YUV4MPEG2, MXF, Ogg with Theora.
        "000000010605ffff9cdc45e9bde6d948",
        "000000016764001eacd940a02ff970",
        "0000000140010c01ffff01600000030090",
        "000001b001000001b58913000001000000",
        "1f0700bff8787878ffffffffffffffff",
        "595556344d5045473220573634302048",
        "060e2b34020501010d01020101020400",
        "4f67675300020000000000000000" + "00" * 15 + "807468656f726103",
        # QuickTime without "ftyp", and a transport stream whose first packet is cut.
        "000000087769646500028a2b6d646174",
        (bytes(100) + (b"G" + bytes(187)) * 4).hex(),
    ],
)
def test_streams_are_videos(head: str) -> None:
    assert looks_like_a_video(bytes.fromhex(head))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"G",
        b"export const G = 47;\n" * 100,
        bytes(4096),
        b"\0\0\1\0\2\0\x20\x20" + bytes(100),  # an icon
        b"\0\0\0\x20ftypheic" + bytes(20),
        b"\0\0\0\x20ftypavif" + bytes(20),
        b"\0\0\0\1ftyp" + (32).to_bytes(8, "big") + b"avif" + bytes(20),
        b"\0\0\0\x20ftypM4A " + bytes(20),
        b"OggS\0\2" + bytes(22) + b"\x01vorbis",
        b"RIFF\0\0\0\0WEBPVP8 ",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"\x89PNG\r\n\x1a\n" + bytes(50),
        b"\xff\xd8\xff\xe0" + bytes(50),
    ],
)
def test_other_files_are_none(content: bytes) -> None:
    assert not looks_like_a_video(content[:HEAD_BYTES])


def test_random_bytes_are_no_transport_stream() -> None:
    random = np.random.default_rng(0)
    assert not any(looks_like_a_video(random.bytes(HEAD_BYTES)) for _ in range(300))


def test_a_name_decides_where_the_content_says_nothing(tmp_path: Path) -> None:
    for name in ("broken.mp4", "code.ts", "empty.webm", "notes.txt"):
        (tmp_path / name).write_text("" if name == "empty.webm" else "some text")
    assert is_video(tmp_path / "broken.mp4")
    assert is_video(tmp_path / "empty.webm")
    assert is_video(tmp_path / "missing.mkv")
    assert is_video("x" * 300 + ".mp4")
    assert not is_video(tmp_path / "code.ts")
    assert not is_video(tmp_path / "notes.txt")
    assert not is_video(tmp_path / "missing")
    (tmp_path / "folder.mp4").mkdir()
    assert not is_video(tmp_path / "folder.mp4")


def test_a_file_named_as_an_image_is_taken_for_one(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mp4", frames=2).rename(tmp_path / "film.jpg")
    assert not is_video(film)
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((9, 9, 3), np.uint8))
    assert not is_video((tmp_path / "image.png").rename(tmp_path / "image"))
