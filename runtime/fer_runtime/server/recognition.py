"""From uploads to rows: decoding and detection in threads, classification in batches of all requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

import numpy as np

from fer_runtime.detectors import Detection
from fer_runtime.detectors.search import FaceSearch
from fer_runtime.errors import NO_MEMORY, ImageError
from fer_runtime.images import Uint8Array, decode_image
from fer_runtime.recognizer import Answers
from fer_runtime.results import Face, ImageResult
from fer_runtime.server.batching import Batcher, Outputs
from fer_runtime.server.bodies import Upload
from fer_runtime.server.errors import RequestError
from fer_runtime.server.metrics import Metrics
from fer_runtime.server.models import ModelSet, ServedModel
from fer_runtime.server.settings import ServerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """The options of one request."""

    model: ServedModel
    search: FaceSearch | None = None  # None: the service's own
    min_confidence: float | Literal["auto"] | None = None  # None: the service's own


@dataclass(slots=True)
class _Prepared:
    """An image whose faces are ready for the model."""

    upload: Upload
    width: int | None = None
    height: int | None = None
    error: str | None = None
    detections: tuple[Detection, ...] = ()
    faces: list[Uint8Array] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # by stage


class Recognition:
    """Everything between a request's bytes and its rows.

    Args:
        settings: of the service.
        models: in service, self-tested.
        metrics: told about everything.
    """

    def __init__(self, settings: ServerSettings, models: list[ServedModel], metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.readers = ThreadPoolExecutor(settings.workers, thread_name_prefix="fer-read")
        # One more thread than batches: a self-test does not wait for requests, nor they for it.
        self.computers = ThreadPoolExecutor(settings.workers + 1, thread_name_prefix="fer-model")
        self.active = 0  # requests that have been let in and not answered
        self._classifying = 0  # of those, how many have brought their faces
        self._waited, self._computed = (metrics.stages.labels(stage) for stage in ("wait", "classify"))
        self.models = ModelSet(models, self._attach)

    def close(self, seconds: float | None = None) -> bool:
        """End the threads; whether all of them have ended, within so many seconds where given."""

        def end() -> None:
            self.readers.shutdown(wait=True, cancel_futures=True)
            self.computers.shutdown(wait=True, cancel_futures=True)

        ending = threading.Thread(target=end, daemon=True)
        ending.start()
        ending.join(seconds)
        return not ending.is_alive()

    def _attach(self, model: ServedModel) -> None:
        model.batcher = Batcher(
            model.compute,
            executor=self.computers,
            slots=self.settings.workers,
            size=self.settings.batch_size,
            wait=self.settings.batch_wait,
            coming=lambda: self.active - self._classifying,
            # The other half of the time is for what the estimate does not know.
            longest=self.settings.timeout / 2,
            on_batch=self._note_batch,
        )

    def _note_batch(self, faces: int, waited: float, computed: float) -> None:
        self.metrics.batches.observe(faces)
        self._waited.observe(waited)
        self._computed.observe(computed)

    async def classify(self, model: ServedModel, faces: Uint8Array) -> dict[str, np.ndarray]:
        """The graph's outputs for faces as the model takes them."""
        assert model.batcher is not None
        self._classifying += 1
        try:
            return dict(await model.batcher.classify(faces))
        finally:
            self._classifying -= 1

    def submit(self, model: ServedModel, faces: Uint8Array) -> asyncio.Future[Outputs]:
        """The same for up to a batch of faces, without a task."""
        assert model.batcher is not None
        self._classifying += 1
        answer = model.batcher.submit(faces)
        answer.add_done_callback(self._note_classified)
        return answer

    def _note_classified(self, answer: asyncio.Future[Outputs]) -> None:
        self._classifying -= 1

    async def recognize(self, uploads: Sequence[Upload], options: RequestOptions) -> list[ImageResult]:
        """A row for each upload; an image that cannot be read has the reason."""
        loop = asyncio.get_running_loop()
        # Together: the threads decode several images of a request at a time.
        prepared = await asyncio.gather(
            *(loop.run_in_executor(self.readers, self._prepare, upload, options) for upload in uploads)
        )
        for image in prepared:
            for stage, seconds in image.seconds.items():
                self.metrics.stages.labels(stage).observe(seconds)
        crops = [face for image in prepared for face in image.faces]
        model = options.model
        faces: list[Face] = []
        if crops:
            stacked = np.stack(crops)
            outputs = await self.classify(model, stacked)
            answers = Answers(outputs["probabilities"], outputs.get("unfamiliarity"))
            detections = [detection for image in prepared for detection in image.detections]
            faces = [self._judged(face, options) for face in model.recognizer.faces(detections, stacked, answers)]
        every_face = iter(faces)
        rows = []
        for image in prepared:
            found = tuple(next(every_face) for _ in image.faces)
            result = "unreadable" if image.error else "faces" if found else "no face"
            self.metrics.images.labels(model.name, result).inc()
            rows.append(
                ImageResult(
                    path=image.upload.name, width=image.width, height=image.height, error=image.error, faces=found
                )
            )
        return rows

    def _judged(self, face: Face, options: RequestOptions) -> Face:
        threshold = options.min_confidence
        if threshold == "auto":
            threshold = options.model.metadata.uncertain_below
            if threshold is None:
                raise RequestError(
                    422, "options", "the model has no fitted threshold; give min_confidence as a number from 0 to 1"
                )
        if threshold is not None:
            face = options.model.recognizer.judged(face, threshold, by_reasons=options.min_confidence == "auto")
        self.metrics.faces.labels(options.model.name, face.expression).inc()
        for reason in face.reasons:
            self.metrics.expressions_refused.labels(options.model.name, reason).inc()
        return face

    def _prepare(self, upload: Upload, options: RequestOptions) -> _Prepared:
        image = _Prepared(upload)
        started = perf_counter()
        try:
            if not upload.content:
                raise ImageError("is empty (0 bytes)")
            # In a process of its own whatever the format: no upload may end the service.
            pixels = decode_image(upload.content, max_pixels=self.settings.max_pixels, isolated=True)
            decoded = perf_counter()
            image.seconds["decode"] = decoded - started
            image.height, image.width = pixels.shape[:2]
            search = options.search or options.model.recognizer
            image.detections = search.detect(pixels)
            image.faces = [options.model.recognizer.prepare(pixels, detection) for detection in image.detections]
            image.seconds["detect"] = perf_counter() - decoded
        except ImageError as error:
            image.error = str(error)
        except MemoryError:
            image.error = NO_MEMORY
        return image
