"""Write the images of a run: annotated copies, and a contact sheet of its faces."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fer_runtime.errors import NO_MEMORY, ImageError, OutputError
from fer_runtime.files import check_writable, remove_leftovers, write_atomically
from fer_runtime.images import MAX_PIXELS, Uint8Array, decode_image, is_no_memory
from fer_runtime.output.annotate import draw_faces, encode_image
from fer_runtime.output.contact_sheet import ContactSheet
from fer_runtime.output.destinations import COPY_FAILED, COPY_MARK, copy_inside, identities, inside_name, is_within
from fer_runtime.results import Face, ImageResult

_WRITTEN_AS_IS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"))
# What the next copy would meet as well; anything else is a matter of one image.
_FATAL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO))


def unused_name(stem: str, suffix: str, used: set[str], *, reserved: Callable[[str], bool] = lambda name: False) -> str:
    """`stem` and `suffix`, with a number between them where that name is in `used` or reserved; adds it to `used`."""
    chosen, number = stem + suffix, 2
    while chosen in used or reserved(chosen):
        chosen, number = f"{stem}-{number}{suffix}", number + 1
    used.add(chosen)
    return chosen


@dataclass(slots=True)
class AnnotatedCopies:
    """Writes an annotated copy of every image that was read, in the folders that the originals have.

    Every image of the run takes a name, in the order of the rows, whether its copy can be written or not: so a run
    that continues finds the same names.

    Args:
        folder: where the copies go.
        roots: the arguments of the command; an image of a folder among them keeps its place under it.
        recursive: the folders' folders are read.
        taken: other files of this run, which no copy may replace.
        anonymize: one of anonymize.METHODS: faces are covered instead of drawn in.
    """

    folder: Path
    roots: Sequence[str]
    recursive: bool = False
    taken: Sequence[Path] = ()
    anonymize: str | None = None
    unchanged: int = 0  # anonymized copies of images in which no face was found
    _written: set[str] = field(default_factory=set)  # but for those that `_is_own_name` tells
    _taken: frozenset[str] = field(init=False)  # names in the folder for copies
    _named: frozenset[tuple[int, int]] | None = None  # the files among `roots`, once they are needed

    def __post_init__(self) -> None:
        remove_leftovers(self.folder, recursive=True)
        folder = os.path.realpath(self.folder)
        self._taken = frozenset(os.path.relpath(os.path.realpath(path), folder) for path in self.taken)

    def add(self, image: Uint8Array | None, row: ImageResult) -> ImageResult:
        """Write the copy of one image; its row, with the reason where the copy cannot be written.

        Args:
            image: None where it could not be read.

        Raises:
            OutputError: no copy can be written, such as on a full disk.
        """
        name = self.take_name(row.path)
        if image is None:
            return row
        try:
            copy = copy_inside(self.folder, name)
            if os.path.lexists(copy) and self._is_input(copy, row.path):
                raise OutputError("it would overwrite an image of this run; give --annotate another folder")
            content = encode_image(copy, self._draw(image, row)) + COPY_MARK
            write_atomically(copy, content, cleans=False, through_link=False)  # a copy stays inside its folder
        except OSError as error:
            return self._failed(row, error.strerror or str(error), error.errno)
        except OutputError as error:
            cause = error.__cause__
            if isinstance(cause, OSError):
                return self._failed(row, cause.strerror or str(cause), cause.errno)
            return self._failed(row, str(error), None)
        except (MemoryError, cv2.error) as error:
            if isinstance(error, cv2.error) and not is_no_memory(error):
                raise
            return self._failed(row, f"it {NO_MEMORY}", None)
        return row

    def _draw(self, image: Uint8Array, row: ImageResult) -> Uint8Array:
        if self.anonymize is None:
            return draw_faces(image, row.faces)
        from fer_runtime.output.anonymize import cover_faces

        self.unchanged += not row.faces
        return cover_faces(image, [face.box for face in row.faces], self.anonymize)

    def take_name(self, path: str) -> str:
        """The name of the next image's copy, relative to the folder."""
        name = inside_name("stdin" if path == "-" else path, self.roots)
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in _WRITTEN_AS_IS:
            stem, suffix = name, ".jpg"
        elif self._is_own_name(name, path) and name not in self._taken:
            # Nothing to remember: a folder of a million images costs no memory.
            return name
        # Two images of one name from two folders.
        return unused_name(stem, suffix, self._written, reserved=self._is_reserved)

    def replay(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Take the names of the copies that an earlier run has written; how many of the copies are not there."""
        missing = 0
        for row in rows:
            name = self.take_name(row["path"])
            missing += row["error"] is None and not os.path.lexists(self.folder / name)
        return missing

    def _failed(self, row: ImageResult, reason: str, number: int | None) -> ImageResult:
        if number in _FATAL:
            raise OutputError(f"cannot write annotated copies to {self.folder}: {reason}; make room, or choose another")
        return row if row.error is not None else replace(row, error=COPY_FAILED + reason)

    def _is_input(self, copy: Path, path: str) -> bool:
        """Whether an existing copy of an earlier run is an image of this one: `path`, or another that was named."""
        if self._named is None:
            self._named = frozenset(chain.from_iterable(map(identities, self.roots)))
        if not identities(copy).isdisjoint(self._named | identities(path)):
            return True
        return any(is_within(copy, root, recursive=self.recursive) for root in self.roots if os.path.isdir(root))

    def _is_reserved(self, name: str) -> bool:
        return name in self._taken or self._is_own_name(name)

    def _is_own_name(self, name: str, path: str | None = None) -> bool:
        """Whether `name` is that of an image in the only folder of the run: of `path`, where it is given."""
        if len(self.roots) != 1:
            return False
        owner = os.path.join(self.roots[0], name)
        return os.path.lexists(owner) if path is None else path == owner


@dataclass(slots=True)
class SheetOfFaces:
    """Collects every face of a run for a page that is written at its end.

    Args:
        path: the page, .jpg or .png.
        sheet: where the faces go.
        truth: the true label of an image by its path, None where it is not known.
        max_pixels: of the run, for the images that are read again.

    Raises:
        OutputError: the page's suffix is of no image that OpenCV writes, or its folder cannot be written.
    """

    path: Path
    sheet: ContactSheet
    truth: Callable[[str], str | None] = lambda path: None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        # At the end of a long run would be late.
        encode_image(self.path, np.zeros((1, 1, 3), np.uint8))
        check_writable(self.path)

    def add(self, image: Uint8Array | None, row: ImageResult) -> ImageResult:
        """Take the faces of one image; its row, unchanged."""
        for face in row.faces:
            self.sheet.add(image, face, true=self.truth(row.path))
        return row

    def replay(self, rows: Iterable[Mapping[str, Any]], read: Callable[[str], bytes]) -> None:
        """Take the faces of the rows that an interrupted run has written; only images that are shown are read."""
        for row in rows:
            faces = [Face.from_dict(face) for face in row["faces"]]
            image = None
            if any(map(self.sheet.has_room, faces)):
                try:
                    image = decode_image(read(row["path"]), max_pixels=self.max_pixels)
                except (ImageError, MemoryError):  # it has gone meanwhile
                    image = None
            for face in faces:
                self.sheet.add(image, face, true=self.truth(row["path"]))

    def write(self) -> None:
        """Write the page.

        Raises:
            OutputError: it cannot be written.
        """
        write_atomically(self.path, encode_image(self.path, self.sheet.draw()) + COPY_MARK)
