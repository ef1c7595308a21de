"""One configuration in its own process, controlled by lines on standard input.

`python -m fer_bench.latency.worker` reads one JSON object per line and answers with one. The first is the
configuration, whose `turn_seconds` are 0 where no call is timed. Then `{"seconds": 0.3}` runs a round of timed calls,
and `{"faces": FILE, "answers": FILE}` classifies the faces of one .npy file one by one and writes the probabilities to
another. The process ends with its input. It only needs numpy and the engine, so it also runs in environments without
fer-edge.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from time import perf_counter_ns, process_time_ns
from typing import Any

# The warm-up lasts until two of its rounds agree, but no longer than this. No round is longer than a turn.
_WARMUP_SECONDS = 3.0
_WARMUP_ROUND_SECONDS = 0.15
_WARMUP_AGREEMENT = 0.05
# Product timed beside every round. Small enough for the L1 cache and for one thread of numpy.
_CONTROL_SIZE = 64
_CONTROL_SECONDS = 0.005


def timed_runs(run: Callable[[], object], seconds: float, *, clock: Callable[[], int] = perf_counter_ns) -> list[int]:
    """Durations in ns of consecutive runs, for about `seconds` and at least three runs.

    A round ends by the sum of the durations, so a clock that jumps corrupts only one sample.
    """
    samples: list[int] = []
    spent = 0
    while spent < seconds * 1e9 or len(samples) < 3:
        started = clock()
        run()
        duration = clock() - started
        samples.append(duration)
        spent += max(duration, 1000)
    return samples


def _warm_up(run: Callable[[], object], round_seconds: float) -> int:
    """Run until the medians of two rounds differ by less than 5 %; returns the number of runs."""
    runs, previous = 0, 0.0
    started = perf_counter_ns()
    while perf_counter_ns() - started < _WARMUP_SECONDS * 1e9:
        samples = sorted(timed_runs(run, round_seconds))
        runs += len(samples)
        median = samples[len(samples) // 2]
        if previous and abs(median / previous - 1) < _WARMUP_AGREEMENT:
            break
        previous = median
    return runs


def _control() -> Callable[[], float]:
    """A function that times a small numpy product in ns, which depends on the core's speed but not on the engine.

    It returns the lower decile of many runs, which are short enough to run without interruption.
    """
    import numpy as np

    # Aligned to pages: otherwise times differ by a fifth between processes.
    room = np.zeros(3 * _CONTROL_SIZE**2 * 4 + 4096, np.uint8)
    start = -room.ctypes.data % 4096
    both = room[start : start + 3 * _CONTROL_SIZE**2 * 4].view(np.float32).reshape(3, _CONTROL_SIZE, _CONTROL_SIZE)
    left, right, product = both
    both[:] = 1
    return lambda: float(np.quantile(timed_runs(lambda: np.matmul(left, right, out=product), _CONTROL_SECONDS), 0.1))


def _peak_bytes() -> int:
    """Largest resident memory of this process; 0 if unknown."""
    # On Linux, getrusage includes the parent's memory at the time of the fork.
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _start(configuration: dict[str, Any]) -> tuple[Callable[[Any], Any], Any, dict[str, Any]]:
    """Load the engine and its model, and warm it up.

    Returns:
        the function that classifies, the faces that are timed, and the first answer to the process that measures.
    """
    start = process_time_ns()
    import numpy as np

    numpy_imported = process_time_ns()
    # Squares, not noise: models answer nearly the same to any noise, so an engine that mixes up rows or faces would
    # pass.
    size, *channels = configuration.get("face_shape", (48, 48))[1:]
    squares = np.random.default_rng(0).integers(0, 256, (configuration["batch"], 12, 12, *channels), np.uint8)
    side = -(-size // 12)
    faces = np.ascontiguousarray(squares.repeat(side, 1).repeat(side, 2)[:, :size, :size])
    module, _, function = configuration["code"].partition(":")
    load = getattr(import_module(module), function)
    engine_imported = process_time_ns()
    infer = load(
        Path(configuration["source"]),
        model=configuration["model"],
        threads=configuration["threads"],
        batch=configuration["batch"],
    )
    loaded = process_time_ns()
    answer = infer(faces)
    first = process_time_ns()
    probabilities = np.asarray(answer, np.float64).reshape(configuration["batch"], -1).tolist()
    turn_seconds = configuration["turn_seconds"]
    warmup_runs = _warm_up(lambda: infer(faces), min(_WARMUP_ROUND_SECONDS, turn_seconds)) if turn_seconds else 0
    ready = {
        "cold_start_cpu": {
            "python_ms": start / 1e6,
            "numpy_ms": (numpy_imported - start) / 1e6,
            "engine_ms": (engine_imported - numpy_imported) / 1e6,
            "model_ms": (loaded - engine_imported) / 1e6,
            "first_run_ms": (first - loaded) / 1e6,
        },
        "warmup_runs": warmup_runs,
        "probabilities": probabilities,
    }
    return infer, faces, ready


def _timed_round(run: Callable[[], object], seconds: float, control: Callable[[], float]) -> dict[str, Any]:
    """Times of consecutive runs, and of the control product before and after them."""
    before = control()
    cpu, wall = process_time_ns(), perf_counter_ns()
    samples = timed_runs(run, seconds)
    cpu, wall = process_time_ns() - cpu, perf_counter_ns() - wall
    return {
        "samples_ns": samples,
        "cpu_ns": cpu,
        "wall_ns": wall,
        "control_ns": (before + control()) / 2,
        "peak_bytes": _peak_bytes(),
    }


def _classify(infer: Callable[[Any], Any], faces: str, answers: str) -> None:
    """Write the probabilities of the faces in one .npy file, classified one by one, to another."""
    import numpy as np

    np.save(answers, np.stack([np.asarray(infer(face[np.newaxis])).reshape(-1) for face in np.load(faces)]))


def main() -> None:
    """Serve rounds until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    # Output of an engine must not mix with the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    configuration: dict[str, Any] = json.loads(sys.stdin.readline())
    try:
        infer, faces, ready = _start(configuration)
    except Exception as error:  # any exception means that the engine does not work here
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        answers.write(json.dumps({"error": reason[:300]}) + "\n")
        return
    answers.write(json.dumps(ready) + "\n")
    control = _control()
    for line in sys.stdin:
        question = json.loads(line)
        if "faces" in question:
            _classify(infer, question["faces"], question["answers"])
            answers.write("{}\n")
        else:
            answer = _timed_round(lambda: infer(faces), question["seconds"], control)
            answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
