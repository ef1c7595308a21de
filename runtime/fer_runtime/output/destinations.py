"""The one place that decides where a run may write.

- No output takes the place of a file that the run reads, compared by device and inode, so that links do not hide it.
- An annotated copy stays inside the folder for copies: no `..`, and no folder below it that is a symbolic link.
- An annotated copy replaces only another annotated copy, and a contact sheet another one of either. Each ends in a mark
  that image decoders pass over.
- Rows replace text only, so that a wrong name costs no model and no image.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fer_runtime.errors import OutputError
from fer_runtime.output.partial import partial_path, settings_path

COPY_MARK = b"\nannotated by fer-infer\n"
COPY_FAILED = "its annotated copy cannot be written: "  # begins a row's reason

_Identity = tuple[int, int]  # device and inode


class ExistingFile(NamedTuple):
    """A file that a run is to replace."""

    option: str  # that names it
    path: Path
    identities: frozenset[_Identity]

    def refuse(self, read: str | Path | int, noun: str = "an image of this run") -> None:
        """Stop where it is the file that the run reads.

        Args:
            read: a path, or an open file.
            noun: what the message calls it.

        Raises:
            OutputError: it is.
        """
        if not self.identities.isdisjoint(identities(read)):
            raise OutputError(f"{self.option} {self.path} would overwrite {noun}; give another name")


class Destinations(NamedTuple):
    """The files and folders that a run writes; None for those that were not asked for.

    Args:
        output: the file of rows.
        contact_sheet: the page of faces.
        annotate: the folder for annotated copies.
    """

    output: Path | None = None
    contact_sheet: Path | None = None
    annotate: Path | None = None

    def files(self) -> list[tuple[str, Path]]:
        """The files that are written under names known beforehand, with the option that asks for each."""
        files = []
        if self.output is not None:
            names = (self.output, partial_path(self.output), settings_path(self.output))
            files += [("--output", name) for name in names]
        if self.contact_sheet is not None:
            files.append(("--contact-sheet", self.contact_sheet))
        return files

    def existing(self) -> list[ExistingFile]:
        """Those of the files that exist already; to be asked before the run writes any."""
        return [ExistingFile(option, file, identities(file)) for option, file in self.files() if os.path.lexists(file)]

    def check(self, inputs: Iterable[str], *, recursive: bool, reads: Mapping[str, str | Path | int]) -> None:
        """Stop before anything is written that would take the place of a file that this run reads.

        Args:
            inputs: files and folders of images that are known beforehand.
            recursive: whether the folders' folders are read.
            reads: other files that the run reads, as paths or open descriptors, by the noun for each.

        Raises:
            OutputError: an option names such a file, or one of another kind, or two options name the same one.
        """
        from fer_runtime.images import IMAGE_SUFFIXES  # loads numpy, which --help does without

        self._check_each_other()
        existing = self.existing()
        for noun, read in reads.items():
            for file in existing:
                file.refuse(read, noun)
        folders: set[str] = set()  # that copies were checked against
        for path in inputs:
            is_folder = os.path.isdir(path)
            for file in existing:
                if is_folder and file.path.suffix.lower() in IMAGE_SUFFIXES:
                    if is_within(file.path, path, recursive=recursive):
                        file.refuse(file.path)
                else:
                    file.refuse(path)
            folder = path if is_folder else os.path.dirname(path) or "."
            if self.annotate is not None and folder not in folders:
                folders.add(folder)
                if is_within(self.annotate / "copy", folder, recursive=recursive and is_folder):
                    raise OutputError(
                        f"--annotate {self.annotate} is among the images of {path}, and copies would overwrite them; "
                        "give a folder elsewhere"
                    )

        self._check_kinds()

    def replaces_copies(self) -> bool:
        """Whether the folder for annotated copies has files already."""
        try:
            return self.annotate is not None and any(os.scandir(self.annotate))
        except OSError:  # it does not exist, or its copies will say why they cannot be written
            return False

    def check_listed(self, paths: Iterable[str]) -> None:
        """Stop where a list has a file of the folder for annotated copies: the copy of another image could replace it.

        Raises:
            OutputError: with the path.
        """
        folders: dict[str, bool] = {}
        for path in paths:
            folder = os.path.dirname(path) or "."
            if folder not in folders:
                folders[folder] = is_within(Path(folder, "image"), str(self.annotate), recursive=True)
            if folders[folder]:
                raise OutputError(
                    f"{path} is in the folder of --annotate {self.annotate}, and copies would overwrite its images; "
                    "give a folder elsewhere"
                )

    def _check_each_other(self) -> None:
        seen: dict[str, str] = {}
        for option, file in self.files():
            real = os.path.realpath(file)
            if seen.setdefault(real, option) != option:
                raise OutputError(f"{seen[real]} and {option} both write {file}; give another name")
            # A folder where a file is to be written, or the other way round.
            if self.annotate is not None and real == os.path.realpath(self.annotate):
                raise OutputError(f"{option} and --annotate both write {file}; give another name")

    def _check_kinds(self) -> None:
        if self.output is not None and not is_text(self.output):
            raise OutputError(
                f"--output {self.output} is an existing file and no text, so it holds no rows; give another name, or "
                "remove it"
            )
        page = self.contact_sheet
        if page is not None and _has_content(page) and not _is_copy(page.resolve()):
            raise OutputError(
                f"--contact-sheet {page} is an existing file that fer-infer did not write; give another name, or "
                "remove it"
            )


def guarded(paths: Iterable[str], existing: Sequence[ExistingFile]) -> Iterator[str]:
    """`paths` as they are read, up to one that an output would take the place of.

    Args:
        existing: the run's files that were there before it.

    Raises:
        OutputError: there is such a path.
    """
    if not existing:  # then every file that has one of these names later is the run's own
        yield from paths
        return
    for path in paths:
        for file in existing:
            file.refuse(path)
        yield path


def is_within(file: Path, folder: str, *, recursive: bool) -> bool:
    """Whether `file` lies in `folder`, or anywhere below it."""
    wanted = identities(folder)
    if not wanted:
        return False
    parents = Path(os.path.realpath(file)).parents
    return any(wanted & identities(parent) for parent in (parents if recursive else parents[:1]))


def copy_inside(folder: Path, name: str) -> Path:
    """The path of the copy `name` in `folder`, whose folders exist then.

    Raises:
        OutputError: it would be outside, or take the place of a file that is not an annotated copy; for a row, which
            has the path.
        OSError: a folder cannot be made.
    """
    parts = Path(name).parts
    if not parts or os.path.isabs(name) or ".." in parts:
        raise OutputError("it would be outside the folder for copies")
    folder.mkdir(parents=True, exist_ok=True)
    place = folder
    for part in parts[:-1]:
        place = place / part
        try:
            place.mkdir()
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(place).st_mode):
                raise OutputError("its folder exists as a file or a link, and links are not followed") from None
    copy = place / parts[-1]
    if os.path.lexists(copy) and not _is_copy(copy):
        raise OutputError("it would overwrite a file that is not an annotated copy; give --annotate another folder")
    return copy


def inside_name(path: str, roots: Sequence[str]) -> str:
    """The place of an image under the folder among `roots` that holds it; its own name where none does."""
    for root in roots:
        if path.startswith(os.path.join(root, "")) and os.path.isdir(root):
            name = os.path.relpath(path, root)
            if ".." not in Path(name).parts:
                return name
    name = os.path.basename(path)
    return name if name not in ("", ".", "..") else "image"


def is_text(path: Path) -> bool:
    """Whether text may replace what is there: text, or nothing. A model or an image has zero bytes early."""
    try:
        if not _has_content(path):
            return True
        with path.open("rb") as file:
            return b"\0" not in file.read(4096)
    except OSError:  # whoever writes it says why
        return True


def _has_content(path: Path) -> bool:
    return path.is_file() and os.path.getsize(path) > 0


def _is_copy(path: Path) -> bool:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size < len(COPY_MARK):
            return False
        os.lseek(descriptor, -len(COPY_MARK), os.SEEK_END)
        return os.read(descriptor, len(COPY_MARK)) == COPY_MARK
    finally:
        os.close(descriptor)


def identities(file: str | Path | int) -> frozenset[_Identity]:
    """Device and inode of a file, and of the link that leads to it; empty where there is none."""
    found = set()
    for follow in (True, False):
        try:
            status = os.fstat(file) if isinstance(file, int) else os.stat(file, follow_symlinks=follow)
        except (OSError, ValueError):  # it does not exist, or has a name that none can have
            continue
        if isinstance(file, int) and not stat.S_ISREG(status.st_mode):
            continue
        found.add((status.st_dev, status.st_ino))
    return frozenset(found)
