"""Processes that tests start, none of which outlives its test, and limits for every wait."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import pytest

LONGEST_SECONDS = 600.0  # far more than any wait takes on a busy machine


class Running(Protocol):
    """A process that was started, such as a `subprocess.Popen`."""

    @property
    def returncode(self) -> Any: ...

    def poll(self) -> int | None: ...

    def kill(self) -> None: ...


@contextmanager
def started(command: Sequence[Any], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A running process, killed at the end of the block if it still runs.

    `with subprocess.Popen(...)` would wait for it instead: after a failed assertion, for ever.
    """
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None and not pipe.closed:
                pipe.close()


@functools.cache
def without_roots_rights() -> tuple[str, ...]:
    """What a command begins with to run without root's right to read everything; skips the test where that fails."""
    if not hasattr(os, "geteuid"):
        pytest.skip("Windows has other rights")
    if os.geteuid() != 0:
        return ()
    without = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
    if shutil.which("setpriv") is None or subprocess.run([*without, "true"], check=False).returncode:
        pytest.skip("root reads everything, and cannot give that up here")
    return without


def wait_until(condition: Callable[[], object], process: Running | None = None) -> None:
    """Wait until `condition` is true; fail where `process` ends before that, or after LONGEST_SECONDS."""
    end = time.monotonic() + LONGEST_SECONDS
    while not condition():
        assert process is None or process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@contextmanager
def limited(process: Running) -> Iterator[None]:
    """Kill `process` after LONGEST_SECONDS, so that reading what it says comes to an end."""
    timer = threading.Timer(LONGEST_SECONDS, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def waits_have_limits() -> Iterator[None]:
    """Give `subprocess.run`, `communicate` and `wait` a limit where the caller gives none."""
    wait, communicate = subprocess.Popen.wait, subprocess.Popen.communicate

    def limited_wait(self: subprocess.Popen[Any], timeout: float | None = None) -> int:
        return wait(self, LONGEST_SECONDS if timeout is None else timeout)

    def limited_communicate(self: subprocess.Popen[Any], input: Any = None, timeout: float | None = None) -> Any:
        return communicate(self, input, LONGEST_SECONDS if timeout is None else timeout)

    subprocess.Popen.wait = limited_wait  # type: ignore[method-assign]
    subprocess.Popen.communicate = limited_communicate  # type: ignore[method-assign]
    try:
        yield
    finally:
        subprocess.Popen.wait = wait  # type: ignore[method-assign]
        subprocess.Popen.communicate = communicate  # type: ignore[method-assign]
