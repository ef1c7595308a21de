"""One configuration in a process of its own, told what to do by lines on standard input.

`python -m fer_bench.latency.worker` reads a JSON object per line and answers with one: first the configuration,
then `{"seconds": 0.3}` for a round of timed runs, or `{"faces": FILE, "answers": FILE}` to run the faces
of one .npy file one by one and write what came out to another. It ends with its input. It needs numpy and
the engine, nothing else, so that it also runs in environments where fer-edge is not installed.
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

# A warm-up lasts until two rounds of it agree, but no longer than this.
_WARMUP_SECONDS = 3.0
_WARMUP_ROUND_SECONDS = 0.15
_WARMUP_AGREEMENT = 0.05
# Beside every round. So small that it stays in the first cache and on one thread of numpy's.
_CONTROL_SIZE = 64
_CONTROL_SECONDS = 0.005


def timed_runs(run: Callable[[], object], seconds: float, *, clock: Callable[[], int] = perf_counter_ns) -> list[int]:
    """Durations in ns of single runs, one after the other, for about `seconds`; at least three.

    The end is judged by the sum of the durations, so a clock that jumps ends a round early or late but
    spoils one sample only.
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


def _warm_up(run: Callable[[], object]) -> int:
    """Run until the median of two rounds differs by less than 5 %; the number of runs."""
    runs, previous = 0, 0.0
    started = perf_counter_ns()
    while perf_counter_ns() - started < _WARMUP_SECONDS * 1e9:
        samples = sorted(timed_runs(run, _WARMUP_ROUND_SECONDS))
        runs += len(samples)
        median = samples[len(samples) // 2]
        if previous and abs(median / previous - 1) < _WARMUP_AGREEMENT:
            break
        previous = median
    return runs


def _control() -> Callable[[], float]:
    """A function that gives the ns of a small product of numpy's, which only the core makes slower, not the engine.

    The lower decile of many: short enough to pass between interruptions, which are no speed.
    """
    import numpy as np

    # On pages of their own: where arrays lie would otherwise differ by a fifth from process to process.
    room = np.zeros(3 * _CONTROL_SIZE**2 * 4 + 4096, np.uint8)
    start = -room.ctypes.data % 4096
    both = room[start : start + 3 * _CONTROL_SIZE**2 * 4].view(np.float32).reshape(3, _CONTROL_SIZE, _CONTROL_SIZE)
    left, right, product = both
    both[:] = 1
    return lambda: float(np.quantile(timed_runs(lambda: np.matmul(left, right, out=product), _CONTROL_SECONDS), 0.1))


def _peak_bytes() -> int:
    """Largest resident memory of this process; 0 where the system does not say."""
    # getrusage's figure on Linux includes the parent's memory at the moment it started this process.
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


def main() -> None:
    """Serve rounds until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    # An engine that prints must not garble the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    configuration: dict[str, Any] = json.loads(sys.stdin.readline())
    try:
        start = process_time_ns()
        import numpy as np

        numpy_imported = process_time_ns()
        # Squares, not noise: to noise the models say nearly the same whatever is done to it, so that an engine which
        # mixed up rows or faces would pass.
        squares = np.random.default_rng(0).integers(0, 256, (configuration["batch"], 12, 12), np.uint8)
        faces = squares.repeat(4, 1).repeat(4, 2)
        engine = import_module(configuration["module"])
        engine_imported = process_time_ns()
        infer = engine.load(
            Path(configuration["source"]),
            model=configuration["model"],
            threads=configuration["threads"],
            batch=configuration["batch"],
        )
        loaded = process_time_ns()
        answer = infer(faces)
        first = process_time_ns()
        probabilities = np.asarray(answer, np.float64).reshape(configuration["batch"], -1).tolist()
        warmup_runs = _warm_up(lambda: infer(faces))
    except Exception as error:  # whatever the engine raises is its answer to "does this work here"
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        answers.write(json.dumps({"error": reason[:300]}) + "\n")
        return
    cold = {
        "python_ms": start / 1e6,
        "numpy_ms": (numpy_imported - start) / 1e6,
        "engine_ms": (engine_imported - numpy_imported) / 1e6,
        "model_ms": (loaded - engine_imported) / 1e6,
        "first_run_ms": (first - loaded) / 1e6,
    }
    ready = {"cold_start_cpu": cold, "warmup_runs": warmup_runs, "probabilities": probabilities}
    answers.write(json.dumps(ready) + "\n")
    control = _control()
    for line in sys.stdin:
        question = json.loads(line)
        if "faces" in question:
            found = [np.asarray(infer(face[np.newaxis])).reshape(-1) for face in np.load(question["faces"])]
            np.save(question["answers"], np.stack(found))
            answers.write("{}\n")
            continue
        before = control()
        cpu, wall = process_time_ns(), perf_counter_ns()
        samples = timed_runs(lambda: infer(faces), question["seconds"])
        cpu, wall = process_time_ns() - cpu, perf_counter_ns() - wall
        answers.write(
            json.dumps(
                {
                    "samples_ns": samples,
                    "cpu_ns": cpu,
                    "wall_ns": wall,
                    "control_ns": (before + control()) / 2,
                    "peak_bytes": _peak_bytes(),
                }
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
