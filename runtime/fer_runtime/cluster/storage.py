"""Images and results by URI (s3://, gs://, file://, ... as pyarrow or fsspec know them), and folders of results."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from fer_runtime.batch.sources import LeftOut
from fer_runtime.errors import ImageError, InputError, OutputError
from fer_runtime.extras import needs_extra
from fer_runtime.files import write_atomically
from fer_runtime.images import IMAGE_SUFFIXES, MAX_FILE_BYTES


def is_uri(path: str) -> bool:
    """Whether `path` is `scheme://...`; what follows is taken as it is, without percent signs."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


def read_uri(uri: str) -> bytes:
    """The content of an object.

    Raises:
        ImageError: it is missing, unreadable, empty or too large.
    """
    try:
        filesystem, path = _located(uri)
        with filesystem.open_input_stream(path) as stream:
            content: bytes = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # pyarrow's errors of every storage
        raise ImageError(f"cannot be read: {_reason(error)}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ImageError(f"has more bytes than the limit of {MAX_FILE_BYTES}")
    if not content:
        raise ImageError("is empty (0 bytes)")
    return content


@dataclass(slots=True)
class RemoteFolders:
    """Paths, where URIs of folders are replaced by the images inside; iterate once.

    A folder's entries are held in memory while it is read: 1 GB per some million. Where a bucket keeps
    more than that under one prefix, list them elsewhere (an inventory) and give the list on standard input.
    """

    paths: Iterable[str]
    recursive: bool = False
    left_out: LeftOut = field(default_factory=LeftOut)

    def __iter__(self) -> Iterator[str]:
        """The images' paths and URIs.

        Raises:
            InputError: a folder cannot be listed. A run without its images would look complete.
        """
        for path in self.paths:
            if is_uri(path) and _is_folder(path):
                yield from self._in_folder(path.rstrip("/"))
            else:
                yield path

    def _in_folder(self, uri: str) -> Iterator[str]:
        from pyarrow import ArrowInvalid, fs

        try:
            filesystem, folder = _located(uri)
            entries = filesystem.get_file_info(fs.FileSelector(folder))
        except (OSError, ArrowInvalid) as error:
            raise _not_listed(uri, error) from error
        folders: list[str] = []
        files = 0
        for entry in sorted(entries, key=lambda info: info.base_name):
            if entry.path.rstrip("/") == folder:
                raise InputError(f"cannot list {uri}: it holds keys with an empty folder name (//); {_EMPTY_NAME}")
            if entry.base_name.startswith("."):
                continue
            if entry.type == fs.FileType.Directory:
                folders.append(f"{uri}/{entry.base_name}")
            elif os.path.splitext(entry.base_name)[1].lower() in IMAGE_SUFFIXES:
                files += 1
                yield f"{uri}/{entry.base_name}"
            else:
                self.left_out.add_file(entry.base_name)
        if self.recursive:
            for subfolder in folders:
                yield from self._in_folder(subfolder)
        else:
            self.left_out.add_folders(uri, len(folders), has_images=files > 0)


class Store(Protocol):
    """A folder of results. Its files are complete or absent, even if a process is killed."""

    def read(self, name: str) -> bytes | None:
        """A file's content; None when there is no such file."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """A new file, or a new content of it."""
        ...

    def names(self) -> set[str]:
        """The files of the folder itself, not those in its folders."""
        ...


def open_store(location: str) -> Store:
    """The folder at a path or URI, whether it is there yet or not. It may be pickled."""
    folder = local_folder(location)
    # A rename makes files whole on a disk, also those of file://; pyarrow's streams write under the final name.
    return _RemoteStore(location.rstrip("/")) if folder is None else _LocalStore(folder)


def local_folder(location: str) -> Path | None:
    """The folder on this machine that a path or a file:// URI names; None for any other URI."""
    if location.startswith("file://"):
        return Path(location.removeprefix("file://"))
    return None if is_uri(location) else Path(location).absolute()


@dataclass(frozen=True, slots=True)
class _LocalStore:
    root: Path

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"cannot read {self.root / name}: {error.strerror}") from error

    def write(self, name: str, content: bytes) -> None:
        write_atomically(self.root / name, content)

    def names(self) -> set[str]:
        try:
            return {entry.name for entry in os.scandir(self.root)}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise OutputError(f"cannot read {self.root}: {error.strerror}; choose another folder") from error


