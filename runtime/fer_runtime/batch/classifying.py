"""The second stage of a run over images: blocks of images go through the model, several at a time."""

from __future__ import annotations

from collections import deque
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fer_runtime.batch.reading import Preparation, Prepared
from fer_runtime.recognizer import Recognizer
from fer_runtime.results import Face, ImageResult

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor


class Classified(NamedTuple):
    """A block after the model, with its rows."""

    images: list[Prepared]
    rows: list[ImageResult]
    seconds: float


class Blocks:
    """A queue of blocks that go through the model, several at a time, and come out in order.

    Args:
        at_once: blocks that go through the model at a time.
    """

    def __init__(self, recognizer: Recognizer, at_once: int) -> None:
        self._recognizer = recognizer
        self._at_once = at_once
        self._waiting: deque[tuple[list[Prepared], Future[Classified] | None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether a block must be taken before the next one is added."""
        # One more than go at a time, so that no thread waits for rows to be written.
        return len(self._waiting) > (self._at_once if self._at_once > 1 else 0)

    def add(self, block: list[Prepared], pool: ThreadPoolExecutor | None) -> None:
        """Add the next block; a thread of the pool may put it through the model before it is taken."""
        task = None
        if pool is not None and self._at_once > 1:
            task = pool.submit(_classified, self._recognizer, block)
        self._waiting.append((block, task))

    def take(self) -> Classified:
        """Wait for the oldest block, and return it with its rows."""
        block, task = self._waiting.popleft()
        # What no thread has begun is done here: waiting for the threads, which read ahead, would be slower.
        if task is None or task.cancel():
            return _classified(self._recognizer, block)
        return task.result()

    def take_before(self, preparation: Future[Preparation]) -> Classified | None:
        """As `take`, but None if `preparation` is done first."""
        from concurrent.futures import FIRST_COMPLETED, wait

        _, task = self._waiting[0]
        if task is not None and not task.cancel():
            either: tuple[Future[Any], ...] = (task, preparation)
            wait(either, return_when=FIRST_COMPLETED)
            if not task.done():
                return None
        return self.take()


def _classified(recognizer: Recognizer, images: list[Prepared]) -> Classified:
    started = perf_counter()
    crops = [face for image in images for face in image.faces]
    detections = [detection for image in images for detection in image.detections]
    # concatenate, then a view: numpy's stack adds an axis to every crop first, and takes four times as long.
    found: list[Face] = []
    if crops:
        together = np.concatenate(crops).reshape(-1, *recognizer.metadata.face_shape)
        found = recognizer.faces(detections, together, recognizer.answer(together))
    seconds = perf_counter() - started
    every_face = iter(found)
    rows = []
    for image in images:
        faces = tuple(islice(every_face, len(image.faces)))
        rows.append(
            ImageResult(path=image.path, width=image.width, height=image.height, error=image.error, faces=faces)
        )
    return Classified(images, rows, seconds)
