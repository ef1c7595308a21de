"""Lines of the ledger: measured, appended, read and put side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from fer_bench.environment import cpu_name, environment
from fer_bench.latency.measure import Configuration
from fer_bench.latency.roofline import measure_peak_rates, measure_with_peak_rates, rows_with_roofline
from fer_runtime.checksums import CHECKSUM, check_checksum, with_checksum
from fer_runtime.errors import DataError, FerError, OutputError
from fer_runtime.files import lock_file, refuse_special
from fer_runtime.model.self_test import run_self_test
from fer_runtime.text import markdown_text
from fer_runtime.untrusted_json import parse_json

SCHEMA = 1
_MAX_BYTES = 64 << 20
_LOCK_SECONDS = 10  # a line is written in milliseconds
_TEXTS, _NUMBERS = ("engine", "model", "precision"), ("batch", "threads", "p50_ms", "min_ms", "images_per_second")
Key = tuple[str, str, str, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTestLine:
    """The self-test of one model file on a board."""

    file: str
    model: str
    precision: str
    passed: bool
    difference: float | None  # largest |Δlogit| / (1 + |logit|) from what the file gave at export
    failed: tuple[str, ...]  # names of the checks; the reason where the file cannot be run


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyLine:
    """One configuration on a board."""

    engine: str
    model: str
    precision: str
    batch: int
    threads: int
    p50_ms: float
    min_ms: float
    images_per_second: float
    times_roofline: float | None  # p50 as a multiple of the limit of the processor; None: unknown
    is_busy: bool  # the board was busy with other work

    @property
    def key(self) -> Key:
        return (self.engine, self.model, self.precision, self.batch, self.threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A line of the ledger."""

    name: str
    machine: dict[str, Any]  # processor, instruction sets, CPUs, memory, system, versions, date
    peak_rates: dict[str, float]
    self_tests: tuple[SelfTestLine, ...]
    latencies: tuple[LatencyLine, ...]
    not_measured: tuple[str, ...]  # configurations with the reason

    def to_json(self) -> str:
        return json.dumps(with_checksum({"schema": SCHEMA, **asdict(self)}), sort_keys=True)


def board_name() -> str:
    """The board's own name, such as a Raspberry Pi's, or else its processor's."""
    try:
        # A device tree's texts end in a zero byte.
        return Path("/proc/device-tree/model").read_text(encoding="utf-8").rstrip("\0\n ") or cpu_name()
    except (OSError, UnicodeDecodeError):
        return cpu_name()


def measure_board(
    name: str,
    wanted: Sequence[Configuration],
    *,
    rounds: int,
    seconds: float,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Board:
    """Replay the certificates of the configurations' model files, then time the configurations in turns."""
    files = {configuration.source: configuration for configuration in wanted if configuration.source.suffix == ".onnx"}
    self_tests = tuple(_self_test(path, configuration) for path, configuration in files.items())
    failed = {path for path, test in zip(files, self_tests, strict=True) if not test.passed}
    # What computes something else has no speed.
    right = [configuration for configuration in wanted if configuration.source not in failed]
    results, unavailable, rates = measure_with_peak_rates(right, rounds=rounds, seconds=seconds, progress=progress)
    rates = rates or measure_peak_rates()
    names = LatencyLine.__dataclass_fields__
    return Board(
        name=name,
        machine=environment() | {"memory_gb": _memory_gb()},
        peak_rates=rates.to_dict(),
        self_tests=self_tests,
        latencies=tuple(
            LatencyLine(**{key: row[key] for key in names}) for row in rows_with_roofline(results, right, rates)
        ),
        not_measured=tuple(f"{missing.configuration}: {missing.reason}" for missing in unavailable),
    )


def _self_test(path: Path, configuration: Configuration) -> SelfTestLine:
    difference: float | None = None
    failed: tuple[str, ...]
    try:
        report = run_self_test(path)
    except FerError as error:
        passed, failed = False, (str(error),)
    else:
        passed = report.passed
        failed = tuple(check.name for check in report.checks if not check.passed)
        found = report.comparison.max_relative_difference
        difference = found if found == found else None  # NaN is no JSON
    return SelfTestLine(
        file=path.name,
        model=configuration.model,
        precision=configuration.precision,
        passed=passed,
        difference=difference,
        failed=failed,
    )


def _memory_gb() -> float | None:
    try:
        first = Path("/proc/meminfo").read_text(encoding="ascii").split()
        return round(int(first[1]) * 1024 / 1e9, 1)
    except (OSError, ValueError, IndexError):
        return None


def append_board(path: Path, board: Board) -> None:
    """Add a line to the file, which is made if it is not there.

    Raises:
        DataError: the file is no ledger; nothing is changed.
        OutputError: the file cannot be written; it is as it was before.
    """
    refuse_special(path)
    try:
        # Appended under a lock: of two processes that each replace the file, one would lose the other's line.
        with path.open("ab+") as file:
            _wait_for_lock(file.fileno(), path)
            size = file.seek(0, os.SEEK_END)
            if size:
                read_ledger(path)
                file.seek(size - 1)
            is_whole = not size or file.read() == b"\n"
            try:
                file.write((b"" if is_whole else b"\n") + board.to_json().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError:  # a full disk may have taken a part of the line
                file.truncate(size)
                raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; the file is as it was before") from error


def _wait_for_lock(descriptor: int, path: Path) -> None:
    end = monotonic() + _LOCK_SECONDS
    while not lock_file(descriptor):
        if monotonic() > end:
            raise OutputError(f"another process writes {path} for more than {_LOCK_SECONDS} s; end it, or repeat this")
        sleep(0.01)


ADVICE = "add a board with: fer-bench ledger add --ledger FILE"


def read_ledger(path: Path) -> list[Board]:
    """The boards of a ledger, in its order.

    Raises:
        DataError: it is missing, or a line is not one of `fer-bench ledger add`.
    """
    number = 0
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES >> 20} MiB")
        boards = []
        for line in path.read_text(encoding="utf-8").splitlines():
            number += 1
            if line.strip():
                boards.append(_parse(line))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; {ADVICE}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        place = f", line {number}" if number else ""
        raise DataError(f"{path}{place} is not a ledger of fer-bench ({error}); {ADVICE}") from error
    return boards


def _parse(line: str) -> Board:
    values = parse_json(line)
    check_checksum(values)
    values.pop(CHECKSUM, None)
    if values.pop("schema") != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA}")
    if not isinstance(values["name"], str) or not isinstance(values["machine"], dict):
        raise ValueError("it has no name or no machine")
    if not all(isinstance(flag, str) for flag in values["machine"].get("cpu_flags") or []):
        raise ValueError("its machine has cpu_flags that are not texts")
    latencies = tuple(LatencyLine(**fields) for fields in values["latencies"])
    for latency in latencies:
        if not all(isinstance(getattr(latency, key), str) for key in _TEXTS):
            raise ValueError("an engine, model or precision is not text")
        numbers = [getattr(latency, key) for key in _NUMBERS]
        numbers += [] if latency.times_roofline is None else [latency.times_roofline]
        if not all(type(value) in (int, float) and 0 < value < 1e12 for value in numbers):
            raise ValueError("a latency has numbers that are not positive")
        if not type(latency.batch) is type(latency.threads) is int or not isinstance(latency.is_busy, bool):
            raise ValueError("a latency has an invalid batch, threads or busyness")
    self_tests = tuple(
        SelfTestLine(**fields | {"failed": tuple(map(str, fields["failed"]))}) for fields in values["self_tests"]
    )
    if not all(isinstance(test.passed, bool) and isinstance(test.file, str) for test in self_tests):
        raise ValueError("a self-test has no verdict")
    if not all(test.difference is None or type(test.difference) in (int, float) for test in self_tests):
        raise ValueError("a self-test has a difference that is not a number")
    return Board(
        name=values["name"],
        machine=values["machine"],
        peak_rates=values["peak_rates"],
        self_tests=self_tests,
        latencies=latencies,
        not_measured=tuple(map(str, values["not_measured"])),
    )


