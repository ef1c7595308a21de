"""A run over many images: reading, detecting and classifying overlap, memory stays flat, the order is kept."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from os import PathLike
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fer_runtime.detectors import Detection
from fer_runtime.errors import ImageError
from fer_runtime.faces import may_be_face_crop
from fer_runtime.images import Uint8Array, decode_image, read_bytes
from fer_runtime.recognizer import Recognizer
from fer_runtime.results import Face, ImageResult
from fer_runtime.system import available_cpus

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

# Images that go through the model together, at most. A row's last bits depend on the images in its block, so
# blocks end at the same images in every run: after a number of images, or of pixels. The pixels keep rows coming:
# a block of 64 photographs would take a Raspberry Pi a quarter of a minute.
BLOCK = 64
_BLOCK_PIXELS = 1_000_000
# Where the images are kept to be drawn on, a block of 64 would be 1.6 GB at 4K.
_KEPT_BLOCK = 2
# Seconds of work in one task: enough that threads seldom meet over crops, which take 25 us each, and
# little enough that a handful of photographs, 30 ms each, keeps every thread busy.
_TASK_SECONDS = 0.01
_FIRST_TASK = 8  # images, before anything is known about them
# Files are read in runs of this many bytes before the first of them is decoded: a decoder between system calls takes
# half as long again, and a run of crops is nothing beside one photograph.
_RUN_BYTES = 1 << 18
_NO_MEMORY = "needs more memory than there is"


class BlockEnds:
    """Tells where the blocks of a run end.

    Args:
        keeps_images: the images are kept until their rows are written.
        images: of the run, before the first block that is asked for.
    """

    def __init__(self, *, keeps_images: bool = False, images: int = 0) -> None:
        self.size = _KEPT_BLOCK if keeps_images else BLOCK
        self.images = images  # of the run so far
        self._pixels = 0  # of the block so far

    def after(self, pixels: int) -> bool:
        """Whether a block ends after the next image; `pixels` is 0 where it could not be decoded."""
        self.images += 1
        self._pixels += pixels
        ends = self._pixels >= _BLOCK_PIXELS or self.images % self.size == 0
        if ends:
            self._pixels = 0
        return ends


@dataclass(slots=True, eq=False, repr=False)
class JobSummary:
    """What a run did; grows by the block, before its rows are taken."""

    images: int = 0
    faces: int = 0
    without_face: int = 0
    crop_sized: int = 0  # of those without a face, images of a size and shape that face crops have
    failures: Counter[str] = field(default_factory=Counter)  # images per reason
    seconds_by_stage: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("read", "decode", "detect", "classify", "write"), 0.0)
    )  # summed over threads

    @property
    def failed(self) -> int:
        """Images without a result."""
        return sum(self.failures.values())

    def count(self, row: ImageResult) -> None:
        """Add an image by its row."""
        self.images += 1
        self.faces += len(row.faces)
        if row.error is not None:
            self.failures[row.error] += 1
        elif not row.faces:
            self.without_face += 1
            self.crop_sized += may_be_face_crop(row.width or 0, row.height or 0)


class _Prepared:
    """An image that is read, with its faces ready for the model; a plain class, which loads sooner."""

    __slots__ = ("detections", "error", "faces", "height", "path", "pixels", "width")

    def __init__(self, path: str) -> None:
        self.path = path
        self.width: int | None = None
        self.height: int | None = None
        self.error: str | None = None
        self.detections: tuple[Detection, ...] = ()
        self.faces: list[Uint8Array] = []
        self.pixels: Uint8Array | None = None  # kept only where they are drawn on


_Preparation = tuple[list[_Prepared], dict[str, float]]  # images, and seconds by stage


class _Now:
    """A task that is done when its result is asked for, in that thread: where nothing could be done meanwhile."""

    def __init__(self, prepare: Callable[[], _Preparation]) -> None:
        self.result = prepare


OnRow = Callable[["Uint8Array | None", ImageResult], ImageResult]


def recognize_files(
    recognizer: Recognizer,
    paths: Iterable[str],
    *,
    summary: JobSummary | None = None,
    workers: int | None = None,
    model_threads: int | None = None,
    read: Callable[[str], bytes] = read_bytes,
    on_row: OnRow | None = None,
    block_ends: BlockEnds | None = None,
    isolate_first: int = 0,
    must_wait: Callable[[], bool] | None = None,
) -> Generator[ImageResult, None, None]:
    """One row for every path, in order; an image that fails has its row with the reason.

    If you stop before the last row, close the generator (`contextlib.closing`); then no more images are read.

    Args:
        paths: image files, or `fer_runtime.batch.sources.Inputs` of folders; consumed as rows are taken, a few
            blocks ahead.
        summary: filled while the rows are taken.
        workers: threads that read, decode and detect; by default one for each CPU that this process may use.
        model_threads: CPUs for the model, which several blocks go through at a time; by default as many as there are
            workers, and no more than this process may use. The rows do not depend on it.
        read: a path to the file's content.
        on_row: called with each image (None where it could not be decoded) and its row; returns the row to give.
        block_ends: tells where blocks end, in a run that continues; of a new run by default.
        isolate_first: images at the beginning that are decoded in processes of their own whatever their format. A run
            that was killed may have been killed by one of the images that it was decoding.
        must_wait: tells whether the next path is not there yet, as in a list that a program writes slowly. Then the
            rows of the paths so far are made first, in a shorter block. By default rows wait for whole blocks.

    Raises:
        ValueError: `paths` is one path, whose letters would be taken for paths.
    """
    if isinstance(paths, (str, bytes, PathLike)):
        raise ValueError(
            f"paths must be a list of image files, not {paths!r}; for a folder: "
            f"recognize_files(recognizer, Inputs([{os.fspath(paths)!r}])), from fer_runtime.batch.sources import Inputs"
        )
    cpus = available_cpus()
    workers = workers or cpus
    keeps_images = on_row is not None
    ends = block_ends or BlockEnds(keeps_images=keeps_images)
    reading = _Reading(
        recognizer,
        _Source(iter(paths), must_wait),
        read,
        workers=workers,
        chunk_size=ends.size,
        keeps_images=keeps_images,
        isolate_first=isolate_first,
    )
    # Images that are kept to be drawn on wait in no further queue.
    at_once = 1 if keeps_images else recognizer.runs_at_once(model_threads or min(workers, cpus))
    return _rows_of(reading, _Blocks(recognizer, at_once), ends, summary or JobSummary(), on_row)


class _Source:
    """The paths of a run, in chunks."""

    def __init__(self, paths: Iterator[str], must_wait: Callable[[], bool] | None) -> None:
        self._paths = paths
        self._must_wait = must_wait
        self.has_ended = False

    def chunk(self, size: int, *, waits: bool) -> list[str]:
        """The next paths, at most `size`; fewer at the end, or where the next one is not there yet.

        Args:
            waits: wait for the first path.
        """
        if self._must_wait is None:
            chunk = list(islice(self._paths, size))
            self.has_ended = len(chunk) < size
            return chunk
        chunk = []
        while len(chunk) < size and ((waits and not chunk) or not self._must_wait()):
            path = next(self._paths, None)
            if path is None:
                self.has_ended = True
                break
            chunk.append(path)
        return chunk


def _rows_of(
    reading: _Reading, blocks: _Blocks, ends: BlockEnds, summary: JobSummary, on_row: OnRow | None
) -> Generator[ImageResult, None, None]:
    block: list[_Prepared] = []
    try:
        while True:
            reading.read_ahead(waits=not (block or blocks))
            if not reading:
                if block:
                    blocks.add(block, reading.pool)
                    block = []
                while blocks:
                    yield from _rows(blocks.take(), summary, on_row)
                if not reading.has_ended:
                    continue
                reading.close(waits=True)
                return
            done, busy = 0, 0.0
            for task in reading.take():
                # Rows do not wait for images that take long to read.
                while blocks and not isinstance(task, _Now) and not task.done():
                    if (through := blocks.take_before(task)) is not None:
                        yield from _rows(through, summary, on_row)
                images, seconds = task.result()
                done += len(images)
                busy += sum(seconds.values())
                for stage, spent in seconds.items():
                    summary.seconds_by_stage[stage] += spent
                for image in images:
                    block.append(image)
                    if ends.after((image.width or 0) * (image.height or 0)):
                        blocks.add(block, reading.pool)
                        block = []
                        while blocks.is_full:
                            yield from _rows(blocks.take(), summary, on_row)
            reading.fit_tasks(done, busy)
    finally:
        # The consumer has gone, or a row could not be written: nothing more is read. The threads are not
        # waited for: one of them may be running this, as the garbage collector that found a generator
        # which nobody closed.
        reading.close(waits=False)


class _Reading:
    """Images on their way through reading, decoding and detection, in chunks of several tasks, a little ahead.

    Args:
        read: a path to the file's content.
        workers: threads.
        chunk_size: images.
        keeps_images: the pixels are kept.
        isolate_first: images at the beginning that are decoded in processes of their own.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        source: _Source,
        read: Callable[[str], bytes],
        *,
        workers: int,
        chunk_size: int,
        keeps_images: bool,
        isolate_first: int,
    ) -> None:
        self.pool: ThreadPoolExecutor | None = None  # from the second task on
        self._recognizer = recognizer
        self._source = source
        self._read = read
        self._workers = workers
        self._chunk_size = chunk_size
        self._keeps_images = keeps_images
        self._isolate_first = isolate_first
        self._task_size = _FIRST_TASK
        self._submitted = 0  # images
        self._chunks: deque[list[Future[_Preparation] | _Now]] = deque()

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def has_ended(self) -> bool:
        """Whether there is no further path."""
        return self._source.has_ended

    def read_ahead(self, *, waits: bool) -> None:
        """Begin with as many chunks as there are threads, and one more: no thread waits, and memory stays flat.

        Args:
            waits: wait for a path where there is nothing to do.
        """
        while len(self._chunks) <= self._workers and (
            chunk := self._source.chunk(self._chunk_size, waits=waits and not self._chunks)
        ):
            is_isolated = self._submitted < self._isolate_first
            self._submitted += len(chunk)
            size = self._task_size
            tasks = [
                partial(
                    _prepare_images,
                    self._recognizer,
                    chunk[start : start + size],
                    self._read,
                    keeps_images=self._keeps_images,
                    is_isolated=is_isolated,
                )
                for start in range(0, len(chunk), size)
            ]
            if self.pool is None and self.has_ended and len(tasks) == 1:
                # Nothing to do beside it: one image waits for no thread, nor for the modules that start threads.
                self._chunks.append([_Now(tasks[0])])
                continue
            self.pool = self.pool or _thread_pool(self._workers)
            self._chunks.append([self.pool.submit(task) for task in tasks])

    def take(self) -> list[Future[_Preparation] | _Now]:
        """The tasks of the oldest chunk."""
        return self._chunks.popleft()

    def fit_tasks(self, images: int, seconds: float) -> None:
        """Choose how many images the next tasks have, by the time that so many took."""
        self._task_size = min(BLOCK, max(1, int(_TASK_SECONDS * images / max(seconds, 1e-9))))

    def close(self, *, waits: bool) -> None:
        """Begin with no further image.

        Args:
            waits: until no thread is left.
        """
        if self.pool is not None:
            self.pool.shutdown(wait=waits, cancel_futures=True)


