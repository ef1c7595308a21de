"""What the arguments of `fer-infer` stand for: files, folders, globs and standard input."""

from __future__ import annotations

import glob
import os
import random
import sys
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from fer_runtime.errors import ImageError
from fer_runtime.images import IMAGE_SUFFIXES, kind_not_read, read_bytes

VIDEO_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"))

# JPEG, PNG, GIF, BMP, TIFF, JPEG 2000 in a box and bare, Sun raster.
_SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*"),
    *(b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51", b"\x59\xa6\x6a\x95"),
)

# A folder's names are sorted in blocks of this many, so that a million files cost no more memory.
_SORTED_BLOCK = 65_536


# Of more, files are counted together: names such as "1.2.3" may all end differently.
_COUNTED_SUFFIXES = 100


@dataclass(slots=True)
class LeftOut:
    """What lies in the folders of a run besides the pictures that are read, but for hidden files."""

    suffixes: Counter[str] = field(default_factory=Counter)  # files whose suffix is that of no picture, in lower case
    folders: int = 0  # not gone into, beside pictures
    only_folders: list[str] = field(default_factory=list)  # folders that hold folders and no picture, not gone into

    def add_file(self, name: str) -> None:
        """Count a file that is not read."""
        suffix = os.path.splitext(name)[1].lower() or "without suffix"
        is_counted = suffix in self.suffixes or len(self.suffixes) < _COUNTED_SUFFIXES
        self.suffixes[suffix if is_counted else "others"] += 1

    def add_folders(self, folder: str, count: int, *, has_pictures: bool) -> None:
        """Count the folders of `folder`, which are not gone into."""
        if has_pictures:
            self.folders += count
        elif count:
            self.only_folders.append(folder)


@dataclass(slots=True)
class Inputs:
    """The pictures that paths stand for, found while they are read; iterate once.

    Args:
        paths: files, folders, or glob patterns that the shell has not expanded.
        recursive: go down into the folders' folders.
    """

    paths: Iterable[str]
    recursive: bool = False
    left_out: LeftOut = field(default_factory=LeftOut)

    def __iter__(self) -> Iterator[str]:
        for path in self.paths:
            if os.path.isdir(path):
                yield from self._in_folder(path)
                continue
            for one in expanded(path):
                # "**" lists what lies in the folders, too.
                if not os.path.isdir(one):
                    yield one

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
                        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                            files += 1
                            yield entry.path
                        else:
                            self.left_out.add_file(entry.name)
            if self.recursive:
                waiting += reversed(folders)
            else:
                self.left_out.add_folders(folder, len(folders), has_pictures=files > 0)


def find_images(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]], *, recursive: bool = False
) -> Iterator[str]:
    """The images that files, folders and glob patterns stand for, in the order of a `fer-infer` run.

    Args:
        paths: one path, or several.
        recursive: search folders inside folders too.
    """
    given = [paths] if isinstance(paths, (str, PathLike)) else paths
    return iter(Inputs((os.fspath(path) for path in given), recursive))


def expanded(path: str, suffixes: Container[str] | None = None) -> list[str]:
    """What a glob pattern that the shell has not expanded stands for, sorted; any other path itself.

    Args:
        suffixes: look only for files that may end in one of these.
    """
    if not glob.has_magic(path) or os.path.lexists(path):
        return [path]
    suffix = os.path.splitext(path)[1].lower()
    if suffixes is not None and suffix and not glob.has_magic(suffix) and suffix not in suffixes:
        return [path]
    # A pattern that matches nothing is a path like any other: it gets its row, with the reason.
    return sorted(glob.glob(path, recursive=True)) or [path]


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
                if not head or looks_like_a_picture(head) or kind_not_read(head):
                    self._picture = stream.read()
                    yield path
                else:
                    yield from paths_from_list(stream, head)

    def read(self, path: str) -> bytes:
        """Content of a picture; the path "-" is the one on standard input.

        Raises:
            ImageError: it cannot be read.
        """
        if path != "-" or self._picture is None:
            return read_bytes(path)
        if not self._picture:
            raise ImageError("standard input is empty; pipe a picture or a list of paths into it")
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
    """Whether `content` begins as the files do that OpenCV decodes."""
    return (
        content.startswith(_SIGNATURES)
        or (content.startswith(b"RIFF") and content[8:12] == b"WEBP")
        or (content[4:8] == b"ftyp" and b"avif" in content[:64])
        or (content[:1] == b"P" and b"1" <= content[1:2] <= b"7" and content[2:3].isspace())
    )


def sample_pictures() -> list[str]:
    """The photographs inside the installed package, for `--samples`."""
    folder = Path(__file__).parents[1] / "samples"
    return sorted(str(path) for path in folder.iterdir() if path.suffix in IMAGE_SUFFIXES)


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
