"""Find the faces that get another label from another file, engine, version or machine, and the stage that did it."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from fer_bench.engines import ENGINES
from fer_bench.environment import environment
from fer_runtime.checksums import check_checksum, with_checksum
from fer_runtime.errors import DataError, ImageError
from fer_runtime.files import write_atomically
from fer_runtime.images import Uint8Array, read_image
from fer_runtime.model.find import PRECISIONS, named_file
from fer_runtime.output.contact_sheet import ContactSheet
from fer_runtime.recognizer import Answers, Recognizer
from fer_runtime.registry import load
from fer_runtime.results import Face
from fer_runtime.text import counted, printable
from fer_runtime.untrusted_json import parse_json

if TYPE_CHECKING:
    Answer = Callable[[Uint8Array], Answers]

_FORMAT = "fer-bench run"
_SAME_PLACE = 0.5  # intersection over union of two boxes of one face
STAGES = ("reading", "detecting", "cropping", "graph")

_Box = tuple[int, int, int, int]  # x, y, width, height in pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenFace:
    """One face as one run has seen it."""

    box: _Box
    crop_sha256: str  # of the face as the model takes it
    label: str
    probabilities: dict[str, float]

    @property
    def margin(self) -> float:
        """The difference of the two largest probabilities."""
        first, second, *_ = sorted(self.probabilities.values(), reverse=True)
        return first - second


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenImage:
    """One image as one run has seen it."""

    path: str  # below the folder
    error: str | None
    pixels_sha256: str | None  # of the decoded image
    faces: tuple[SeenFace, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The results of one model on one folder on one machine."""

    name: str
    machine: str
    images: dict[str, SeenImage]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A face, or an image, that two runs answer differently."""

    path: str
    stage: str  # out of STAGES: the first that differs
    before: str  # label, or what was seen instead of one
    after: str
    margin_before: float | None = None
    margin_after: float | None = None
    box: _Box | None = None

    def __str__(self) -> str:
        margins = ""
        if self.margin_before is not None and self.margin_after is not None:
            margins = f"  margins {self.margin_before:.3f} and {self.margin_after:.3f}"
        return f"{self.stage:9} {self.before:>10} -> {self.after:10}{margins}  {self.path}"


def answers_of(recognizer: Recognizer, engine: str, *, model: str, models_dir: Path) -> Answer:
    """Another engine's answers for the faces that a recognizer cuts out.

    Args:
        recognizer: with the model's ONNX file, whose labels, size and colour the faces have.
        engine: out of ENGINES.
        model: the name or file that the recognizer was made with; a name finds the checkpoint and target files, too.
        models_dir: where they are looked for.

    Raises:
        DataError: the engine is not installed, or does not run the model.
        ModelFileError: there is no file for it.
    """
    from fer_bench.latency.measure import configurations

    entry, metadata = ENGINES[engine], recognizer.metadata
    if not entry.is_installed:
        raise DataError(f"the engine {engine} needs {entry.needs}: {entry.install}")
    precisions = [precision for precision in PRECISIONS if precision == metadata.precision]
    source = configurations(models=(model,), precisions=precisions, engines=(engine,), models_dir=models_dir)[0].source
    try:
        run = load(entry.code)(source, model=metadata.name, threads=1, batch=1)
    except Exception as error:  # the engines' exceptions share no base class
        raise DataError(f"{engine} does not run {source}: {str(error).splitlines()[:1]}") from error
    # A PyTorch network has no temperature; without the file's own, margins would not compare.
    power = 1 / metadata.temperature if entry.source == "checkpoint" else 1.0

    def answer(faces: Uint8Array) -> Answers:
        # Some engines compile the graph for one batch size.
        rows = [np.array(run(face[None]), np.float32).reshape(-1) for face in faces]
        probabilities = np.stack(rows) ** power
        return Answers((probabilities / probabilities.sum(1, keepdims=True)).astype(np.float32), None)

    return answer


def observe(
    recognizer: Recognizer, folder: Path, paths: Iterable[Path], *, engine: str = "", answer: Answer | None = None
) -> Run:
    """Run a model over images and keep what each stage made of them.

    Args:
        engine: name of what answers instead of ONNX Runtime.
        answer: the same, from `answers_of`.
    """
    images = {}
    for path in paths:
        name = path.relative_to(folder).as_posix()
        images[name] = _observe_image(recognizer, path, name, answer or recognizer.answer)
    machine = environment()
    return Run(
        name=f"{named_file(recognizer.path).name} {recognizer.metadata.precision}"
        + (f" in {engine}" if engine else ""),
        machine=f"{machine['cpu']}, {platform.machine()}, "
        + ", ".join(f"{key} {value}" for key, value in machine["versions"].items()),
        images=images,
    )


def _observe_image(recognizer: Recognizer, path: Path, name: str, answer: Answer) -> SeenImage:
    try:
        image = read_image(str(path), max_pixels=recognizer.max_pixels)
    except ImageError as error:
        return SeenImage(path=name, error=str(error), pixels_sha256=None)
    detections = recognizer.detect(image)
    faces: tuple[SeenFace, ...] = ()
    if detections:
        crops = np.stack([recognizer.prepare(image, detection) for detection in detections])
        found = recognizer.faces(detections, crops, answer(crops))
        faces = tuple(
            SeenFace(
                box=face.box,
                crop_sha256=_digest(crop),
                label=face.expression,
                probabilities={label: round(share, 6) for label, share in face.probabilities.items()},
            )
            for face, crop in zip(found, crops, strict=True)
        )
    return SeenImage(path=name, error=None, pixels_sha256=_digest(image), faces=faces)


def _digest(array: Uint8Array) -> str:
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()


def save_run(run: Run, path: Path) -> None:
    """Write a run as JSON, for a comparison on another machine."""
    content = {"format": _FORMAT, **asdict(run), "images": [asdict(image) for image in run.images.values()]}
    write_atomically(path, json.dumps(with_checksum(content), indent=1) + "\n")


def load_run(path: Path) -> Run:
    """Read a saved run.

    Raises:
        DataError: the file is none.
    """
    try:
        values: Any = parse_json(path.read_text(encoding="utf-8"))
        if values["format"] != _FORMAT:
            raise ValueError("of another format")
        check_checksum(values)
        images = {str(image["path"]): _seen_image(image) for image in values["images"]}
        if len(images) < len(values["images"]):
            raise ValueError("an image occurs twice")
        return Run(name=str(values["name"]), machine=str(values["machine"]), images=images)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        reason = f"{reason} is missing" if isinstance(error, KeyError) else reason
        raise DataError(
            f"{path} is not a run that fer-bench diff --save wrote ({printable(reason, limit=200)}); save it again"
        ) from error


def _seen_image(values: Any) -> SeenImage:
    path, error, digest = values["path"], values["error"], values["pixels_sha256"]
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or path.startswith("/"):
        raise ValueError("an image outside the folder")
    if not isinstance(error, (str, type(None))) or not isinstance(digest, (str, type(None))):
        raise TypeError("an error or digest that is not text")
    if (error is None) == (digest is None):
        raise ValueError("an image that is both read and not read")
    return SeenImage(path=path, error=error, pixels_sha256=digest, faces=tuple(map(_seen_face, values["faces"])))


def _seen_face(values: Any) -> SeenFace:
    box, digest, label, probabilities = (values[name] for name in ("box", "crop_sha256", "label", "probabilities"))
    x, y, width, height = box
    if not all(type(side) is int for side in box) or width < 1 or height < 1:
        raise ValueError("an invalid box")
    if not isinstance(digest, str) or len(probabilities) < 2:
        raise ValueError("a face without digest or probabilities")
    if not all(type(share) in (int, float) and 0 <= share <= 1 for share in probabilities.values()):
        raise ValueError("an invalid probability")
    if label not in probabilities:
        raise ValueError("a label without a probability")
    return SeenFace(
        box=(x, y, width, height),
        crop_sha256=digest,
        label=label,
        probabilities={name: float(share) for name, share in probabilities.items()},
    )


def compare_runs(first: Run, second: Run) -> list[Change]:
    """The changes between two runs of the same folder, the closest calls first.

    Raises:
        DataError: the runs share no image, or their models have different labels.
    """
    shared = [name for name in first.images if name in second.images]
    if not shared:
        raise DataError("the two runs have no image in common; run both over the same folder")
    before, after = _labels_of(first), _labels_of(second)
    if before and after and set(before) != set(after):
        shown = [printable(", ".join(labels), limit=300) for labels in (before, after)]
        raise DataError(
            f"A ({first.name}) has the labels {shown[0]}, and B ({second.name}) {shown[1]}; give two models of "
            "the same labels"
        )
    changes: list[Change] = []
    for name in shared:
        changes += _compare_images(first.images[name], second.images[name])
    return sorted(changes, key=lambda change: (change.margin_before is None, change.margin_before or 0.0, change.path))


def _labels_of(run: Run) -> tuple[str, ...]:
    """The labels of the run's model; none where it saw no face."""
    return next((tuple(face.probabilities) for image in run.images.values() for face in image.faces), ())


