"""Files written by threads: all there, whole, with the permissions of any new file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fer_runtime.errors import OutputError
from fer_train.data.placing import Placing, Writing, in_threads, safe_name


def test_all_files_are_there_at_the_end_with_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with Writing() as writing:
            for number in range(200):
                writing.write(tmp_path / f"{number % 7}" / f"{number}.bin", bytes([number]))
        # The threads have asked for it two hundred times, and it is as it was.
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*.bin")} == {
        f"{number}.bin": bytes([number]) for number in range(200)
    }
    if os.name != "nt":
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*.bin")} == {0o640}


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").write_bytes(b"a file")
    with pytest.raises(OutputError, match=r"cannot write .*a.png"), Writing() as writing:
        writing.write(tmp_path / "folder" / "a.png", b"content")


def test_names_that_are_taken_get_numbers_and_the_same_content_keeps_its_name(tmp_path: Path) -> None:
    first = Placing(tmp_path)
    # In other capitals it is the same name to some file systems.
    names = [first.place("train", stem, ".png", stem.encode()) for stem in ("a", "A", "b", "../b", ".b")]
    assert names == ["train/a.png", "train/A-2.png", "train/b.png", "train/_b.png", "train/b-2.png"]
    again = Placing(tmp_path)
    assert again.place("train", "A", ".png", b"other") == "train/A.png"
    assert again.place("train", "b", ".png", b"b") == "train/b.png"
    assert (again.written, again.written_before) == (1, 1)


def test_parts_of_paths_stay_inside() -> None:
    names = ("../../etc", "a/b", "..", ".hidden", "x" * 300, "", "tab\tnul\0")
    assert [safe_name(name) for name in names] == ["_.._etc", "a_b", "image", "hidden", "x" * 150, "image", "tab_nul_"]


def test_work_in_threads_comes_back_in_order_and_its_errors_too() -> None:
    def work(number: int) -> int:
        if number == 30:
            raise OutputError("thirty")
        return number * number

    found = in_threads(work, range(100), workers=4)
    assert [next(found) for _ in range(30)] == [number * number for number in range(30)]
    with pytest.raises(OutputError, match="thirty"):
        next(found)
