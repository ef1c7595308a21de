"""Load labelled images from class folders into one uint8 array, decoded once and cached."""

from __future__ import annotations

import hashlib
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fer_runtime.errors import DataError, ImageError, OutputError
from fer_runtime.expressions import EXPRESSIONS, FACE_SIZE
from fer_runtime.faces import prepare_face
from fer_runtime.files import cache_folder, replaced_atomically
from fer_runtime.images import read_bytes, read_image
from fer_runtime.labels import check_labels
from fer_train.data.source_folders import class_folders
from fer_train.data.votes import Float32Array, VoteSource

Uint8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]

# Bump when the decoding changes, so that no cached array of the old kind is used.
_CACHE_VERSION = 2
# Unreadable files that an error names.
_NAMED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledFaces:
    """The images and labels of one split, in the order of the paths."""

    faces: Uint8Array  # (images, size, size), grayscale 0-255, or (images, size, size, 3) in RGB
    labels: Int64Array  # (images,), index into `classes`
    classes: tuple[str, ...]
    paths: tuple[str, ...]  # relative to the split's folder, with "/"
    file_sha256: tuple[str, ...]  # of each image's file, hexadecimal
    fingerprint: str  # SHA-256 over all paths and files: equal for equal data wherever it is stored
    resized: int = 0  # images that had another size
    skipped: int = 0  # images that could not be read
    votes: Float32Array | None = None  # (images, classes + 1), raters' votes; the last column: none of the classes
    folder: Path = field(compare=False, default=Path())

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        """Pixels, side of the faces."""
        return int(self.faces.shape[1])

    @property
    def color(self) -> str:
        """ "gray" or "rgb"."""
        return "gray" if self.faces.ndim == 3 else "rgb"

    def small_gray(self) -> Uint8Array:
        """The faces as FER2013 has them, uint8 (images, 48, 48), for comparing pixels."""
        if self.faces.shape[1:] == (FACE_SIZE, FACE_SIZE):
            return self.faces
        bgr = self.faces if self.faces.ndim == 3 else self.faces[..., ::-1]
        small = [prepare_face(np.ascontiguousarray(face)) for face in bgr]
        return np.stack(small) if small else np.zeros((0, FACE_SIZE, FACE_SIZE), np.uint8)

    @property
    def counts(self) -> dict[str, int]:
        """Images per class."""
        found = np.bincount(self.labels, minlength=len(self.classes))
        return {name: int(count) for name, count in zip(self.classes, found, strict=True)}

    def subset(self, indices: Sequence[int] | Int64Array) -> LabelledFaces:
        """The images at `indices`; the fingerprint is that of the whole, with the choice hashed in."""
        chosen = np.asarray(indices, dtype=np.int64)
        return LabelledFaces(
            faces=self.faces[chosen],
            labels=self.labels[chosen],
            classes=self.classes,
            paths=tuple(self.paths[i] for i in chosen),
            file_sha256=tuple(self.file_sha256[i] for i in chosen),
            fingerprint=hashlib.sha256(self.fingerprint.encode() + chosen.tobytes()).hexdigest(),
            resized=self.resized,
            skipped=self.skipped,
            votes=None if self.votes is None else self.votes[chosen],
            folder=self.folder,
        )

    def with_votes(self, votes: VoteSource, split: str) -> LabelledFaces:
        """These faces with their raters' votes, which the fingerprint then covers."""
        found = votes.of(self.paths, self.small_gray(), split=split)
        fingerprint = hashlib.sha256(self.fingerprint.encode() + found.tobytes()).hexdigest()
        return replace(self, votes=found, fingerprint=fingerprint)


def split_folder(root: Path, split: str) -> Path:
    """The folder of `split` ("train" or "validation") under a dataset's root or beside its sibling.

    Raises:
        DataError: there is none.
    """
    for folder in (root / "images" / split, root / split):
        if folder.is_dir():
            return folder
    raise DataError(
        f"no folder {root / 'images' / split} nor {root / split}; --data takes the dataset's root "
        "(with images/train and images/validation) or a folder that holds train and validation, each with a folder for "
        f"every class; without --data, FER2013 is fetched from Kaggle, with {', '.join(EXPRESSIONS)}"
    )


