"""Images put into a data set's folders: nothing is overwritten, and the same work again changes nothing."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from fer_runtime.errors import OutputError
from fer_runtime.files import write_atomically
from fer_runtime.system import available_cpus

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")

_LONGEST_STEM = 150  # characters; with a number and a suffix still a file's name


class Placing:
    """Writes images below `root`, each under the first free name. One process at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._used: set[str] = set()  # in lower case: some file systems know no other
        self.written = 0
        self.there = 0  # images that an earlier run has written

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
                self.there += 1
            else:
                write_atomically(file, content, cleans=False)
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
