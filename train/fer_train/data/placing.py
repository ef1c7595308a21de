"""Write images into a data set's folders: nothing is overwritten, and a second run changes nothing."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from fer_runtime.errors import OutputError
from fer_runtime.files import write_atomically
from fer_runtime.system import available_cpus

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")

_WRITERS = 16  # threads that wait for the disk
_LONGEST_STEM = 150  # characters; with a number and a suffix still a file's name


class Writing:
    """Writes files in threads; at the end of the block all are on the disk.

    Waiting for the disk to confirm one file after the other would take nearly all of the time.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="fer-write")
        self._waiting: deque[Future[None]] = deque()

    def write(self, file: Path, content: bytes) -> None:
        """Write a file, whole or not at all.

        Raises:
            OutputError: this or an earlier file cannot be written.
        """
        self._waiting.append(self._pool.submit(write_atomically, file, content, cleans=False))
        if len(self._waiting) > 4 * _WRITERS:
            self._waiting.popleft().result()

    def __enter__(self) -> Writing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=error is not None)
        if error is None:
            for written in self._waiting:
                written.result()


class Placing:
    """Puts images below `root`, each under the first free name. One process at a time.

    Args:
        write: what writes a file; at once by default.
    """

    def __init__(self, root: Path, write: Callable[[Path, bytes], None] | None = None) -> None:
        self.root = root
        self._write = write or partial(write_atomically, cleans=False)
        self._used: set[str] = set()  # in lower case: some file systems know no other
        self.written = 0
        self.written_before = 0  # images that an earlier run has written

    def take(self, path: str) -> None:
        """Keep `path` (relative, with "/") for an image that an earlier run has placed."""
        self._used.add(path.casefold())

    def place(self, folder: str, stem: str, suffix: str, content: bytes) -> str:
        """Write `content` to `folder/stem.suffix`, or to `stem-2`, `stem-3` where that name belongs to another image.

        Returns:
            The path below the root, with "/".

        Raises:
            OutputError: it cannot be written.
        """
        number = 1
        stem = safe_name(stem)
        while True:
            path = f"{folder}/{stem}{'' if number == 1 else f'-{number}'}{suffix}"
            number += 1
            if path.casefold() in self._used:
                continue
            file = self.root / path
            if os.path.lexists(file):
                if not _holds(file, content):
                    continue
                self.written_before += 1
            else:
                self._write(file, content)
                self.written += 1
            self.take(path)
            return path


def safe_name(name: str) -> str:
    """`name` as a part of a path below our folder, whatever a csv says."""
    kept = "".join("_" if character in '/\\:\0<>"|?*' or ord(character) < 32 else character for character in name)
    return kept.lstrip(".")[:_LONGEST_STEM] or "image"


def in_threads(
    work: Callable[[_Given], _Made], items: Iterable[_Given], *, workers: int | None = None
) -> Generator[_Made, None, None]:
    """`work` of every item, in order, done by a thread for each CPU; a few items ahead are in memory."""
    count = workers or available_cpus()
    waiting: deque[Future[_Made]] = deque()
    left = iter(items)
    pool = ThreadPoolExecutor(count, thread_name_prefix="fer-data")
    try:
        while True:
            while len(waiting) <= 2 * count and (more := list(islice(left, 1))):
                waiting.append(pool.submit(work, more[0]))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _holds(file: Path, content: bytes) -> bool:
    try:
        return file.is_file() and file.stat().st_size == len(content) and file.read_bytes() == content
    except OSError as error:
        raise OutputError(f"cannot read {file}: {error.strerror}; choose another --output") from error
