"""fer-serve under load, in turns with the bare model and with a service that classifies each request by itself."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from time import perf_counter, process_time
from typing import Any

import numpy as np

from fer_bench.statistics import percentiles
from fer_runtime.errors import ServeError
from fer_runtime.images import Uint8Array
from fer_runtime.model.load import load_model

BATCH = 32  # faces, of the bare model
_WARMUP_SECONDS = 1.0  # at most
# Far more than a slow machine needs: what takes longer has failed, and must not hold up everything else.
_START_SECONDS = 120.0  # from the start of a service until it listens
_ANSWER_SECONDS = 120.0  # of one request; fer-serve itself gives up after 30
_END_SECONDS = 60.0  # from SIGTERM to the end of a service
_SERVE = "from fer_runtime.cli.serve import main; main()"
_PLAIN = "from fer_bench.serving import run_plain; run_plain()"
_BARE = "from fer_bench.serving import run_bare; run_bare()"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingResult:
    """The result of one service under one load; each client sends its next request after an answer."""

    service: str  # "fer-serve", "plain", or "bare model"
    clients: int
    faces: int  # of a request
    requests: int
    seconds: float
    errors: int  # answers other than 200 and 503, and broken connections
    refused: int  # answers of 503, after which the client waits as it is told and asks again
    requests_per_second: float
    faces_per_second: float
    faces_per_cpu_second: float  # of the service's process: what one core does, however busy the machine is
    p50_ms: float
    p99_ms: float
    memory_mb: float  # resident, at the end
    memory_growth_mb: float  # since the warm-up

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_serving(
    model: Path, *, clients: Sequence[int], faces: Sequence[int], seconds: float, rounds: int
) -> list[ServingResult]:
    """Rounds in turns; for each service and load the median over the rounds.

    The services share one core; the clients have the others.

    Args:
        model: the file.
        clients: at a time.
        faces: of a request.
        seconds: of one load in one round.
        rounds: of everything.

    Raises:
        ServeError: a service does not start, answer or end in time.
    """
    collected: dict[tuple[str, int, int], list[ServingResult]] = {}
    shape = load_model(model).metadata.face_shape
    with _service(_PLAIN, model) as plain, _service(_SERVE, model) as served:
        for _ in range(rounds):
            # A face alone takes longer than one in a batch: a lone client with single faces reaches no more.
            for count in sorted({1, BATCH} if 1 in faces else {BATCH}):
                bare = _measure_bare(model, seconds, count)
                collected.setdefault(("bare model", 1, count), []).append(bare)
            for count in faces:
                content = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
                for number in clients:
                    for name, service in (("plain", plain), ("fer-serve", served)):
                        result = _measure(name, service, content, clients=number, seconds=seconds)
                        collected.setdefault((name, number, count), []).append(result)
    return [_median(results) for results in collected.values()]


def _median(results: Sequence[ServingResult]) -> ServingResult:
    values = {
        name: statistics.median(getattr(result, name) for result in results)
        if name not in ("service", "errors", "refused", "requests", "clients", "faces", "memory_growth_mb")
        else getattr(results[0], name)
        for name in asdict(results[0])
    }
    values["requests"] = sum(result.requests for result in results)
    values["errors"] = sum(result.errors for result in results)
    values["refused"] = sum(result.refused for result in results)
    values["memory_growth_mb"] = max(result.memory_growth_mb for result in results)
    return ServingResult(**values)


@dataclass(slots=True)
class _Service:
    process: subprocess.Popen[str]
    port: int
    model: str  # its name there

    def cpu_seconds(self) -> float:
        """Of the process and its threads, without processes that it started."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """Resident megabytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def _service(program: str, model: Path) -> Iterator[_Service]:
    """A service of `program` on a free port of the loopback address, on one core.

    Raises:
        ServeError: it does not start, or does not end, in time.
    """
    command = [sys.executable, "-c", program, "--port", "0", "--workers", "1", "--model", str(model.absolute())]
    with _on_one_core():
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = _Log(process)
    try:
        yield _Service(process, *log.listening())
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ServeError(f"a service does not end within {_END_SECONDS:g} s of SIGTERM: {log.end()}") from error
    finally:
        process.kill()
        process.wait()
        log.join()


