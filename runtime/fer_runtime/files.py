"""Files that are either whole or absent, and the cache folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fer_runtime.errors import OutputError

CACHE_VARIABLE = "FER_EDGE_CACHE"  # environment variable that moves the cache folder


@contextmanager
def replaced_atomically(path: Path) -> Iterator[Path]:
    """A temporary path in `path`'s folder, renamed over `path` when the block ends without an error.

    Killed at any moment, the old file stands. The temporary name ends in `.partial`, which no
    command takes for a result.

    Raises:
        OutputError: the folder cannot be written, the disk is full, or `path` is no regular file.
    """
    refuse_special(path)
    import tempfile  # loads what a run that writes nothing does without

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        os.close(handle)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another folder") from error
    partial = Path(name)
    try:
        yield partial
        # mkstemp makes files private; a result has the permissions of any other new file.
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; the file is as it was before") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def refuse_special(path: Path) -> None:
    """Stop before a file takes the name of a device or pipe: a rename would put the device away.

    Raises:
        OutputError: there is one at `path`.
    """
    # A link in /dev leads to whatever standard output is, and a rename would take the link's place.
    if (path.exists() and not path.is_file()) or path.absolute().parent == Path("/dev"):
        raise OutputError(f"cannot write {path}: it is no regular file; choose another name")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path`, whole or not at all.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    with replaced_atomically(path) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def cache_folder() -> Path:
    """The folder for what can be made again: `$FER_EDGE_CACHE`, or the system's place for caches."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "fer-edge"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "fer-edge" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fer-edge"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, hexadecimal."""
    import hashlib  # loads OpenSSL, which a run of fer-infer does not need

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
