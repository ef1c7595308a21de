"""What arguments and lists on standard input stand for."""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fer_runtime.batch.sources import GivenPaths, Inputs, expanded, path_blocks
from fer_runtime.errors import ImageError, InputError


class _Pipe(io.RawIOBase):
    """A stream that gives a few bytes at a time, as a slow pipe does."""

    def __init__(self, content: bytes, *, at_once: int, repeats: bool = False) -> None:
        self._content, self._at_once, self._repeats, self._place = content, at_once, repeats, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if self._place >= len(self._content) and self._repeats:
            self._place = 0
        part = self._content[self._place : self._place + min(self._at_once, len(buffer))]
        buffer[: len(part)] = part
        self._place += len(part)
        return len(part)


def _stream(content: bytes, *, at_once: int, repeats: bool = False) -> Any:
    pipe: Any = _Pipe(content, at_once=at_once, repeats=repeats)
    return io.BufferedReader(pipe)


def _listed(content: bytes, *, at_once: int = 1 << 16, null: bool = False) -> list[str]:
    return list(chain.from_iterable(path_blocks(_stream(content, at_once=at_once), null_separated=null)))


@pytest.mark.parametrize("at_once", [1, 3, 1 << 16])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_list_is_read_in_every_encoding_that_shells_write(at_once: int, line_end: str) -> None:
    names = ["face.jpg", "größe 面.png", "emoji\U0001f600.jpg", "-0.png"]
    text = line_end.join([*names, "", names[0]]) + line_end
    for mark, encoding in (
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ):
        assert _listed(mark + text.encode(encoding), at_once=at_once) == [*names, names[0]]
    assert _listed(text.rstrip().encode(), at_once=at_once) == [*names, names[0]]  # no end of the last line
    for encoding in ("utf-16-le", "utf-16-be"):  # without a mark, each letter would be a path, and "." a folder
        assert _listed(text.encode(encoding), at_once=at_once) == [*names, names[0]]


@pytest.mark.parametrize("at_once", [1, 1 << 16])
def test_nul_separates_paths_that_hold_line_ends(at_once: int) -> None:
    content = b"a\nb.jpg\0c\r\0\xff.png\0"
    names = ["a\nb.jpg", "c\r", os.fsdecode(b"\xff.png")]
    assert _listed(content, at_once=at_once, null=True) == names
    assert _listed(b"first.jpg\0" + content, at_once=at_once) == ["first.jpg", *names]  # without -0, by its first path
    assert _listed(b"no end.jpg", null=True) == ["no end.jpg"]


@pytest.mark.parametrize("content", [b"x", b"\n", b"\0", b"\r\n", b"\xff\xfe", b"ab\0"])
def test_an_endless_stream_that_is_no_list_ends_with_an_error(content: bytes) -> None:
    # An entry without an end, or entries that are all empty. Encoded text repeats without its line end.
    stream = _stream(content * 1000, at_once=1 << 16, repeats=True)
    found = chain.from_iterable(path_blocks(stream, null_separated=content == b"\0"))
    if content == b"ab\0":
        assert [next(found) for _ in range(10_000)] == ["ab"] * 10_000  # a list may be endless
    else:
        with pytest.raises(InputError, match="1048576 bytes without a path"):
            list(found)


def test_patterns_of_a_list_are_literal(tmp_path: Path, given: Callable[..., GivenPaths]) -> None:
    (tmp_path / "a.png").touch()
    lines = [f"{tmp_path}/*.png", "/**", "[x]/a.png"]
    assert list(Inputs(given("\n".join(lines).encode(), "-"))) == lines
    assert list(Inputs(given(b"", f"{tmp_path}/*.png"))) == [str(tmp_path / "a.png")]


@pytest.mark.parametrize("first", ["BMW/1.jpg", "BM.jpg", "P1 Lisbon/2.jpg", "P5 2024.jpg", "P7 x.jpg"])
@pytest.mark.parametrize("separator", ["\n", "\0"])
def test_a_list_may_begin_with_letters_that_begin_images(
    first: str, separator: str, given: Callable[..., GivenPaths]
) -> None:
    paths = [first, "holiday/a.jpg", "holiday/b.jpg"]
    assert list(given("".join(path + separator for path in paths).encode(), "-")) == paths


@pytest.mark.parametrize("suffix", [".bmp", ".ppm", ".pgm", ".pbm", ".pam"])
def test_an_image_that_opencv_writes_is_no_list(suffix: str, given: Callable[..., GivenPaths]) -> None:
    content = cv2.imencode(suffix, np.zeros((480, 640, 1 if suffix in (".pgm", ".pbm") else 3), np.uint8))[1].tobytes()
    assert list(given(content, "-")) == ["-"]


@pytest.mark.parametrize("head", [b"P5\n# GIMP\n8 8\n255\n", b"P2 8 8 255 ", b"P1\n8\n8\n", b"P6 8 #w\n8 255\n"])
def test_an_image_with_a_text_head_is_no_list(head: bytes, given: Callable[..., GivenPaths]) -> None:
    assert list(given(head + b"0 1 " * 48, "-")) == ["-"]


def test_an_image_without_an_end_is_refused_by_its_size(
    given: Callable[..., GivenPaths], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fer_runtime.batch.sources.MAX_FILE_BYTES", 1000)
    for size in (999, 1000, 1001):
        paths = given(b"\x89PNG\r\n\x1a\n" + bytes(size - 8), "-")
        assert list(paths) == ["-"]
        if size > 1000:
            with pytest.raises(ImageError, match="more bytes than the limit of 1000"):
                paths.read("-")
        else:
            assert len(paths.read("-")) == size


def test_a_pattern_that_matches_folders_stands_for_their_images(tmp_path: Path) -> None:
    for name in ("p1/1.png", "p1/deep/2.png", "p2.png", "p3/x/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def images(pattern: str) -> list[str]:
        found = Inputs(expanded(str(tmp_path / pattern)))
        return sorted(Path(path).relative_to(tmp_path).as_posix() for path in found)

    assert images("p*") == ["p1/1.png", "p2.png"]
    # Each image once, though its folder matches as well.
    assert images("**") == images("**/*") == ["p1/1.png", "p1/deep/2.png", "p2.png", "p3/x/3.png"]
    assert images("*/x") == ["p3/x/3.png"]


@pytest.mark.parametrize("path", ["[x]" + "/a" * 5000, "*\0", "[", "?" * 5000])
def test_a_pattern_that_no_file_can_match_is_a_path(path: str) -> None:
    assert expanded(path) == [path]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., GivenPaths]:
    """`GivenPaths` of some arguments, with standard input that holds some bytes."""

    def make(content: bytes, *paths: str) -> GivenPaths:
        file = tmp_path / "standard input"
        file.write_bytes(content)
        monkeypatch.setattr("sys.stdin", file.open("rb"))
        return GivenPaths(paths)

    return make
