"""The first stage of a run over images: read, decode and detect in threads, a little ahead of the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING

from fer_runtime.detectors import Detection
from fer_runtime.errors import NO_MEMORY, ImageError
from fer_runtime.images import Uint8Array, decode_image
from fer_runtime.recognizer import Recognizer

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

# Seconds of work in one task: enough that threads seldom meet over crops, which take 25 us each, and
# little enough that a handful of photographs, 30 ms each, keeps every thread busy.
_TASK_SECONDS = 0.01
_FIRST_TASK = 8  # images, before anything is known about them
# Files are read in runs of this many bytes before the first of them is decoded: a decoder between system calls takes
# half as long again, and a run of crops is nothing beside one photograph.
_RUN_BYTES = 1 << 18


class Prepared:
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


Preparation = tuple[list[Prepared], dict[str, float]]  # images, and seconds by stage


class Now:
    """A task that is done when its result is asked for, in that thread: where nothing could be done meanwhile."""

    def __init__(self, prepare: Callable[[], Preparation]) -> None:
        self.result = prepare


class Source:
    """The paths of a run, in chunks.

    Args:
        must_wait: tells whether the next path is not there yet; None: it always is.
        whole_chunks: only the last chunk may have fewer paths than asked for.
    """

    def __init__(
        self, paths: Iterator[str], must_wait: Callable[[], bool] | None = None, *, whole_chunks: bool = False
    ) -> None:
        self.whole_chunks = whole_chunks or must_wait is None
        self.has_ended = False
        self._paths = paths
        self._must_wait = must_wait
        self._next: list[str] = []  # paths of the next chunk, when not all of them are there

    def chunk(self, size: int, *, waits: bool) -> list[str]:
        """The next paths, at most `size`; fewer at the end, or where the next one is not there yet.

        Args:
            waits: wait for the first path, or for all of a whole chunk.
        """
        if self._must_wait is None:
            chunk = list(islice(self._paths, size))
            self.has_ended = len(chunk) < size
            return chunk
        while len(self._next) < size and not self.has_ended:
            if not (waits and (self.whole_chunks or not self._next)) and self._must_wait():
                if self.whole_chunks:
                    return []
                break
            path = next(self._paths, None)
            if path is None:
                self.has_ended = True
            else:
                self._next.append(path)
        chunk, self._next = self._next, []
        return chunk


class Reading:
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
        source: Source,
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
        self._chunks: deque[list[Future[Preparation] | Now]] = deque()

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def has_ended(self) -> bool:
        """Whether there is no further path."""
        return self._source.has_ended

    @property
    def whole_chunks(self) -> bool:
        """Whether only the last chunk may be a short one."""
        return self._source.whole_chunks

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
                self._chunks.append([Now(tasks[0])])
                continue
            self.pool = self.pool or _thread_pool(self._workers)
            self._chunks.append([self.pool.submit(task) for task in tasks])

    def take(self) -> list[Future[Preparation] | Now]:
        """The tasks of the oldest chunk."""
        return self._chunks.popleft()

    def fit_tasks(self, images: int, seconds: float) -> None:
        """Choose how many images the next tasks have, by the time that so many took."""
        self._task_size = min(self._chunk_size, max(1, int(_TASK_SECONDS * images / max(seconds, 1e-9))))

    def close(self, *, waits: bool) -> None:
        """Begin with no further image.

        Args:
            waits: until no thread is left.
        """
        if self.pool is not None:
            self.pool.shutdown(wait=waits, cancel_futures=True)


def _thread_pool(threads: int) -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor  # takes 3 ms to load

    return ThreadPoolExecutor(threads, thread_name_prefix="fer-run")


def _prepare_images(
    recognizer: Recognizer, paths: list[str], read: Callable[[str], bytes], *, keeps_images: bool, is_isolated: bool
) -> tuple[list[Prepared], dict[str, float]]:
    seconds = dict.fromkeys(("read", "decode", "detect"), 0.0)
    images: list[Prepared] = []
    unread = iter(paths)
    while run := _read_run(unread, read, seconds):
        for image, content in run:
            if content is not None:
                _prepare(recognizer, image, content, keeps_images, is_isolated, seconds)
            images.append(image)
    return images, seconds


def _read_run(
    paths: Iterator[str], read: Callable[[str], bytes], seconds: dict[str, float]
) -> list[tuple[Prepared, bytes | None]]:
    """The next files' contents, None with the reason where one cannot be read; a file alone where it is large."""
    started = perf_counter()
    run: list[tuple[Prepared, bytes | None]] = []
    size = 0
    for path in paths:
        image, content = Prepared(path), None
        try:
            content = read(path)
            size += len(content)
        except ImageError as error:
            image.error = str(error)
        except MemoryError:
            image.error = NO_MEMORY
        run.append((image, content))
        if size >= _RUN_BYTES:
            break
    seconds["read"] += perf_counter() - started
    return run


def _prepare(
    recognizer: Recognizer,
    image: Prepared,
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
        image.faces = [recognizer.prepare(pixels, detection) for detection in image.detections]
        seconds["detect"] += perf_counter() - decoded_at
    except ImageError as error:
        image.error = str(error)
    except MemoryError:
        image.error = NO_MEMORY
