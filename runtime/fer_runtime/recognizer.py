"""`Recognizer`, the runtime's Python interface: a detector and a model turn an image into faces with expressions."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from fer_runtime.detectors import MOST_MIN_FACE, Detection
from fer_runtime.detectors.search import FaceSearch
from fer_runtime.errors import NO_MEMORY, ImageError, ModelFileError
from fer_runtime.faces import prepare_face
from fer_runtime.files import sha256_of
from fer_runtime.images import (
    MAX_FILE_BYTES,
    MAX_PIXELS,
    Uint8Array,
    check_pixels,
    decode_image,
    is_no_memory,
    read_image,
)
from fer_runtime.model.batches import fill_batch
from fer_runtime.model.find import DEFAULT_MODELS_DIR, Precision, find_model
from fer_runtime.model.load import load_model
from fer_runtime.model.opening import LoadedModel
from fer_runtime.quality import REASONS, Limits, find_doubts, is_low
from fer_runtime.results import ROWS_SCHEMA, Face, ImageResult

if TYPE_CHECKING:
    from fer_runtime.model.session import InferenceSession

FloatArray = npt.NDArray[np.float32]

# Beyond this the batch's activations leave the cache and a face costs more, not less.
_BATCH = 32
_LONGEST_NAME = 300  # characters of a path in an error


class Answers(NamedTuple):
    """A model's outputs for faces."""

    probabilities: FloatArray  # (faces, classes)
    unfamiliarity: FloatArray | None = None  # (faces,); None if the file has no such output


