"""Runs of Python that need not load the libraries: forked from a process that has loaded them and done nothing else.

numpy, OpenCV and ONNX Runtime take most of the time of a short run, PyTorch two seconds. `run_python` is
`subprocess.run([sys.executable, ...], capture_output=True)` without that. The run has a process of its own, with its
own pipes, folder and environment, imports every module of this project itself, and ends as Python ends.

Tests of the start, of terminals, of signals that Python handles, and of what libraries read when they are loaded start
Python itself.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

RUNTIME = ("numpy", "cv2", "onnxruntime", "click")
TRAINING = (*RUNTIME, "torch", "torch._dynamo")  # which every optimizer of PyTorch loads: a second and a half
_LONGEST_MESSAGE = 1 << 20
_LONGEST_IDLE = 60.0  # seconds that the process waits for the worker that has started it
_starting = threading.Lock()
_servers: dict[tuple[str, ...], socket.socket] = {}


def run_python(
    *arguments: object,
    input: bytes = b"",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
    libraries: Sequence[str] = RUNTIME,
) -> subprocess.CompletedProcess[bytes]:
    """What `subprocess.run` gives for `python *arguments`, with `-m MODULE`, `-c PROGRAM` or a script first.

    Args:
        input: standard input.
        libraries: loaded before; none of this project's.
    """
    command = [str(argument) for argument in arguments]
    environment = dict(os.environ if env is None else env)
    if sys.platform != "linux":
        return subprocess.run(
            [sys.executable, *command], input=input, capture_output=True, cwd=cwd, env=environment, timeout=timeout
        )
    with ExitStack() as stack:
        pipes = [os.pipe() for _ in range(3)]
        (reading, writing), (output, output_end), (errors, errors_end) = pipes
        answers = stack.enter_context(_forked(command, cwd, environment, libraries, (reading, output_end, errors_end)))
        readers = stack.enter_context(ThreadPoolExecutor(3))
        streams = [readers.submit(_read_all, descriptor) for descriptor in (output, errors)]
        readers.submit(_write_all, writing, input)
        answers.settimeout(timeout)
        process = int.from_bytes(_received(answers), "little")
        try:
            code = int.from_bytes(_received(answers), "little", signed=True)
        except TimeoutError:
            os.kill(process, signal.SIGKILL)
            raise subprocess.TimeoutExpired(command, timeout) from None
        return subprocess.CompletedProcess(command, code, *(reading.result() for reading in streams))


def run_python_text(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The same with texts, as `text=True` gives them."""
    run = run_python(*arguments, **options)
    output, errors = (content.decode().replace("\r\n", "\n") for content in (run.stdout, run.stderr))
    return subprocess.CompletedProcess(run.args, run.returncode, output, errors)


class Forked:
    """A run that goes on meanwhile, with the methods of `subprocess.Popen` that tests need.

    Args:
        answers: what says when it ends.
        says: its output and errors.
    """

    def __init__(self, answers: socket.socket, says: TextIO) -> None:
        self.returncode: int | None = None
        self.pid = int.from_bytes(_received(answers), "little")
        self.says = says
        self._answers = answers

    def wait(self, timeout: float | None = 0) -> int | None:
        """Its exit status, and None where it still runs after so many seconds."""
        if self.returncode is None and select.select([self._answers], [], [], timeout)[0]:
            self.returncode = int.from_bytes(_received(self._answers), "little", signed=True)
        return self.returncode

    def poll(self) -> int | None:
        return self.wait()

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


@contextmanager
def python_started(
    *arguments: object, env: Mapping[str, str] | None = None, libraries: Sequence[str] = RUNTIME
) -> Iterator[Forked]:
    """`python *arguments`, killed at the end of the block if it still runs; needs Linux."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    reading, writing = os.pipe()
    given = nothing, writing, os.dup(writing)
    with (
        open(reading, encoding="utf-8") as says,
        _forked([*map(str, arguments)], None, os.environ if env is None else env, libraries, given) as answers,
    ):
        process = Forked(answers, says)
        try:
            yield process
        finally:
            process.kill()
            process.wait(None)


def _forked(
    command: Sequence[str],
    cwd: Path | None,
    environment: Mapping[str, str],
    libraries: Sequence[str],
    streams: tuple[int, int, int],
) -> socket.socket:
    """Ask for a run; returns what its process and later its exit status are read from.

    Args:
        streams: its standard input, output and errors, which are closed here.
    """
    request = {"arguments": command, "cwd": str(cwd or Path.cwd()), "environment": dict(environment)}
    message = json.dumps(request).encode()
    assert len(message) < _LONGEST_MESSAGE
    answers, theirs = socket.socketpair()
    given = *streams, theirs.detach()
    try:
        socket.send_fds(_server(tuple(libraries)), [message], given)
    except BaseException:
        answers.close()
        raise
    finally:
        for descriptor in given:
            os.close(descriptor)
    return answers


class RunningPython(Forked):
    """The same with text pipes to write to and to read from, as fer-bench starts its workers."""

    def __init__(self, *arguments: object, env: Mapping[str, str], libraries: Sequence[str] = RUNTIME) -> None:
        (reading, writing), (output, output_end) = os.pipe(), os.pipe()
        streams = reading, output_end, os.open(os.devnull, os.O_WRONLY)
        answers = _forked([*map(str, arguments)], None, env, libraries, streams)
        self.stdin = open(writing, "w", 1, encoding="utf-8")  # noqa: SIM115 - fer-bench closes them
        self.stdout = open(output, encoding="utf-8")  # noqa: SIM115
        super().__init__(answers, self.stdout)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs after so many seconds.
        """
        status = super().wait(timeout)
        if status is None:
            raise subprocess.TimeoutExpired([], timeout or 0)
        self._answers.close()
        return status

    def poll(self) -> int | None:
        return super().wait()