class _Log:
    """What a service writes on its standard error, read in a thread: a full pipe would stop the service."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: deque[str] = deque(maxlen=20)  # the latest
        self._address: queue.SimpleQueue[tuple[int, str] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def listening(self) -> tuple[int, str]:
        """The port, and the name of the model there.

        Raises:
            ServeError: the service has ended, or says nothing of the kind in time.
        """
        try:
            address = self._address.get(timeout=_START_SECONDS)
        except queue.Empty:
            raise ServeError(f"a service does not listen within {_START_SECONDS:g} s: {self.end()}") from None
        if address is None:
            raise ServeError(f"a service does not start: {self.end()}")
        return address

    def end(self) -> str:
        """The last words."""
        return "".join(self._lines).strip()[-500:] or "it said nothing"

    def join(self) -> None:
        """The process has ended; another one that has its standard error is not waited for."""
        self._thread.join(1)

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self._lines.append(line)
                # Libraries may print warnings first.
                with suppress(ValueError, KeyError, TypeError):
                    values = json.loads(line)
                    address = int(values["url"].rpartition(":")[2]), values["models"][0].split()[0]
                    self._address.put(address)
        self._address.put(None)


@contextmanager
def _on_one_core() -> Iterator[None]:
    """Processes started in the block have one core, and this one has its own back afterwards."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cpus)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


def _measure(name: str, service: _Service, faces: Uint8Array, *, clients: int, seconds: float) -> ServingResult:
    request = inference_request(service.model, faces)
    _load(name, service.port, request, clients, min(seconds, _WARMUP_SECONDS))
    memory, cpu = service.memory(), service.cpu_seconds()
    started = perf_counter()
    times, statuses = _load(name, service.port, request, clients, seconds)
    elapsed = perf_counter() - started
    busy = max(service.cpu_seconds() - cpu, 1e-3)
    if not times:
        raise ServeError(f"{name} answers no request of {len(faces)} faces: {dict(statuses)}")
    found = percentiles(times)
    return ServingResult(
        service=name,
        clients=clients,
        faces=len(faces),
        requests=len(times),
        seconds=elapsed,
        errors=sum(statuses.values()) - statuses[200] - statuses[503],
        refused=statuses[503],
        requests_per_second=len(times) / elapsed,
        faces_per_second=len(times) * len(faces) / elapsed,
        faces_per_cpu_second=len(times) * len(faces) / busy,
        p50_ms=1000 * found.p50,
        p99_ms=1000 * found.p99,
        memory_mb=service.memory(),
        memory_growth_mb=service.memory() - memory,
    )


def _measure_bare(model: Path, seconds: float, faces: int) -> ServingResult:
    """The model without a service: a loop over batches in a process of its own."""
    command = [sys.executable, "-c", _BARE, str(model.absolute()), str(seconds), str(faces)]
    with _on_one_core():
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_START_SECONDS + seconds + _ANSWER_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise ServeError(f"the model alone does not end within {error.timeout:g} s") from error
    if done.returncode:
        raise ServeError(f"the model does not run: {done.stderr.strip()[-500:]}")
    return ServingResult(**json.loads(done.stdout))


def run_bare() -> None:
    """The process of `_measure_bare`."""
    loaded = load_model(Path(sys.argv[1]))
    session = loaded.session
    batch = int(sys.argv[3])
    content = np.random.default_rng(0).integers(0, 256, (batch, *loaded.metadata.face_shape), np.uint8)
    times: list[float] = []
    seconds = float(sys.argv[2])
    end = perf_counter() + min(seconds, _WARMUP_SECONDS)
    while perf_counter() < end:
        session.run(["probabilities"], {"faces": content})
    cpu, started = process_time(), perf_counter()
    end = started + seconds
    while (before := perf_counter()) < end:
        session.run(["probabilities"], {"faces": content})
        times.append(perf_counter() - before)
    elapsed, busy = perf_counter() - started, process_time() - cpu
    found = percentiles(times)
    result = ServingResult(
        service="bare model",
        clients=1,
        faces=batch,
        requests=len(times),
        seconds=elapsed,
        errors=0,
        refused=0,
        requests_per_second=len(times) / elapsed,
        faces_per_second=len(times) * batch / elapsed,
        faces_per_cpu_second=len(times) * batch / busy,
        p50_ms=1000 * found.p50,
        p99_ms=1000 * found.p99,
        memory_mb=0.0,
        memory_growth_mb=0.0,
    )
    print(json.dumps(result.to_dict()))


