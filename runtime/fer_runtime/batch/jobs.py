"""A run over many pictures: reading, finding and classifying overlap, memory stays flat, order is kept."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from os import PathLike
from time import perf_counter

import numpy as np

from fer_runtime.detectors import Detection
from fer_runtime.errors import ImageError
from fer_runtime.expressions import FACE_SIZE
from fer_runtime.faces import may_be_face_crop, prepare_face
from fer_runtime.images import Uint8Array, decode_image, read_bytes
from fer_runtime.recognizer import Recognizer
from fer_runtime.results import ImageResult
from fer_runtime.system import available_cpus

# Pictures that go through the model together. Rows depend on how pictures fall into blocks in the
# last bits only; `--resume` keeps to them.
BLOCK = 64
# Where the pictures themselves are kept for somebody to draw on, a block of 64 would be 1.6 GB at 4K.
_KEPT_BLOCK = 2
# Seconds of work in one task: enough that threads seldom meet over crops, which take 25 us each, and
# little enough that a handful of photographs, 30 ms each, keeps every thread busy.
_TASK_SECONDS = 0.01
_FIRST_TASK = 8  # pictures, before anything is known about them
# Files are read in runs of this many bytes before the first of them is decoded: a decoder between system calls takes
# half as long again, and a run of crops is nothing beside one photograph.
_RUN_BYTES = 1 << 18
_NO_MEMORY = "needs more memory than there is"


@dataclass(slots=True)
class JobSummary:
    """What a run did; grows by the block, before its rows are taken."""

    pictures: int = 0
    faces: int = 0
    without_face: int = 0
    crop_sized: int = 0  # of those without a face, images of a size and shape that face crops have
    failures: Counter[str] = field(default_factory=Counter)  # pictures per reason
    seconds_by_stage: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("read", "decode", "detect", "classify", "write"), 0.0)
    )  # summed over threads

    @property
    def failed(self) -> int:
        """Pictures without a result."""
        return sum(self.failures.values())


@dataclass(slots=True)
class _Prepared:
    """A picture that is read, with its faces ready for the model."""

    path: str
    width: int | None = None
    height: int | None = None
    error: str | None = None
    detections: tuple[Detection, ...] = ()
    faces: list[Uint8Array] = field(default_factory=list)
    image: Uint8Array | None = None  # kept only where somebody draws on it


_Task = Future[tuple[list[_Prepared], dict[str, float]]]  # pictures, and seconds by stage


def recognize_files(
    recognizer: Recognizer,
    paths: Iterable[str],
    *,
    summary: JobSummary | None = None,
    workers: int | None = None,
    read: Callable[[str], bytes] = read_bytes,
    on_image: Callable[[Uint8Array, ImageResult], object] | None = None,
    isolate_first: int = 0,
) -> Generator[ImageResult, None, None]:
    """One row for every path, in order; a picture that fails has its row with the reason.

    Who stops before the last row closes the generator (`contextlib.closing`), and no more pictures are read.

    Args:
        paths: picture files, or `fer_runtime.batch.sources.Inputs` of folders; consumed as rows are taken, a few
            blocks ahead.
        summary: filled while the rows are taken.
        workers: threads that read, decode and find faces; the CPUs that this process may use by default.
        read: a path to the file's content.
        on_image: called with each picture that could be read, and its row.
        isolate_first: images at the beginning that are decoded in processes of their own whatever their format. A run
            that was killed may have been killed by one of the images that it was decoding.

    Raises:
        ValueError: `paths` is one path, whose letters would be taken for paths.
    """
    if isinstance(paths, (str, bytes, PathLike)):
        raise ValueError(
            f"paths must be a list of picture files, not {paths!r}; for a folder: "
            f"recognize_files(recognizer, Inputs([{os.fspath(paths)!r}])), from fer_runtime.batch.sources import Inputs"
        )
    return _recognized(recognizer, paths, summary or JobSummary(), workers, read, on_image, isolate_first)


def _recognized(
    recognizer: Recognizer,
    paths: Iterable[str],
    summary: JobSummary,
    workers: int | None,
    read: Callable[[str], bytes],
    on_image: Callable[[Uint8Array, ImageResult], object] | None,
    isolate_first: int,
) -> Generator[ImageResult, None, None]:
    count = workers or available_cpus()
    remaining = iter(paths)
    block_size = BLOCK if on_image is None else _KEPT_BLOCK
    task_size = _FIRST_TASK
    submitted = 0
    pending: deque[list[_Task]] = deque()  # the tasks of each block
    pool = ThreadPoolExecutor(count, thread_name_prefix="fer-read")
    try:
        while True:
            # One block more than there are threads: none waits, and no more than that is in memory.
            while len(pending) <= count and (block := list(islice(remaining, block_size))):
                parts = [block[start : start + task_size] for start in range(0, len(block), task_size)]
                is_isolated = submitted < isolate_first
                submitted += len(block)
                pending.append(
                    [
                        pool.submit(_prepare_pictures, recognizer, part, read, on_image is not None, is_isolated)
                        for part in parts
                    ]
                )
            if not pending:
                pool.shutdown()
                return
            prepared: list[_Prepared] = []
            busy = 0.0
            for task in pending.popleft():
                pictures, seconds = task.result()
                prepared += pictures
                busy += sum(seconds.values())
                for stage, spent in seconds.items():
                    summary.seconds_by_stage[stage] += spent
            task_size = min(BLOCK, max(1, int(_TASK_SECONDS * len(prepared) / max(busy, 1e-9))))
            for picture, row in zip(prepared, _classified(recognizer, prepared, summary), strict=True):
                if on_image is not None and picture.image is not None:
                    on_image(picture.image, row)
                yield row
    finally:
        # The consumer has gone, or a row could not be written: nothing more is read. The threads are not
        # waited for: one of them may be running this, as the garbage collector that found a generator
        # which nobody closed.
        pool.shutdown(wait=False, cancel_futures=True)


def _prepare_pictures(
    recognizer: Recognizer, paths: list[str], read: Callable[[str], bytes], keeps_images: bool, is_isolated: bool
) -> tuple[list[_Prepared], dict[str, float]]:
    seconds = dict.fromkeys(("read", "decode", "detect"), 0.0)
    pictures: list[_Prepared] = []
    unread = iter(paths)
    while run := _read_run(unread, read, seconds):
        for picture, content in run:
            if content is not None:
                _prepare(recognizer, picture, content, keeps_images, is_isolated, seconds)
            pictures.append(picture)
    return pictures, seconds


def _read_run(
    paths: Iterator[str], read: Callable[[str], bytes], seconds: dict[str, float]
) -> list[tuple[_Prepared, bytes | None]]:
    """The next files' contents, None with the reason where one cannot be read; a file alone where it is large."""
    started = perf_counter()
    run: list[tuple[_Prepared, bytes | None]] = []
    size = 0
    for path in paths:
        picture, content = _Prepared(path), None
        try:
            content = read(path)
            size += len(content)
        except ImageError as error:
            picture.error = str(error)
        except MemoryError:
            picture.error = _NO_MEMORY
        run.append((picture, content))
        if size >= _RUN_BYTES:
            break
    seconds["read"] += perf_counter() - started
    return run


