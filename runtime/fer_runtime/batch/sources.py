"""Find the images of a run: files, folders, glob patterns and lists on standard input."""

from __future__ import annotations

import codecs
import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from io import BufferedReader
from itertools import chain, islice
from os import PathLike
from pathlib import Path

from fer_runtime.errors import ImageError, InputError
from fer_runtime.images import IMAGE_SUFFIXES, MAX_FILE_BYTES, kind_not_read, read_bytes
from fer_runtime.video.kinds import is_video_in_folder

# JPEG, PNG, GIF, TIFF, JPEG 2000 in a box and bare, Sun raster.
_SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"),
    *(b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51", b"\x59\xa6\x6a\x95"),
)

# PNM with its width and height, and PAM: a list may begin with a folder "P1 Lisbon".
_PNM = re.compile(rb"P[1-6]\s(?:[\s\d]*#|\s*\d+\s+\d+\s)|P7\s+(?:#|WIDTH|HEIGHT|DEPTH|MAXVAL|TUPLTYPE)")
_BMP_BYTES = 18  # the last ones are the size of its header; none of a list has two NUL in a row, or is a folder "BMW"

# A folder's names are sorted in blocks of this many, so that a million files cost no more memory.
_SORTED_BLOCK = 65_536

# Of a list on standard input, without a path in it: more is no list, and would fill the memory.
_LONGEST_ENTRY = 1 << 20
_HEAD_BYTES, _SIGNATURE_BYTES = 64, 12  # tell every image from a list, and most images
# Windows PowerShell writes UTF-16 with a byte-order mark. UTF-32's begins like UTF-16's, and comes first.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)

# Of more, files are counted together: names such as "1.2.3" may all end differently.
_COUNTED_SUFFIXES = 100


class LeftOut:
    """Counts of the files and folders of a run that are not read; hidden ones are not counted."""

    def __init__(self) -> None:
        self.suffixes: Counter[str] = Counter()  # files whose suffix is of no image, in lower case
        self.videos = 0  # among those files
        self.folders = 0  # skipped, beside images
        self.only_folders: list[str] = []  # folders that hold folders and no image, all skipped

    def add_file(self, path: str) -> None:
        """Count a file that is not read."""
        self.videos += is_video_in_folder(path)
        suffix = os.path.splitext(path)[1].lower() or "without suffix"
        is_counted = suffix in self.suffixes or len(self.suffixes) < _COUNTED_SUFFIXES
        self.suffixes[suffix if is_counted else "others"] += 1

    def add_folders(self, folder: str, count: int, *, has_images: bool) -> None:
        """Count the subfolders of `folder`, which are skipped."""
        if has_images:
            self.folders += count
        elif count:
            self.only_folders.append(folder)


class Inputs:
    """Find the images in paths lazily; iterate once.

    Args:
        paths: files and folders, taken literally.
        recursive: also read the folders' subfolders.
    """

    def __init__(self, paths: Iterable[str], recursive: bool = False, left_out: LeftOut | None = None) -> None:
        self.paths = paths
        self.recursive = recursive
        self.left_out = LeftOut() if left_out is None else left_out

    def __iter__(self) -> Iterator[str]:
        for path in self.paths:
            if os.path.isdir(path):
                yield from self._in_folder(path)
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
                        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                            files += 1
                            yield entry.path
                        else:
                            self.left_out.add_file(entry.path)
            if self.recursive:
                waiting += reversed(folders)
            else:
                self.left_out.add_folders(folder, len(folders), has_images=files > 0)


def find_images(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]], *, recursive: bool = False
) -> Iterator[str]:
    """Yield the paths of the images in files, folders and glob patterns, in the order of a `fer-infer` run.

    A file is yielded whatever its suffix, and a path that does not exist is yielded, too: its row will have the reason.

    Args:
        paths: one path, or several.
        recursive: search folders inside folders too.
    """
    given = [paths] if isinstance(paths, (str, PathLike)) else paths
    return iter(Inputs(chain.from_iterable(expanded(os.fspath(path)) for path in given), recursive))


def expanded(path: str, suffixes: Container[str] | None = None) -> list[str]:
    """Expand a glob pattern that the shell has not expanded, sorted; return any other path unchanged.

    A pattern's match that is a folder stands for its images, as a named folder does, unless the pattern matches
    something inside it.

    Args:
        suffixes: look only for files that may end in one of these.
    """
    if not glob.has_magic(path) or os.path.lexists(path):
        return [path]
    suffix = os.path.splitext(path)[1].lower()
    if suffixes is not None and suffix and not glob.has_magic(suffix) and suffix not in suffixes:
        return [path]
    try:
        found = sorted(glob.glob(path, recursive=True))
    except (OSError, ValueError, RecursionError):  # no name that a file can have
        found = []
    inside = {os.path.dirname(match.rstrip("/")) for match in found}
    found = [match for match in found if match.rstrip("/") not in inside or not os.path.isdir(match)]
    # A pattern that matches nothing is a path like any other: it gets its row, with the reason.
    return found or [path]


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
    """The arguments of the command: patterns are expanded, and "-" becomes the paths that standard input lists.

    Args:
        paths: the arguments.
        null_separated: the list on standard input is separated by NUL bytes, as `find -print0` writes it.
    """

    def __init__(self, paths: Sequence[str], *, null_separated: bool = False) -> None:
        self._paths = paths
        self._null_separated = null_separated
        self._image: bytes | None = None  # the image on standard input
        self._list: BufferedReader | None = None  # the list on standard input, where more of it must be read

    def __iter__(self) -> Iterator[str]:
        for path in self._paths:
            if path != "-":
                yield from expanded(path)
                continue
            if sys.stdin is None:  # as `<&-` leaves it
                self._image = b""
                yield path
                continue
            with open(sys.stdin.fileno(), "rb", closefd=False) as stream:
                head = _first_bytes(stream)
                if not self._null_separated and (not head or looks_like_an_image(head) or kind_not_read(head)):
                    self._image = head + stream.read(MAX_FILE_BYTES + 1 - len(head))
                    yield path
                else:
                    # What a list names is taken literally: it was written by a program.
                    for paths in path_blocks(stream, head, null_separated=self._null_separated):
                        for number, listed in enumerate(paths, 1):
                            self._list = stream if number == len(paths) else None
                            yield listed
                    self._list = None

    def must_wait(self) -> bool:
        """Whether the next path has not arrived on standard input yet."""
        if self._list is None or sys.platform == "win32":  # which waits for sockets alone
            return False
        import select

        try:
            return not select.select([self._list], [], [], 0)[0]
        except (OSError, ValueError):  # it has been closed
            return False

    def read(self, path: str) -> bytes:
        """Content of an image; the path "-" is the one on standard input.

        Raises:
            ImageError: it cannot be read.
        """
        if path != "-" or self._image is None:
            return read_bytes(path)
        if not self._image:
            raise ImageError("standard input is empty; pipe an image or a list of paths into it")
        if len(self._image) > MAX_FILE_BYTES:
            raise ImageError(f"has more bytes than the limit of {MAX_FILE_BYTES}")
        return self._image


