"""Faces cut out of photographs as a run of `fer-infer` cuts them, so that training sees what inference will see."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from fer_runtime.detectors import Detection
from fer_runtime.detectors.search import FaceSearch
from fer_runtime.errors import DataError, ImageError, OutputError
from fer_runtime.faces import prepare_face
from fer_runtime.files import lock_file, write_atomically
from fer_runtime.images import MAX_PIXELS, Uint8Array, decode_image, read_bytes, read_image
from fer_runtime.output.annotate import encode_image, write_image
from fer_runtime.text import csv_text, printable
from fer_runtime.untrusted_json import parse_json
from fer_train.data.audit import copies_of
from fer_train.data.images_file import IMAGES_FILE, merged_rows, read_images_file, write_rows
from fer_train.data.label_names import LabelNames
from fer_train.data.placing import Placing, in_threads, safe_name
from fer_train.data.sheets import draw_sheet, evenly
from fer_train.data.source_folders import SHEETS_FOLDER, Source, SourceImage

CROPS_FILE, SETTINGS_FILE, COPIES_FILE = "crops.csv", "crops.json", "near_duplicates.csv"
FACES = ("largest", "all", "one")
# 4 x 48, 3 x 64 and 2 x 96: the networks' sizes follow from it by averaging whole pixels.
SIZE = 192
_COLUMNS = (
    *("image", "label", "split", "source", "sha256", "reason", "faces"),
    *("x", "y", "width", "height", "roll", "score"),
)
# Smaller faces than the smallest that is taken are looked for, so that they can be reported.
_SMALLEST_REPORTED = 16
NO_FACE = "no face"
_TOO_SMALL = "too small"
_NO_MEMORY = "needs more memory than there is"


@dataclass(frozen=True, slots=True, kw_only=True)
class CropOptions:
    """How faces are found and cut out."""

    faces: str = "largest"  # of FACES: which faces of a photograph that has several
    size: int = SIZE  # pixels: longer sides are shrunk to it, shorter ones stay
    detector: str = "auto"
    yunet: Path | None = None
    min_face: int = 24  # pixels
    max_pixels: int = MAX_PIXELS
    renames: tuple[str, ...] = ()  # as given, for the runs that continue


@dataclass(slots=True)
class CropReport:
    """Counts of a run, together with the runs before it into the same folder."""

    detector: str = ""
    photos: int = 0
    before: int = 0  # photographs that an earlier run has finished
    faces: int = 0  # crops
    several: int = 0  # photographs with more than one face
    counts: dict[str, Counter[str]] = field(default_factory=dict)  # crops by split and label
    reasons: dict[str, list[str]] = field(default_factory=dict)  # photographs without a crop, by reason
    copies: list[list[tuple[str, str]]] = field(default_factory=list)  # groups of crops: path, label
    outdated: list[tuple[str, str]] = field(default_factory=list)  # crops of earlier photographs: path, what changed
    removed: int = 0  # crops of earlier runs whose files somebody has removed; they are not made again
    files: list[Path] = field(default_factory=list)

    def add(self, row: Mapping[str, str]) -> None:
        """Count a row of crops.csv."""
        if row["image"]:
            self.faces += 1
            self.counts.setdefault(row["split"], Counter())[row["label"]] += 1
        else:
            self.reasons.setdefault(row["reason"], []).append(row["source"])


@dataclass(frozen=True, slots=True)
class _Cut:
    image: SourceImage
    sha256: str
    reason: str = ""  # why there is no crop
    faces: int = 0  # that the photograph has
    crops: tuple[tuple[Detection, bytes], ...] = ()
    was_done: bool = False


def crop_photos(
    source: Source,
    output: Path,
    names: LabelNames,
    options: CropOptions,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> CropReport:
    """Write a face of each photograph to `output/SPLIT/LABEL/`, and a row for each to `output/crops.csv`.

    A run that was stopped continues when it is repeated: photographs that have their row are not read for faces again.

    Raises:
        DataError: a label has no name that a folder can have.
        ModelFileError: the detector's file cannot be used.
        OutputError: a crop cannot be written, another run writes there, or an earlier one had other settings.
    """
    names.prepare(source.labels)
    search = FaceSearch(options.detector, yunet=options.yunet, min_face=min(options.min_face, _SMALLEST_REPORTED))
    report = CropReport(detector=search.detector_used)
    settings = {
        "detector": search.detector_used if options.detector == "auto" else options.detector,
        "faces": options.faces,
        "size": options.size,
        "min_face": options.min_face,
        "rename": list(options.renames),
    }
    placing = Placing(output)
    with _CropRows.opened(output, settings) as rows:
        done = {(row["source"], row["sha256"]) for row in rows.before}
        for row in rows.before:
            placing.take(row["image"])

        def work(image: SourceImage) -> _Cut:
            return _cut_out(image, search, options, done)

        wanted = [image for image in source.images if names.name(image.label)]
        digests: dict[str, str] = {}  # of this run's photographs
        for number, cut in enumerate(in_threads(work, wanted), start=1):
            progress(number)
            report.photos += 1
            if cut.sha256:
                digests[_source(cut.image)] = cut.sha256
            if cut.was_done:
                report.before += 1
                continue
            rows.add([_placed(found, placing, names) for found in _single(cut)])
        # A crop that was looked at and removed keeps its row, so that it does not come back.
        there = [row for row in rows.all() if not row["image"] or os.path.lexists(output / row["image"])]
        report.removed = len(rows.all()) - len(there)
        report.outdated = _outdated(there, digests)
        _finish(output, there, report)
        _carry_columns(source.root / IMAGES_FILE, output / IMAGES_FILE, there)
    return report


def _single(cut: _Cut) -> Iterator[tuple[_Cut, tuple[Detection, bytes] | None]]:
    """A row's content for each crop, or one without."""
    if not cut.crops:
        yield cut, None
    for crop in cut.crops:
        yield cut, crop


