"""Find the class folders of a data set, alone or inside folders for the splits, under their usual names."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fer_runtime.errors import DataError
from fer_runtime.images import IMAGE_SUFFIXES
from fer_runtime.text import counted, printable

# Files with these endings are images to us; OpenCV does not read the last four, which an error then says.
_COUNTED_SUFFIXES = IMAGE_SUFFIXES | {".heic", ".heif", ".hif", ".jxl"}
SHEETS_FOLDER = "sheets"  # contact sheets of fer-data crop, beside its splits
TRAIN, VALIDATION, TEST = "train", "validation", "test"
_SPLIT_NAMES = {
    TRAIN: ("train", "training"),
    VALIDATION: ("validation", "val", "valid", "dev", "publictest"),
    TEST: ("test", "testing", "privatetest"),
}
_SPLIT_OF = {name: split for split, names in _SPLIT_NAMES.items() for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceImage:
    """An image of a class folder."""

    path: Path
    split: str  # "train" where the source has no splits
    folder: str  # the class folder's name
    below: str  # the path below the class folder, with "/"

    @property
    def label(self) -> str:
        """The class folder's name with accents as parts of their letters; Macs store the two apart."""
        return unicodedata.normalize("NFC", self.folder)

    @property
    def name(self) -> str:
        """The image in tables and lists, "train/happy/1.png"."""
        return f"{self.split}/{self.folder}/{self.below}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A folder's images by split and class, sorted."""

    root: Path
    images: tuple[SourceImage, ...]
    has_splits: bool
    ignored: tuple[str, ...]  # folders beside those of the splits, and images beside the class folders

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the images, sorted."""
        return tuple(sorted({image.label for image in self.images}))


def split_named(name: str) -> str | None:
    """The split that a folder's or a column's word stands for: "train", "validation" or "test"; None for none."""
    return _SPLIT_OF.get(name.strip().casefold().replace("_", ""))


def read_source(root: Path) -> Source:
    """The images of `root/LABEL/`, `root/SPLIT/LABEL/` or `root/images/SPLIT/LABEL/`, and of the folders below LABEL.

    Raises:
        DataError: there is no such folder, or it has no class folder with an image.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}; give a folder that holds one folder for each label")
    base = root
    if (root / "images").is_dir() and any(map(split_named, _subfolders(root / "images"))):
        base = root / "images"
    names = _subfolders(base)
    splits = [name for name in names if split_named(name)]
    places = [base, *(base / name for name in splits)]
    if splits:
        images = [image for name in splits for image in _images(base / name, split_named(name) or TRAIN)]
    else:
        images = list(_images(base, TRAIN))
    if not images:
        raise DataError(_nothing_found(base, names))
    return Source(
        root=root,
        images=tuple(images),
        has_splits=bool(splits),
        ignored=(
            *(f"{name}/" for name in names if splits and name not in splits and name != SHEETS_FOLDER),
            *(str(path.relative_to(base)) for folder in places for path in _loose(folder)),
        ),
    )


def not_read(source: Source) -> str:
    """Describe what of a source is not read."""
    shown = ", ".join(printable(name, limit=60) for name in source.ignored[:5])
    more = f" and {len(source.ignored) - 5} more" if len(source.ignored) > 5 else ""
    return f"not read, because they are in no class folder: {shown}{more}"


def class_folders(folder: Path) -> dict[str, list[str]]:
    """Sorted paths of the images in each class folder and its subfolders.

    Hidden files and folders, and files of other kinds (Thumbs.db, notes.txt), do not count. HEIC and JPEG XL files do:
    reading them says that they must be converted.

    Raises:
        DataError: the folder is missing or cannot be read.
    """
    try:
        subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        return {sub.name: sorted(_paths_in(sub)) for sub in subfolders}
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}; give a folder of images") from error


def _paths_in(folder: Path, below: str = "") -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):  # a link may point to a folder above
                yield from _paths_in(Path(entry.path), f"{below}{entry.name}/")
            elif Path(entry.name).suffix.lower() in _COUNTED_SUFFIXES:
                yield f"{below}{entry.name}"


def _images(folder: Path, split: str) -> Iterator[SourceImage]:
    for name, below in class_folders(folder).items():
        for path in below:
            yield SourceImage(path=folder / name / path, split=split, folder=name, below=path)


def _loose(folder: Path) -> list[Path]:
    """Images that are in no class folder."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}; give a folder that you may read") from error


def _nothing_found(base: Path, names: list[str]) -> str:
    if names:
        shown = ", ".join(printable(name, limit=40) for name in names[:5])
        folders = counted(len(names), "folder")
        return f"{base} holds {folders} ({shown}) and no image in them; give a folder of class folders"
    files = sum(1 for path in base.iterdir() if path.is_file())
    return (
        f"{base} holds {counted(files, 'file')} and no class folders; put the images of each label into a folder of "
        f"its own, such as {base / 'happy'}"
    )
