"""`fer-infer` over streams and piped videos: rows, gaps, names, passwords and the end by a signal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from tests.processes import started
from tests.runtime.tiny_models import band_face, write_band_model
from tests.runtime.video.served import free_port, mjpeg_arguments, mpegts_arguments, needs_ffmpeg, served

pytest.importorskip("av", reason="PyAV is missing: pip install 'fer-edge[stream]'")

_SECRET = "hunter2"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_band_model(tmp_path_factory.mktemp("model") / "bands.onnx")


def _command(model: Path, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "fer_runtime", *map(str, arguments), "--model", str(model), "--detector", "whole"]


@needs_ffmpeg
def test_two_cameras_at_once_until_sigterm_with_a_gap_and_without_their_passwords(model: Path, tmp_path: Path) -> None:
    ports = free_port(), free_port()
    addresses = [f"http://admin:{_SECRET}@127.0.0.1:{port}/?pwd={_SECRET}" for port in ports]
    with served(*mpegts_arguments(ports[0])) as door, served(*mjpeg_arguments(ports[1])):
        arguments = (*addresses, "--name", "door", "--name", "hall", "--annotate", tmp_path, "--format", "jsonl")
        with started(_command(model, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            lines, errors = (_collected(pipe) for pipe in (process.stdout, process.stderr) if pipe is not None)
            _wait_for(lambda: all(sum(name in line for line in lines) >= 5 for name in ("door", "hall")))
            door.kill()
            _wait_for(lambda: any("connecting again" in line for line in errors))
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=120)
            _wait_for(lambda: lines[-1:] == errors[-1:] == [""])
    assert process.returncode == 143
    rows = [json.loads(line) for line in lines[:-1]]
    assert all(set(row) == {"path", "frame", "time", "clock", "faces"} for row in rows if "gap" not in row)
    # A machine that is busy enough makes silences of its own.
    (gap,) = (row for row in rows if row.get("gap") == "the connection was closed")
    assert gap["path"] == "door"
    assert gap["end"] > gap["start"] > 0
    for name in ("door", "hall"):
        numbers = [row["frame"] for row in rows if row["path"] == name and "gap" not in row]
        assert numbers == sorted(set(numbers))
        assert (tmp_path / f"{name}.annotated.mp4").stat().st_size > 1000
    assert _SECRET not in "".join((*lines, *errors))


def test_ctrl_c_is_the_normal_end_of_a_video_on_standard_input(model: Path) -> None:
    command = _command(model, "-", "--input-format", "raw:gray:48x48@5", "--format", "jsonl")
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(band_face(3).tobytes() * 5)
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0


def _collected(pipe: IO[str]) -> list[str]:
    """The lines of a pipe, as a thread reads them: they grow, and the last one is empty."""
    lines: list[str] = []

    def read() -> None:
        while not lines or lines[-1]:
            lines.append(pipe.readline())

    threading.Thread(target=read, daemon=True).start()
    return lines


def _wait_for(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_nobody_listening_is_a_row_and_exit_code_1(model: Path) -> None:
    address = f"rtsp://admin:{_SECRET}@127.0.0.1:{free_port()}/{_SECRET}"
    arguments = (address, address, "--reconnect", "0", "--format", "csv", "--segments", "--log-format", "json")
    done = subprocess.run(_command(model, *arguments[:-2]), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == "path,track,start,end,expression,confidence,error,clock"
    # Two streams of one host are told apart.
    assert [line.split(",")[0].rpartition(" ")[2] for line in sorted(lines[1:])] == ["(1)", "(2)"]
    assert all("cannot be read: Connection refused" in line for line in lines[1:])
    assert _SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("ADDRESS", "a.jpg"),
        ("ADDRESS", "--name", "a", "--name", "b"),
        ("ADDRESS", "ADDRESS", "--name", "a", "--name", "a"),
        ("ADDRESS", "--recursive"),
        ("ADDRESS", "--camera", "0"),
        ("ADDRESS", "--engine", "ray"),
        ("ADDRESS", "--self-test"),
        ("ADDRESS", "--input-format", "auto"),
        ("a.mp4", "--reconnect", "5"),
        ("a.mp4", "--every", "ADDRESS"),  # click itself quotes the value
        ("-", "--live"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error_without_the_password(arguments: tuple[str, ...]) -> None:
    from click.testing import CliRunner

    from fer_runtime.cli import main

    given = [f"rtsp://admin:{_SECRET}@host/x" if argument == "ADDRESS" else argument for argument in arguments]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 2
    assert _SECRET not in result.output


def test_raw_frames_on_standard_input_have_a_row_each(model: Path) -> None:
    faces = b"".join(band_face(expression, side=70).tobytes() for expression in (3, 3, 5))
    command = _command(model, "-", "--input-format", "raw:gray:70x70@2", "--format", "jsonl", "--name", "pi")
    done = subprocess.run(command, input=faces, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["path"], row["frame"], row["time"]) for row in rows] == [
        ("pi", 0, 0.0),
        ("pi", 1, 0.5),
        ("pi", 2, 1.0),
    ]
    # fer_runtime.expressions: 3 is happy. The average over time moves to 5, sad, with the last frame.
    assert [row["faces"][0]["expression"] for row in rows] == ["happy", "happy", "sad"]
    assert np.isclose(sum(rows[0]["faces"][0]["probabilities"].values()), 1, atol=1e-5)


def test_no_video_on_standard_input_is_a_row_and_exit_code_1(model: Path) -> None:
    command = _command(model, "-", "--input-format", "auto", "--format", "jsonl")
    done = subprocess.run(command, input=b"no video" * 100, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert "FFmpeg finds no video" in json.loads(done.stdout)["error"]