def _compare_images(first: SeenImage, second: SeenImage) -> list[Change]:
    if (first.error is None) != (second.error is None):
        outcomes = [image.error or counted_faces(image) for image in (first, second)]
        return [Change(path=first.path, stage="reading", before=outcomes[0], after=outcomes[1])]
    same_pixels = first.pixels_sha256 == second.pixels_sha256
    changes = []
    left = list(second.faces)
    for face in first.faces:
        twin = max(left, key=lambda candidate: _overlap(face.box, candidate.box), default=None)
        if twin is None or _overlap(face.box, twin.box) < _SAME_PLACE:
            stage = "detecting" if same_pixels else "reading"
            changes.append(Change(path=first.path, stage=stage, before=face.label, after="no face", box=face.box))
            continue
        left.remove(twin)
        if face.label != twin.label:
            changes.append(
                Change(
                    path=first.path,
                    stage=_stage(face, twin, same_pixels=same_pixels),
                    before=face.label,
                    after=twin.label,
                    margin_before=face.margin,
                    margin_after=twin.margin,
                    box=face.box,
                )
            )
    stage = "detecting" if same_pixels else "reading"
    changes += [Change(path=first.path, stage=stage, before="no face", after=face.label, box=face.box) for face in left]
    return changes


def _stage(face: SeenFace, twin: SeenFace, *, same_pixels: bool) -> str:
    """The first stage whose result differs: what follows it only passes the difference on."""
    if not same_pixels:
        return "reading"
    if face.box != twin.box:
        return "detecting"
    return "cropping" if face.crop_sha256 != twin.crop_sha256 else "graph"


