"""`fer-infer` as a process: rows, exit codes, and nothing lost."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from tests.commands import run_python
from tests.processes import wait_until
from tests.runtime.tiny_models import band_face, write_band_model

from fer_runtime.batch.sources import Inputs, LeftOut
from fer_runtime.errors import OutputError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.files import refuse_special
from fer_runtime.model.metadata import ModelMetadata
from fer_runtime.output.sink import opened_sink

# How an iPhone's picture begins (ISO/IEC 23008-12): size, "ftyp", major brand, version, compatible brands.
_HEIC = b"\0\0\0\x24ftypheic\0\0\0\0mif1MiHBMiHEheictmap" + bytes(200)


def _infer(*arguments: object, stdin: bytes = b"", cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    return run_python("-m", "fer_runtime", *arguments, input=stdin, timeout=60, cwd=cwd)


def _rows(run: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.stdout.decode("ascii").splitlines()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_band_model(tmp_path_factory.mktemp("model") / "bands.onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, name in enumerate(EXPRESSIONS):
        cv2.imwrite(str(tmp_path / f"{index}_{name}.png"), band_face(index))
    return tmp_path


def test_a_folder_gives_a_row_per_picture_in_order(model: Path, folder: Path) -> None:
    run = _infer(folder, "--model", model)
    assert run.returncode == 0
    rows = _rows(run)
    assert [row["faces"][0]["expression"] for row in rows] == list(EXPRESSIONS)
    row = rows[3]
    assert list(row) == ["path", "width", "height", "error", "faces"]
    assert row["path"] == str(folder / "3_happy.png")
    assert (row["width"], row["height"], row["error"]) == (48, 48, None)
    face = row["faces"][0]
    assert face["box"] == [0, 0, 48, 48]
    assert list(face["probabilities"]) == list(EXPRESSIONS)
    assert face["confidence"] == max(face["probabilities"].values())


def test_a_broken_picture_has_its_row_and_the_exit_code_is_1(model: Path, folder: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    (folder / "empty.png").touch()
    noise = cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8))[1].tobytes()
    (folder / "cut.png").write_bytes(noise[: len(noise) // 3])
    (folder / "notes.txt").write_text("no picture, not counted")
    run = _infer(folder, folder / "missing.png", "--model", model)
    assert run.returncode == 1
    failed = {Path(row["path"]).name: row["error"] for row in _rows(run) if row["error"]}
    assert set(failed) == {"broken.jpg", "cut.png", "empty.png", "missing.png"}
    assert "No such file" in failed["missing.png"]
    assert len(_rows(run)) == 11
    assert b"4 failed" in run.stderr
    assert b"libpng" not in run.stderr
    assert b"  not read: 1 .txt\n" in run.stderr


def test_wrong_usage_exits_2_and_no_model_exits_1(folder: Path) -> None:
    assert _infer().returncode == 2
    assert _infer(folder, "--detector", "psychic").returncode == 2
    assert _infer(folder, "--detector", "haar", "--yunet", "yunet.onnx").returncode == 2
    assert _infer("-", "-").returncode == 2
    assert _infer(folder, "--resume", "--output", folder / "rows.jsonl", "--random", 3).returncode == 2
    run = _infer(folder, "--model", folder / "none.onnx")
    assert run.returncode == 1
    assert run.stderr.startswith(b"Error: no model at ")
    assert b"Traceback" not in run.stderr


def test_a_folder_of_folders_says_so(model: Path, folder: Path) -> None:
    outer = folder / "outer"
    (outer / "inner").mkdir(parents=True)
    cv2.imwrite(str(outer / "inner" / "1.png"), band_face(1))
    run = _infer(outer, "--model", model)
    assert run.returncode == 1
    assert b"holds folders but no images; use --recursive" in run.stderr
    assert len(_rows(_infer(outer, "--model", model, "--recursive"))) == 1


def test_what_a_folder_holds_besides_pictures_is_counted_by_name(model: Path, folder: Path) -> None:
    for name in ("a.HEIC", "b.heic", "film.mp4", "notes", ".hidden.txt"):
        (folder / name).write_text("no picture")
    (folder / "deep").mkdir()
    run = _infer(folder, "--model", model)
    assert run.returncode == 0
    assert b"  skipped 1 subfolder (use --recursive)\n" in run.stderr
    left_out = next(line for line in run.stderr.splitlines() if b"not read" in line)
    assert left_out.startswith(b"  not read: 2 .heic, 1 ")
    assert {b"1 .mp4", b"1 without suffix"} <= set(left_out.partition(b";")[0].split(b": ")[1].split(b", "))
    assert b"convert it to JPEG first; give videos by name" in left_out
    assert b"deep" not in run.stderr
    assert b"subfolder" not in _infer(folder, "--model", model, "--recursive").stderr
    assert left_out in _infer(folder, "--model", model, "--random", 99).stderr.splitlines()


def test_names_that_all_end_differently_cost_no_memory() -> None:
    left_out = LeftOut()
    for number in range(1000):
        left_out.add_file(f"log.{number}")
    assert len(left_out.suffixes) == 101
    assert left_out.suffixes.total() == 1000


def test_no_picture_at_all_is_a_failure(model: Path, tmp_path: Path) -> None:
    (tmp_path / "phone.HEIC").write_bytes(_HEIC)
    for arguments in ([tmp_path], [tmp_path, "--output", tmp_path / "rows.jsonl"]):
        run = _infer(*arguments, "--model", model)
        assert run.returncode == 1
        assert b"no images to read" in run.stderr
    (row,) = _rows(_infer(tmp_path / "phone.HEIC", "--model", model))
    assert row["error"] == "is a HEIC image, which OpenCV does not read; convert it to JPEG first"


def test_a_link_to_its_own_folder_ends(model: Path, folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "again").symlink_to(folder, target_is_directory=True)
    (folder / "itself.png").symlink_to(folder / "itself.png")
    run = _infer(folder, "--model", model, "--recursive")
    assert len(_rows(run)) == 8
    assert run.returncode == 1


def test_folders_may_be_nested_deeper_than_python_calls_itself(tmp_path: Path) -> None:
    inner = tmp_path.joinpath(*["d"] * 100)
    inner.mkdir(parents=True)
    (inner / "1.png").touch()
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 60)
    try:
        assert list(Inputs([str(tmp_path)], recursive=True)) == [str(inner / "1.png")]
    finally:
        sys.setrecursionlimit(before)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are no UTF-8")
def test_names_that_are_no_utf8_survive(model: Path, tmp_path: Path) -> None:
    names = [b"\xff\xfe.png", b"line\nbreak.png", 'quote"ü.png'.encode()]
    for name in names:
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(cv2.imencode(".png", band_face(1))[1].tobytes())
    run = _infer(tmp_path, "--model", model)
    assert run.returncode == 0
    assert {os.fsencode(Path(row["path"]).name) for row in _rows(run)} == set(names)
    table = _infer(tmp_path, "--model", model, "--format", "table")
    assert table.returncode == 0
    assert len(table.stdout.decode("utf-8").splitlines()) == 4


def test_csv_holds_the_same_as_json_lines(model: Path, folder: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"none")
    rows = _rows(_infer(folder, "--model", model, "--format", "jsonl"))
    lines = list(csv.DictReader(io.StringIO(_infer(folder, "--model", model, "--format", "csv").stdout.decode())))
    assert [line["path"] for line in lines] == [row["path"] for row in rows]
    for line, row in zip(lines, rows, strict=True):
        assert line["error"] == (row["error"] or "")
        for face in row["faces"]:
            assert line["expression"] == face["expression"]
            assert float(line["happy"]) == face["probabilities"]["happy"]


def test_output_is_written_whole_and_a_closed_pipe_is_no_error(model: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    run = _infer(folder, "--model", model, "--output", output)
    assert run.stdout == b""
    assert len(output.read_text().splitlines()) == 7
    refused = _infer(folder, "--model", model, "--output", folder / "0_angry.png" / "rows.jsonl")
    assert refused.returncode == 1
    error = refused.stderr.splitlines()[-1]
    assert error.startswith(b"Error: cannot write")
    assert error.endswith(b"choose another folder")
    for index in range(400):
        cv2.imwrite(str(folder / f"more{index}.png"), band_face(index % 7))
    script = f'"{sys.executable}" -m fer_runtime "{folder}" --model "{model}" --format jsonl'
    command = script + " | head -n 1; echo ${PIPESTATUS[0]}"
    piped = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60)
    assert piped.stdout.splitlines()[-1] == b"0"
    assert b"Traceback" not in piped.stderr
    assert b"rror" not in piped.stderr


def test_rows_on_a_terminal_do_not_wait_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    pty = pytest.importorskip("pty", reason="needs a pseudo-terminal")
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb", buffering=0) as screen, os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        with opened_sink(None) as sink:
            sink.write("a row\n")
            assert select.select([screen], [], [], 0)[0]
            assert screen.read(100) == b"a row\r\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs select on pipes")
def test_rows_wait_for_a_pipe_that_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "a row\n" * 50_000  # more than a pipe holds
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(reading, "rb") as reader, ThreadPoolExecutor() as pool:

        def read_late() -> bytes:
            time.sleep(0.2)  # longer than the first write takes, so that the second finds the pipe full
            return reader.read()

        with os.fdopen(writing, "w") as pipe:
            monkeypatch.setattr(sys, "stdout", pipe)
            with opened_sink(None) as sink:
                sink.write(rows)
                read = pool.submit(read_late)
        assert read.result() == rows.encode()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_rows_do_not_take_the_place_of_a_device_or_pipe(model: Path, folder: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    run = _infer(folder, "--model", model, "--output", pipe)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].endswith(b"it is not a regular file; choose another name")
    assert pipe.is_fifo()
    # A link to whatever standard output is. Not as a run: it would harm the machine if it were wrong.
    with pytest.raises(OutputError, match="not a regular file"):
        refuse_special(Path("/dev/stdout"))


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_full_and_closed_streams_are_one_error_line(model: Path, folder: Path) -> None:
    for redirection, message in (
        (">/dev/full", b"Error: cannot write to standard output: No space left"),
        (">&-", b"Error: standard output is closed"),
        ("2>&1 <&-", b""),
    ):
        script = f'"{sys.executable}" -m fer_runtime - "{folder}" --model "{model}" {redirection}'
        run = subprocess.run(["bash", "-c", script], input=b"", capture_output=True, timeout=60)
        assert run.returncode == 1
        assert b"Traceback" not in run.stdout + run.stderr
        assert message in run.stderr
    assert run.stdout.count(b'"error": null') == 7
    assert b"standard input is empty" in run.stdout
    for option in ("--help", "--version", "--list-models"):
        script = f'"{sys.executable}" -m fer_runtime {option} >/dev/full'
        run = subprocess.run(["bash", "-c", script], capture_output=True, timeout=60)
        assert (run.returncode, run.stderr.count(b"\n")) == (1, 1)
        assert run.stderr.startswith(b"Error: cannot write to standard output: No space left")
    # A log file on a full disk, or one whose reader has gone, costs the messages, not the rows.
    for redirection in ("2>/dev/full", "2> >(true)"):
        script = f'"{sys.executable}" -m fer_runtime "{folder}" --model "{model}" {redirection}; echo $?'
        run = subprocess.run(["bash", "-c", script], capture_output=True, timeout=60)
        assert run.stdout.count(b'"error": null') == 7
        assert run.stdout.endswith(b"\n0\n")


def test_where_haar_finds_no_face_the_summary_names_yunet(model: Path, tmp_path: Path) -> None:
    for number in range(2):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((200, 200), np.uint8))
    run = _infer(tmp_path, "--model", model, "--detector", "haar")
    assert run.returncode == 0
    assert run.stderr.count(b"fer-infer --fetch-yunet") == 1
    assert b"yunet" not in _infer(tmp_path, "--model", model, "--detector", "whole").stderr


def test_a_picture_and_a_list_come_from_standard_input(model: Path, folder: Path) -> None:
    picture = cv2.imencode(".png", band_face(5))[1].tobytes()
    (row,) = _rows(_infer("-", "--model", model, stdin=picture))
    assert (row["path"], row["faces"][0]["expression"]) == ("-", EXPRESSIONS[5])
    paths = sorted(str(path) for path in folder.glob("*.png"))
    assert [row["path"] for row in _rows(_infer("-", "--model", model, stdin="\n".join(paths).encode()))] == paths
    assert _infer("-", "--model", model).returncode == 1
    for kind in ("GIF", "JPEG2000"):
        written = io.BytesIO()
        Image.fromarray(band_face(5)).save(written, kind)
        (row,) = _rows(_infer("-", "--model", model, stdin=written.getvalue()))
        assert row["path"] == "-"
    assert row["faces"][0]["expression"] == EXPRESSIONS[5]  # older wheels do not decode GIF
    (row,) = _rows(_infer("-", "--model", model, stdin=_HEIC))
    assert (row["path"], row["error"].partition(",")[0]) == ("-", "is a HEIC image")


def test_the_suffix_of_the_output_says_the_format(model: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.CSV"
    assert _infer(folder, "--model", model, "--output", output).returncode == 0
    assert len(list(csv.DictReader(output.open()))) == 7
    for name, format_name, reason in (
        ("film.srt", None, b"a run over images does not write --format srt"),
        ("rows.parquet", None, b"a run over images does not write --format parquet"),
        ("film.srt", "csv", b"is named for srt, but --format says csv"),
        ("rows.csv", "jsonl", b"is named for csv, but --format says jsonl"),
    ):
        options = [] if format_name is None else ["--format", format_name]
        run = _infer(folder, "--model", model, "--output", tmp_path / name, *options)
        assert run.returncode == 2
        assert reason in b" ".join(run.stderr.split())
        assert not (tmp_path / name).exists()
    assert _infer(folder, "--model", model, "--output", tmp_path / "rows.txt", "--format", "table").returncode == 0


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("s3://bucket/p.jpg", b"--engine ray"),
        ("https://example.org/p.jpg", b"download it first"),
        ("rtmp://camera/1", b"streams are read from rtsp://, rtsps://, http://, https://, udp://"),
        ("file:///p.jpg", b"without file://"),
    ],
)
def test_an_address_is_answered_with_the_way_to_read_it(uri: str, advice: bytes) -> None:
    run = _infer(uri)
    assert run.returncode == 2
    assert advice in b" ".join(run.stderr.split())


def test_globs_are_expanded_where_the_shell_has_not(model: Path, folder: Path) -> None:
    assert len(_rows(_infer(folder / "[0-2]_*.png", "--model", model))) == 3
    # And what they stand for is not overwritten.
    run = _infer(folder / "[0-2]_*.png", "--model", model, "--output", folder / "1_disgust.png")
    assert (run.returncode, b"would overwrite an image of this run" in b" ".join(run.stderr.split())) == (2, True)


def test_real_faces_read_one_by_one_equal_a_folder_run(real_data: Path, tmp_path: Path) -> None:
    from fer_runtime import Recognizer

    source = real_data / "images" / "validation" / "disgust"
    rows = _rows(_infer(source, "--model", "v0"))
    assert len(rows) == 56
    with Recognizer("v0") as recognizer:
        for row in rows[:20]:
            (face,) = recognizer.predict(row["path"]).faces
            # Rows hold six decimals. Another batch adds its floats in another order: sums of up to 2304 float32
            # products (epsilon 6e-8) move a logit by up to 4e-5, and a probability by a quarter of that.
            assert face.probabilities == pytest.approx(row["faces"][0]["probabilities"], abs=1e-5)
    assert np.mean([row["faces"][0]["expression"] == "disgust" for row in rows]) > 1 / 7


def test_killed_and_resumed_the_rows_are_those_of_a_whole_run(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(1500):
        cv2.imwrite(str(folder / f"{index:05}.png"), random.integers(0, 256, (48, 48), np.uint8))
    (folder / "00700.png").write_bytes(b"broken")
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert _infer(folder, "--model", model, "--output", whole).returncode == 1
    # A list that never ends holds the run open until it is killed, in the middle of its work.
    arguments = ["-", "--model", model, "--output", killed]
    command = [sys.executable, "-m", "fer_runtime", *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    paths = sorted(folder.iterdir())
    process.stdin.write("".join(f"{path}\n" for path in paths[:1300]).encode())
    process.stdin.flush()
    partial = tmp_path / "killed.jsonl.partial"
    wait_until(lambda: partial.exists() and partial.stat().st_size >= 200_000, process)
    process.kill()
    process.wait()
    process.stdin.close()
    assert not killed.exists()
    kept = len(partial.read_text().splitlines())
    assert 0 < kept < 1500
    resumed = _infer(folder, "--model", model, "--output", killed, "--resume")
    assert resumed.returncode == 1
    assert f"{kept // 64 * 64} rows from the previous run".encode() in resumed.stderr
    assert killed.read_bytes() == whole.read_bytes()
    assert not partial.exists()


def test_rows_of_two_models_are_never_mixed_by_resume(model: Path, folder: Path, tmp_path: Path) -> None:
    output, partial = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.partial"
    # A list that never ends holds the run open until it is interrupted.
    paths = "".join(f"{path}\n" for path in sorted(folder.glob("*.png"))) * 60
    command = [sys.executable, "-m", "fer_runtime", "-", "--model", str(model), "--output", str(output)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write((paths * 4).encode())
    process.stdin.flush()
    wait_until(lambda: partial.exists() and partial.stat().st_size >= 200_000, process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 1
    assert b"continue with --resume" in process.stderr.read()
    before = partial.read_bytes()
    # A second model of the same name: its rows would look just the same.
    retrained = ModelMetadata(name="v0", labels=EXPRESSIONS, precision="fp32", opset=18, checkpoint_sha256="ab")
    other = write_band_model(tmp_path / "other.onnx", metadata=retrained)
    refused = _infer(folder, "--model", other, "--output", output, "--resume")
    assert refused.returncode == 1
    assert b"made with other settings (model_sha256 was" in refused.stderr
    refused = _infer(folder, "--model", model, "--detector", "whole", "--output", output, "--resume")
    assert b"detector was auto, is whole" in refused.stderr
    # Nor does a run that starts anew throw them away.
    refused = _infer(folder, "--model", model, "--output", output)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].endswith(b"continue it with --resume, or remove that file to start again")
    assert partial.read_bytes() == before
    partial.unlink()
    assert _infer(folder, "--model", model, "--output", output).returncode == 0


def test_whole_rows_are_never_replaced_by_resume(model: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    (folder / "broken.png").write_bytes(b"none")
    assert _infer(folder, "--model", model, "--output", output).returncode == 1
    before = output.read_bytes()
    again = _infer(folder, "--model", model, "--output", output, "--resume")
    assert again.returncode == 1  # as for the run that made them: a picture failed
    assert b"rows.jsonl is complete: 8 rows, 1 of them failed" in again.stderr
    for options in (
        ["--model", "v0"],
        ["--model", model, "--min-confidence", 0.5],
        ["--model", model, "--detector", "haar"],
    ):
        refused = _infer(folder, *options, "--output", output, "--resume")
        assert refused.returncode == 1
        assert b"its row 1 is not what this run gives" in refused.stderr
    cv2.imwrite(str(folder / "new.png"), band_face(0))
    refused = _infer(folder, "--model", model, "--output", output, "--resume")
    assert b"has no row for 1 image of this run" in refused.stderr
    assert output.read_bytes() == before
    for content in (b"path,width\n", b"[1]\n", b'{"error": null}\n'):
        output.write_bytes(content)
        refused = _infer(folder, "--model", model, "--output", output, "--resume")
        assert refused.returncode == 1
        assert b"holds no JSON Lines of fer-infer; give another --output" in refused.stderr
        assert output.read_bytes() == content


def test_resume_says_that_whole_rows_lack_their_copies(model: Path, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"none")
    output, copies = folder / "rows.jsonl", folder / "copies"
    command = (folder, "--model", model, "--output", output, "--annotate", copies)
    assert _infer(*command).returncode == 1
    assert b"rows.jsonl is complete: 8 rows" in _infer(*command, "--resume").stderr
    (copies / "3_happy.png").unlink()
    refused = _infer(*command, "--resume")
    assert refused.returncode == 1
    said = f"Error: {output} is complete, but annotated copies are missing (1); leave out --resume to write them"
    assert refused.stderr.decode().endswith(f"{said}\n")
    # The copies show the faces, and the summary would say that it has covered them.
    refused = _infer(*command, "--resume", "--anonymize", "solid")
    assert refused.returncode == 1
    assert b"nothing says whether its copies were anonymized; leave out --resume" in refused.stderr


def test_copies_and_rows_never_overwrite_the_pictures(model: Path, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    inside = folder / "deep"
    inside.mkdir()
    picture = folder / "3_happy.png"
    for arguments in (
        (folder, "--annotate", folder),
        (picture, "--annotate", folder),
        (folder, "--recursive", "--annotate", inside),
        (folder, "--random", 9, "--annotate", inside),  # which searches subfolders, too
        (picture, "--output", picture),
        (folder, "--output", picture),
        (picture, "--contact-sheet", picture),
        (folder.parent, "--recursive", "--contact-sheet", picture),
    ):
        run = _infer(*arguments, "--model", model)
        assert run.returncode == 2
        assert b"overwrite" in run.stderr
    assert {path: path.read_bytes() for path in before} == before
    assert _infer(folder, "--annotate", inside, "--model", model).returncode == 0
    assert len(list(inside.iterdir())) == 7


def test_a_list_from_standard_input_cannot_overwrite_its_pictures(model: Path, folder: Path) -> None:
    picture = folder / "3_happy.png"
    before = picture.read_bytes()
    run = _infer("-", "--annotate", folder, "--model", model, stdin=f"{picture}\n".encode())
    assert run.returncode == 1
    assert b"would overwrite" in run.stderr
    assert picture.read_bytes() == before


def test_a_current_folder_that_was_removed_is_one_error_line(model: Path, folder: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    program = f"import os, sys; os.rmdir({str(gone)!r}); from fer_runtime.cli import main; main(sys.argv[1:])"
    run = run_python("-c", program, folder, "--output", "rows.jsonl", "--model", model, timeout=60, cwd=gone)
    assert run.returncode == 1
    assert run.stderr.endswith(b"Error: the current folder has been removed; change to another one\n")
    assert b"Traceback" not in run.stderr


def test_a_folder_for_copies_that_cannot_be_made_stops_the_run_at_its_start(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "copies"
    run = _infer("--samples", "--annotate", folder, "--output", tmp_path / "rows.jsonl", "--model", model)
    assert (run.returncode, run.stdout) == (1, b"")
    assert run.stderr.decode().endswith(f"Error: cannot write into {folder}; choose another folder\n")
    assert os.listdir(tmp_path) == ["file"]


def test_faces_below_the_threshold_are_uncertain(model: Path, folder: Path) -> None:
    rows = _rows(_infer(folder, "--model", model, "--min-confidence", "0.999999"))
    assert [row["faces"][0]["uncertain"] for row in rows] == [True] * 7
    rows = _rows(_infer(folder, "--model", model, "--min-confidence", "0.2"))
    assert [row["faces"][0]["uncertain"] for row in rows] == [False] * 7
    run = _infer(folder, "--model", model, "--min-confidence", "auto")
    assert run.returncode == 1
    assert b"no fitted confidence threshold" in run.stderr


@pytest.mark.parametrize(("call", "is_tidied"), [("main()", False), ("main(sys.argv[1:])", True)])
def test_the_command_itself_ends_without_pythons_tidying_up(
    call: str, is_tidied: bool, model: Path, folder: Path
) -> None:
    program = f"import atexit, sys; atexit.register(print, 'tidied'); from fer_runtime.cli import main; {call}"
    for path, code in ((folder, 0), (folder / "missing.png", 1)):
        command = [sys.executable, "-c", program, str(path), "--model", str(model)]
        run = subprocess.run(command, capture_output=True, timeout=60, text=True)
        lines = run.stdout.splitlines()
        assert run.returncode == code
        assert ("tidied" in lines) == is_tidied
        assert len([line for line in lines if line.startswith("{")]) == (len(EXPRESSIONS) if code == 0 else 1)
        assert " failed, " in run.stderr  # the summary comes last