class Recognizer:
    """Reads expressions from images.

        with Recognizer("v0") as recognizer:
            for face in recognizer.predict("portrait.jpg").faces:
                print(face.expression, face.confidence, face.box)

    Several threads may use it at once. Pickled or copied, it is made again from its settings and its model's file, so
    it can be sent to worker processes.

    Args:
        model: a name such as "v0", "v1", "v3" or your own, or the path of an .onnx file that fer-export wrote; None
            takes the first available of `fer_runtime.model.find.PREFERENCE`.
        precision: of a named model, "fp32", "int8" or "fp16"; None takes the first available in this order: int8,
            fp32, fp16.
        models_dir: folder searched for named models before the installed package.
        detector: "auto" (face crops are taken whole; larger images are searched, with YuNet if its file is
            available, else with Haar), or "haar", "yunet" or "whole" for every image.
        yunet: YuNet's file; None takes the one that `fer-infer --fetch-yunet` left in the cache folder.
        min_face: smallest side of a face in pixels; Haar finds none under a 64th of the image's long side.
        min_confidence: faces with less confidence are marked `uncertain`; "auto" takes the threshold that the
            export fitted for the model, and marks every face that has a reason (`fer_runtime.quality.REASONS`).
        threads: threads of ONNX Runtime, at most `fer_runtime.system.MAX_THREADS`.
        max_pixels: largest image or array, width times height; see `fer_runtime.images.decode_image`.
        provider: execution provider, such as "CPU" or "CUDA"; "auto" takes the fastest that passes the model's
            self-test, "auto:bf16" also one that computes in bf16.
        strict: fail when ONNX Runtime falls back to another provider.
        any_operator: load a model with operators that no model of fer-export has. Only for files that you trust: such
            a model may take any time and memory.
        loaded: the result of `load_model` for the file `model`, which is then not read again.

    Attributes:
        labels: the model's labels, in the order of the probabilities.
        size, color: side in pixels and colour ("gray" or "rgb") of the faces that the model takes.
        path, metadata: the model's file, and what it says about itself.
        provider: the execution provider that is used.

    Raises:
        ModelFileError: the model or YuNet's file is missing or damaged, or the model was not written by fer-export.
        ProviderError: the provider is not available, or with `strict` not used.
        ValueError: `min_confidence`, `min_face`, `max_pixels` or `threads` is out of its range, or there is no such
            precision or detector.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        precision: Precision | None = None,
        models_dir: Path | str = DEFAULT_MODELS_DIR,
        detector: str = "auto",
        yunet: Path | str | None = None,
        min_face: int = 24,
        min_confidence: float | Literal["auto"] | None = None,
        max_pixels: int = MAX_PIXELS,
        threads: int = 1,
        provider: str = "CPU",
        strict: bool = False,
        any_operator: bool = False,
        loaded: LoadedModel | None = None,
    ) -> None:
        if min_confidence not in (None, "auto"):
            min_confidence = _checked_confidence(min_confidence)
        if threads < 1 or min_face < 1 or max_pixels < 1:
            raise ValueError(
                f"threads, min_face and max_pixels must be at least 1, not {threads}, {min_face} and {max_pixels}"
            )
        if min_face > MOST_MIN_FACE:
            raise ValueError(f"min_face must be at most {MOST_MIN_FACE}, not {min_face}")
        self.path = find_model(model, precision=precision, models_dir=Path(models_dir))
        opened = loaded or load_model(
            self.path, threads=threads, provider=provider, strict=strict, any_operator=any_operator
        )
        self.provider = opened.provider
        self._file = self.path.absolute()  # the process may change its working folder
        self._threads = threads
        self._asked = {"threads": threads, "provider": provider, "strict": strict, "any_operator": any_operator}
        self._session: InferenceSession | None = opened.session
        given = {output.name for output in opened.session.get_outputs()}
        self._outputs = [name for name in ("probabilities", "unfamiliarity") if name in given]
        self.metadata = opened.metadata
        self.labels = opened.metadata.labels  # in the order of the probabilities
        self.size = opened.metadata.size  # pixels, side of the faces that the model takes
        self.color = opened.metadata.color  # of those faces, "gray" or "rgb"
        self._fixed_batch = opened.batch
        self.min_confidence = self._threshold(min_confidence)
        self._by_reasons = min_confidence == "auto"
        limit = self.metadata.uncertain_below if self.min_confidence is None else self.min_confidence
        self._limits = Limits(confidence=limit, unfamiliarity=self.metadata.unfamiliar_above)
        self.max_pixels = max_pixels
        self.detector_name = detector
        self._search = FaceSearch(detector, yunet=yunet, min_face=min_face)

    @property
    def detector_used(self) -> str:
        """The detector that searches images here: "auto" stands for "yunet" or "haar"."""
        return self._search.detector_used

    def runs_at_once(self, cpus: int) -> int:
        """Return how many threads should call `answer` at a time to keep so many CPUs busy.

        Each call takes `threads` of them. Other execution providers than the CPU divide the work themselves, and
        some run one call at a time, so they get one.
        """
        return max(1, cpus // self._threads) if self.provider == "CPU" else 1

    def predict(
        self, image: Uint8Array | os.PathLike[str] | str | bytes | bytearray | memoryview | IO[bytes]
    ) -> ImageResult:
        """Find and classify the faces of one image.

        Args:
            image: a path; or the content of an image file, as bytes or as a file opened in binary mode; or an array,
                uint8 (height, width, 3) in BGR or uint8 (height, width).

        Raises:
            ImageError: it is not a readable image, or has more than `max_pixels`.
            ModelFileError: the model does not run.
            ValueError: the array has another shape or dtype, or the recognizer has been closed.
            TypeError: it is something else.
        """
        if image is None or isinstance(image, np.ndarray):
            return self.recognize(image)
        path = os.fspath(image) if isinstance(image, (str, os.PathLike)) else getattr(image, "name", "")
        path = path if isinstance(path, str) else ""  # a pipe's name is its descriptor
        try:
            if isinstance(image, (str, os.PathLike)):
                array = read_image(os.fspath(image), max_pixels=self.max_pixels)
            else:
                array = decode_image(_content_of(image), max_pixels=self.max_pixels)
        except ImageError as error:
            # A long "path" is content that was given as text.
            name = path if len(path) <= _LONGEST_NAME else f"{path[:_LONGEST_NAME]}..."
            raise ImageError(f"{name or 'the image'} {error}") from error
        return self.recognize(array, path=path)

    def recognize(self, image: Uint8Array, *, path: str = "", is_frame: bool = False) -> ImageResult:
        """As `predict`, for a decoded image with the `path` that its result gets; `is_frame` as for `detect`."""
        image = checked_image(image, self.max_pixels)
        detections = self.detect(image, is_frame=is_frame)
        faces = self.classify_detections(image, detections)
        height, width = image.shape[:2]
        return ImageResult(path=path, width=width, height=height, error=None, faces=faces)

    def detect(self, image: Uint8Array, *, is_frame: bool = False) -> tuple[Detection, ...]:
        """Find the faces of `image`, without classifying them.

        Args:
            image: uint8 (height, width, 3) in BGR or uint8 (height, width).
            is_frame: the image is a frame of a video. A frame without a face is not searched again for smaller
                faces: there are many such frames, and the next one comes soon.

        Raises:
            ImageError: the image has more than `max_pixels`.
            MemoryError: there is not enough memory.
            ValueError: it has another shape or dtype.
        """
        return self._search.detect(checked_image(image, self.max_pixels), is_frame=is_frame)

    def classify_detections(self, image: Uint8Array, detections: Sequence[Detection]) -> tuple[Face, ...]:
        """Classify the faces that `detect` found in `image`."""
        if not detections:
            return ()
        faces = np.stack([self.prepare(image, detection) for detection in detections])
        return tuple(self.faces(detections, faces, self.answer(faces)))

    def prepare(self, image: Uint8Array, detection: Detection) -> Uint8Array:
        """A detected face as the model takes it: uint8 (size, size), or (size, size, 3) in RGB."""
        try:
            return prepare_face(image, detection.box, roll=detection.roll, size=self.size, color=self.color)
        except cv2.error as error:
            if is_no_memory(error):
                raise MemoryError(f"the face {NO_MEMORY}") from error
            raise

    def classify(self, faces: Uint8Array) -> FloatArray:
        """Return the probabilities of face crops, float32 (faces, labels), in the order of `labels`.

        Args:
            faces: as for `answer`, which also has the errors.
        """
        return self.answer(faces).probabilities

    def answer(self, faces: Uint8Array) -> Answers:
        """Return the model's probabilities and unfamiliarity for face crops.

        Args:
            faces: crops as `prepare` gives them, uint8 (faces, size, size), or (faces, size, size, 3) in RGB.

        Raises:
            ModelFileError: the model does not run, or its output has another shape.
            ValueError: the array has another shape or dtype, or the recognizer has been closed.
        """
        if faces.dtype != np.uint8 or faces.shape[1:] != self.metadata.face_shape:
            wanted = ", ".join(map(str, self.metadata.face_shape))
            raise ValueError(f"faces must be uint8 (faces, {wanted}), not {faces.dtype} {faces.shape}")
        batch = self._fixed_batch or _BATCH
        if len(faces) <= batch:
            return self._run(faces)
        parts = [self._run(faces[start : start + batch]) for start in range(0, len(faces), batch)]
        return Answers(
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate([part.unfamiliarity for part in parts if part.unfamiliarity is not None])
            if parts[0].unfamiliarity is not None
            else None,
        )

    def faces(self, detections: Sequence[Detection], faces: Uint8Array, answers: Answers) -> list[Face]:
        """Combine detections and model outputs into a `Face` each.

        Args:
            detections: the faces in their images.
            faces: the same faces as `prepare` gives them.
            answers: what `answer` gives for them.

        Raises:
            ModelFileError: a probability is no number.
        """
        # Converted as a whole: numpy takes as long for a row as for all of them.
        rows, best = answers.probabilities.tolist(), answers.probabilities.argmax(1).tolist()
        confidences = [row[place] for row, place in zip(rows, best, strict=True)]
        # NaN is the largest value for argmax, and the sum of anything with it. Rows could not hold it: JSON has none.
        if not math.isfinite(sum(confidences)):
            raise ModelFileError(
                f"{self.path} gives a face probabilities that are not numbers (NaN); test it here with: "
                f"fer-infer --self-test --model {self.path}"
            )
        doubts = find_doubts(detections, faces, confidences, answers.unfamiliarity, self._limits)
        labels, min_confidence, is_uncertain = self.labels, self.min_confidence, self._is_uncertain
        return [
            Face(
                box=detection.box,
                detector_score=detection.score,
                landmarks=detection.landmarks,
                expression=labels[place],
                confidence=confidence,
                probabilities=dict(zip(labels, row)),  # noqa: B905  `_run` has checked their number
                uncertain=None if min_confidence is None else is_uncertain(confidence, reasons),
                reasons=reasons,
                not_checked=not_checked,
            )
            for detection, row, place, confidence, (reasons, not_checked) in zip(
                detections, rows, best, confidences, doubts, strict=True
            )
        ]

    def with_probabilities(self, face: Face, probabilities: FloatArray, best: int) -> Face:
        """The face with other probabilities, such as averages over time; `best` is its label's index."""
        values = probabilities.tolist()
        low = is_low(values[best], self._limits.confidence)
        reasons = _reasons_with(face.reasons, low)
        return replace(
            face,
            expression=self.labels[best],
            confidence=values[best],
            probabilities=dict(zip(self.labels, values, strict=True)),
            uncertain=self._is_uncertain(values[best], reasons),
            reasons=reasons,
        )

    def judged(self, face: Face, min_confidence: float, *, by_reasons: bool = False) -> Face:
        """The face under another threshold than the recognizer's; `by_reasons` as for `min_confidence="auto"`."""
        low = face.confidence < min_confidence
        reasons = _reasons_with(face.reasons, low)
        not_checked = tuple(name for name in face.not_checked if name != "low_confidence")
        return replace(face, uncertain=bool(reasons) if by_reasons else low, reasons=reasons, not_checked=not_checked)

    def settings(self) -> dict[str, Any]:
        """Return everything that rows depend on besides the images, as plain JSON."""
        return {
            "model": self.metadata.name,
            "precision": self.metadata.precision,
            "model_sha256": sha256_of(self._file),
            "detector": self.detector_name,
            "detector_used": self.detector_used,
            "yunet_sha256": self._search.yunet_sha256(),
            "min_face": self._search.min_face,
            "min_confidence": self.min_confidence,
            "uncertain_by": "reasons" if self._by_reasons else "confidence",
            "max_pixels": self.max_pixels,
            "rows": ROWS_SCHEMA,
        }

    def close(self) -> None:
        """Release the model; later calls raise a ValueError."""
        self._session = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self._session is None:
            raise ValueError("the recognizer has been closed")
        options = self._asked | {
            "detector": self.detector_name,
            "yunet": self._search.yunet,
            "min_face": self._search.min_face,
            "min_confidence": "auto" if self._by_reasons else self.min_confidence,
            "max_pixels": self.max_pixels,
        }
        return _made_again, (type(self), self._file, options, self.detector_used)

    def __enter__(self) -> Recognizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _is_uncertain(self, confidence: float, reasons: Sequence[str]) -> bool | None:
        if self.min_confidence is None:
            return None
        return bool(reasons) if self._by_reasons else confidence < self.min_confidence

    def _threshold(self, wanted: float | Literal["auto"] | None) -> float | None:
        if wanted != "auto":
            return wanted
        if self.metadata.uncertain_below is None:
            raise ModelFileError(
                f"{self.path} has no fitted confidence threshold; give a number, or export the model again with "
                "labelled images: fer-export --data"
            )
        return self.metadata.uncertain_below

    def _run(self, faces: Uint8Array) -> Answers:
        if len(faces) == 0:
            nothing = np.zeros((0, len(self.labels)), np.float32)
            return Answers(nothing, nothing[:, 0] if "unfamiliarity" in self._outputs else None)
        session = self._session
        if session is None:
            raise ValueError("the recognizer has been closed")
        count = len(faces)
        if self._fixed_batch is not None:
            faces = fill_batch(faces, self._fixed_batch)
        try:
            answer, *more = (values[:count] for values in session.run(self._outputs, {"faces": faces}))
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise ModelFileError(
                f"{self.path} cannot be run by onnxruntime: {error}; export it again with fer-export"
            ) from error
        if answer.shape != (count, len(self.labels)):
            raise ModelFileError(
                f"{self.path} gives probabilities of shape {answer.shape} for {count} faces and "
                f"{len(self.labels)} labels; export it again with fer-export"
            )
        return Answers(answer, more[0] if more else None)


