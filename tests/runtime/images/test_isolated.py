"""Decoding in processes of their own: crashes, limits and forks cost one image and no more."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from tests.processes import started
from tests.runtime.images.make_files import make_crashing_apng, make_png, rows_of

from fer_runtime.errors import ImageError
from fer_runtime.images import decode_image, isolated

_IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
_POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_another_process_gives_the_same_pixels(suffix: str) -> None:
    content = cv2.imencode(suffix, _IMAGE)[1].tobytes()
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_ANYCOLOR)
    assert expected is not None
    assert np.array_equal(decode_image(content, isolated=True), expected)


def test_large_images_arrive_whole() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)
    assert np.array_equal(decode_image(cv2.imencode(".bmp", image)[1].tobytes()), image)


def test_many_threads_share_the_processes() -> None:
    images = [np.full((20, 30), value, np.uint8) for value in range(60)]
    contents = [cv2.imencode(".bmp", image)[1].tobytes() for image in images]
    with ThreadPoolExecutor(8) as pool:
        for decoded, image in zip(pool.map(decode_image, contents), images, strict=True):
            assert np.array_equal(decoded, image)


@_POSIX
def test_a_decoder_that_crashes_costs_one_image() -> None:
    # The walk over the chunks is what keeps this file from the decoder, so it is left out.
    script = (
        "import fer_runtime.images.isolated as m; from fer_runtime.images.headers import Header;"
        "m.read_header = lambda content: Header('PNG', 96, 80, 6, content); m.serve()"
    )
    with started(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        content = make_crashing_apng()
        answer, _ = process.communicate(len(content).to_bytes(8, "little") + content, timeout=60)
    if process.returncode == 0:
        pytest.skip("this OpenCV does not crash at it")
    assert answer == b"ready\n"
    # OpenCV 4.12 damages the heap: what lies there decides whether glibc notices that when memory is freed.
    expected = {signal.SIGSEGV, signal.SIGABRT} if cv2.__version__.startswith("4.12.") else {signal.SIGSEGV}
    assert -process.returncode in expected


@_POSIX
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS"])
def test_a_fault_is_the_reason_and_the_next_image_is_read(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    content = cv2.imencode(".bmp", _IMAGE)[1].tobytes()
    assert np.array_equal(decode_image(content), _IMAGE)
    write_all = isolated._write_all

    def write_and_crash(stream: object, content: bytes) -> None:
        write_all(stream, content[:20])
        (in_use,) = [helper for helper in running if helper not in isolated._helpers._idle]
        os.kill(in_use.process.pid, getattr(signal, name))
        raise BrokenPipeError

    running = list(isolated._helpers._idle)
    assert running
    monkeypatch.setattr(isolated, "_write_all", write_and_crash)
    with pytest.raises(ImageError, match=rf"its decoder crashed \({name}\)"):
        decode_image(content)
    monkeypatch.undo()
    assert np.array_equal(decode_image(content), _IMAGE)


@_POSIX
def test_a_process_that_was_killed_from_outside_is_replaced() -> None:
    content = cv2.imencode(".bmp", _IMAGE)[1].tobytes()
    decode_image(content)
    for helper in list(isolated._helpers._idle):
        helper.process.kill()
    assert np.array_equal(decode_image(content), _IMAGE)


@_POSIX
def test_a_decoder_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import fer_runtime.images.isolated as m; m._LEAST_SECONDS = 0.2; m._SECONDS_PER_MEGAPIXEL = 0;"
        "m.decode_leniently = lambda header: exec('while True: pass'); m.serve()"
    )
    monkeypatch.setattr(isolated, "_helpers", isolated._Helpers())
    monkeypatch.setattr(isolated, "_SERVE", script)
    with pytest.raises(ImageError, match="takes too long to decode"):
        decode_image(cv2.imencode(".bmp", _IMAGE)[1].tobytes())


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit of memory")
def test_a_decoder_gets_no_more_memory_than_its_image_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import fer_runtime.images.isolated as m, numpy;"
        "m.decode_leniently = lambda header: numpy.ones(1 << 30, numpy.uint8); m.serve()"
    )
    monkeypatch.setattr(isolated, "_helpers", isolated._Helpers())
    monkeypatch.setattr(isolated, "_SERVE", script)
    with pytest.raises(ImageError, match="more memory than there is"):
        decode_image(cv2.imencode(".bmp", _IMAGE)[1].tobytes())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_starts_its_own() -> None:
    script = """
import os, sys, cv2, numpy as np
from fer_runtime.images import decode_image
image = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64).astype(np.uint8)
content = cv2.imencode(".bmp", image)[1].tobytes()
for _ in range(3):
    assert np.array_equal(decode_image(content), image)
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        for _ in range(50):
            assert np.array_equal(decode_image(content), image)
        os._exit(0)
    children.append(child)
for _ in range(50):
    assert np.array_equal(decode_image(content), image)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")


def test_without_another_process_images_are_decoded_in_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_helpers", isolated._Helpers())
    monkeypatch.setattr(sys, "frozen", True, raising=False)  # as PyInstaller sets it
    assert np.array_equal(decode_image(cv2.imencode(".bmp", _IMAGE)[1].tobytes()), _IMAGE)


@pytest.mark.parametrize(
    "failing",
    [
        OSError(errno.EAGAIN, "Resource temporarily unavailable"),
        OSError(errno.EMFILE, "Too many open files"),
        pytest.param("import os; os.kill(os.getpid(), 9)", marks=_POSIX),  # as a system without memory does
    ],
)
def test_an_image_for_which_no_process_could_be_started_is_the_only_one(
    failing: OSError | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers = isolated._Helpers()
    monkeypatch.setattr(isolated, "_helpers", helpers)
    content = cv2.imencode(".bmp", _IMAGE)[1].tobytes()
    with monkeypatch.context() as moment:
        if isinstance(failing, str):
            moment.setattr(isolated, "_SERVE", failing)
        else:
            moment.setattr(subprocess, "Popen", Mock(side_effect=failing))
        assert np.array_equal(decode_image(content), _IMAGE)
        assert helpers._idle == []
    assert np.array_equal(decode_image(content), _IMAGE)
    assert len(helpers._idle) == 1
    helpers.close()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_the_processes_end_with_the_one_that_started_them() -> None:
    script = """
import os, signal, sys, cv2, numpy as np
from fer_runtime.images import decode_image, isolated
decode_image(cv2.imencode(".bmp", np.zeros((9, 9), np.uint8))[1].tobytes())
print(*(helper.process.pid for helper in isolated._helpers._idle), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    (pid,) = run.stdout.split()
    subprocess.run(["timeout", "10", "tail", f"--pid={pid}", "-f", "/dev/null"], check=True)


def test_a_plain_image_needs_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_helpers", None)
    for content in (
        cv2.imencode(".jpg", _IMAGE)[1].tobytes(),
        cv2.imencode(".png", _IMAGE)[1].tobytes(),
        make_png(80, 60, rows_of(_IMAGE[:, :, 0])),
    ):
        assert decode_image(content).shape[:2] == (60, 80)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit of memory")
def test_no_memory_is_not_called_damage() -> None:
    script = """
import resource, sys
import cv2, numpy as np
from fer_runtime.errors import ImageError
from fer_runtime.images import decode_image
content = cv2.imencode(".jpg", np.zeros((8000, 8000), np.uint8))[1].tobytes()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20), resource.RLIM_INFINITY))
try:
    decode_image(content)
except ImageError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert run.stdout == "needs more memory than there is\n", run.stderr