def _first_bytes(stream: BufferedReader) -> bytes:
    """The beginning of a stream: enough to tell an image from a list, without waiting for many lines of a list."""
    head = b""
    while not (len(head) >= _HEAD_BYTES or (len(head) >= _SIGNATURE_BYTES and b"\n" in head)):
        if not (more := stream.read1(1 << 16)):
            break
        head += more
    return head


def path_blocks(stream: BufferedReader, head: bytes = b"", *, null_separated: bool = False) -> Iterator[list[str]]:
    """The paths of a list, as many at a time as have arrived.

    They are one per line, or separated by NUL bytes (`find -print0`) where the list begins with such a path. Text in
    UTF-32 must begin with its byte-order mark, as PowerShell writes it.

    Args:
        stream: read as paths are taken, so that a list of any length costs no memory.
        head: the first bytes of the list, taken from the stream already.
        null_separated: the separator is NUL, whatever the list begins with.

    Raises:
        InputError: an entry is too long for a path, so that this is not a list.
    """
    head = head or _first_bytes(stream)
    mark, encoding = next(((mark, name) for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), (b"", "utf-8"))
    if not mark and not null_separated:
        encoding = _unmarked_encoding(head)
    more = iter(lambda: stream.read1(1 << 16), b"")
    blocks: Iterator[bytes] = chain((head[len(mark) :],), more)
    if encoding != "utf-8":  # which is left as bytes: a name may be none
        blocks = _in_utf8(blocks, encoding)
    rest = b""
    while b"\n" not in rest and b"\0" not in rest and len(rest) <= _LONGEST_ENTRY:
        if (block := next(blocks, None)) is None:
            break
        rest += block
    separator = b"\0" if null_separated or b"\0" in rest else b"\n"
    without_path = 0  # bytes since the last path
    for block in chain((b"",), blocks, (separator,)):
        *entries, rest = (rest + block).split(separator)
        paths: list[str] = []
        for entry in entries:
            path = entry if separator == b"\0" else entry.rstrip(b"\r")
            if path:
                without_path = 0
                paths.append(os.fsdecode(path))
            else:
                without_path += 1
        yield paths
        if max(len(rest), without_path) > _LONGEST_ENTRY:
            raise InputError(
                f"standard input has {_LONGEST_ENTRY} bytes without a path; it must hold an image, or a list of paths "
                "separated by line ends, or by NUL bytes with -0"
            )


def _unmarked_encoding(head: bytes) -> str:
    """UTF-16 where every other byte is NUL, as a list of paths between NUL bytes does not begin; else UTF-8."""
    first, second = head[:_SIGNATURE_BYTES:2], head[1:_SIGNATURE_BYTES:2]
    for zeros, letters, encoding in ((second, first, "utf-16-le"), (first, second, "utf-16-be")):
        if len(head) >= 4 and not any(zeros) and b"\0" not in letters:
            return encoding
    return "utf-8"


def _in_utf8(blocks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")


def looks_like_an_image(content: bytes) -> bool:
    """Whether `content` begins with the signature of an image format."""
    return (
        content.startswith(_SIGNATURES)
        or (content.startswith(b"RIFF") and content[8:12] == b"WEBP")
        or (content[4:8] == b"ftyp" and b"avif" in content[:64])
        or (content.startswith(b"BM") and b"\0\0" in content[:_BMP_BYTES])
        or _PNM.match(content) is not None
    )


def sample_images() -> list[str]:
    """The photographs inside the installed package, for `--samples`."""
    folder = Path(__file__).parents[1] / "samples"
    return sorted(str(path) for path in folder.iterdir() if path.suffix in IMAGE_SUFFIXES)


def random_images(
    paths: Iterable[str], count: int, *, left_out: LeftOut | None = None, seed: int | None = None
) -> list[str]:
    """`count` images of folders and their subfolders, chosen at random; all of them where there are fewer.

    Args:
        left_out: counts the files that are not read.
    """
    import random  # loads what a run over all images does without

    # Reservoir sampling (Vitter's algorithm R): one pass, and no more than `count` paths in memory.
    chooser, chosen = random.Random(seed), []
    for number, path in enumerate(Inputs(paths, recursive=True, left_out=left_out)):
        if number < count:
            chosen.append(path)
        elif (place := chooser.randint(0, number)) < count:
            chosen[place] = path
    chooser.shuffle(chosen)
    return chosen