@dataclass(frozen=True, slots=True)
class _RemoteStore:
    """Object stores show an object when its upload has ended, never before."""

    uri: str

    def read(self, name: str) -> bytes | None:
        try:
            filesystem, path = _located(f"{self.uri}/{name}")
            with filesystem.open_input_stream(path) as stream:
                content: bytes = stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"cannot read {self.uri}/{name}: {_reason(error)}") from error
        return content

    def write(self, name: str, content: bytes) -> None:
        try:
            filesystem, path = _located(f"{self.uri}/{name}")
            with filesystem.open_output_stream(path) as stream:
                stream.write(content)
        except OSError as error:
            raise OutputError(f"cannot write {self.uri}/{name}: {_reason(error)}; continue with --resume") from error

    def names(self) -> set[str]:
        from pyarrow import fs

        try:
            filesystem, path = _located(self.uri)
            return {entry.base_name for entry in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))}
        except OSError as error:
            raise OutputError(f"cannot read {self.uri}: {_reason(error)}; choose another place") from error


def _is_folder(uri: str) -> bool:
    """Whether `uri` names a folder, not an object.

    Raises:
        InputError: the store does not say, or has neither; an object that is named like an image gets its row.
    """
    try:
        filesystem, path = _located(uri)
        kind = filesystem.get_file_info(path).type.name
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        if _is_image_name(uri):
            return False  # reading it fails again, and its row says why
        raise _not_listed(uri, error) from error
    if kind == "NotFound" and not _is_image_name(uri):
        raise InputError(f"cannot list {uri}: there is no such folder or bucket; check its name and your permissions")
    return bool(kind == "Directory")


def _is_image_name(uri: str) -> bool:
    return os.path.splitext(uri)[1].lower() in IMAGE_SUFFIXES


def _not_listed(uri: str, error: Exception) -> InputError:
    return InputError(f"cannot list {uri}: {_reason(error)}; check its name, your permissions and the network")


def _located(uri: str) -> tuple[Any, str]:
    """The filesystem that a URI names, pyarrow's interface of it, and the path there."""
    scheme, _, rest = uri.partition("://")
    if scheme.lower() == "file":
        return _filesystem("file", ""), rest
    authority, _, key = rest.partition("/")
    # Asked for once a bucket, not once an image: finding S3's region is a request.
    filesystem, base = _filesystem(scheme, authority)
    return filesystem, f"{base}/{key}".rstrip("/")


@lru_cache
def _filesystem(scheme: str, authority: str) -> Any:
    with needs_extra("ray"):
        from pyarrow import ArrowInvalid, fs
    if scheme == "file":
        return fs.LocalFileSystem()
    root = f"{scheme}://{authority}"
    try:
        filesystem, base = fs.FileSystem.from_uri(root)
    except ArrowInvalid:  # not one of pyarrow's own
        filesystem, base = _fsspec_filesystem(root)
    return filesystem, base.rstrip("/")


def _fsspec_filesystem(root: str) -> tuple[Any, str]:
    import fsspec
    from pyarrow import fs

    try:
        found, base = fsspec.core.url_to_fs(root)
    except (ImportError, ValueError) as error:  # no such protocol, or its package is not installed
        raise OSError(str(error)) from error
    return fs.PyFileSystem(fs.FSSpecHandler(found)), base


_EMPTY_NAME = "pyarrow cannot read such keys, so copy them to others first"

# What pyarrow says around the store's answer: the names of keys and buckets, which differ from row to row.
_NAMES = re.compile(
    r"""\s*(?:for|of|in|to|from)?\s*(?:key|bucket|path|object|file|prefix)\s*:?\s*(?:'[^']*'|"[^"]*")"""
)
_AWS_ANSWER = re.compile(r"AWS Error \S+ during \w+ operation.*", flags=re.DOTALL)


def _reason(error: Exception) -> str:
    """Why, in words and without the name of an object, so that an outage is one reason, not one a row."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    text = str(error).strip()
    if text.startswith("Empty path component"):
        return f"its key has an empty folder name (//); {_EMPTY_NAME}"
    if answer := _AWS_ANSWER.search(text):
        text = answer[0]
    first = text.splitlines()[0].partition("; Details:")[0] if text else type(error).__name__
    # The details have milliseconds; request ids differ as well.
    return re.sub(r"\s*\(?Request ?ID:[^)]*\)?", "", _NAMES.sub("", first), flags=re.IGNORECASE).strip()
