"""`recognize_files`, a run over many images: stages overlap, memory stays flat, rows keep the order of the paths."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from os import PathLike

from fer_runtime.batch.classifying import Blocks, Classified
from fer_runtime.batch.reading import Now, Prepared, Reading, Source
from fer_runtime.faces import may_be_face_crop
from fer_runtime.images import Uint8Array, read_bytes
from fer_runtime.recognizer import Recognizer
from fer_runtime.results import ImageResult
from fer_runtime.system import available_cpus

# Images that go through the model together, at most. A row's last bits depend on the images in its block, so
# blocks end at the same images in every run: after a number of images, or of pixels. The pixels keep rows coming:
# a block of 64 photographs would take a Raspberry Pi a quarter of a minute.
BLOCK = 64
_BLOCK_PIXELS = 1_000_000
# Where the images are kept to be drawn on, a block of 64 would be 1.6 GB at 4K.
_KEPT_BLOCK = 2


class BlockEnds:
    """Tells where the blocks of a run end.

    Args:
        keeps_images: the images are kept until their rows are written.
        images: number of images of the run before the first block.
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
    """Counts and times of a run, updated for each block before its rows are yielded."""

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


OnRow = Callable[["Uint8Array | None", ImageResult], ImageResult]


def recognize_files(
    recognizer: Recognizer,
    paths: Iterable[str | PathLike[str]],
    *,
    summary: JobSummary | None = None,
    workers: int | None = None,
    model_threads: int | None = None,
    read: Callable[[str], bytes] = read_bytes,
    on_row: OnRow | None = None,
    block_ends: BlockEnds | None = None,
    isolate_first: int = 0,
    must_wait: Callable[[], bool] | None = None,
    whole_blocks: bool = False,
) -> Generator[ImageResult, None, None]:
    """Yield one row for every path, in order; the row of an image that cannot be read has the reason as `error`.

    If you stop before the last row, close the generator (`contextlib.closing`); then no more images are read.

    Args:
        recognizer: finds and classifies the faces.
        paths: image files, such as `find_images` yields; consumed as rows are taken, a few blocks ahead.
        summary: filled while the rows are taken.
        workers: threads that read, decode and detect; by default one for each CPU that this process may use.
        model_threads: CPUs for the model, which several blocks go through at a time; by default as many as there are
            workers, and no more than this process may use. The rows do not depend on it.
        read: returns the content of the file at a path.
        on_row: called with each image, uint8 (height, width, 3) in BGR or None if it could not be decoded, and its
            row; returns the row to yield.
        block_ends: tells where blocks end, in a run that continues; by default as in a new run.
        isolate_first: number of images at the start that are decoded in separate processes whatever their format: one
            of them may have killed an earlier run.
        must_wait: tells whether the next path is not there yet, as in a list that a program writes slowly. Then the
            rows so far are yielded first, in a shorter block. By default no path is waited for.
        whole_blocks: nevertheless wait for whole blocks, which end where a run that continues expects them.

    Raises:
        ModelFileError: while rows are taken: the model does not run.
        ValueError: `paths` is one path, whose letters would be taken for paths.
        TypeError: while rows are taken: one of `paths` is not a path.
    """
    if isinstance(paths, (str, bytes, PathLike)):
        raise ValueError(
            f"paths must be a list of image files, not {paths!r}; for a folder: "
            f"recognize_files(recognizer, find_images({os.fsdecode(paths)!r})), from fer_runtime import find_images"
        )
    cpus = available_cpus()
    workers = workers or cpus
    keeps_images = on_row is not None
    ends = block_ends or BlockEnds(keeps_images=keeps_images)
    reading = Reading(
        recognizer,
        Source(map(_path_text, paths), must_wait, whole_chunks=whole_blocks),
        read,
        workers=workers,
        chunk_size=ends.size,
        keeps_images=keeps_images,
        isolate_first=isolate_first,
    )
    # Images that are kept to be drawn on wait in no further queue.
    at_once = 1 if keeps_images else recognizer.runs_at_once(model_threads or min(workers, cpus))
    return _rows_of(reading, Blocks(recognizer, at_once), ends, summary or JobSummary(), on_row)


def _path_text(path: str | PathLike[str]) -> str:
    """A path as the rows have it."""
    if isinstance(path, str):
        return path
    if isinstance(path, PathLike) and isinstance(text := os.fspath(path), str):
        return text
    # numpy's arrays and bytes could be opened as paths, and their rows would say that there is no such file.
    raise TypeError(
        f"paths must be a list of image files, with none of {type(path).__name__}; "
        "for an image in memory: recognizer.predict(image)"
    )


def _rows_of(
    reading: Reading, blocks: Blocks, ends: BlockEnds, summary: JobSummary, on_row: OnRow | None
) -> Generator[ImageResult, None, None]:
    block: list[Prepared] = []
    try:
        while True:
            reading.read_ahead(waits=not blocks and (reading.whole_chunks or not block))
            if not reading:
                if block and (reading.has_ended or not reading.whole_chunks):
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
                while blocks and not isinstance(task, Now) and not task.done():
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


def _rows(block: Classified, summary: JobSummary, on_row: OnRow | None) -> Iterator[ImageResult]:
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