class _Classified(NamedTuple):
    """A block behind the model."""

    images: list[_Prepared]
    rows: list[ImageResult]
    seconds: float


class _Blocks:
    """Blocks on their way through the model, several at a time; they come out in their order.

    Args:
        at_once: blocks that go through the model at a time.
    """

    def __init__(self, recognizer: Recognizer, at_once: int) -> None:
        self._recognizer = recognizer
        self._at_once = at_once
        self._waiting: deque[tuple[list[_Prepared], Future[_Classified] | None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether a block must be taken before the next one is added."""
        # One more than go at a time, so that no thread waits for rows to be written.
        return len(self._waiting) > (self._at_once if self._at_once > 1 else 0)

    def add(self, block: list[_Prepared], pool: ThreadPoolExecutor | None) -> None:
        """Add the next block; a thread of the pool may put it through the model before it is taken."""
        task = None
        if pool is not None and self._at_once > 1:
            task = pool.submit(_classified, self._recognizer, block)
        self._waiting.append((block, task))

    def take(self) -> _Classified:
        """The oldest block, behind the model."""
        block, task = self._waiting.popleft()
        # What no thread has begun is done here: waiting for the threads, which read ahead, would be slower.
        if task is None or task.cancel():
            return _classified(self._recognizer, block)
        return task.result()

    def take_before(self, preparation: Future[_Preparation]) -> _Classified | None:
        """The oldest block, or None where images are ready before it is through."""
        from concurrent.futures import FIRST_COMPLETED, wait

        _, task = self._waiting[0]
        if task is not None and not task.cancel():
            either: tuple[Future[Any], ...] = (task, preparation)
            wait(either, return_when=FIRST_COMPLETED)
            if not task.done():
                return None
        return self.take()


def _thread_pool(threads: int) -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor  # takes 3 ms to load

    return ThreadPoolExecutor(threads, thread_name_prefix="fer-run")


def _rows(block: _Classified, summary: JobSummary, on_row: OnRow | None) -> Iterator[ImageResult]:
    summary.seconds_by_stage["classify"] += block.seconds
    for row in block.rows:
        summary.count(row)
    if on_row is None:
        yield from block.rows
        return
    for image, row in zip(block.images, block.rows, strict=True):
        given = on_row(image.pixels, row)
        if given.error is not None and row.error is None:
            summary.failures[given.error] += 1
            summary.without_face -= not row.faces
        yield given


def _prepare_images(
    recognizer: Recognizer, paths: list[str], read: Callable[[str], bytes], *, keeps_images: bool, is_isolated: bool
) -> tuple[list[_Prepared], dict[str, float]]:
    seconds = dict.fromkeys(("read", "decode", "detect"), 0.0)
    images: list[_Prepared] = []
    unread = iter(paths)
    while run := _read_run(unread, read, seconds):
        for image, content in run:
            if content is not None:
                _prepare(recognizer, image, content, keeps_images, is_isolated, seconds)
            images.append(image)
    return images, seconds


def _read_run(
    paths: Iterator[str], read: Callable[[str], bytes], seconds: dict[str, float]
) -> list[tuple[_Prepared, bytes | None]]:
    """The next files' contents, None with the reason where one cannot be read; a file alone where it is large."""
    started = perf_counter()
    run: list[tuple[_Prepared, bytes | None]] = []
    size = 0
    for path in paths:
        image, content = _Prepared(path), None
        try:
            content = read(path)
            size += len(content)
        except ImageError as error:
            image.error = str(error)
        except MemoryError:
            image.error = _NO_MEMORY
        run.append((image, content))
        if size >= _RUN_BYTES:
            break
    seconds["read"] += perf_counter() - started
    return run


def _prepare(
    recognizer: Recognizer,
    image: _Prepared,
    content: bytes,
    keeps_images: bool,
    is_isolated: bool,
    seconds: dict[str, float],
) -> None:
    started = perf_counter()
    try:
        pixels = decode_image(content, max_pixels=recognizer.max_pixels, isolated=is_isolated)
        decoded_at = perf_counter()
        seconds["decode"] += decoded_at - started
        image.height, image.width = pixels.shape[:2]
        image.pixels = pixels if keeps_images else None
        image.detections = recognizer.detect(pixels)
        image.faces = [recognizer.prepare(pixels, one) for one in image.detections]
        seconds["detect"] += perf_counter() - decoded_at
    except ImageError as error:
        image.error = str(error)
    except MemoryError:
        image.error = _NO_MEMORY


def _classified(recognizer: Recognizer, images: list[_Prepared]) -> _Classified:
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
    return _Classified(images, rows, seconds)