def _checked_confidence(given: Any) -> float:
    """A threshold as a number; numpy has numbers of its own.

    Raises:
        ValueError: it is no probability.
    """
    if isinstance(given, Real) and 0 <= float(given) <= 1:  # nor NaN
        return float(given)
    raise ValueError(f'min_confidence must be a probability, 0 to 1, "auto" or None, not {given!r}')


def _reasons_with(reasons: Sequence[str], low_confidence: bool | None) -> tuple[str, ...]:
    return tuple(name for name in REASONS if (low_confidence if name == "low_confidence" else name in reasons))


def checked_image(image: Uint8Array | None, max_pixels: int) -> Uint8Array:
    """Check an image array, and return it as OpenCV can read it.

    Raises:
        ImageError: it has more pixels than the limit.
        ValueError: it is not an image; the error names what it is.
    """
    if image is None:
        raise ValueError(
            "the image is None: cv2.imread gives None where it cannot read an image; give its path, and the error says "
            "why"
        )
    color = image.ndim == 3 and image.shape[2] == 3
    if image.dtype != np.uint8 or not (image.ndim == 2 or color) or 0 in image.shape:
        raise ValueError(
            f"an image must be uint8 (height, width, 3) or (height, width), not {image.dtype} {image.shape}"
        )
    try:
        check_pixels(image, max_pixels)
    except ImageError as error:
        raise ImageError(f"the image {error}") from error
    # OpenCV reads beyond the end of a column whose rows are one pixel in memory.
    return image if image.strides[0] else np.ascontiguousarray(image)


