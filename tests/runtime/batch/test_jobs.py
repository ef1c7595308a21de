"""A run over many pictures: its threads end with it, however it ends."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from tests.runtime.tiny_models import band_face, write_band_model

from fer_runtime import Recognizer
from fer_runtime.batch.jobs import BLOCK, JobSummary, recognize_files
from fer_runtime.batch.sources import Inputs
from fer_runtime.errors import ModelFileError


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recognizer]:
    with Recognizer(write_band_model(tmp_path_factory.mktemp("model") / "bands.onnx")) as recognizer:
        yield recognizer


@pytest.fixture(scope="module")
def picture() -> bytes:
    return cv2.imencode(".png", band_face(3))[1].tobytes()


def _run_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("fer-run")]


def test_after_the_last_row_no_thread_is_left(recognizer: Recognizer, picture: bytes) -> None:
    rows = list(recognize_files(recognizer, ["face.png"] * 200, workers=2, read=lambda path: picture))
    assert len(rows) == 200
    assert _run_threads() == []


def test_a_run_over_one_image_starts_no_thread(recognizer: Recognizer, picture: bytes) -> None:
    def read(path: str) -> bytes:
        assert threading.current_thread() is threading.main_thread()
        return picture

    for must_wait in (None, lambda: False):
        (row,) = recognize_files(recognizer, ["face.png"], workers=2, read=read, must_wait=must_wait)
        assert (row.error, len(row.faces)) == (None, 1)


@pytest.mark.parametrize("place", ["fer_runtime.detectors.haar.to_gray", "fer_runtime.recognizer.prepare_face"])
def test_an_image_for_which_opencv_has_no_memory_is_one_row(
    place: str, recognizer: Recognizer, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_memory = cv2.error("Insufficient memory")
    no_memory.code = cv2.Error.StsNoMem
    with monkeypatch.context() as moment:
        moment.setattr(place, Mock(side_effect=no_memory))
        large = cv2.imencode(".png", np.zeros((200, 300, 3), np.uint8))[1].tobytes()
        content = large if "haar" in place else picture
        (row,) = recognize_files(recognizer, ["a.png"], read=lambda path: content)
    assert row.error == "needs more memory than there is"
    (row,) = recognize_files(recognizer, ["a.png"], read=lambda path: content)
    assert row.error is None


@pytest.mark.parametrize("paths", ["pics", b"pics", Path("pics")])
def test_one_path_is_not_taken_for_many(recognizer: Recognizer, paths: Any) -> None:
    # At once, not when the first row is asked for.
    with pytest.raises(ValueError, match=r"for a folder: recognize_files\(recognizer, find_images\('pics'\)\)"):
        recognize_files(recognizer, paths)


def test_a_folder_in_the_list_says_what_lists_its_pictures(
    recognizer: Recognizer, picture: bytes, tmp_path: Path
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "face.png").write_bytes(picture)
    (row,) = recognize_files(recognizer, [str(tmp_path)])
    assert row.error is not None
    assert "list its images with fer_runtime.find_images" in row.error
    (row,) = recognize_files(recognizer, Inputs([str(tmp_path)], recursive=True))
    assert (row.path, row.error) == (str(tmp_path / "deep" / "face.png"), None)


def test_a_closed_run_reads_no_more_pictures(recognizer: Recognizer, picture: bytes) -> None:
    read: list[str] = []

    def read_and_count(path: str) -> bytes:
        read.append(path)
        return picture

    paths = (f"{number}.png" for number in range(100 * BLOCK))
    with closing(recognize_files(recognizer, paths, workers=1, read=read_and_count)) as rows:
        next(rows)
    for thread in _run_threads():
        thread.join(timeout=60)
    # The block of the row that was taken, and the one or two that wait behind it.
    assert BLOCK <= len(read) <= 3 * BLOCK


def test_a_run_that_is_forgotten_may_be_collected_in_one_of_its_own_threads(
    recognizer: Recognizer, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten, collected = threading.Event(), threading.Event()
    ignored: list[object] = []  # exceptions that the garbage collector can raise to nobody
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)

    def read_and_collect(path: str) -> bytes:
        if path == f"{BLOCK}.png":  # of the block after the one whose rows are taken
            forgotten.wait(timeout=60)
            gc.collect()
            collected.set()
        return picture

    paths = (f"{number}.png" for number in range(4 * BLOCK))
    gc.disable()  # nothing else may find the generator first
    try:
        rows = recognize_files(recognizer, paths, workers=1, read=read_and_collect)
        assert next(rows).path == "0.png"
        # As an exception's traceback does that refers to its own frame.
        circle: list[object] = [rows]
        circle.append(circle)
        del rows, circle
        forgotten.set()
        assert collected.wait(timeout=60)
    finally:
        gc.enable()
    for thread in _run_threads():
        thread.join(timeout=60)
    assert ignored == []
    assert _run_threads() == []


def test_small_images_without_a_face_are_counted_apart(recognizer: Recognizer, tmp_path: Path) -> None:
    for name, shape in (("crop", (150, 150)), ("banner", (90, 500)), ("photograph", (400, 500))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full(shape, 127, np.uint8))
    summary = JobSummary()
    rows = list(recognize_files(recognizer, Inputs([str(tmp_path)]), summary=summary))
    assert len(rows) == 3
    assert (summary.without_face, summary.crop_sized) == (3, 1)


def test_the_first_images_of_a_resumed_run_are_decoded_in_other_processes(
    recognizer: Recognizer, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fer_runtime.images import isolated

    decode_apart = isolated.decode_apart
    apart: list[bytes] = []

    def counted(content: bytes) -> Any:
        apart.append(content)
        return decode_apart(content)

    monkeypatch.setattr(isolated, "decode_apart", counted)
    paths = [str(number) for number in range(3 * BLOCK)]
    whole = list(recognize_files(recognizer, paths, read=lambda path: picture))
    assert not apart
    resumed = list(recognize_files(recognizer, paths, read=lambda path: picture, isolate_first=BLOCK + 1))
    assert len(apart) == 2 * BLOCK  # by whole blocks
    assert resumed == whole


def test_two_blocks_go_through_the_model_at_a_time_and_rows_keep_their_order(
    recognizer: Recognizer, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [f"{number}.png" for number in range(30 * BLOCK + 3)]
    expected = list(recognize_files(recognizer, paths, workers=1, read=lambda path: picture))
    answer, calls = Recognizer.answer, itertools.count()
    first, second, overlapped = threading.Event(), threading.Event(), threading.Event()

    def answer_together(self: Recognizer, faces: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            # It takes a block that no thread has begun, and adds the next ones: it lets them begin, and does not wait.
            if first.wait(timeout=0.2):
                second.set()
        elif next(calls) == 0:
            first.set()
            assert second.wait(timeout=60)
            overlapped.set()
        else:
            second.set()
        return answer(self, faces)

    monkeypatch.setattr(Recognizer, "answer", answer_together)
    summary = JobSummary()
    rows = list(
        recognize_files(recognizer, paths, workers=2, model_threads=2, read=lambda path: picture, summary=summary)
    )
    assert rows == expected
    assert overlapped.is_set()
    assert (summary.images, summary.faces) == (len(paths), len(paths))


def test_rows_do_not_wait_for_images_that_are_read_slowly(recognizer: Recognizer, picture: bytes) -> None:
    has_rows = threading.Event()

    def read(path: str) -> bytes:
        if path == f"{2 * BLOCK}.png":
            assert has_rows.wait(timeout=60)
        return picture

    paths = [f"{number}.png" for number in range(3 * BLOCK)]
    with closing(recognize_files(recognizer, paths, workers=4, model_threads=4, read=read)) as results:
        for result in results:
            if result.path == f"{2 * BLOCK - 1}.png":
                has_rows.set()
    assert result.error is None


def test_an_error_of_the_model_in_a_thread_ends_the_run(
    recognizer: Recognizer, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Recognizer, faces: Any) -> Any:
        raise ModelFileError("cannot be run")

    monkeypatch.setattr(Recognizer, "answer", fail)
    paths = [f"{number}.png" for number in range(8 * BLOCK)]
    with pytest.raises(ModelFileError, match="cannot be run"):
        list(recognize_files(recognizer, paths, workers=2, model_threads=2, read=lambda path: picture))


def test_only_the_cpu_runs_several_blocks_at_a_time(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [recognizer.runs_at_once(cpus) for cpus in (1, 2, 8)] == [1, 2, 8]
    with Recognizer(recognizer.path, threads=4) as four:
        assert [four.runs_at_once(cpus) for cpus in (1, 4, 8)] == [1, 1, 2]
    monkeypatch.setattr(recognizer, "provider", "CUDA")
    assert recognizer.runs_at_once(8) == 1


@pytest.mark.parametrize(("whole_blocks", "expected"), [(False, 2 * BLOCK + 5), (True, 2 * BLOCK)])
def test_rows_do_not_wait_for_paths_that_are_not_there_yet(
    recognizer: Recognizer, picture: bytes, whole_blocks: bool, expected: int
) -> None:
    sent: list[str] = []
    given: list[str] = []

    def paths() -> Iterator[str]:
        for number in range(3 * BLOCK + 1):
            assert not must_wait(), "the next path is asked for before the rows of the others are out"
            sent.append(f"{number}.png")
            yield sent[-1]

    def must_wait() -> bool:
        return len(sent) == 2 * BLOCK + 5 and len(given) < expected

    with closing(
        recognize_files(
            recognizer,
            paths(),
            workers=2,
            model_threads=2,
            read=lambda path: picture,
            must_wait=must_wait,
            whole_blocks=whole_blocks,
        )
    ) as results:
        for result in results:
            given.append(result.path)
    assert given == sent
    assert len(given) == 3 * BLOCK + 1