def show(boards: Sequence[Board]) -> str:
    """Each board with its self-tests and latencies, the fastest first, as Markdown."""
    parts = []
    for board in boards:
        machine = board.machine
        flags = ", ".join(map(str, machine.get("cpu_flags") or [])) or "no flags"
        parts += [
            f"## {markdown_text(board.name, limit=200)}",
            "",
            markdown_text(
                f"{machine.get('cpu')} ({flags}), {machine.get('cpus')} CPUs, {machine.get('memory_gb')} GB, "
                f"{machine.get('system')}, fer-edge {machine.get('fer-edge')}, {machine.get('date')}",
                limit=500,
            ),
            "",
            "| model file | self-test | \\|Δlogit\\| / (1 + \\|logit\\|) |",
            "|---|---|---:|",
        ]
        for test in board.self_tests:
            verdict = "passed" if test.passed else f"FAILED: {', '.join(test.failed)}"
            figure = "" if test.difference is None else f"{test.difference:.1e}"
            parts.append(f"| {markdown_text(test.file, limit=200)} | {markdown_text(verdict, limit=300)} | {figure} |")
        parts += [
            "",
            "| engine | model | batch | threads | p50 ms | min ms | faces/s | x roofline |",
            "|---|---|---:|---:|---:|---:|---:|---:|",
        ]
        for latency in sorted(
            board.latencies, key=lambda latency: (latency.model, latency.batch, latency.threads, latency.p50_ms)
        ):
            times = "" if latency.times_roofline is None else f"{latency.times_roofline:.1f}"
            parts.append(
                f"| {_name(latency.engine)} | {_name(f'{latency.model} {latency.precision}')} | "
                f"{latency.batch} | {latency.threads} | {latency.p50_ms:.3f}{' (busy)' if latency.is_busy else ''} | "
                f"{latency.min_ms:.3f} | {latency.images_per_second:.0f} | {times} |"
            )
        parts += ["", *(f"not measured: {markdown_text(text, limit=500)}" for text in board.not_measured), ""]
    return "\n".join(parts).rstrip()


def compare(boards: Sequence[Board]) -> str:
    """A Markdown table: a row for each configuration, p50 in ms and the multiple of the roofline for each board."""
    names = [f"{board.name} ({str(board.machine.get('date'))[:10]})" for board in boards]
    keys = sorted({latency.key for board in boards for latency in board.latencies}, key=lambda key: (key[1:], key[0]))
    lines = [
        f"| engine | model | batch | threads | {' | '.join(map(_name, names))} |",
        "|---|---|---:|---:|" + "---:|" * len(boards),
    ]
    for key in keys:
        engine, model, precision, batch, threads = key
        cells = []
        for board in boards:
            found = [latency for latency in board.latencies if latency.key == key]
            cells.append(_cell(found[-1]) if found else "")
        lines.append(
            f"| {_name(engine)} | {_name(f'{model} {precision}')} | {batch} | {threads} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _name(text: str) -> str:
    return markdown_text(text, limit=200)


def _cell(latency: LatencyLine) -> str:
    times = "" if latency.times_roofline is None else f" ({latency.times_roofline:.1f} x roofline)"
    return f"{latency.p50_ms:.3f}{times}" + (", busy" if latency.is_busy else "")
