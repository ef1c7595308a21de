"""The roofline: the shortest time that the processor allows for a model's arithmetic and weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from fer_bench.engines import ENGINES
from fer_bench.latency.measure import Configuration, LatencyResult, Unavailable, measure_latency
from fer_runtime.model.inspect import inspect_model
from fer_runtime.model.session import open_session

# The shapes in product_fp32.onnx and product_int8.onnx. Large enough that the kernel's inner loop dominates, small
# enough for the cache of a small core.
_ROWS, _DEPTH, _COLUMNS = 384, 768, 768
_PEAK_SECONDS = 1.0  # for each type


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakRates:
    """Multiply-accumulates per second (MAC/s) of one thread, measured with ONNX Runtime's matrix product."""

    fp32_macs_per_second: float
    int8_macs_per_second: float

    def or_higher(self, other: PeakRates) -> PeakRates:
        """The higher of two measurements, for each type: a core can reach again what it reached once."""
        return PeakRates(
            fp32_macs_per_second=max(self.fp32_macs_per_second, other.fp32_macs_per_second),
            int8_macs_per_second=max(self.int8_macs_per_second, other.int8_macs_per_second),
        )

    def to_dict(self) -> dict[str, float]:
        """As stored in results files."""
        return {"fp32_macs_per_second": self.fp32_macs_per_second, "int8_macs_per_second": self.int8_macs_per_second}

    def arithmetic_ms(self, macs: int, *, arithmetic: str, batch: int, threads: int = 1) -> float:
        """Time of the arithmetic alone in ms, with every thread at the peak rate."""
        # ONNX Runtime computes float16 files in float32 on x86. ARM cores with asimdhp can be faster than this.
        rate = self.int8_macs_per_second if arithmetic == "int8" else self.fp32_macs_per_second
        return macs * batch / rate / threads * 1000


def measure_with_peak_rates(
    wanted: Sequence[Configuration],
    *,
    rounds: int,
    seconds: float,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[LatencyResult], list[Unavailable], PeakRates | None]:
    """Time the configurations in turns, and the processor's peak rates before and after them.

    A busy second lowers a rate, so the higher of two counts.

    Args:
        wanted, rounds, seconds, progress: as for `measure_latency`.

    Returns:
        Results, what could not be timed, and the rates: None where nothing could be timed.
    """
    # As long as the turns of a configuration, up to a second: a longer look reaches no higher rate.
    long = min(_PEAK_SECONDS, rounds * seconds)
    rates: PeakRates | None = None

    def measure() -> None:
        nonlocal rates
        found = measure_peak_rates(seconds=long)
        rates = found if rates is None else found.or_higher(rates)

    results, unavailable = measure_latency(
        wanted, rounds=rounds, seconds=seconds, progress=progress, when_ready=measure
    )
    if results:
        measure()
    return results, unavailable, rates if results else None


def measure_peak_rates(*, seconds: float = _PEAK_SECONDS) -> PeakRates:
    """Time a large matrix product in float32 and one in 8-bit integers (uint8 by int8, as in the int8 models)."""
    random = np.random.default_rng(0)
    left = random.standard_normal((_ROWS, _DEPTH), np.float32)
    left8 = random.integers(0, 256, (_ROWS, _DEPTH), np.uint8)
    return PeakRates(
        fp32_macs_per_second=_rate("product_fp32.onnx", left, seconds),
        int8_macs_per_second=_rate("product_int8.onnx", left8, seconds),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The least that one call of a model has to do."""

    macs: int  # multiply-accumulates per face
    arithmetic: str  # "fp32", "int8" or "fp16", as in the graph
    weight_bytes: int  # read once per call
    read_ms: float  # measured time to read them


def measure_work(path: Path) -> Work | None:
    """Arithmetic and weights of the model at `path`, from its graph; None if a shape is unknown.

    Raises:
        ModelFileError: the file cannot be read.
    """
    facts = inspect_model(path)
    if facts.macs is None:
        return None
    return Work(
        macs=facts.macs,
        arithmetic=facts.arithmetic,
        weight_bytes=facts.weight_bytes,
        read_ms=measure_reading(facts.weight_bytes),
    )


def measure_reading(weight_bytes: int, *, seconds: float = 0.2) -> float:
    """Time in ms for one thread to read so many bytes of weights, using numpy's maximum, its fastest pass.

    The bytes are read repeatedly, so weights that fit a cache come from the cache, as a model's do.
    """
    # np.zeros would map every page to the same physical page until it is written.
    weights = np.ones(max(weight_bytes // 4, 1), np.int32)
    return 1000 * _best(weights.max, seconds)


def rows_with_roofline(
    results: Sequence[LatencyResult], wanted: Sequence[Configuration], peak_rates: PeakRates
) -> list[dict[str, Any]]:
    """Results as stored in files, with the model's work, its roofline and p50 as a multiple of it.

    The roofline is the longer of two times: all multiplications at the peak rate, and reading all weights once.
    """
    paths = {
        (configuration.model, configuration.precision): configuration.source
        for configuration in wanted
        if configuration.source.suffix == ".onnx"
    }
    works = {key: measure_work(path) for key, path in paths.items()}
    rows = []
    for result in results:
        # PyTorch's network does the arithmetic of the fp32 model.
        work = works.get((result.model, result.precision)) or works.get((result.model, "fp32"))
        # The int8 file multiplies zeros that its layout adds, so the fp32 file is counted if it exists.
        needed = works.get((result.model, "fp32")) or work
        macs = None if needed is None else needed.macs
        roofline = None
        engine = ENGINES.get(result.engine)
        # The fp32 roofline does not hold for bfloat16.
        if work is not None and macs is not None and (engine is None or engine.arithmetic is None):
            arithmetic = peak_rates.arithmetic_ms(
                macs, arithmetic=work.arithmetic, batch=result.batch, threads=result.threads
            )
            roofline = max(arithmetic, work.read_ms)
        rows.append(
            result.to_dict()
            | {
                "macs": macs,
                "weight_bytes": None if work is None else work.weight_bytes,
                "roofline_ms": roofline,
                "times_roofline": None if roofline is None else result.p50_ms / roofline,
            }
        )
    return rows


def warn_below_roofline(rows: Sequence[dict[str, Any]]) -> str | None:
    """A sentence if a configuration took less than its roofline, which is then too slow; else None."""
    below = [row for row in rows if row["times_roofline"] is not None and row["times_roofline"] < 1]
    if not below:
        return None
    return (
        f"{len(below)} of {len(rows)} configurations took less than the roofline: the machine was too busy to reach "
        "its peak rate; measure again when it is idle"
    )


def _best(run: Callable[[], object], seconds: float) -> float:
    """Shortest duration of `run` in s, over many runs in this thread."""
    # A product takes milliseconds. On a busy machine all of them are interrupted, so wall time would give a roofline
    # above what single faces reach. The thread's CPU time excludes interruptions, where its clock is fine enough.
    clock = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-5 else time.perf_counter
    run()
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = clock()
        run()
        best = min(best, clock() - started)
    return best


def _rate(name: str, left: Any, seconds: float) -> float:
    """MAC/s of the product of `left` with the constant in the model file `name`."""
    model = files("fer_bench.latency").joinpath(name).read_bytes()
    # With one thread, ONNX Runtime computes in the calling thread, whose CPU time is measured.
    session = open_session(model, threads=1, source=name).session
    return _ROWS * _DEPTH * _COLUMNS / _best(lambda: session.run(None, {"a": left}), seconds)
