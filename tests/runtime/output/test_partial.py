"""The file of unfinished rows: one writer at a time, nothing of others touched, and no row lost or torn."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.processes import started

from fer_runtime.errors import OutputError
from fer_runtime.output.partial import PartialFile, partial_path, settings_path


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    first = PartialFile(output)
    first.start(0, {"model": "a"})
    first.write("row\n")
    with pytest.raises(OutputError, match=rf"another run \(process {os.getpid()}, started 2\d\d\d-.*\) is writing"):
        PartialFile(output)
    first.finish()
    assert output.read_text() == "row\n"
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    PartialFile(output).close()


@pytest.mark.parametrize("in_place", [True, False])
def test_rows_under_their_own_name_and_collected_ones_refuse_each_other(in_place: bool, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    first = PartialFile(output, in_place=in_place)
    first.start(0, {"model": "a"})
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(OutputError, match=rf"another run \(process {os.getpid()}, started .*\) is writing"):
        PartialFile(output, in_place=not in_place)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    first.close()


def test_rows_of_a_watch_are_not_replaced_by_those_of_another_run(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    watch = PartialFile(output, in_place=True)
    watch.start(0, {"model": "a"})
    watch.write("row\n")
    watch.flush()
    watch.close()
    other = PartialFile(output)
    with pytest.raises(OutputError, match=r"rows of --watch are in .*; continue them with --watch"):
        other.refuse_unfinished()
    other.close()
    again = PartialFile(output, in_place=True)
    assert (again.size, again.settings) == (4, {"model": "a"})
    again.close()
    output.unlink()
    other = PartialFile(output)
    other.refuse_unfinished()
    other.close()


def test_the_lock_of_a_killed_process_is_gone_and_its_rows_are_there(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    script = (
        "import sys, time; from pathlib import Path; from fer_runtime.output.partial import PartialFile\n"
        "file = PartialFile(Path(sys.argv[1])); file.start(0, {'model': 'a'}); file.write('row\\n'); file.flush()\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    with started([sys.executable, "-c", script, str(output)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(OutputError, match=f"process {process.pid}"):
            PartialFile(output)
        process.kill()
    file = PartialFile(output)
    assert (file.size, file.settings) == (4, {"model": "a"})
    with pytest.raises(OutputError, match="continue it with --resume"):
        file.refuse_unfinished()
    file.close()
    assert partial_path(output).read_text() == "row\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no open file")
def test_rows_whose_folder_was_removed_are_not_said_to_be_there(tmp_path: Path) -> None:
    file = PartialFile(tmp_path / "out" / "rows.jsonl")
    file.start(0, {"model": "a"})
    file.write("row\n")
    shutil.rmtree(tmp_path / "out")
    for ends in (file.flush, file.finish):
        with pytest.raises(OutputError, match=r"rows\.jsonl\.partial has been removed, with the rows so far$"):
            ends()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows moves no open file")
def test_rows_go_on_in_a_file_that_was_moved(tmp_path: Path) -> None:
    file = PartialFile(tmp_path / "rows.jsonl", in_place=True)
    file.start(0, {"model": "a"})
    (tmp_path / "rows.jsonl").rename(tmp_path / "rows.1")
    file.write("row\n")
    file.flush()
    file.close()
    assert (tmp_path / "rows.1").read_text() == "row\n"


def test_an_interrupted_flush_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "rows.jsonl"
    file = PartialFile(output)
    file.start(0, None)
    real, calls = os.write, []

    def write_half_and_be_interrupted(descriptor: int, content: memoryview) -> int:
        calls.append(len(content))
        if len(calls) == 2:  # as a signal's handler does, between two parts of one write
            raise KeyboardInterrupt
        return real(descriptor, content[: len(content) // 2])

    file.write("first row\n")
    file.flush()
    file.write("second row\n")
    monkeypatch.setattr(os, "write", write_half_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        file.flush()
    monkeypatch.undo()
    file.write("third row\n")
    file.finish()
    assert output.read_text() == "first row\nsecond row\nthird row\n"


def test_rows_are_written_through_a_link(tmp_path: Path) -> None:
    output, target = tmp_path / "rows.jsonl", tmp_path / "store" / "of rows"
    target.parent.mkdir()
    target.write_text("old\n")
    output.symlink_to(target)
    file = PartialFile(output)
    assert file.path == partial_path(output) == partial_path(target)
    file.start(0, {})
    file.write("row\n")
    file.flush()
    assert target.read_text() == "old\n"
    file.finish()
    assert (output.is_symlink(), target.read_text()) == (True, "row\n")
    assert [path.name for path in target.parent.iterdir()] == ["of rows"]
    with pytest.raises(OutputError, match="is a symbolic link, which is not followed"):
        PartialFile(output, in_place=True)  # of --watch, which adds to what is there


def test_files_that_no_run_of_ours_wrote_are_left_alone(tmp_path: Path) -> None:
    output, victim = tmp_path / "rows.jsonl", tmp_path / "victim"
    for place in (partial_path(output), settings_path(output)):
        for kind in ("file", "link", "hard link", "dangling link", "folder"):
            victim.write_text("precious")
            if kind == "file":
                place.write_text("precious")
            elif kind == "link":
                place.symlink_to(victim)
            elif kind == "hard link":
                os.link(victim, place)
            elif kind == "dangling link":
                place.symlink_to(tmp_path / "elsewhere")
            else:
                place.mkdir()
            with pytest.raises(OutputError):
                PartialFile(output).start(0, {})
            assert victim.read_text() == "precious"
            assert not (tmp_path / "elsewhere").exists()
            if kind == "file":
                assert place.read_text() == "precious"
            place.rmdir() if kind == "folder" else place.unlink()
            partial_path(output).unlink(missing_ok=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_an_empty_record_is_that_of_a_run_killed_while_it_made_it(tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    partial_path(output).touch()
    settings_path(output).touch()
    file = PartialFile(output)
    file.refuse_unfinished()
    file.start(0, None)
    file.write("row\n")
    file.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]
    # Rows without a record may be anybody's.
    partial_path(output).write_text("row\n")
    settings_path(output).touch()
    with pytest.raises(OutputError, match="no run of fer-infer wrote it"):
        PartialFile(output)


def test_a_fifo_in_the_place_of_the_rows_is_refused_at_once(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    for place in (partial_path(output), settings_path(output)):
        os.mkfifo(place)
        script = (
            "import sys; from pathlib import Path; from fer_runtime.output.partial import PartialFile\n"
            "PartialFile(Path(sys.argv[1])).start(0, {})"
        )
        run = subprocess.run([sys.executable, "-c", script, str(output)], capture_output=True, timeout=60)
        assert b"OutputError" in run.stderr
        assert place.is_fifo()
        place.unlink()


def test_a_run_without_a_row_leaves_nothing_and_a_record_outlives_a_longer_one(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    file = PartialFile(output)
    file.start(0, {"model": "a" * 1000})
    file.close()
    assert list(tmp_path.iterdir()) == []

    file = PartialFile(output)
    file.start(0, {"model": "a" * 1000})
    file.write("row\n")
    file.flush()
    file.close()
    # A kill between the two steps of writing a shorter record.
    long, short = settings_path(output).read_text(), json.dumps({"format": "fer-edge rows", "settings": {"model": "b"}})
    settings_path(output).write_text(short + long[len(short) :])
    again = PartialFile(output)
    assert again.settings == {"model": "b"}
    again.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_sigterm_and_ctrl_c_are_told_apart_by_the_exit_code(number: int, code: int) -> None:
    script = (
        "import sys, time, signal, click; from fer_runtime.command import FerCommand\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "@click.command(cls=FerCommand)\n"
        "def main():\n"
        "    try:\n"
        "        print('ready', flush=True); time.sleep(60)\n"
        "    finally:\n"
        "        print('tidied', flush=True)\n"
        "main([])"
    )
    with started([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        rest, errors = process.communicate(timeout=60)
    assert rest == b"tidied\n"
    assert process.returncode == code
    assert b"Traceback" not in errors


@pytest.mark.parametrize(
    "hides",
    [
        # As pybind11 does for ONNX Runtime: https://github.com/pybind/pybind11, PYBIND11_CATCH_INIT_EXCEPTIONS.
        "raise ImportError('initialization failed') from error",
        # As PyTorch's lazy imports do: what is missing in the module is noticed later.
        "pass\n    raise AttributeError('module has no attribute')",
    ],
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_a_signal_while_a_module_is_imported_leaves_no_traceback(number: int, code: int, hides: str) -> None:
    script = (
        "import signal, click; from fer_runtime.command import FerCommand\n"
        "@click.command(cls=FerCommand)\n"
        "def main():\n"
        "    try:\n"
        f"        signal.raise_signal({number:d})\n"
        "    except KeyboardInterrupt as error:\n"
        f"        {hides}\n"
        "main([])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert run.returncode == code
    assert b"Traceback" not in run.stderr