def _content_of(source: Any) -> bytes:
    """Return the content of an image file that the caller has in memory or has opened.

    Raises:
        ImageError: it cannot be read, is empty or too large.
        TypeError: it is neither.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        content: Any = bytes(source)
    elif hasattr(source, "read"):
        try:
            content = source.read(MAX_FILE_BYTES + 1)
            # Pipes and sockets give what has arrived.
            while isinstance(content, bytes) and len(content) <= MAX_FILE_BYTES and (more := source.read(1 << 20)):
                content += more
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError:
            content = ""
        if not isinstance(content, bytes):
            raise TypeError(f"a file must give bytes, not {type(content).__name__}; open it with: open(path, 'rb')")
    else:
        kind = type(source)
        raise TypeError(
            f"an image must be a path, bytes, a binary file or a numpy array in BGR, not {kind.__module__}."
            f"{kind.__qualname__}; a PIL image becomes an array with np.asarray(image.convert('RGB'))[:, :, ::-1]"
        )
    if not content:
        raise ImageError("is empty (0 bytes)")
    if len(content) > MAX_FILE_BYTES:
        raise ImageError(f"has more bytes than the limit of {MAX_FILE_BYTES}")
    return bytes(content)


def _made_again(kind: type[Recognizer], path: Path, options: dict[str, Any], detector_used: str) -> Recognizer:
    recognizer = kind(path, **options)
    recognizer._search.detector_used = detector_used
    return recognizer
