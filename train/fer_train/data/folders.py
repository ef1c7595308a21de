"""Labelled pictures from class folders, decoded once into one uint8 array."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fer_runtime.errors import DataError, ImageError, OutputError
from fer_runtime.expressions import EXPRESSIONS, FACE_SIZE
from fer_runtime.faces import prepare_face
from fer_runtime.files import cache_folder, replaced_atomically
from fer_runtime.images import read_image
from fer_train.data.votes import Float32Array, Votes

Uint8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]

# Bump when the decoding changes, so that no cached array of the old kind is used.
_CACHE_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledFaces:
    """Pictures of one split, in the order of their paths."""

    faces: Uint8Array  # (pictures, size, size), grayscale 0-255
    labels: Int64Array  # (pictures,), index into `classes`
    classes: tuple[str, ...]
    paths: tuple[str, ...]  # relative to the split's folder, with "/"
    file_sha256: tuple[str, ...]  # of each picture's file, hexadecimal
    fingerprint: str  # SHA-256 over all paths and files: equal for equal data wherever it lies
    resized: int = 0  # pictures that had another size
    votes: Float32Array | None = None  # (pictures, classes + 1), raters' votes; the last column: none of the classes
    folder: Path = field(compare=False, default=Path())

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def counts(self) -> dict[str, int]:
        """Pictures per class."""
        found = np.bincount(self.labels, minlength=len(self.classes))
        return {name: int(count) for name, count in zip(self.classes, found, strict=True)}

    def subset(self, indices: Sequence[int] | Int64Array) -> LabelledFaces:
        """The pictures at `indices`; the fingerprint is that of the whole, with the choice hashed in."""
        chosen = np.asarray(indices, dtype=np.int64)
        return LabelledFaces(
            faces=self.faces[chosen],
            labels=self.labels[chosen],
            classes=self.classes,
            paths=tuple(self.paths[i] for i in chosen),
            file_sha256=tuple(self.file_sha256[i] for i in chosen),
            fingerprint=hashlib.sha256(self.fingerprint.encode() + chosen.tobytes()).hexdigest(),
            resized=self.resized,
            votes=None if self.votes is None else self.votes[chosen],
            folder=self.folder,
        )

    def with_votes(self, votes: Votes, split: str) -> LabelledFaces:
        """These faces with their raters' votes, which the fingerprint then covers."""
        found = votes.of(self.paths, split=split)
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
        f"every class ({', '.join(EXPRESSIONS)}); without --data, FER2013 is fetched from Kaggle"
    )


def load_faces(root: Path, split: str, *, progress: Callable[[int, int], None] | None = None) -> LabelledFaces:
    """Decode the pictures of one split, or take them from the cache when the files are the same.

    Args:
        root: the dataset's root, or a folder that holds `train` and `validation`.
        split: "train" or "validation".
        progress: called with (pictures read, pictures in all) from time to time.

    Raises:
        DataError: a class folder is missing, unexpected or empty, or a picture cannot be decoded.
    """
    return load_class_folders(split_folder(root, split), classes=EXPRESSIONS, progress=progress)


def load_class_folders(
    folder: Path,
    *,
    classes: tuple[str, ...] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LabelledFaces:
    """Decode a folder of class folders to grayscale pictures of 48 x 48.

    Args:
        folder: one folder per class.
        classes: the folders that must be there, no more and no fewer; None takes what there is, sorted.

    Raises:
        DataError: as for `load_faces`.
    """
    found = class_folders(folder)
    if classes is None:
        if len(found) < 2:
            raise DataError(f"{folder} holds {len(found)} class folders; at least two are needed")
        classes = tuple(found)
    missing = [name for name in classes if name not in found]
    unexpected = [name for name in found if name not in classes]
    if missing or unexpected:
        facts = [f"lacks the class folder {', '.join(missing)}"] if missing else []
        facts += [f"has an unexpected class folder {', '.join(unexpected)}"] if unexpected else []
        raise DataError(f"{folder} {' and '.join(facts)}; the classes are: {', '.join(classes)}")
    files: list[tuple[str, int]] = []
    for label, name in enumerate(classes):
        names = [f"{name}/{path}" for path in found[name]]
        if not names:
            raise DataError(f"the class folder {folder / name} holds no picture; every class needs some")
        files += [(path, label) for path in names]

    digests = [_file_digest(folder / path) for path, _ in files]
    key = hashlib.sha256(f"{_CACHE_VERSION} {FACE_SIZE}\n".encode())
    for (path, _), digest in zip(files, digests, strict=True):
        key.update(f"{path}\0{digest}\n".encode("utf-8", "surrogateescape"))
    fingerprint = key.hexdigest()
    paths = tuple(path for path, _ in files)
    cached = cache_folder() / "faces" / f"{fingerprint}.npz"
    stored = _read_cache(cached, len(files))
    if stored is None:
        stored = _decode(folder, paths, progress)
        # A cache that cannot be written costs time, not the run.
        with suppress(OutputError), replaced_atomically(cached) as partial, partial.open("wb") as file:
            np.savez(file, faces=stored[0], resized=np.int64(stored[1]))
    faces, resized = stored
    return LabelledFaces(
        faces=faces,
        labels=np.array([label for _, label in files], dtype=np.int64),
        classes=classes,
        paths=paths,
        file_sha256=tuple(digests),
        fingerprint=fingerprint,
        resized=resized,
        folder=folder,
    )


def class_folders(folder: Path) -> dict[str, list[str]]:
    """Sorted file names per class folder; hidden files and folders do not count.

    Raises:
        DataError: the folder is missing or cannot be read.
    """
    try:
        subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        return {
            sub.name: sorted(path.name for path in sub.iterdir() if path.is_file() and not path.name.startswith("."))
            for sub in subfolders
        }
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}; --data takes a folder of pictures") from error


def class_weights(counts: Sequence[float], *, power: float = 0.5) -> list[float]:
    """Loss weight per class, (total / (classes * count)) ** power; 0 weighs all alike, 1 in full proportion."""
    total = sum(counts)
    return [float((total / (len(counts) * count)) ** power) for count in counts]


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read the picture {path}: {error.strerror}; remove it or repair it") from error


def _read_cache(path: Path, pictures: int) -> tuple[Uint8Array, int] | None:
    """The cached array; None when there is none or it is damaged, which costs a second of decoding."""
    try:
        with np.load(path, allow_pickle=False) as content:
            faces, resized = content["faces"], int(content["resized"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (faces, resized) if faces.shape == (pictures, FACE_SIZE, FACE_SIZE) and faces.dtype == np.uint8 else None


def _decode(folder: Path, paths: Sequence[str], progress: Callable[[int, int], None] | None) -> tuple[Uint8Array, int]:
    faces = np.empty((len(paths), FACE_SIZE, FACE_SIZE), np.uint8)
    resized = 0
    for index, path in enumerate(paths):
        try:
            image = read_image(folder / path)
        except ImageError as error:
            raise DataError(f"{folder / path} {error}; remove it or repair it") from error
        resized += image.shape[:2] != (FACE_SIZE, FACE_SIZE)
        faces[index] = prepare_face(image)
        if progress is not None and index % 500 == 0:
            progress(index, len(paths))
    return faces, resized