def run_plain() -> None:
    """A service as a first version is written: a thread for each connection, and each request runs the model."""
    path = Path(sys.argv[sys.argv.index("--model") + 1])
    loaded = load_model(path)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            length = int(self.headers["Inference-Header-Content-Length"])
            shape = json.loads(content[:length])["inputs"][0]["shape"]
            faces = np.frombuffer(content[length:], np.uint8).reshape(shape)
            (values,) = loaded.session.run(["probabilities"], {"faces": faces})
            output: dict[str, Any] = {"name": "probabilities", "datatype": "FP32", "shape": list(values.shape)}
            output["parameters"] = {"binary_data_size": values.nbytes}
            head = json.dumps({"model_name": "plain", "outputs": [output]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(head) + values.nbytes))
            self.send_header("Inference-Header-Content-Length", str(len(head)))
            self.end_headers()
            self.wfile.write(head + values.tobytes())

        def log_message(self, format: str, *args: object) -> None:
            """No log: fer-serve's costs it something."""

    class Server(ThreadingTCPServer):  # ThreadingHTTPServer would look its name up in the network
        daemon_threads = True
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        address = {"url": f"http://127.0.0.1:{server.server_address[1]}", "models": ["plain"]}
        print(json.dumps(address), file=sys.stderr, flush=True)
        server.serve_forever()


def inference_request(model: str, faces: Uint8Array) -> bytes:
    """A whole HTTP request of the Open Inference Protocol, with the faces behind its JSON."""
    tensor = {
        "name": "faces",
        "shape": list(faces.shape),
        "datatype": "UINT8",
        "parameters": {"binary_data_size": faces.size},
    }
    outputs = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    lines = (
        f"POST /v2/models/{model}/infer HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {len(head) + faces.size}",
        f"Inference-Header-Content-Length: {len(head)}",
        "Content-Type: application/octet-stream",
    )
    return "\r\n".join((*lines, "", "")).encode() + head + faces.tobytes()


def _load(name: str, port: int, request: bytes, clients: int, seconds: float) -> tuple[list[float], Counter[int]]:
    """Seconds of each successful request, and the number of answers by status; 0 for a broken connection.

    A client that gets 503 asks again after the seconds of Retry-After.

    Raises:
        ServeError: a request is not answered in time.
    """
    times: list[float] = []
    statuses: Counter[int] = Counter()
    end = perf_counter() + seconds
    unanswered = clients

    async def client() -> None:
        nonlocal unanswered
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            # Once at least: on a busy machine the connection alone may take that long.
            started = perf_counter()
            while True:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                lower = head.lower()
                at = lower.index(b"\r\ncontent-length:") + 17
                await reader.readexactly(int(lower[at : lower.index(b"\r\n", at)]))
                status = int(head[9:12])
                statuses[status] += 1
                if status == 200:
                    times.append(perf_counter() - started)
                if status == 503:
                    await asyncio.sleep(max(0.0, min(_retry_after(lower), end - perf_counter())))
                if (started := perf_counter()) >= end:
                    break
        except (OSError, EOFError, ValueError):
            statuses[0] += 1
        finally:
            writer.close()
        unanswered -= 1

    async def run() -> None:
        # One limit for all: a timer for each request would cost the clients time.
        await asyncio.wait_for(asyncio.gather(*(client() for _ in range(clients))), seconds + _ANSWER_SECONDS)

    try:
        asyncio.run(run())
    except asyncio.TimeoutError as error:
        raise ServeError(
            f"{name} left {unanswered} of {clients} clients without an answer for {_ANSWER_SECONDS:g} s"
        ) from error
    return times, statuses


def _retry_after(head: bytes) -> float:
    """Seconds after which a client should ask again, by the lower-case head of an answer."""
    _, found, value = head.partition(b"\r\nretry-after:")
    text = value.partition(b"\r\n")[0].strip()
    return float(text) if found and text.isdigit() else 1.0


def serving_table(results: Sequence[ServingResult]) -> str:
    """The results for a terminal, beside the bare model's rate."""
    bare = next(
        (result.faces_per_cpu_second for result in results if result.service == "bare model" and result.faces == BATCH),
        float("nan"),
    )
    lines = [
        f"{'service':10} {'clients':>7} {'faces':>5} {'requests/s':>10} {'faces/s':>8} {'of CPU':>8} {'of bare':>7} "
        f"{'p50 ms':>8} {'p99 ms':>8} {'errors':>6} {'refused':>7} {'MB':>5} {'grown':>6}"
    ]
    for result in sorted(results, key=lambda result: (result.faces, result.clients, result.service)):
        lines.append(
            f"{result.service:10} {result.clients:7} {result.faces:5} {result.requests_per_second:10.0f} "
            f"{result.faces_per_second:8.0f} {result.faces_per_cpu_second:8.0f} "
            f"{result.faces_per_cpu_second / bare:7.0%} {result.p50_ms:8.2f} {result.p99_ms:8.2f} "
            f"{result.errors:6} {result.refused:7} {result.memory_mb:5.0f} {result.memory_growth_mb:6.1f}"
        )
    return "\n".join(lines)
