"""What the arguments of `fer-infer` stand for: files, folders, globs and standard input."""

from __future__ import annotations

import glob
import os
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from fer_runtime.errors import PictureError
from fer_runtime.images import PICTURE_SUFFIXES, read_bytes

VIDEO_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"))

# A folder's names are sorted in blocks of this many, so that a million files cost no more memory.
_SORTED_BLOCK = 65_536


@dataclass(slots=True)
class Inputs:
    """The pictures that paths stand for, found while they are read; iterate once.

    Args:
        paths: files, folders, or glob patterns that the shell has not expanded.
        recursive: go down into the folders' folders.
    """

    paths: Iterable[str]
    recursive: bool = False
    skipped: int = 0  # files in folders whose suffix is that of no picture
    only_folders: list[str] = field(default_factory=list)  # folders that hold nothing but folders, not gone into

    def __iter__(self) -> Iterator[str]:
        for path in self.paths:
            if os.path.isdir(path):
                yield from self._in_folder(path)
            elif glob.has_magic(path) and not os.path.lexists(path):
                found = sorted(glob.glob(path, recursive=True))
                # A pattern that matches nothing is a path like any other: it gets its row, with the reason.
                for one in found or [path]:
                    if not os.path.isdir(one):
                        yield one
            else:
                yield path

    def _in_folder(self, folder: str) -> Iterator[str]:
        seen: set[tuple[int, int]] = set()
        waiting = [folder]  # a stack, because folders may be nested deeper than Python calls itself
        while waiting:
            folder = waiting.pop()
            try:
                status = os.stat(folder)
                entries = os.scandir(folder)
            except OSError:
                yield folder  # reading it fails again, and its row says why
                continue
            # A symbolic link may lead back to a folder that was visited.
            identity = (status.st_dev, status.st_ino)
            if identity in seen:
                continue
            seen.add(identity)
            folders: list[str] = []
            files = 0
            with entries:
                while block := _next_entries(entries):
                    for entry in block:
                        if entry.name.startswith("."):
                            continue
                        if _is_folder(entry):
                            folders.append(entry.path)
                        elif os.path.splitext(entry.name)[1].lower() in PICTURE_SUFFIXES:
                            files += 1
                            yield entry.path
                        else:
                            self.skipped += 1
            if self.recursive:
                waiting += reversed(folders)
            elif folders and not files:
                self.only_folders.append(folder)


def _next_entries(entries: Iterator[os.DirEntry[str]]) -> list[os.DirEntry[str]]:
    """Some entries of a folder, sorted by name."""
    try:
        return sorted(islice(entries, _SORTED_BLOCK), key=lambda entry: entry.name)
    except OSError:  # the folder's disk has gone while it was read; reading its files says so
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


class GivenPaths:
    """The arguments of the command, with the paths that standard input lists in the place of "-"."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._picture: bytes | None = None  # the picture that standard input holds

    def __iter__(self) -> Iterator[str]:
        for path in self._paths:
            if path != "-":
                yield path
                continue
            if sys.stdin is None:  # as `<&-` leaves it
                self._picture = b""
                yield path
                continue
            with open(sys.stdin.fileno(), "rb", closefd=False) as stream:
                head = stream.peek(4096)
                if not head or looks_like_a_picture(head):
                    self._picture = stream.read()
                    yield path
                else:
                    yield from paths_from_list(stream, head)

    def read(self, path: str) -> bytes:
        """Content of a picture; the path "-" is the one on standard input.

        Raises:
            PictureError: it cannot be read.
        """
        if path != "-" or self._picture is None:
            return read_bytes(path)
        if not self._picture:
            raise PictureError("standard input is empty; pipe a picture or a list of paths into it")
        return self._picture


def paths_from_list(stream: BinaryIO, head: bytes) -> Iterator[str]:
    """Paths of a list, one per line, or separated by NUL bytes where `head` has one (`find -print0`).

    Args:
        stream: read as paths are taken, so that a list of any length costs no memory.
        head: the first bytes of the stream, not yet taken from it.
    """
    if b"\0" not in head:
        for line in stream:
            if path := line.rstrip(b"\r\n"):
                yield os.fsdecode(path)
        return
    rest = b""
    while block := stream.read(1 << 16):
        *whole, rest = (rest + block).split(b"\0")
        yield from (os.fsdecode(path) for path in whole if path)
    if rest.strip():
        yield os.fsdecode(rest)


def looks_like_a_picture(content: bytes) -> bool:
    """Whether `content` begins as JPEG, PNG, WebP, BMP, TIFF or PNM files do."""
    return (
        content.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*"))
        or (content.startswith(b"RIFF") and content[8:12] == b"WEBP")
        or (content[:1] == b"P" and content[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6") and content[2:3].isspace())
    )


def sample_pictures() -> list[str]:
    """The photographs inside the installed package, for `--samples`."""
    folder = Path(__file__).parent / "samples"
    return sorted(str(path) for path in folder.iterdir() if path.suffix in PICTURE_SUFFIXES)


def random_pictures(paths: Iterable[str], count: int, *, seed: int | None = None) -> list[str]:
    """`count` pictures of folders and their folders, chosen at random; all of them where there are fewer."""
    # Reservoir sampling (Vitter's algorithm R): one pass, and no more than `count` paths in memory.
    chooser, chosen = random.Random(seed), []
    for number, path in enumerate(Inputs(paths, recursive=True)):
        if number < count:
            chosen.append(path)
        elif (place := chooser.randint(0, number)) < count:
            chosen[place] = path
    chooser.shuffle(chosen)
    return chosen
