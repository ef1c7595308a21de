"""Files that are either whole or absent, and the cache folder."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fer_runtime.errors import OutputError

CACHE_VARIABLE = "FER_EDGE_CACHE"  # environment variable that moves the cache folder


_UMASK_LOCK = threading.Lock()
_LOCKED_BYTE = 1 << 62  # Windows locks bytes, not files: one that nothing reaches, so that the file can be read
# What flock answers on file systems without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_NAME_BYTES = 200  # of a name in its temporary name, which must stay below 256 bytes
_TEMPORARY = r"(?s)\.(.+)\.[a-z0-9_]{8}\.partial(?:\.mp4)?"  # as mkstemp makes it


@contextmanager
def replaced_atomically(
    path: Path, *, cleans: bool = True, through_link: bool = True, suffix: str = ""
) -> Iterator[Path]:
    """A temporary path in `path`'s folder, renamed over `path` when the block ends without an error.

    A process that is killed leaves the old file, and a temporary one whose name ends in `.partial`, which no command
    takes for a result. The next run that writes `path` removes it.

    Args:
        cleans: remove what killed runs have left of `path`, which lists its folder.
        through_link: write the file that a link leads to; otherwise the new file takes the link's place.
        suffix: of the temporary name, for a writer that needs it: ".mp4".

    Raises:
        OutputError: the folder cannot be written, the disk is full, or `path` is not a regular file.
    """
    refuse_special(path)
    if through_link:
        path = linked_file(path)
    import tempfile  # loads what a run that writes nothing does without

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if cleans:
            remove_leftovers(path.parent, path.name)
        prefix = f".{_shortened(path.name)}."
        # A new file with a random name (O_EXCL): neither a link nor a FIFO can be in its place.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=f".partial{suffix}")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another folder") from error
    partial = Path(name)
    try:
        lock_file(handle)  # until it is closed: a process that is at work has no leftovers
        yield partial
        # mkstemp makes files private; a result has the permissions of any other new file. On a disk whose files all
        # belong to the one who mounted it, such as a FAT stick, nobody else may change them, and there is no need.
        with suppress(PermissionError):
            partial.chmod(0o666 & ~_umask())
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        if os.name == "nt":  # which renames no open file
            os.close(handle)
            handle = -1
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; the file is as it was before") from error
    finally:
        if handle >= 0:
            os.close(handle)
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _umask() -> int:
    """The process's umask. The system tells it only by changing it, which threads must not do at the same time."""
    with _UMASK_LOCK:
        umask = os.umask(0)
        os.umask(umask)
    return umask


def remove_leftovers(folder: Path, name: str | None = None, *, recursive: bool = False) -> None:
    """Remove the temporary files that killed processes have left in `folder`.

    Args:
        name: those of this file only.
        recursive: also in the folders below it, without following links.
    """
    wanted = None if name is None else _shortened(name)
    waiting = [folder]
    while waiting:
        try:
            entries = os.scandir(waiting.pop())
        except OSError:
            continue
        with entries:
            for entry in entries:
                found = re.fullmatch(_TEMPORARY, entry.name)
                if found and wanted in (None, found[1]):
                    _remove_unlocked(entry.path)
                elif recursive and entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))


def _remove_unlocked(path: str) -> None:
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with suppress(OSError):
        descriptor = os.open(path, flags)
        try:
            is_left = stat.S_ISREG(os.fstat(descriptor).st_mode) and lock_file(descriptor)
        finally:
            os.close(descriptor)
        if is_left:
            os.unlink(path)


def _shortened(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_NAME_BYTES])


def lock_file(descriptor: int) -> bool:
    """Lock an open file without waiting; whether the lock was free, which it counts as where a system has none."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def refuse_special(path: Path) -> None:
    """Stop before a file takes the name of a device or pipe: a rename would put the device away.

    Raises:
        OutputError: there is one at `path`.
    """
    # A link in /dev leads to whatever standard output is, and a rename would take the link's place.
    # Unlike Path's, these functions say no where a name is too long, or a folder cannot be entered.
    if (os.path.exists(path) and not os.path.isfile(path)) or path.absolute().parent == Path("/dev"):
        raise OutputError(f"cannot write {path}: it is not a regular file; choose another name")


def linked_file(path: Path) -> Path:
    """The file that is written for `path`: the one that it leads to, where it is a symbolic link to a file."""
    # isfile asks the system, which does not follow a stranger's link in a folder such as /tmp; realpath would.
    return Path(os.path.realpath(path)) if os.path.islink(path) and os.path.isfile(path) else path


def check_writable(path: Path) -> None:
    """Stop where `path` could not be written at the end of a run. No folder is left: the run may write nothing.

    Raises:
        OutputError: its folder cannot be written, or it is not a regular file.
    """
    with no_empty_folder(path.parent), suppress(_CheckedError), replaced_atomically(path, cleans=False):
        raise _CheckedError


@contextmanager
def no_empty_folder(folder: Path) -> Iterator[None]:
    """Remove the folders that the block has made for `folder`, if it leaves them empty."""
    missing = [made for made in (folder, *folder.parents) if not os.path.lexists(made)]
    try:
        yield
    finally:
        for made in missing:
            with suppress(OSError):
                made.rmdir()


class _CheckedError(Exception):
    """Ends `check_writable` before anything is renamed."""


def write_atomically(path: Path, content: bytes | str, *, cleans: bool = True, through_link: bool = True) -> None:
    """Write `content` (text as UTF-8) to `path`, whole or not at all; see `replaced_atomically`.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    with replaced_atomically(path, cleans=cleans, through_link=through_link) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def cache_folder() -> Path:
    """The folder for what can be made again: `$FER_EDGE_CACHE`, or the system's place for caches."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    try:
        home = Path.home()
    except RuntimeError:  # a container's user may have none: nothing is cached there, and nothing can be written
        home = Path(os.devnull)
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "fer-edge"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home)) / "fer-edge" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "fer-edge"


def can_be_written(folder: Path) -> bool:
    """Whether files can be made in `folder`, or in the nearest folder above it that is there."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, hexadecimal."""
    import hashlib  # loads OpenSSL, which a run of fer-infer does not need

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