def _placed(found: tuple[_Cut, tuple[Detection, bytes] | None], placing: Placing, names: LabelNames) -> dict[str, str]:
    cut, crop = found
    image = cut.image
    row = dict.fromkeys(_COLUMNS, "") | {
        "label": names.name(image.label),
        "split": image.split,
        "source": _source(image),
        "sha256": cut.sha256,
        "reason": csv_text(cut.reason),
        "faces": str(cut.faces),
    }
    if crop is not None:
        detection, content = crop
        below = PurePosixPath(image.below)
        folder = "/".join((image.split, row["label"], *map(safe_name, below.parts[:-1])))
        row["image"] = placing.place(folder, below.stem, ".png", content)
        row |= dict(zip(("x", "y", "width", "height"), map(str, detection.box), strict=True))
        row |= {"roll": f"{detection.roll:.1f}", "score": "" if detection.score is None else f"{detection.score:.3f}"}
    return row


def _source(image: SourceImage) -> str:
    return csv_text(image.name)


def _cut_out(image: SourceImage, search: FaceSearch, options: CropOptions, done: set[tuple[str, str]]) -> _Cut:
    """The faces of one photograph, encoded; the reason where there are none."""
    sha256 = ""
    try:
        content = read_bytes(image.path)
        sha256 = hashlib.sha256(content).hexdigest()[:32]
        if (_source(image), sha256) in done:
            return _Cut(image, sha256, was_done=True)
        pixels = decode_image(content, max_pixels=options.max_pixels)
        found = search.detect(pixels)
        large = [detection for detection in found if min(detection.box[2:]) >= options.min_face]
        if not found:
            return _Cut(image, sha256, NO_FACE)
        if not large:
            side = max(min(detection.box[2:]) for detection in found)
            return _Cut(image, sha256, f"{_TOO_SMALL}: the largest face has {side} pixels")
        large_faces = len(large)
        if options.faces == "one" and large_faces > 1:
            return _Cut(image, sha256, f"{large_faces} faces", large_faces)
        if options.faces != "all":
            large = [max(large, key=lambda detection: detection.box[2] * detection.box[3])]
        crops = tuple(
            (detection, encode_image(Path("face.png"), cut_face(pixels, detection, size=options.size)))
            for detection in large
        )
        return _Cut(image, sha256, "", large_faces, crops)
    except ImageError as error:
        # A file that could not be opened has no digest; it is tried again, and has its row already.
        return _Cut(image, sha256, str(error), was_done=(_source(image), sha256) in done)
    except MemoryError:
        return _Cut(image, sha256, _NO_MEMORY)