def _prepare(
    recognizer: Recognizer,
    picture: _Prepared,
    content: bytes,
    keeps_images: bool,
    is_isolated: bool,
    seconds: dict[str, float],
) -> None:
    started = perf_counter()
    try:
        image = decode_image(content, max_pixels=recognizer.max_pixels, isolated=is_isolated)
        decoded_at = perf_counter()
        seconds["decode"] += decoded_at - started
        picture.height, picture.width = image.shape[:2]
        picture.image = image if keeps_images else None
        picture.detections = recognizer.detect(image)
        picture.faces = [prepare_face(image, one.box, roll=one.roll) for one in picture.detections]
        seconds["detect"] += perf_counter() - decoded_at
    except ImageError as error:
        picture.error = str(error)
    except MemoryError:
        picture.error = _NO_MEMORY


def _classified(recognizer: Recognizer, pictures: list[_Prepared], summary: JobSummary) -> list[ImageResult]:
    started = perf_counter()
    crops = [face for picture in pictures for face in picture.faces]
    boxes = [one.box for picture in pictures for one in picture.detections]
    # concatenate, then a view: numpy's stack adds an axis to every crop first, and takes four times as long.
    probabilities = recognizer.classify(np.concatenate(crops).reshape(-1, FACE_SIZE, FACE_SIZE)) if crops else None
    summary.seconds_by_stage["classify"] += perf_counter() - started
    every_face = iter([] if probabilities is None else recognizer.faces(boxes, probabilities))
    rows = []
    for picture in pictures:
        faces = tuple(islice(every_face, len(picture.faces)))
        summary.pictures += 1
        summary.faces += len(faces)
        if picture.error is not None:
            summary.failures[picture.error] += 1
        elif not faces:
            summary.without_face += 1
            summary.crop_sized += may_be_face_crop(picture.width or 0, picture.height or 0)
        rows.append(
            ImageResult(path=picture.path, width=picture.width, height=picture.height, error=picture.error, faces=faces)
        )
    return rows