def end_servers() -> None:
    """Let the processes go that runs are forked from: each ends when nobody needs it."""
    while _servers:
        _, requests = _servers.popitem()
        requests.close()


def _server(libraries: tuple[str, ...]) -> socket.socket:
    with _starting:
        if libraries not in _servers:
            _servers[libraries] = _connected(libraries)
        return _servers[libraries]


def _connected(libraries: tuple[str, ...]) -> socket.socket:
    """To the process that has the libraries, which all workers of a test run share; the first one starts it."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    # Of the abstract namespace: no file is left behind.
    address = f"\0fer-edge-tests-{os.getuid()}-{run}-{'-'.join(libraries)}"
    # Read by libraries when they are loaded; the modules that set them are imported later, in each run.
    environment = os.environ | {
        "ORT_DISABLE_TELEMETRY": "1",
        "OPENCV_LOG_LEVEL": "OFF",
        "OPENBLAS_NUM_THREADS": "1",
    }
    while True:
        requests = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            requests.connect(address)
        except ConnectionRefusedError:
            requests.close()
        else:
            return requests
        command = [sys.executable, __file__, address[1:], *libraries]
        subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, timeout=300
        )


def _received(answers: socket.socket) -> bytes:
    found = answers.recv(4)
    assert len(found) == 4, "the run was not started"
    return found


def _read_all(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


def _write_all(descriptor: int, content: bytes) -> None:
    with open(descriptor, "wb", 0) as file, suppress(BrokenPipeError):  # where it reads no more
        while content:
            content = content[file.write(content) :]


# In the process that runs are forked from.


def _serve(listener: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; returns in the forked process, and in this one when nobody is left to send any."""
    signal.signal(signal.SIGCHLD, _reap)
    open_sockets = [listener]
    while True:
        found = select.select(open_sockets, [], [], _LONGEST_IDLE)[0]
        if not found and open_sockets == [listener]:
            return None
        for ready in found:
            if ready is listener:
                open_sockets.append(listener.accept()[0])
                continue
            message, descriptors, _, _ = socket.recv_fds(ready, _LONGEST_MESSAGE, 4)
            if not message:
                open_sockets.remove(ready)
                ready.close()
                if open_sockets == [listener]:
                    return None
                continue
            waiting = os.fork()
            if not waiting:
                for inherited in open_sockets:
                    inherited.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                if _is_the_run(descriptors):
                    request: dict[str, Any] = json.loads(message)
                    return request
            for descriptor in descriptors:
                os.close(descriptor)


def _reap(*_: object) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _is_the_run(descriptors: Sequence[int]) -> bool:
    """Fork once more: True in the run, and nothing in the process that waits for it."""
    process = os.fork()
    if process:
        for descriptor in descriptors[:3]:
            os.close(descriptor)
        answers = descriptors[3]
        os.write(answers, process.to_bytes(4, "little"))
        _, status = os.waitpid(process, 0)
        os.write(answers, os.waitstatus_to_exitcode(status).to_bytes(4, "little", signed=True))
        os._exit(0)
    for place, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, place)
    for descriptor in descriptors:
        os.close(descriptor)
    return True


def be_python(request: Mapping[str, Any], installed: Sequence[str]) -> None:
    """Be `python *arguments` in a process that has been forked for it.

    Args:
        request: `arguments`, `cwd` and `environment`.
        installed: folders of the installed packages.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    kind, *arguments = request["arguments"]
    given = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    first = {"-m": os.getcwd(), "-c": ""}.get(kind, os.path.dirname(os.path.abspath(kind)))
    sys.path[:] = [first, *given, *installed]
    importlib.invalidate_caches()
    for name, descriptor, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        before = getattr(sys, name)
        stream = open(  # noqa: SIM115 - open as long as the process
            descriptor, mode, 1 if name == "stderr" else -1, before.encoding, before.errors, closefd=False
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if kind == "-m":
        module, *_ = sys.argv[:] = arguments
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif kind != "-c":
        sys.argv[:] = [kind, *arguments]
        runpy.run_path(kind, run_name="__main__")
    else:
        code, *rest = arguments
        sys.argv[:] = [kind, *rest]
        main = ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(code, "<string>", "exec"), main.__dict__)


def _main() -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(f"\0{sys.argv[1]}")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # another worker has started one at the same time
            return
        raise
    listener.listen(64)  # requests wait until the libraries are loaded
    if os.fork():
        os._exit(0)  # the process that forks belongs to no worker
    gc.disable()
    for library in sys.argv[2:]:
        importlib.import_module(library)
    inherited = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    # Without this file's folder and without PYTHONPATH.
    path = [folder for folder in sys.path[1:] if folder not in inherited]
    gc.freeze()  # a collection would copy the memory of all libraries into each run
    gc.enable()
    request = _serve(listener)
    if request is not None:
        be_python(request, path)


if __name__ == "__main__":
    _main()