def cut_face(image: Uint8Array, detection: Detection, *, size: int = SIZE) -> Uint8Array:
    """A detected face, upright, uint8 (side, side, 3) in BGR, or (side, side) where the image has no colour.

    Args:
        image: uint8 (height, width, 3) in BGR or (height, width).
        size: pixels; a larger face is shrunk to it, a smaller one keeps its own.
    """
    side = min(size, max(detection.box[2:]))
    face = prepare_face(image, detection.box, roll=detection.roll, size=side, color="rgb")
    if image.ndim == 2 or (np.ptp(face, axis=2) == 0).all():
        return np.ascontiguousarray(face[:, :, 0])
    return np.ascontiguousarray(face[:, :, ::-1])


class _CropRows:
    """crops.csv while a run writes it: rows are appended as their photographs are done."""

    def __init__(self, stream: IO[bytes], before: list[dict[str, str]]) -> None:
        self._stream = stream
        self.before = before
        self._new: list[dict[str, str]] = []

    @classmethod
    @contextmanager
    def opened(cls, output: Path, settings: Mapping[str, Any]) -> Iterator[_CropRows]:
        """Open the rows of `output`. A photograph that a stopped run has left without some of them is done again.

        Raises:
            OutputError: another run writes there, the file is not ours, or its run had other settings.
        """
        file = output / CROPS_FILE
        try:
            output.mkdir(parents=True, exist_ok=True)
            with open(os.open(file, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as stream:
                if not lock_file(stream.fileno()):
                    raise OutputError(f"another fer-data crop writes {file}; wait for it, or choose another --output")
                before, size = _read_rows(file, stream.read(), has_all=settings["faces"] == "all")
                _check_settings(output / SETTINGS_FILE, settings, has_rows=bool(before))
                stream.seek(size)
                stream.truncate()
                if not size:
                    stream.write(_csv([], header=True))
                    stream.flush()
                yield cls(stream, before)
        except OSError as error:
            raise OutputError(f"cannot write {file}: {error.strerror or error}; choose another --output") from error

    def add(self, rows: list[dict[str, str]]) -> None:
        """Append the rows of one photograph."""
        self._new += rows
        self._stream.write(_csv(rows))
        self._stream.flush()

    def all(self) -> list[dict[str, str]]:
        """Every row, the earlier runs' too."""
        new = {row["source"] for row in self._new}
        # A photograph without a digest could not be opened then.
        return [row for row in self.before if row["sha256"] or row["source"] not in new] + self._new


def _outdated(rows: list[dict[str, str]], digests: Mapping[str, str]) -> list[tuple[str, str]]:
    """Crops of an earlier run whose photographs were changed, or moved to another label: they would still teach.

    Args:
        rows: of all runs; photographs that this one does not have at all are none of its matter.
        digests: of this run's photographs by their source.
    """
    places = {digest: source for source, digest in digests.items()}
    found = []
    for row in rows:
        if not row["image"] or digests.get(row["source"]) == row["sha256"]:
            continue
        if row["source"] in digests:
            found.append((row["image"], "its photo was changed"))
        elif (place := places.get(row["sha256"])) is not None:
            found.append((row["image"], f"its photo is now {place}"))
    return found


def _csv(rows: list[dict[str, str]], *, header: bool = False) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _read_rows(file: Path, content: bytes, *, has_all: bool) -> tuple[list[dict[str, str]], int]:
    """The rows of an earlier run but for its last photograph, where it lacks some, and the bytes that they take.

    Args:
        has_all: a photograph has a row for each of its faces, not one.
    """
    if _csv([], header=True).startswith(content):
        return [], 0
    lines = content.split(b"\n")[:-1]  # each row is a line; what is behind the last line end is half a row
    try:
        cells = list(csv.reader(line.decode("utf-8", "surrogateescape") for line in lines))
    except csv.Error as error:
        raise OutputError(f"{file} is damaged ({error}); choose another --output") from error
    if (content and tuple(*cells[:1]) != _COLUMNS) or any(len(row) != len(_COLUMNS) for row in cells):
        raise OutputError(f"{file} is not of fer-data crop; choose another --output")
    rows = [dict(zip(_COLUMNS, row, strict=True)) for row in cells[1:]]
    for number, row in enumerate(rows, 2):
        if not _is_placed(row):
            raise OutputError(f"{file} is damaged at line {number}; choose another --output")
    if has_all and rows and (last := rows[-1])["image"]:
        photo = last["source"], last["sha256"]
        faces = sum(1 for _ in takewhile(lambda row: (row["source"], row["sha256"]) == photo, reversed(rows)))
        # A whole one stays: this run may be over other photographs, and would not do it again.
        if last["faces"] != str(faces):
            del rows[-faces:]
    return rows, sum(len(line) + 1 for line in lines[: len(rows) + 1])


def _is_placed(row: Mapping[str, str]) -> bool:
    """Whether the crop of a row is in the folder of its split and label, inside the output."""
    place = row["split"], row["label"]
    parts = tuple(row["image"].split("/"))
    if not {"", ".", ".."}.isdisjoint(place) or any("/" in part for part in place):
        return False
    return not row["image"] or (parts[:2] == place and len(parts) > 2 and {"", ".", ".."}.isdisjoint(parts))


def _check_settings(file: Path, settings: Mapping[str, Any], *, has_rows: bool) -> None:
    """Compare the settings with those of the earlier run, or store them."""
    text = json.dumps(settings, indent=1) + "\n"
    if not has_rows:
        write_atomically(file, text)
        return
    try:
        before = parse_json(file.read_text(encoding="utf-8"))
        assert isinstance(before, dict)
    except (OSError, ValueError, AssertionError) as error:
        raise OutputError(f"{file} of the earlier run is missing or damaged; choose another --output") from error
    for name, value in settings.items():
        if before.get(name) != value:
            was, now = (_as_given(name, given) for given in (before.get(name), value))
            now = now.removeprefix(f"--{name.replace('_', '-')} ")
            raise OutputError(
                f"{file.parent} holds crops made with {was}, not {now}; give {was}, or choose another --output"
            )


def _as_given(name: str, value: Any) -> str:
    """A setting on the command line: "--size 96", "--rename Joy=happy", "no --rename"."""
    option = f"--{name.replace('_', '-')}"
    values = value if isinstance(value, list) else [value]
    return " ".join(f"{option} {printable(given, limit=40)}" for given in values) or f"no {option}"


def _carry_columns(photos: Path, crops: Path, rows: list[dict[str, str]]) -> None:
    """What an import has written of each photograph, such as who is in it, for its crops."""
    known = read_images_file(photos)
    if known:
        mine = [
            {**known[row["source"]], "image": row["image"]} for row in rows if row["image"] and row["source"] in known
        ]
        write_rows(crops, merged_rows(crops, mine))


def _finish(output: Path, rows: list[dict[str, str]], report: CropReport) -> None:
    """Look at all rows: their counts, near-duplicates, and a contact sheet for each class."""
    for row in rows:
        report.add(row)
    report.several = len({row["source"] for row in rows if row["faces"] not in ("", "0", "1")})
    crops = [row for row in rows if row["image"]]
    report.files.append(output / CROPS_FILE)
    if not crops:
        return
    shown: dict[str, set[int]] = {}
    by_label: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(crops):
        by_label[row["label"]].append(index)
    for label, indices in by_label.items():
        shown[label] = {indices[place] for place in evenly(len(indices))}
    on_sheet = set().union(*shown.values())

    def look(index: int) -> tuple[Uint8Array, str, Uint8Array | None]:
        try:
            image = read_image(output / crops[index]["image"])
        except ImageError as error:
            raise DataError(
                f"{output / crops[index]['image']} {error}; take its row out of {CROPS_FILE} and repeat the command"
            ) from error
        digest = hashlib.sha256(image.tobytes() + repr(image.shape).encode()).hexdigest()
        return prepare_face(image), digest, image if index in on_sheet else None

    seen = list(in_threads(look, range(len(crops))))
    groups = copies_of(np.stack([face for face, _, _ in seen]), [digest for _, digest, _ in seen])
    report.copies = [[(crops[index]["image"], crops[index]["label"]) for index in group] for group in groups]
    if report.copies:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["group", "image", "label"])
        for number, group in enumerate(report.copies, start=1):
            writer.writerows([number, path, label] for path, label in group)
        write_atomically(output / COPIES_FILE, text.getvalue().encode("utf-8", "surrogateescape"))
        report.files.append(output / COPIES_FILE)
    else:
        (output / COPIES_FILE).unlink(missing_ok=True)  # of an earlier run
    for label, indices in sorted(by_label.items()):
        chosen = sorted(shown[label])
        images = [image for index in chosen if (image := seen[index][2]) is not None]
        captions = [PurePosixPath(crops[index]["image"]).name for index in chosen]
        title = f"{label}: {len(indices)} faces" + (f", {len(chosen)} shown" if len(chosen) < len(indices) else "")
        sheet = output / SHEETS_FOLDER / f"{label}.jpg"
        write_image(sheet, draw_sheet(title, images, captions))
        report.files.append(sheet)
