"""The file that collects a run's rows, locked during the run and renamed when the rows are complete.

    rows.jsonl.partial             the rows so far
    rows.jsonl.partial.settings    who writes them, and what they were made with

Both names are predictable, because the next run must find them. They are therefore opened without following links,
and a file that no run of ours wrote is never touched.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fer_runtime.errors import OutputError
from fer_runtime.files import linked_file, lock_file, refuse_special

_FORMAT = "fer-edge rows"  # marks a settings file as ours
_OPEN_FLAGS = (
    os.O_RDWR
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)  # opening a FIFO would wait for a reader
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
_ATTEMPTS = 10


def partial_path(output: Path) -> Path:
    """The file that collects the rows until they are complete; of a link to a file, beside that file."""
    output = linked_file(output)
    return output.with_name(output.name + ".partial")


def settings_path(output: Path) -> Path:
    """The file that says who writes the rows, and what they were made with."""
    output = linked_file(output)
    return output.with_name(output.name + ".partial.settings")


class PartialFile:
    """The unfinished rows of `output`, locked from its opening to `close`.

    Rows are collected by `write` and reach the file with `flush`. A signal handler may raise an exception at any point:
    `flush` can be repeated, and then writes the same bytes to the same place.

    Args:
        output: the name that the file takes with `finish`.
        in_place: the rows are collected under that name, for a run that has no end.

    Raises:
        OutputError: another run writes to it, the name belongs to a file that is not ours, or it cannot be opened.
    """

    def __init__(self, output: Path, *, in_place: bool = False) -> None:
        refuse_special(output)
        self.path = output if in_place else partial_path(output)
        self.settings: dict[str, Any] | None = None  # of the rows in the file; None: no run can continue them
        self.watched: Any = None  # what a run with --watch noted last, as plain JSON
        self._in_place = in_place
        self._was_in_place = False  # the settings are those of rows under the output's own name
        self._output = output if in_place else linked_file(output)
        self._settings_path = settings_path(output)
        self._advice = "choose another folder"
        self._descriptor = -1
        self._writes_settings = False
        self._record: dict[str, Any] = {}  # in the settings file, once rows are written
        self._leaves_nothing = not os.path.lexists(self.path)  # as long as no row is there
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._open_locked()
            # Locked first, so that of two runs that start at a time at least one sees the other.
            self._refuse_other_kind(partial_path(output) if in_place else output)
            self.size = os.fstat(self._descriptor).st_size  # bytes that wait
            if self.size or os.path.lexists(self._settings_path):
                self.settings = self._read_settings()
        except OSError as error:
            self.close()
            raise self._error(error) from error
        except BaseException:
            self.close()
            raise
        # The rows' offset in the file and those that are not written yet. Replaced as one, so that no interruption
        # separates the two.
        self._state: tuple[int, list[str]] = (self.size, [])

    def refuse_unfinished(self) -> None:
        """Stop before a new run would throw away rows that `--resume` can continue.

        Raises:
            OutputError: there are such rows.
        """
        if self.size and self.settings is not None:
            raise OutputError(
                f"rows of an unfinished run are in {self.path}; continue it with --resume, or remove that file to "
                "start again"
            )
        if self._was_in_place and not self._in_place and os.path.exists(self._output):
            raise OutputError(
                f"rows of --watch are in {self._output}; continue them with --watch, give another --output, or remove "
                "that file to start again"
            )

    def start(self, size: int, settings: Mapping[str, Any] | None) -> None:
        """Keep the first `size` bytes, and record this process as the writer.

        Args:
            settings: what the rows are made with, as plain JSON; None where no run can continue them.

        Raises:
            OutputError: the file cannot be written.
        """
        self._record = {
            "format": _FORMAT,
            "process": os.getpid(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
            "settings": settings,
            "in_place": self._in_place,
            "watched": self.watched,
        }
        try:
            # Rows of another run go first: killed between the two, no rows are left beside the wrong settings.
            os.ftruncate(self._descriptor, size)
            self._leaves_nothing = True
            self._writes_settings = True
            self._write_settings(json.dumps(self._record).encode("ascii"))
        except OSError as error:
            raise self._error(error) from error
        self._state = (size, [])
        self._advice = f"the rows so far are in {self.path}" + (
            ", continue with --resume" if settings is not None else ""
        )

    def note_watched(self, watched: Mapping[str, Any]) -> None:
        """Record for the next run with --watch what the rows cover, as plain JSON.

        Raises:
            OutputError: it cannot be written.
        """
        self._record["watched"] = self.watched = watched
        try:
            self._write_settings(json.dumps(self._record).encode("ascii"))
        except OSError as error:
            raise self._error(error) from error

    def write(self, text: str) -> None:
        """Add the text of rows."""
        self._state[1].append(text)

    def flush(self) -> None:
        """Write the rows that were added.

        Raises:
            OutputError: the disk is full, or gone, or the file was removed.
        """
        offset, rows = self._state
        if not rows:
            return
        content = "".join(rows).encode("utf-8")
        try:
            _write_at(self._descriptor, offset, content)
        except OSError as error:
            self._state = (offset, [])
            with suppress(OSError):
                os.ftruncate(self._descriptor, offset)  # no torn row
            raise self._error(error) from error
        self._state = (offset + len(content), [])
        # A file that somebody removes takes rows as before, and nobody would ever see them.
        if not os.fstat(self._descriptor).st_nlink and not os.path.lexists(self.path):
            raise self._error(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))

    def finish(self) -> None:
        """Write what is left, and give the file its name.

        Raises:
            OutputError: the disk is full, or the file cannot be renamed.
        """
        self.flush()
        try:
            os.ftruncate(self._descriptor, self._state[0])
            os.fsync(self._descriptor)
            if os.name == "nt":  # which renames no open file
                self._close_descriptor()
            os.replace(self.path, self._output)
            with suppress(FileNotFoundError):
                os.unlink(self._settings_path)
            _sync_folder(self._output.parent)
        except OSError as error:
            raise self._error(error) from error
        finally:
            self._close_descriptor()

    def close(self) -> None:
        """Release the file; one without a row is removed."""
        if self._descriptor < 0:
            return
        with suppress(OSError):
            if self._leaves_nothing and not os.fstat(self._descriptor).st_size:
                if self._writes_settings:
                    os.unlink(self._settings_path)
                os.unlink(self.path)
        self._close_descriptor()

    def _close_descriptor(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _open_locked(self) -> int:
        for _ in range(_ATTEMPTS):
            descriptor = _open_regular(self.path, create=True)
            try:
                if not lock_file(descriptor):
                    raise OutputError(self._who_writes())
                # The run that held the lock may have finished meanwhile: then this file has another name now.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), os.stat(self.path, follow_symlinks=False)):
                        return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
        raise OutputError(f"{self.path} is replaced again and again by other runs; give another --output")

    def _refuse_other_kind(self, path: Path) -> None:
        """Stop where a run with --watch writes these rows under their own name, or another run under the other one.

        Raises:
            OutputError: it does.
        """
        if not os.path.lexists(path):
            return
        try:
            descriptor = os.open(path, _OPEN_FLAGS)
        except OSError:  # a link or another file that no run writes to
            return
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode) and not lock_file(descriptor):
                raise OutputError(self._who_writes())
        finally:
            os.close(descriptor)

    def _who_writes(self) -> str:
        who = ""
        with suppress(OSError, ValueError, OutputError):
            record = _parse_record(self._settings_content())
            who = f" (process {record['process']}, started {record['started']})"
        return f"another run{who} is writing {self._output}; wait until it ends, or give another --output"

    def _read_settings(self) -> dict[str, Any] | None:
        """The settings of the rows that wait.

        Raises:
            OutputError: a file of one of the two names is not ours.
        """
        try:
            content = self._settings_content()
            if not content and not self.size:  # a run was killed between the making and the writing of this file
                return None
            record = _parse_record(content)
        except FileNotFoundError:
            taken = self.path
        except ValueError:
            taken = self.path if self.size else self._settings_path
        else:
            settings: dict[str, Any] | None = record["settings"]
            self._was_in_place = record.get("in_place") is True
            self.watched = record.get("watched")
            return settings
        raise OutputError(
            f"{taken} exists, but no run of fer-infer wrote it; give another --output, or remove that file"
        )

    def _settings_content(self) -> bytes:
        descriptor = _open_regular(self._settings_path, create=False)
        try:
            return os.read(descriptor, 1 << 20)
        finally:
            os.close(descriptor)

    def _write_settings(self, content: bytes) -> None:
        descriptor = _open_regular(self._settings_path, create=True)
        try:
            # In this order a kill leaves the new record with an end of the old one, never half a record.
            _write_at(descriptor, 0, content)
            os.ftruncate(descriptor, len(content))
        finally:
            os.close(descriptor)

    def _error(self, error: OSError) -> OutputError:
        is_gone = self._descriptor >= 0 and not any(map(os.path.lexists, (self.path, self._output)))
        advice = f"{self.path} has been removed, with the rows so far" if is_gone else self._advice
        return OutputError(f"cannot write {self._output}: {error.strerror or error}; {advice}")


def _parse_record(content: bytes) -> dict[str, Any]:
    """A settings file's record.

    Raises:
        ValueError: it is not one of ours.
    """
    # What follows the first value is the end of a longer record that it replaced.
    try:
        record, _ = json.JSONDecoder().raw_decode(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT or "settings" not in record:
        raise ValueError("not a settings file of fer-infer")
    if not isinstance(record["settings"], (dict, type(None))):
        raise ValueError("settings of an unknown kind")
    return record


def _open_regular(path: Path, *, create: bool) -> int:
    """A descriptor of the regular file at `path`; neither a link is followed nor a FIFO waited for.

    Raises:
        OSError: it cannot be opened.
        OutputError: `path` is a link, or not a regular file, or has a second name.
    """
    try:
        descriptor = os.open(path, _OPEN_FLAGS | (os.O_CREAT if create else 0), 0o666)
    except OSError as error:
        if os.path.islink(path):
            raise OutputError(f"{path} is a symbolic link, which is not followed; remove it") from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        fact = "has a second name (a hard link)" if stat.S_ISREG(status.st_mode) else "is not a regular file"
        raise OutputError(f"{path} {fact}; remove it, or give another name")
    return descriptor


def _write_at(descriptor: int, offset: int, content: bytes) -> None:
    os.lseek(descriptor, offset, os.SEEK_SET)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
