"""`fer-infer --watch`: files that come into a folder, one by one, over several runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import pytest
from tests.processes import started, without_roots_rights
from tests.runtime.tiny_models import band_face, write_band_model

from fer_runtime.batch.watch import Covered, FolderWatch, _covered, is_being_written


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_band_model(tmp_path_factory.mktemp("model") / "bands.onnx")


def _png(expression: int) -> bytes:
    return cv2.imencode(".png", band_face(expression))[1].tobytes()


def _rows(output: Path) -> list[tuple[str, str | None]]:
    rows = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    return [(Path(row["path"]).name, row["error"] or row["faces"][0]["expression"]) for row in rows]


def _wait_for(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 40
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)


@contextmanager
def _started(model: Path, inbox: Path, output: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "fer_runtime", "--watch", str(inbox), "--output", str(output)]
    with started([*command, "--model", str(model), *arguments], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()  # a watch has no end of its own


def test_files_become_rows_when_they_are_whole_and_a_new_run_continues(model: Path, tmp_path: Path) -> None:
    inbox, output = tmp_path / "inbox", tmp_path / "rows.jsonl"
    inbox.mkdir()
    (inbox / "a.png").write_bytes(_png(3))
    (inbox / "notes.txt").write_text("no image")
    with _started(model, inbox, output) as run:
        _wait_for(lambda: _rows(output) == [("a.png", "happy")])
        content = _png(5)
        with (inbox / "b.png").open("wb") as slow:
            slow.write(content[:100])
            slow.flush()
            (inbox / "c.png").write_bytes(_png(6))
            # Whole files pass the one that somebody still writes.
            _wait_for(lambda: ("c.png", "surprise") in _rows(output))
            assert len(_rows(output)) == 2
            slow.write(content[100:])
        _wait_for(lambda: ("b.png", "sad") in _rows(output))
        run.send_signal(signal.SIGTERM)
        _, errors = run.communicate(timeout=30)
    assert run.returncode == 143
    assert "3 images, 3 faces" in errors
    assert "not read: 1 .txt" in errors
    before = output.read_bytes()
    output.write_bytes(before + b'{"path": "torn')  # a kill in the middle of a row
    (inbox / "d.png").write_bytes(_png(0))
    with _started(model, inbox, output) as run:
        _wait_for(lambda: len(_rows_or_none(output)) == 4)
        # A file of the same name is another file.
        (inbox / "new.png").write_bytes(_png(1))
        os.replace(inbox / "new.png", inbox / "a.png")
        _wait_for(lambda: len(_rows_or_none(output)) == 5)
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=30)
    assert run.returncode == 0
    assert "3 rows from the previous run" in errors
    assert output.read_bytes().startswith(before)
    assert _rows(output)[3:] == [("d.png", "angry"), ("a.png", "disgust")]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells whether a file is open for writing")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_replaced_file_that_waits_for_its_row_gets_it_in_the_next_run(
    model: Path, tmp_path: Path, number: int
) -> None:
    inbox, output = tmp_path / "inbox", tmp_path / "rows.jsonl"
    inbox.mkdir()
    (inbox / "a.png").write_bytes(_png(3))
    with _started(model, inbox, output) as run:
        _wait_for(lambda: _rows(output) == [("a.png", "happy")])
        with (inbox / "a.png").open("r+b") as slow:
            slow.write(_png(5))
            slow.truncate()
            slow.flush()
            time.sleep(0.1)  # longer than a tick of the file system's clock
            (inbox / "b.png").write_bytes(_png(6))
            _wait_for(lambda: ("b.png", "surprise") in _rows(output))
            time.sleep(0.5)  # the run notes that the row is there
            run.send_signal(number)
            run.wait(30)
    with _started(model, inbox, output):
        _wait_for(lambda: len(_rows(output)) >= 3)
        time.sleep(1.5)  # another look
        assert _rows(output) == [("a.png", "happy"), ("b.png", "surprise"), ("a.png", "sad")]


def _rows_or_none(output: Path) -> list[tuple[str, str | None]]:
    try:
        return _rows(output)
    except ValueError:  # the torn row is still there
        return []


def test_rows_of_another_model_and_files_of_others_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with _started(model, tmp_path, tmp_path / "rows.jsonl") as run:
        _, errors = run.communicate(timeout=30)
    assert run.returncode == 1
    assert "no run of fer-infer wrote it" in errors
    assert (tmp_path / "rows.jsonl").read_text() == "{}\n"


def test_rows_behind_a_damaged_one_are_not_thrown_away(model: Path, tmp_path: Path) -> None:
    inbox, output = tmp_path / "inbox", tmp_path / "rows.jsonl"
    inbox.mkdir()
    for number in range(3):
        (inbox / f"{number}.png").write_bytes(_png(number))
    with _started(model, inbox, output):
        _wait_for(lambda: len(_rows(output)) == 3)
    for name in ("1.png", "2.png"):
        (inbox / name).unlink()  # their rows are all that is left of them
    whole = output.read_bytes()
    damaged = whole.replace(b'1.png", "width": 48', b'1.png", "width": "8')
    assert damaged != whole
    output.write_bytes(damaged)
    with _started(model, inbox, output) as run:
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "row 2 in" in errors
    assert "is damaged" in errors
    assert output.read_bytes() == damaged


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--annotate", "x"), "--watch does not use --annotate"),
        (("a.jpg",), "--watch does not use a.jpg"),
        (("--format", "csv"), "named for jsonl"),
    ],
)
def test_what_a_watch_does_not_use_is_refused(model: Path, tmp_path: Path, arguments: tuple[str], said: str) -> None:
    with _started(model, tmp_path, tmp_path / "rows.jsonl", *arguments) as run:
        _, errors = run.communicate(timeout=30)
    assert run.returncode == 2
    assert said in errors


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells whether a file is open for writing")
def test_a_file_that_is_open_for_writing_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.write(b"x")
        file.flush()
        assert is_being_written(str(path))
    assert not is_being_written(str(path))
    with path.open("rb"):
        assert not is_being_written(str(path))


def test_files_are_given_once_oldest_first_and_forgotten_when_they_are_gone(tmp_path: Path) -> None:
    watch = FolderWatch(str(tmp_path))
    assert watch.new_files() == []
    for age, name in ((5, "b.png"), (9, "a.png")):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    assert watch.new_files() == []  # seen for the first time: it may still grow
    assert [Path(path).name for path in watch.new_files()] == ["a.png", "b.png"]
    assert watch.new_files() == []
    (tmp_path / "a.png").unlink()
    assert watch.new_files() == []
    (tmp_path / "a.png").write_bytes(b"x")
    watch.new_files()
    assert [Path(path).name for path in watch.new_files()] == ["a.png"]


def _new(watch: FolderWatch) -> list[str]:
    """New files; in two looks, as one that was not there before may still grow."""
    return [Path(path).name for path in (*watch.new_files(), *watch.new_files())]


def test_files_are_not_new_again_when_their_folder_was_away(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    (inbox / "sub").mkdir(parents=True)
    for path in (inbox / "a.png", inbox / "sub" / "b.png"):
        path.write_bytes(b"x")
    watch = FolderWatch(str(inbox), recursive=True)
    assert sorted(_new(watch)) == ["a.png", "b.png"]
    inbox.rename(tmp_path / "away")
    assert (_new(watch), watch.unreadable) == ([], [str(inbox)])
    (tmp_path / "away" / "c.png").write_bytes(b"x")
    (tmp_path / "away").rename(inbox)
    assert (_new(watch), watch.unreadable) == (["c.png"], [])


def test_known_files_of_a_disk_that_is_there_later_are_not_new(tmp_path: Path) -> None:
    inbox, disk = tmp_path / "inbox", tmp_path / "disk"
    disk.mkdir()
    inbox.mkdir()
    (disk / "a.png").write_bytes(b"x")
    time.sleep(0.05)  # longer than a tick of the file system's clock
    watch = FolderWatch(str(inbox), known=[str(inbox / "a.png")], covered=Covered(time.time()))
    assert _new(watch) == []
    inbox.rmdir()
    disk.rename(inbox)
    (inbox / "b.png").write_bytes(b"x")
    assert _new(watch) == ["b.png"]
    os.replace(inbox / "b.png", inbox / "a.png")
    assert _new(watch) == ["a.png"]


def _without_rights(folder: Path, program: str) -> str:
    """What a program prints as root without root's right to read everything, or as any other user."""
    program = "import os, sys\nfrom fer_runtime.batch.watch import FolderWatch\n" + program
    command = [*without_roots_rights(), sys.executable, "-c", program]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_files_and_folders_that_cannot_be_read_for_a_while(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png"):
        (tmp_path / name).write_bytes(b"x")
    assert _without_rights(
        tmp_path,
        """
watch = FolderWatch(".", recursive=True)
look = lambda: print(*sorted(watch.new_files() + watch.new_files()), *watch.unreadable)
look()
os.chmod("sub", 0); look()
os.chmod("sub", 0o755); look()
os.chmod("a.png", 0); look()
os.chmod("a.png", 0o644); look()
""",
    ).splitlines() == ["./a.png ./sub/b.png", "./sub", "", "./a.png", "./a.png"]


def test_known_files_are_new_again_when_they_changed_after_their_rows(tmp_path: Path) -> None:
    def write(name: str, modified: float) -> None:
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (modified, modified))

    write("old.png", 1e9)
    known_until = os.stat(tmp_path / "old.png").st_ctime
    time.sleep(0.05)  # longer than a tick of the file system's clock
    write("changed.png", known_until + 9)
    write("moved.png", 1e9 + 1)  # a file that was moved over another one keeps its time
    write("new.png", 1e9)
    known = [str(tmp_path / name) for name in ("old.png", "changed.png", "moved.png")]
    watch = FolderWatch(str(tmp_path), known=known, covered=Covered(known_until))
    # Two looks, because the clock says that changed.png is being written.
    new = [*watch.new_files(), *watch.new_files()]
    assert [Path(path).name for path in new] == ["new.png", "moved.png", "changed.png"]


def test_many_replaced_files_are_covered_by_the_time_of_the_first() -> None:
    replaced = [(float(9 + number), "x" * 200) for number in range(1000)]
    assert _covered(5000.0, replaced[:9]) == Covered(5000.0, frozenset(["x" * 200]))
    assert 8 < _covered(5000.0, replaced).until < 9
    assert _covered(5000.0, replaced).replaced == frozenset()
