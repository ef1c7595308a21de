"""Pictures that a run leaves behind: annotated copies, and a page of its faces."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fer_runtime.errors import OutputError
from fer_runtime.images import Uint8Array
from fer_runtime.output.annotate import draw_faces, encode_picture, write_picture
from fer_runtime.output.contact_sheet import ContactSheet
from fer_runtime.results import ImageResult

_WRITTEN_AS_IS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"))


def unused_name(stem: str, suffix: str, used: set[str], *, reserved: Callable[[str], bool] = lambda name: False) -> str:
    """`stem` and `suffix`, with a number between them where that name is in `used` or reserved; adds it to `used`."""
    chosen, number = stem + suffix, 2
    while chosen in used or reserved(chosen):
        chosen, number = f"{stem}-{number}{suffix}", number + 1
    used.add(chosen)
    return chosen


@dataclass(slots=True)
class AnnotatedCopies:
    """Writes an annotated copy of every picture that was read, in the folders that the originals have.

    Args:
        folder: where the copies go.
        roots: the arguments of the command; a picture of a folder among them keeps its place under it.
    """

    folder: Path
    roots: Sequence[str]
    _written: set[str] = field(default_factory=set)  # but for those that `_is_own_name` tells

    def add(self, image: Uint8Array, result: ImageResult) -> None:
        """Write the copy of one picture.

        Raises:
            OutputError: it cannot be written.
        """
        copy = self.folder / self._name(result.path)
        if os.path.lexists(copy) and os.path.lexists(result.path) and os.path.samefile(copy, result.path):
            raise OutputError(f"the annotated copy would overwrite {result.path}; give --annotate a folder elsewhere")
        write_picture(copy, draw_faces(image, result.faces))

    def _name(self, path: str) -> str:
        name = os.path.basename(path) or "picture"
        for root in self.roots:
            if os.path.isdir(root) and path.startswith(os.path.join(root, "")):
                name = os.path.relpath(path, root)
                break
        if name == "-":
            name = "stdin"
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in _WRITTEN_AS_IS:
            stem, suffix = name, ".jpg"
        elif self._is_own_name(name, path):
            # Nothing to remember: a folder of a million pictures costs no memory.
            return name
        # Two pictures of one name from two folders.
        return unused_name(stem, suffix, self._written, reserved=self._is_own_name)

    def _is_own_name(self, name: str, path: str | None = None) -> bool:
        """Whether `name` is that of a picture in the only folder of the run: of `path`, where it is given."""
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
        truth: the true label of a picture by its path, None where it is not known.

    Raises:
        OutputError: the page's suffix is of no picture that OpenCV writes.
    """

    path: Path
    sheet: ContactSheet
    truth: Callable[[str], str | None] = lambda path: None

    def __post_init__(self) -> None:
        # At the end of a long run would be late.
        encode_picture(self.path, np.zeros((1, 1, 3), np.uint8))

    def add(self, image: Uint8Array, result: ImageResult) -> None:
        """Take the faces of one picture."""
        for face in result.faces:
            self.sheet.add(image, face, true=self.truth(result.path))

    def write(self) -> None:
        """Write the page.

        Raises:
            OutputError: it cannot be written.
        """
        write_picture(self.path, self.sheet.draw())
