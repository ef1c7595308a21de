"""What the processor could do at best: the ceiling that a latency is held against."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fer_bench.engines import ENGINES
from fer_bench.latency.measure import Configuration, LatencyResult
from fer_runtime.model.inspect import inspect_model
from fer_runtime.model.session import open_session

# Large enough that the kernel's inner loop is all there is, small enough for the cache of a small core.
_ROWS, _DEPTH, _COLUMNS = 384, 768, 768


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Multiply-accumulates per second of one thread, measured through ONNX Runtime's MatMul."""

    fp32_macs_per_second: float
    int8_macs_per_second: float

    def or_higher(self, other: Ceilings) -> Ceilings:
        """The higher of two measurements of each: what the core reached once, it can reach."""
        return Ceilings(
            fp32_macs_per_second=max(self.fp32_macs_per_second, other.fp32_macs_per_second),
            int8_macs_per_second=max(self.int8_macs_per_second, other.int8_macs_per_second),
        )

    def to_dict(self) -> dict[str, float]:
        """As results files hold it."""
        return {"fp32_macs_per_second": self.fp32_macs_per_second, "int8_macs_per_second": self.int8_macs_per_second}

    def limit_ms(self, macs: int, *, arithmetic: str, batch: int, threads: int = 1) -> float:
        """Time that the arithmetic alone takes, in ms, if every thread ran at the ceiling."""
        # ONNX Runtime computes float16 files in float32 on x86; on ARM cores with asimdhp this is no limit of theirs.
        rate = self.int8_macs_per_second if arithmetic == "int8" else self.fp32_macs_per_second
        return macs * batch / rate / threads * 1000


def measure_ceilings(*, seconds: float = 1.0) -> Ceilings:
    """Time one large product in float32 and one in 8-bit integers (unsigned by signed, as the int8 models)."""
    random = np.random.default_rng(0)
    left = random.standard_normal((_ROWS, _DEPTH), np.float32)
    right = random.standard_normal((_DEPTH, _COLUMNS), np.float32)
    left8 = random.integers(0, 256, (_ROWS, _DEPTH), np.uint8)
    right8 = random.integers(-128, 128, (_DEPTH, _COLUMNS), np.int8)
    return Ceilings(
        fp32_macs_per_second=_rate(_matmul("MatMul", right, 1, 1), left, seconds),
        int8_macs_per_second=_rate(_matmul("MatMulInteger", right8, 2, 6), left8, seconds),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one call of a model cannot do without."""

    macs: int  # multiply-accumulates per face
    arithmetic: str  # "fp32", "int8" or "fp16", as the graph has it
    weight_bytes: int  # read once per call
    read_ms: float  # for reading them, measured


def measure_work(path: Path) -> Work | None:
    """The arithmetic and the weights of the model at `path`, from its graph; None where a shape is unknown.

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
    """ms in which one thread reads so many bytes of weights: numpy's maximum over an array, its fastest pass.

    Read again and again, so weights that fit a cache are read from there, as a model's are.
    """
    # Not np.zeros, whose pages are all one page of the system's until they are written to.
    weights = np.ones(max(weight_bytes // 4, 1), np.int32)
    return 1000 * _best(weights.max, seconds)


def rows_with_limits(
    results: Sequence[LatencyResult], wanted: Sequence[Configuration], ceilings: Ceilings
) -> list[dict[str, Any]]:
    """Results as files hold them, with the model's work, the limit, and how many times the limit was taken.

    The limit is the longer of two: all multiplications at the ceiling, and reading all weights once.
    """
    files = {(one.model, one.precision): one.source for one in wanted if one.source.suffix == ".onnx"}
    works = {key: measure_work(path) for key, path in files.items()}
    rows = []
    for result in results:
        # PyTorch's network does the fp32 model's arithmetic.
        work = works.get((result.model, result.precision)) or works.get((result.model, "fp32"))
        # What the network needs, not the zeros that a rewriting into blocks adds: the fp32 file's, where it is there.
        needed = works.get((result.model, "fp32")) or work
        macs = None if needed is None else needed.macs
        limit = None
        engine = ENGINES.get(result.engine)
        # Against the fp32 ceiling bfloat16 would look better than possible.
        if work is not None and macs is not None and (engine is None or engine.arithmetic is None):
            arithmetic = ceilings.limit_ms(macs, arithmetic=work.arithmetic, batch=result.batch, threads=result.threads)
            limit = max(arithmetic, work.read_ms)
        rows.append(
            result.to_dict()
            | {
                "macs": macs,
                "weight_bytes": None if work is None else work.weight_bytes,
                "limit_ms": limit,
                "times_the_limit": None if limit is None else result.p50_ms / limit,
            }
        )
    return rows


def warn_about_limits(rows: Sequence[dict[str, Any]]) -> str | None:
    """A sentence when something took less than its limit, which therefore was none; None otherwise."""
    beyond = [row for row in rows if row["times_the_limit"] is not None and row["times_the_limit"] < 1]
    if not beyond:
        return None
    return (
        f"{len(beyond)} of {len(rows)} configurations took less than the limit: the machine was too busy to reach its "
        "ceiling, so the limit is too slow; measure again when it is idle"
    )


def _best(run: Callable[[], object], seconds: float) -> float:
    """Shortest duration in s of many runs in this thread: what the processor can, not what the others left of it."""
    # A product takes milliseconds: on a busy machine none passes uninterrupted, so that by wall time the ceiling
    # would lie below what single faces reach. The thread's own time leaves interruptions out, where it is fine enough.
    clock = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-5 else time.perf_counter
    run()
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = clock()
        run()
        best = min(best, clock() - started)
    return best


def _rate(model: bytes, left: Any, seconds: float) -> float:
    # One thread: ONNX Runtime then computes in the caller's, whose time is taken.
    session = open_session(model, threads=1, source="the limit's product").session
    return _ROWS * _DEPTH * _COLUMNS / _best(lambda: session.run(None, {"a": left}), seconds)


def _matmul(operator: str, right: Any, input_type: int, output_type: int) -> bytes:
    """An ONNX file of one product with a constant, written by hand: the base install has no onnx package.

    Field numbers are those of onnx.proto3. The right side is a constant, as weights are, so ONNX
    Runtime packs it once.
    """
    constant_type = 1 if input_type == 1 else 3
    constant = (
        b"".join(_integer(1, size) for size in right.shape)
        + _integer(2, constant_type)
        + _bytes(8, b"b")
        + _bytes(9, right.tobytes())
    )
    node = _bytes(1, b"a") + _bytes(1, b"b") + _bytes(2, b"y") + _bytes(4, operator.encode())
    graph = (
        _bytes(1, node)
        + _bytes(2, b"limit")
        + _bytes(5, constant)
        + _bytes(11, _value(b"a", input_type, _ROWS, _DEPTH))
        + _bytes(12, _value(b"y", output_type, _ROWS, _COLUMNS))
    )
    opset = _bytes(1, b"") + _integer(2, 18)
    return _integer(1, 8) + _bytes(7, graph) + _bytes(8, opset)


def _value(name: bytes, kind: int, *shape: int) -> bytes:
    dimensions = b"".join(_bytes(1, _integer(1, size)) for size in shape)
    tensor = _integer(1, kind) + _bytes(2, dimensions)
    return _bytes(1, name) + _bytes(2, _bytes(1, tensor))


def _integer(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
