"""Runs of `fer-infer` that are stopped, meet each other, or are pointed at their own inputs."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.commands import run_python
from tests.processes import started
from tests.runtime.tiny_models import band_face, write_band_model

from fer_runtime.output.destinations import COPY_MARK
from fer_runtime.output.partial import PartialFile
from fer_runtime.output.sink import NoFrame, Sink
from fer_runtime.stopping import Terminated, stopped_by_sigterm


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_band_model(tmp_path_factory.mktemp("model") / "bands.onnx")


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "fer_runtime", *map(str, arguments)]


def _infer(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return run_python("-m", "fer_runtime", *arguments, input=stdin, timeout=120)


def _stopped(
    number: int, paths: Sequence[Path], is_far_enough: Callable[[], bool], *arguments: object
) -> tuple[int, bytes]:
    """The exit code and stderr of a run over a list that never ends, which a signal stops."""
    with started(_command("-", *arguments), stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write("".join(f"{path}\n" for path in paths).encode())
        process.stdin.flush()
        end = time.monotonic() + 100
        while not is_far_enough():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(number)
        code = process.wait(timeout=60)
        assert process.stderr is not None
        return code, process.stderr.read()


def _write_crops(folder: Path, count: int, *, seed: int = 0) -> list[Path]:
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        cv2.imwrite(str(folder / f"{number:04}.png"), random.integers(0, 256, (48, 48), np.uint8))
    return sorted(folder.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_rows_leave_as_they_are_made(number: int, model: Path, tmp_path: Path) -> None:
    paths = _write_crops(tmp_path / "crops", 400)
    output, partial = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.partial"

    def has_a_row() -> bool:
        # Far below any buffer's size: rows leave with their block.
        return partial.exists() and partial.stat().st_size > 0

    code, messages = _stopped(number, paths, has_a_row, "--model", model, "--output", output)
    kept = partial.read_text().splitlines()
    assert [json.loads(line)["path"] for line in kept] == [str(path) for path in paths[: len(kept)]]
    assert len(kept) >= 64
    if number == signal.SIGTERM:
        assert code == 143
        assert b"continue with --resume" in messages
        summary = re.search(rb"(\d+) images, ", messages)
        assert summary
        assert int(summary[1]) == len(kept)
    listed = "".join(f"{path}\n" for path in paths).encode()
    assert _infer("-", "--model", model, "--output", output, "--resume", stdin=listed).returncode == 0
    whole = tmp_path / "whole.jsonl"
    assert _infer("-", "--model", model, "--output", whole, stdin=listed).returncode == 0
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)], ids=["TERM", "INT"]
)
def test_a_signal_comes_before_a_row_or_after_its_count(number: int, raised: type[KeyboardInterrupt]) -> None:
    class Target(list[str]):
        def write(self, text: str) -> None:
            self.append(text)
            signal.raise_signal(number)  # between the row and its count

        def flush(self) -> None:
            """Nothing is kept back."""

    target = Target()
    counted: list[int] = []
    with pytest.raises(raised), stopped_by_sigterm():
        Sink(target, NoFrame(), by_row=False).write("row", count=lambda: counted.append(1))
    assert (list(target), counted) == (["row"], [1])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_rows_of_a_list_that_trickles_in_do_not_wait_for_more(model: Path, tmp_path: Path) -> None:
    paths = _write_crops(tmp_path / "crops", 70)
    command = _command("-", "--model", model, "--format", "jsonl")
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for path in paths[:3]:
            process.stdin.write(f"{path}\n".encode())
            process.stdin.flush()
            assert select.select([process.stdout], [], [], 100)[0], "no row before the list has ended"
            assert json.loads(process.stdout.readline())["path"] == str(path)
        process.stdin.write("".join(f"{path}\n" for path in paths[3:]).encode())
        process.stdin.close()
        assert [json.loads(row)["path"] for row in process.stdout] == [str(path) for path in paths[3:]]
        assert process.wait(100) == 0


def test_with_stderr_closed_every_line_is_a_row(model: Path, tmp_path: Path) -> None:
    whole = band_face(3)
    for number in range(6):
        content = cv2.imencode(".png" if number % 2 else ".jpg", whole)[1].tobytes()
        # libpng and libjpeg print what they think of these.
        name = tmp_path / f"{number}{'.png' if number % 2 else '.jpg'}"
        name.write_bytes(content if number < 2 else content[: len(content) * number // 7])
    output = tmp_path / "rows"
    for redirection in ("2>&- <&-", f"2>&- >{output}"):
        script = f'"{sys.executable}" -m fer_runtime "{tmp_path}" --model "{model}" --format jsonl {redirection}'
        run = subprocess.run(["bash", "-c", script], capture_output=True, timeout=100)
        lines = (output.read_bytes() if output.exists() else run.stdout).splitlines()
        rows = [json.loads(line) for line in lines]
        assert run.returncode == 1
        assert [Path(row["path"]).name[0] for row in rows] == list("012345")
        assert [row["error"] is None for row in rows[:2]] == [True, True]


def test_deep_json_in_the_place_of_rows_or_settings_is_no_crash(model: Path, tmp_path: Path) -> None:
    (path,) = _write_crops(tmp_path / "crops", 1)
    output, partial = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.partial"
    deep = b"[" * 200_000 + b"\n"
    output.write_bytes(deep)
    refused = _infer(path, "--model", model, "--output", output, "--resume")
    assert b"holds no JSON Lines of fer-infer" in refused.stderr
    output.unlink()
    partial.write_bytes(deep)
    (tmp_path / "rows.jsonl.partial.settings").write_bytes(deep)
    refused = _infer(path, "--model", model, "--output", output, "--resume")
    assert b"no run of fer-infer wrote it" in refused.stderr
    assert partial.read_bytes() == deep


def test_a_list_that_names_an_earlier_copy_leaves_it_as_it_was(model: Path, tmp_path: Path) -> None:
    (path,) = _write_crops(tmp_path / "crops", 1)
    copies = tmp_path / "copies"
    listed = f"{path}\n".encode()
    for _ in range(2):  # a copy is replaced by the same image's next one
        assert _infer("-", "--model", model, "--annotate", copies, stdin=listed).returncode == 0
    copy = copies / path.name
    before = copy.read_bytes()
    (other,) = _write_crops(tmp_path / "others", 1, seed=1)  # of the same name
    both = f"{other}\n{tmp_path}/copies/../copies/{path.name}\n"
    refused = _infer("-", "--model", model, "--annotate", copies, stdin=both.encode())
    assert refused.returncode == 1
    assert b"copies would overwrite its images" in refused.stderr
    assert copy.read_bytes() == before


def test_a_second_run_over_videos_does_not_write_the_same_output(model: Path, tmp_path: Path) -> None:
    video, output = tmp_path / "film.avi", tmp_path / "rows.jsonl"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    for number in range(20):
        writer.write(np.full((64, 64, 3), number, np.uint8))
    writer.release()
    arguments = (video, "--model", model, "--detector", "whole", "--output", output)
    with closing(PartialFile(output)) as held:  # as a first run holds it
        held.start(0, None)
        held.write("a row\n")
        held.flush()
        second = _infer(*arguments)
        assert second.returncode == 1
        assert f"another run (process {os.getpid()}".encode() in second.stderr
        assert held.path.read_text() == "a row\n"
    assert _infer(*arguments).returncode == 0
    assert len(output.read_text().splitlines()) == 20


def test_a_killed_run_with_copies_of_equal_names_continues_to_the_same_files(model: Path, tmp_path: Path) -> None:
    listed: list[Path] = []
    for number in range(3):
        listed += _write_crops(tmp_path / str(number), 40, seed=number)
    paths = [path for three in zip(listed[:40], listed[40:80], listed[80:], strict=True) for path in three]
    paths += paths[:30]  # and lines that are repeated
    text = "".join(f"{path}\n" for path in paths).encode()

    def copies(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    whole = tmp_path / "whole"
    run = _infer("-", "--model", model, "--output", tmp_path / "a.jsonl", "--annotate", whole, stdin=text)
    assert run.returncode == 0
    assert len(copies(whole)) == 150
    out, partial = tmp_path / "out", tmp_path / "b.jsonl.partial"
    arguments = ("--model", model, "--output", tmp_path / "b.jsonl", "--annotate", out)
    _stopped(signal.SIGKILL, paths, lambda: partial.exists() and partial.stat().st_size > 20_000, *arguments)
    left = out / ".0001.png.abcdefgh.partial"  # as a kill during the writing of a copy leaves
    left.write_bytes(b"half")
    without = _infer("-", "--model", model, "--output", tmp_path / "b.jsonl", "--resume", stdin=text)
    assert b"annotate was" in without.stderr
    assert _infer("-", *arguments, "--resume", stdin=text).returncode == 0
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    assert copies(out) == copies(whole)


def test_a_killed_run_with_a_contact_sheet_continues_to_the_same_page(model: Path, tmp_path: Path) -> None:
    paths = []
    for number in range(140):
        paths.append(tmp_path / f"{number:03}.png")
        cv2.imwrite(str(paths[-1]), band_face(number % 7))
    text = "".join(f"{path}\n" for path in paths).encode()
    whole, page, partial = tmp_path / "whole.png", tmp_path / "page.png", tmp_path / "rows.jsonl.partial"
    assert _infer("-", "--model", model, "--contact-sheet", whole, stdin=text).returncode == 0
    arguments = ("--model", model, "--output", tmp_path / "rows.jsonl", "--contact-sheet", page)
    _stopped(signal.SIGKILL, paths, lambda: partial.exists() and partial.stat().st_size > 10_000, *arguments)
    refused = _infer("-", *arguments, stdin=text)
    assert b"continue it with --resume" in refused.stderr
    assert _infer("-", *arguments, "--resume", stdin=text).returncode == 0
    assert page.read_bytes() == whole.read_bytes()


def test_csv_rows_of_a_killed_run_are_replaced_without_a_question(model: Path, tmp_path: Path) -> None:
    paths = _write_crops(tmp_path / "crops", 200)
    output, partial = tmp_path / "rows.csv", tmp_path / "rows.csv.partial"
    _stopped(signal.SIGKILL, paths, lambda: partial.exists() and partial.stat().st_size > 0, "--output", output)
    assert _infer(tmp_path / "crops", "--model", model, "--output", output).returncode == 0
    assert len(output.read_text().splitlines()) == 201
    assert not partial.exists()


def _unchanged(files: dict[Path, bytes]) -> bool:
    return {path: path.read_bytes() for path in files} == files


def test_no_output_takes_the_place_of_a_file_that_the_run_reads(model: Path, tmp_path: Path) -> None:
    faces = _write_crops(tmp_path / "faces", 3)
    own = tmp_path / "own.onnx"
    own.write_bytes(model.read_bytes())
    listing = tmp_path / "list.txt"
    listing.write_text("".join(f"{path}\n" for path in faces))
    other = tmp_path / "other.jpg"
    other.write_bytes(faces[0].read_bytes())
    (tmp_path / "link").symlink_to(own)
    os.link(faces[1], tmp_path / "second name")
    waiting = tmp_path / "rows.partial"  # named as the rows of `--output rows` would be
    waiting.write_bytes(faces[2].read_bytes())
    before = {path: path.read_bytes() for path in (*faces, own, listing, other, waiting)}
    for arguments, stdin in (
        ((faces[0], "--output", own), None),
        ((faces[0], "--output", tmp_path / "link"), None),
        ((faces[0], "--contact-sheet", own), None),
        ((faces[0], "--yunet", own, "--detector", "yunet", "--output", own), None),
        (("-", "--output", listing), listing),
        (("-", "--contact-sheet", listing), listing),
        ((faces[1], "--output", tmp_path / "second name"), None),
        ((waiting, "--output", tmp_path / "rows"), None),
        ((tmp_path / "faces", "--output", tmp_path / "rows"), None),  # not ours, though not read either
        (("-", "--output", other), tmp_path / "reads_other.txt"),
        ((faces[0], "--output", tmp_path / "a.png", "--contact-sheet", tmp_path / "a.png"), None),
    ):
        (tmp_path / "reads_other.txt").write_text(f"{faces[0]}\n{other}\n")
        with open(stdin or os.devnull, "rb") as stream:
            run = subprocess.run(_command(*arguments, "--model", own), stdin=stream, capture_output=True, timeout=60)
        assert run.returncode in (1, 2), arguments
        assert b"Error: " in run.stderr
        assert b"Traceback" not in run.stderr
        assert _unchanged(before), arguments


def test_rows_replace_only_text_and_a_contact_sheet_only_a_page(model: Path, tmp_path: Path) -> None:
    face = _write_crops(tmp_path / "faces", 1)[0]
    picture, page, rows = tmp_path / "party.jpg", tmp_path / "page.png", tmp_path / "rows.csv"
    cv2.imwrite(str(picture), band_face(2))
    other, table = tmp_path / "other.onnx", tmp_path / "rows.npy"
    other.write_bytes(Path("models/model_0.onnx").read_bytes())
    np.save(table, np.arange(9))
    before = {path: path.read_bytes() for path in (picture, other, table)}
    for option, path in (("--output", other), ("--output", table), ("--output", picture), ("--contact-sheet", picture)):
        run = _infer(face, "--model", model, option, path)
        assert run.returncode == 2, (option, path)
        assert f"{option} {path} is an existing file".encode() in run.stderr
        assert _unchanged(before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces", "other.onnx", "party.jpg", "rows.npy"]
    rows.write_text("another table\n")
    page.touch()  # as mktemp leaves it
    for _ in range(2):  # for the first time, and over what it wrote
        assert _infer(face, "--model", model, "--output", rows, "--contact-sheet", page).returncode == 0
    assert rows.read_text().startswith("path,")
    sheet = cv2.imread(str(page))
    assert sheet is not None
    assert len(sheet) > 48


def test_copies_replace_only_copies_and_stay_in_their_folder(model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "in", tmp_path / "out"
    _write_crops(first / "deep", 2)
    _write_crops(second / "deep", 2, seed=1)
    outside = tmp_path / "v.png"
    cv2.imwrite(str(outside), band_face(1))
    (second / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere").mkdir()
    _write_crops(first / "linked", 1)
    (second / "0001.png").write_bytes(b"a photograph that no run reads")
    before = {path: path.read_bytes() for path in (*(second / "deep").iterdir(), outside, second / "0001.png")}
    named = _infer(first, second / "deep" / "0000.png", "--recursive", "--annotate", second, "--model", model)
    assert named.returncode == 1
    rows = {row["path"]: row["error"] for row in map(json.loads, named.stdout.splitlines())}
    assert "would overwrite" in rows[str(first / "deep" / "0000.png")]
    assert "links are not followed" in rows[str(first / "linked" / "0000.png")]
    assert list((tmp_path / "elsewhere").iterdir()) == []
    text = f"{first}/../v.png\n{first}/deep/0001.png\n".encode()
    listed = _infer(first, "-", "--annotate", second, "--model", model, stdin=text)
    assert listed.returncode == 1
    assert (second / "v.png").exists()
    assert _unchanged(before)
    # A copy of an earlier run is replaced.
    again = _infer(outside, "--annotate", second / "again", "--model", model)
    assert again.returncode == 0
    (second / "again" / "v.png").write_bytes(b"an older copy" + COPY_MARK)
    assert _infer(outside, "--annotate", second / "again", "--model", model).returncode == 0
    assert cv2.imread(str(second / "again" / "v.png")) is not None


def test_a_copy_that_cannot_be_written_is_its_own_rows_matter(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    _write_crops(folder, 2)
    content = (folder / "0000.png").read_bytes()
    (folder / ("n" * 245 + ".png")).write_bytes(content)  # a temporary name needs room as well
    (folder / ("p" * 251 + ".gif")).write_bytes(content)  # its copy would be called .gif.jpg
    wide = folder / "wide.bmp"
    cv2.imwrite(str(wide), np.zeros((8, 66_000), np.uint8))
    wide.rename(folder / "wide.jpg")  # more pixels a side than JPEG has
    (tmp_path / "out" / "0001.png").mkdir(parents=True)
    run = _infer(folder, tmp_path / ("q" * 300), "--model", model, "--annotate", tmp_path / "out")
    assert run.returncode == 1
    rows = {Path(row["path"]).name[:4]: row for row in map(json.loads, run.stdout.splitlines())}
    assert {name: row["error"] and row["error"].rpartition(": ")[2] for name, row in rows.items()} == {
        "0000": None,
        "0001": "it would overwrite a file that is not an annotated copy; give --annotate another folder",
        "nnnn": None,
        "pppp": "File name too long",
        "wide": "a .jpg file cannot hold 66000 x 8 pixels",
        "qqqq": "File name too long",
    }
    assert len(rows["pppp"]["faces"]) == 1  # its result is not lost
    assert b"6 images" in run.stderr


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that other users may enter; pytest's own are private."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="becomes another user")
def test_folders_without_permission_have_rows_and_true_reasons(public: Path) -> None:
    model = write_band_model(public / "bands.onnx")
    faces = _write_crops(public / "faces", 1)
    locked = public / "locked"
    _write_crops(locked, 1)
    locked.chmod(0o700)
    # Another user may be unable to read this Python: everything is imported before the process becomes one.
    script = (
        "import os, sys; from fer_runtime.cli import main; from fer_runtime.images import decode_image\n"
        "main([sys.argv[1], '--model', sys.argv[2], '--annotate', sys.argv[3], '--quiet'], standalone_mode=False)\n"
        "os.setgroups([]); os.setgid(12345); os.setuid(12345); os.environ['HOME'] = '/root'; os.chdir('/')\n"
        "print('--', flush=True); main([*sys.argv[4:], '--model', sys.argv[2]])"
    )

    def run(*arguments: object) -> tuple[int, bytes, bytes]:
        warm = (faces[0], model, public / "warm")
        command = [sys.executable, "-c", script, *map(str, (*warm, *arguments))]
        ended = subprocess.run(command, capture_output=True, timeout=60)
        return ended.returncode, ended.stdout.partition(b"--\n")[2], ended.stderr

    _, rows, messages = run(locked, locked / "0000.png", faces[0])
    errors = [json.loads(line)["error"] for line in rows.splitlines()]
    assert errors == ["cannot be opened: Permission denied"] * 2 + [None], messages
    code, _, messages = run(faces[0], "--output", locked / "rows.jsonl")
    assert code == 1
    assert messages.splitlines()[-1].startswith(b"Error: cannot write")
    assert b"Traceback" not in messages
