"""Watch a folder: each new image once, as soon as it is complete."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
from typing import NamedTuple

from fer_runtime.batch.sources import Inputs, LeftOut

_Identity = tuple[int, int, int, bool]  # inode, bytes, time of the last change, whether it can be read
_SETTLED_SECONDS = 2.0  # without a change; of files that are there at the start
_CLOCK_SECONDS = 0.05  # by which a file system's clock is behind, at most
_MOST_NOTED = 100_000  # characters of paths


class Covered(NamedTuple):
    """Which files have the rows of their content: those that have rows, and changed until a time."""

    until: float = 0.0  # seconds since 1970
    replaced: frozenset[str] = frozenset()  # but these, whose rows are those of an earlier content


class FolderWatch:
    """Finds the images of a folder that are new since the last search.

    A file is complete when neither its size nor its time has changed between two searches and, on Linux, no process
    has it open for writing. A file that is replaced, or becomes readable, is new again. A file that is gone is
    forgotten, but not while its folder cannot be read. Memory grows with the number of files in the folder.

    Args:
        folder: searched as a run over images does.
        recursive: also its subfolders.
        known: paths that have their rows from an earlier run.
        covered: what the rows of that run cover.

    Attributes:
        covered: what all rows so far cover.
        then_covered: the same, once the files that the last look gave have their rows.
        unreadable: folders that could not be read in the last look.
        left_out: what that look found and does not read.
    """

    def __init__(
        self, folder: str, *, recursive: bool = False, known: Iterable[str] = (), covered: Covered | None = None
    ) -> None:
        self._folder = folder
        self._recursive = recursive
        self._known = frozenset(known)
        self._taken: dict[str, _Identity] = {}  # of the files that were given
        self._waiting: dict[str, _Identity] = {}  # of those that were still growing
        self._rowed: frozenset[str] = self._known  # files that had rows, of this content or of an earlier one
        self._is_first = True
        self._covered_before = self.covered = self.then_covered = covered or Covered()
        self.unreadable: list[str] = []
        self.left_out = LeftOut()

    def new_files(self) -> list[str]:
        """Return the files that became complete since the last call, oldest first."""
        taken, waiting, new = dict[str, _Identity](), dict[str, _Identity](), list[tuple[int, str]]()
        unreadable = []
        now = time.time()
        replaced, replaced_new = list[tuple[float, str]](), list[tuple[float, str]]()
        left_out = LeftOut()
        for path in Inputs((self._folder,), self._recursive, left_out):
            try:
                status = os.stat(path)
            except OSError:
                if path == self._folder:
                    unreadable.append(path)
                continue  # gone again, or a link to nothing
            if not stat.S_ISREG(status.st_mode):
                if stat.S_ISDIR(status.st_mode):  # folders that can be read give their files instead
                    unreadable.append(path)
                continue
            identity = (status.st_ino, status.st_size, status.st_mtime_ns, os.access(path, os.R_OK))
            before = self._taken.get(path)
            # Not in the first look alone: the disk of the folder may be there later.
            if before == identity or (before is None and self._has_row(path, status)):
                taken[path] = identity
                continue
            if self._is_settled(path, identity, now - status.st_mtime) and not is_being_written(path):
                taken[path] = identity
                new.append((status.st_mtime_ns, path))
                among = replaced_new
            else:
                waiting[path] = identity
                among = replaced
            if path in self._rowed:
                among.append((_changed(status), path))
        for folder in unreadable:
            inside = os.path.join(folder, "")
            taken |= {path: identity for path, identity in self._taken.items() if path.startswith(inside)}
        self._rowed = frozenset(chain(taken, self._rowed.intersection(waiting)))
        self._taken, self._waiting, self._is_first = taken, waiting, False
        until = max(now - _CLOCK_SECONDS, self.then_covered.until)  # a clock that was put back changes no row
        self.covered, self.then_covered = _covered(until, replaced + replaced_new), _covered(until, replaced)
        self.unreadable, self.left_out = unreadable, left_out
        return [path for _, path in sorted(new)]

    def _has_row(self, path: str, status: os.stat_result) -> bool:
        before = self._covered_before
        return path in self._known and path not in before.replaced and _changed(status) <= before.until

    def _is_settled(self, path: str, identity: _Identity, age: float) -> bool:
        return self._waiting.get(path) == identity or (self._is_first and age > _SETTLED_SECONDS)


def _covered(until: float, replaced: Sequence[tuple[float, str]]) -> Covered:
    """What is covered until `until`, but for files that were replaced: when each changed, and its path."""
    if sum(len(path) for _, path in replaced) <= _MOST_NOTED:
        return Covered(until, frozenset(path for _, path in replaced))
    return Covered(min(until, min(replaced)[0] - _CLOCK_SECONDS))


def _changed(status: os.stat_result) -> float:
    """When a file changed, in seconds since 1970."""
    # One that was moved here keeps the time of its content, and has a new one of its entry in the folder.
    return max(status.st_mtime, status.st_ctime)


def is_being_written(path: str) -> bool:
    """Whether a process has the file open for writing; False where the system does not tell.

    Linux grants a read lease only where nobody does (fcntl(2), "Leases"), on local file systems and to the owner.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    set_lease, set_signal = getattr(fcntl, "F_SETLEASE", None), getattr(fcntl, "F_SETSIG", None)
    if set_lease is None or set_signal is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # If somebody opens the file while the lease lasts, a signal tells us so. By default it is SIGIO, which ends a
        # process; SIGURG is ignored.
        fcntl.fcntl(descriptor, set_signal, signal.SIGURG)
        fcntl.fcntl(descriptor, set_lease, fcntl.F_RDLCK)
        with suppress(OSError):
            fcntl.fcntl(descriptor, set_lease, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
