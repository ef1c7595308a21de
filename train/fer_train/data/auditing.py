"""The work of `fer-data audit`: copies, contradictory labels and probable label errors in a folder."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from fer_runtime.errors import DataError, OutputError
from fer_runtime.files import write_atomically
from fer_runtime.images import Uint8Array
from fer_runtime.output.annotate import write_image
from fer_runtime.text import counted, printable
from fer_train.data.audit import Audit, audit_faces, copies_of, write_audit
from fer_train.data.folders import LabelledFaces
from fer_train.data.label_errors import (
    Float64Array,
    Int64Array,
    LabelError,
    errors_csv,
    find_label_errors,
    out_of_fold_probabilities,
    read_probabilities,
)
from fer_train.data.reading import ReadImage, read_images, small_faces
from fer_train.data.sheets import SHOWN, draw_sheet
from fer_train.data.source_folders import TEST, TRAIN, VALIDATION, Source, not_read

ERRORS_FILE, ERRORS_SHEET = "label_errors.csv", "label_errors.png"
_PAIRS_SHOWN = 8  # kinds of error that the terminal lists


@dataclass(slots=True, kw_only=True)
class FolderAudit:
    """Everything that was found in a folder."""

    audit: Audit
    splits: dict[str, LabelledFaces]
    errors: list[LabelError] | None  # None: they were not looked for
    unreadable: list[tuple[str, str]]  # path, reason
    notes: list[str] = field(default_factory=list)

    def error_lines(self) -> list[str]:
        """The label errors for a terminal, by the pair of labels."""
        if self.errors is None:
            return []
        images = sum(map(len, self.splits.values()))
        lines = [f"label errors     {len(self.errors)} suspected, {len(self.errors) / images:.1%} of the images"]
        pairs = Counter((error.label, error.suggested) for error in self.errors)
        for (label, suggested), count in pairs.most_common(_PAIRS_SHOWN):
            lines.append(f"  {count} x {printable(label, limit=40)}, perhaps {printable(suggested, limit=40)}")
        if len(pairs) > _PAIRS_SHOWN:
            lines.append(f"  and {counted(len(pairs) - _PAIRS_SHOWN, 'further pair')} of labels")
        return lines


def audit_folder(
    source: Source,
    *,
    model: str | Path | None = None,
    models_dir: Path = Path("models"),
    probabilities: Path | None = None,
    label_errors: bool = True,
    progress: Callable[[int], None] = lambda done: None,
) -> FolderAudit:
    """Look at all images of a folder; nothing in it is changed.

    Args:
        model: whose features tell faces apart.
        models_dir: folder searched for a named model.
        probabilities: a csv of out-of-fold probabilities, instead of the model.
        label_errors: look for them.
        progress: called with the number of images so far, of each pass.

    Raises:
        DataError: no image can be read, or a class has too few images.
        ModelFileError: the model cannot be used.
    """
    size, color, path = None, "gray", None
    if label_errors and probabilities is None:
        from fer_runtime.model.find import find_model
        from fer_runtime.model.load import load_model

        path = find_model(model, models_dir=models_dir)
        metadata = load_model(path).metadata
        size, color = metadata.size, metadata.color
    whole = read_images(source.images, size=size, color=color, progress=progress)
    read = [entry for entry in whole if not entry.reason]
    if not read:
        raise DataError(f"{source.root} has no image that can be read; repair or replace them")
    classes = tuple(sorted({entry.image.label for entry in read}))
    # Split by split, as `audit_faces` numbers them.
    read.sort(key=lambda entry: (TRAIN, VALIDATION, TEST).index(entry.image.split))
    splits = {
        split: _labelled([entry for entry in read if entry.image.split == split], classes)
        for split in dict.fromkeys(entry.image.split for entry in read)
    }
    notes = [not_read(source)] if source.ignored else []
    errors: list[LabelError] | None = None
    if label_errors:
        if len(classes) < 2:
            raise DataError(f"{source.root} has one class; label errors need two, or give --no-label-errors")
        labels = np.concatenate([part.labels for part in splits.values()])
        paths = [entry.image.name for entry in read]
        if probabilities is not None:
            chances = read_probabilities(probabilities, classes, paths)
        else:
            assert path is not None
            notes.append(f"features by {path}")
            chances = _probabilities_from_features(path, read, labels, classes, progress)
        errors = find_label_errors(chances, labels, classes, paths)
    return FolderAudit(
        audit=audit_faces(splits),
        splits=splits,
        errors=errors,
        unreadable=[(entry.image.name, entry.reason) for entry in whole if entry.reason],
        notes=notes,
    )


def _probabilities_from_features(
    model: Path,
    read: Sequence[ReadImage],
    labels: Int64Array,
    classes: Sequence[str],
    progress: Callable[[int], None],
) -> Float64Array:
    """`out_of_fold_probabilities` from the features that a model gives these images.

    Raises:
        DataError: a class has too few different images.
    """
    from fer_runtime.model.features import features_of

    faces = np.stack([entry.face for entry in read if entry.face is not None])
    groups = _groups(small_faces(read), [entry.sha256 for entry in read])
    counts = Counter(label for label, _ in set(zip(labels.tolist(), groups, strict=True)))
    if few := [classes[label] for label in range(len(classes)) if counts[label] < 2]:
        raise DataError(
            f"{printable(few[0])} has fewer than two different images, too few to judge labels; add some, or "
            "give --no-label-errors"
        )
    return out_of_fold_probabilities(features_of(model, faces, progress=progress), labels, groups, classes=len(classes))


def write_report(found: FolderAudit, folder: Path) -> tuple[Path, Path]:
    """Write the report and its contact sheet; the paths of both."""
    return write_audit(found.audit, folder, found.splits)


def keep_earlier_errors(found: FolderAudit, folder: Path) -> Path | None:
    """Rename a list of label errors that `write_label_errors` would replace by another; its new name.

    People delete the lines that they do not agree with.

    Raises:
        OutputError: it cannot be renamed.
    """
    table = folder / ERRORS_FILE
    if found.errors is None or not table.is_file():
        return None
    try:
        if table.read_bytes() == errors_csv(found.errors):
            return None
        names = (table.with_stem(f"{table.stem}-{number}") for number in itertools.count(2))
        kept = next(name for name in names if not os.path.lexists(name))
        table.rename(kept)
    except OSError as error:
        raise OutputError(f"cannot rename {table}: {error.strerror}; choose another --output") from error
    return kept


def write_label_errors(found: FolderAudit, folder: Path) -> tuple[Path, ...]:
    """Write the suspected label errors and their contact sheet; the paths of both."""
    if found.errors is None:
        return ()
    table, sheet = folder / ERRORS_FILE, folder / ERRORS_SHEET
    write_atomically(table, errors_csv(found.errors))
    shown = found.errors[:SHOWN]
    faces: dict[str, Uint8Array] = {
        f"{split}/{path}": face
        for split, part in found.splits.items()
        for path, face in zip(part.paths, part.faces, strict=True)
    }
    title = f"{len(found.errors)} suspected label errors" + (
        f", the first {len(shown)}" if len(shown) < len(found.errors) else ""
    )
    captions = [f"{error.label}\nor {error.suggested}?" for error in shown]
    write_image(sheet, draw_sheet(title, [faces[error.image] for error in shown], captions))
    return table, sheet


def _labelled(read: Sequence[ReadImage], classes: tuple[str, ...]) -> LabelledFaces:
    return LabelledFaces(
        faces=small_faces(read),
        labels=np.array([classes.index(entry.image.label) for entry in read], np.int64),
        classes=classes,
        paths=tuple(str(PurePosixPath(entry.image.folder) / entry.image.below) for entry in read),
        file_sha256=tuple(entry.sha256 for entry in read),
        fingerprint="",
    )


def _groups(faces: Uint8Array, file_sha256: Sequence[str]) -> list[int]:
    """A number for each image, equal for copies."""
    groups = list(range(len(faces)))
    for copies in copies_of(faces, file_sha256):
        for index in copies:
            groups[index] = copies[0]
    return groups