def load_faces(
    root: Path,
    split: str,
    *,
    classes: tuple[str, ...] | None = None,
    size: int = FACE_SIZE,
    color: str = "gray",
    skip_unreadable: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> LabelledFaces:
    """Decode the images of one split, or take them from the cache when the files are the same.

    Args:
        root: the dataset's root, or a folder that holds `train` and `validation`.
        split: "train" or "validation".
        classes: the folders that must be there, no more and no fewer; None takes what there is, sorted.
        size: pixels, side of the faces.
        color: "gray" or "rgb".
        skip_unreadable: leave out images that cannot be read; `skipped` counts them.
        progress: called with (images read, images in total) from time to time.

    Raises:
        DataError: a class folder is missing, unexpected or empty, or images cannot be read.
    """
    return load_class_folders(
        split_folder(root, split),
        classes=classes,
        size=size,
        color=color,
        skip_unreadable=skip_unreadable,
        progress=progress,
    )


class UnreadableError(DataError):
    """Images cannot be read: every file with its reason, as far as a screen holds them."""

    def __init__(self, reasons: dict[str, str]) -> None:
        self.reasons = reasons
        lines = [f"{path} {reason}" for path, reason in sorted(reasons.items())]
        more = [f"and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
        these = "an image that" if len(lines) == 1 else f"{len(lines)} images that"
        super().__init__(
            f"{these} cannot be read; remove or repair them, or add --skip-unreadable: "
            + "; ".join(lines[:_NAMED] + more)
        )


def load_class_folders(
    folder: Path,
    *,
    classes: tuple[str, ...] | None = None,
    size: int = FACE_SIZE,
    color: str = "gray",
    skip_unreadable: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> LabelledFaces:
    """Decode a folder of class folders.

    Args:
        folder: one folder per class; images in its subfolders count, too.
        classes: the folders that must be there, no more and no fewer; None takes what there is, sorted.
        size: pixels, side of the faces.
        color: "gray" or "rgb".
        skip_unreadable: leave out images that cannot be read.

    Raises:
        DataError: as for `load_faces`.
    """
    names = class_folders(folder)
    # Macs store "müde" as letters and accents apart; the same label must be the same text everywhere. Both spellings
    # may be there.
    folders_of: dict[str, list[str]] = {}
    for name in names:
        folders_of.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    images_of = {
        label: [f"{name}/{path}" for name in found for path in names[name]]
        for label, found in sorted(folders_of.items())
    }
    if classes is None:
        classes = _classes_of(folder, images_of)
    _check_classes(folder, images_of, classes)
    label_of = {path: label for label, name in enumerate(classes) for path in images_of[name]}

    digests, unreadable = _file_digests(folder, label_of)
    paths = tuple(digests)
    fingerprint = _fingerprint(digests, size, color)
    (faces, resized), undecodable = _decode_once(folder, paths, fingerprint, size, color, progress)
    unreadable |= undecodable
    if unreadable and not skip_unreadable:
        raise UnreadableError({str(folder / path): reason for path, reason in unreadable.items()})
    labelled = LabelledFaces(
        faces=faces,
        labels=np.array([label_of[path] for path in paths], dtype=np.int64),
        classes=classes,
        paths=paths,
        file_sha256=tuple(digests.values()),
        fingerprint=fingerprint,
        resized=resized,
        skipped=len(unreadable),
        folder=folder,
    )
    if unreadable:
        labelled = labelled.subset([index for index, path in enumerate(paths) if path not in unreadable])
        if gone := [name for name, count in labelled.counts.items() if not count]:
            raise DataError(f"no image in the class folder {folder / gone[0]} can be read; every class needs some")
    return labelled


def _classes_of(folder: Path, images_of: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The names of the class folders, as labels of a model."""
    if len(images_of) < 2:
        raise DataError(too_few_classes(folder, tuple(images_of)))
    try:
        return check_labels(tuple(images_of))
    except ValueError as error:
        raise DataError(f"the class folders of {folder} cannot be labels: {error}; rename the folder") from error


def too_few_classes(folder: Path, names: Sequence[str]) -> str:
    """Why nothing can be learned from a folder with fewer than two class folders, `names`."""
    found = f"one class folder, {names[0]}" if names else "no class folder"
    return f"{folder} holds {found}; at least two are needed, each with the images of a class"


def _check_classes(folder: Path, images_of: Mapping[str, Sequence[str]], classes: Sequence[str]) -> None:
    """Raise a DataError where a class has no folder or no image, or a folder is of no class."""
    missing = [name for name in classes if name not in images_of]
    unexpected = [name for name in images_of if name not in classes]
    if missing or unexpected:
        facts = [f"lacks the class folder {', '.join(missing)}"] if missing else []
        facts += [f"has an unexpected class folder {', '.join(unexpected)}"] if unexpected else []
        raise DataError(f"{folder} {' and '.join(facts)}; the classes are: {', '.join(classes)}")
    if empty := [name for name in classes if not images_of[name]]:
        raise DataError(f"the class folder {folder / empty[0]} holds no image; every class needs some")


def _file_digests(folder: Path, paths: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """SHA-256 of each file that can be read, and the reasons of the others, by path."""
    digests: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    for path in paths:
        try:
            digests[path] = hashlib.sha256(read_bytes(folder / path)).hexdigest()
        except ImageError as error:
            unreadable[path] = str(error)
    return digests, unreadable


def _fingerprint(digests: Mapping[str, str], size: int, color: str) -> str:
    """SHA-256 over all paths and files, and over what they are decoded to."""
    key = hashlib.sha256(f"{_CACHE_VERSION} {size}{'' if color == 'gray' else color}\n".encode())
    for path, digest in digests.items():
        key.update(f"{path}\0{digest}\n".encode("utf-8", "surrogateescape"))
    return key.hexdigest()


def class_weights(counts: Sequence[float], *, power: float = 0.5) -> list[float]:
    """Loss weight per class, (total / (classes * count)) ** power; 0 weighs all alike, 1 in full proportion."""
    total = sum(counts)
    return [float((total / (len(counts) * count)) ** power) for count in counts]


def _decode_once(
    folder: Path,
    paths: Sequence[str],
    fingerprint: str,
    size: int,
    color: str,
    progress: Callable[[int, int], None] | None,
) -> tuple[tuple[Uint8Array, int], dict[str, str]]:
    """What `_decode` returns, from the cache where these files were decoded before."""
    cached = cache_folder() / "faces" / f"{fingerprint}.npz"
    shape = (size, size) if color == "gray" else (size, size, 3)
    stored = _read_cache(cached, (len(paths), *shape))
    if stored is not None:
        return stored, {}
    decoded, unreadable = _decode(folder, paths, size, color, progress)
    if not unreadable:
        # A cache that cannot be written costs time, not the run.
        with suppress(OutputError), replaced_atomically(cached) as partial, partial.open("wb") as file:
            np.savez(file, faces=decoded[0], resized=np.int64(decoded[1]))
    return decoded, unreadable


def _read_cache(path: Path, shape: tuple[int, ...]) -> tuple[Uint8Array, int] | None:
    """The cached array; None when there is none or it is damaged, which costs a second of decoding."""
    try:
        with np.load(path, allow_pickle=False) as content:
            faces, resized = content["faces"], int(content["resized"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (faces, resized) if faces.shape == shape and faces.dtype == np.uint8 else None


def _decode(
    folder: Path, paths: Sequence[str], size: int, color: str, progress: Callable[[int, int], None] | None
) -> tuple[tuple[Uint8Array, int], dict[str, str]]:
    """Faces and how many had another size, and the reasons of the images that could not be read (black faces)."""
    faces = np.zeros((len(paths), size, size) if color == "gray" else (len(paths), size, size, 3), np.uint8)
    resized = 0
    unreadable: dict[str, str] = {}
    for index, path in enumerate(paths):
        try:
            image = read_image(folder / path)
        except ImageError as error:
            unreadable[path] = str(error)
            continue
        resized += image.shape[:2] != (size, size)
        faces[index] = prepare_face(image, size=size, color=color)
        if progress is not None and index % 500 == 0:
            progress(index, len(paths))
    return (faces, resized), unreadable