def counted_faces(image: SeenImage) -> str:
    """ "no face", "1 face", "2 faces"."""
    return "no face" if not image.faces else f"{len(image.faces)} face{'s' if len(image.faces) > 1 else ''}"


def _overlap(box: _Box, other: _Box) -> float:
    (x, y, width, height), (left, top, across, down) = box, other
    shared = max(0, min(x + width, left + across) - max(x, left)) * max(0, min(y + height, top + down) - max(y, top))
    return shared / (width * height + across * down - shared)


def draw_changes(changes: Sequence[Change], folder: Path) -> Uint8Array:
    """A contact sheet of the changed faces, grouped by the first run's label; the second's stands below each."""
    labels = sorted({change.before for change in changes if change.box is not None})
    sheet = ContactSheet(labels)
    for change in changes:
        if change.box is None:
            continue
        try:
            image: Uint8Array | None = read_image(str(folder / change.path))
        except ImageError:
            image = None
        face = Face(box=change.box, expression=change.before, confidence=change.margin_before or 0.0, probabilities={})
        sheet.add(image, face, true=change.after)
    return sheet.draw()


def format_changes(first: Run, second: Run, changes: Sequence[Change]) -> str:
    """The report that `fer-bench diff` prints."""
    shared = [name for name in first.images if name in second.images]
    faces = sum(len(first.images[name].faces) for name in shared)
    lines = [f"A  {first.name}  {first.machine}", f"B  {second.name}  {second.machine}"]
    counts = {stage: sum(change.stage == stage for change in changes) for stage in STAGES}
    lines.append(
        f"{len(changes)} of {faces} faces in {len(shared)} images are answered differently"
        + (f": {', '.join(f'{count} by {stage}' for stage, count in counts.items() if count)}" if changes else "")
    )
    if unread := sum(bool(first.images[name].error and second.images[name].error) for name in shared):
        lines.append(f"{counted(unread, 'image')} cannot be read in either run")
    if missing := len(first.images.keys() ^ second.images.keys()):
        lines.append(f"{missing} images are in one run only")
    return "\n".join([*lines, *map(str, changes)])
