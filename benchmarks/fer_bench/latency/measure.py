"""Latency: each configuration runs in its own process, and the processes take turns in rounds."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_bench.engines import ENGINES
from fer_bench.statistics import percentiles
from fer_runtime.errors import ModelFileError
from fer_runtime.expressions import FACE_SIZE
from fer_runtime.model.find import (
    PRECISIONS,
    Precision,
    available_models,
    check_models_dir,
    checkpoint_path,
    find_model,
    is_model_file,
    packaged_models_dir,
)
from fer_runtime.model.inspect import inspect_model
from fer_runtime.model.opening import read_model
from fer_runtime.targets import TARGETS, Target, target_of
from fer_runtime.targets.sidecar import read_sidecar

# Beyond these limits the machine was busy, and the time is not a property of the model.
BUSY_SPREAD = 0.25
_BUSY_CPU_SHARE = 0.85
_REPLAY_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One configuration to measure."""

    engine: str
    model: str  # "v0", another name, or that of a file
    precision: str
    batch: int
    threads: int
    source: Path = field(compare=False)  # the model file, or the checkpoint for PyTorch
    python: Path = field(default=Path(sys.executable), compare=False)  # interpreter of the environment to run in
    code: str = ""  # "module:load" of an engine that is not in ENGINES
    face_shape: tuple[int, ...] = field(default=(FACE_SIZE, FACE_SIZE), compare=False)

    @property
    def key(self) -> tuple[str, str, str, int, int]:
        """Identifies the configuration across runs."""
        return (self.engine, self.model, self.precision, self.batch, self.threads)

    def __str__(self) -> str:
        return f"{self.engine} {self.model} {self.precision} batch {self.batch} threads {self.threads}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyResult:
    """Wall-clock time of single inferences of one configuration."""

    engine: str
    model: str
    precision: str
    batch: int
    threads: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    images_per_second: float  # batch / p50
    cpu_ms: float  # CPU time per run, over all threads
    runs: int  # timed runs, after the warm-up
    warmup_runs: int
    round_p50_ms: tuple[float, ...]  # median of each round, used by `compare`
    round_control_ms: tuple[float, ...]  # a small numpy product timed beside each round: the speed of the core
    spread: float  # (largest - smallest) / median of the rounds' medians
    cpu_share: float  # CPU time / wall time; below 1 on one thread means waiting for a CPU
    is_busy: bool  # the machine was busy with other work
    peak_mb: float  # largest resident memory of the process
    model_bytes: int
    max_probability_difference: (
        float | None
    )  # from ONNX Runtime on the same faces; None if ONNX Runtime was not measured
    cold_start_cpu_ms: dict[str, float]  # by stage, CPU time
    histogram_ms: tuple[float, ...]  # 200 quantiles, for drawing the distribution

    def __str__(self) -> str:
        return f"{self.engine} {self.model} {self.precision} batch {self.batch} threads {self.threads}"

    def to_dict(self) -> dict[str, Any]:
        """As stored in results files."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """A configuration that could not be measured."""

    configuration: Configuration
    reason: str


def configurations(
    *,
    models: Sequence[str] = (),
    precisions: Sequence[Precision] = PRECISIONS,
    engines: Sequence[str] = tuple(ENGINES),
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    models_dir: Path = Path("models"),
) -> list[Configuration]:
    """All combinations whose files exist.

    A PyTorch engine runs a named model's checkpoint in float32, once and not per precision.

    Args:
        models: names and .onnx files; none stands for all available models. Files of one name in several folders are
            told apart by their paths.

    Raises:
        ModelFileError: no file was found, or none of one of `models`, or `models_dir` cannot be read.
    """
    found: list[Configuration] = []
    if not models or not all(is_model_file(model) for model in models):
        check_models_dir(models_dir)
    chosen = dict.fromkeys(models) or dict.fromkeys(model.name for model in available_models(models_dir))
    same_names = Counter(_shown(model) for model in chosen)
    for model in chosen:
        files = _exported_files(model, precisions, models_dir)
        shape = _face_shape(next(iter(files.values()), None))
        of_model = [
            Configuration(
                engine=engine,
                model=_shown(model) if same_names[_shown(model)] == 1 else model,
                precision=precision,
                batch=batch,
                threads=count,
                source=source,
                face_shape=shape,
            )
            for engine in engines
            for precision, source in _files_of(engine, model, files, precisions, models_dir).items()
            for batch in batches
            for count in threads
        ]
        if models and not of_model:
            raise _nothing_to_run(model, precisions, engines, models_dir)
        found += of_model
    if not found:
        raise _nothing_to_run(None, precisions, engines, models_dir)
    return found


def _shown(model: str) -> str:
    """What tables call a model: its name, or that of its file."""
    return Path(model).name if is_model_file(model) else model


def _nothing_to_run(
    model: str | None, precisions: Sequence[Precision], engines: Sequence[str], models_dir: Path
) -> ModelFileError:
    """Why there is nothing to run: no model of that name, or none in these precisions, or no file for the engines."""
    if model is not None:
        try:
            find_model(model, models_dir=models_dir)
        except ModelFileError as error:
            return error
    chosen = "".join(f" --precision {name}" for name in precisions) if set(precisions) != set(PRECISIONS) else ""
    if all(ENGINES[name].target for name in engines):
        chosen += "".join(f" --target {target}" for target in dict.fromkeys(ENGINES[name].target for name in engines))
    return ModelFileError(
        f"no model {model or 'file'} in {models_dir} with the chosen engine and precision; "
        f"write one with: fer-export --model {model or 'v0'}{chosen}"
    )


def _exported_files(model: str, precisions: Sequence[Precision], models_dir: Path) -> dict[str, Path]:
    """A named model's ONNX files by precision, as far as they exist; an .onnx file alone, as "file".

    Raises:
        ModelFileError: the .onnx file does not exist.
    """
    if is_model_file(model):
        return {"file": find_model(model, models_dir=models_dir)}
    files: dict[str, Path] = {}
    for precision in precisions:
        with contextlib.suppress(ModelFileError):
            files[precision] = find_model(model, precision=precision, models_dir=models_dir)
    return files


def _files_of(
    engine: str, model: str, files: Mapping[str, Path], precisions: Sequence[Precision], models_dir: Path
) -> Mapping[str, Path]:
    """What an engine runs for a model, by precision: its ONNX files, its checkpoint, or a target's files."""
    source = ENGINES[engine].source
    if source == "target":
        return _target_files(TARGETS[ENGINES[engine].target], files, ("file",) if is_model_file(model) else precisions)
    if source != "checkpoint":
        return files
    if is_model_file(model):
        return {}
    places = (checkpoint_path(folder, model) for folder in (models_dir, packaged_models_dir()))
    checkpoint = next((path for path in places if path.is_file()), None)
    return {} if checkpoint is None else {"fp32": checkpoint}


def _target_files(target: Target, files: Mapping[str, Path], precisions: Sequence[str]) -> dict[str, Path]:
    """The files of a target that are beside a model's ONNX files, by precision."""
    if not files:
        return {}
    precision, path = next(iter(files.items()))
    stem = path.name.removesuffix(".onnx").removesuffix(f".{precision}")
    found = {
        wanted: target.path(path.parent, stem if wanted in ("fp32", "file") else f"{stem}.{wanted}")
        for wanted in precisions
        if wanted == "file" or wanted in target.precisions
    }
    return {wanted: file for wanted, file in found.items() if file.is_file()}


def without_files(engines: Sequence[str], found: Sequence[Configuration]) -> list[str]:
    """Why chosen engines have nothing to run: no file of theirs is beside the models."""
    missing = [name for name in engines if all(configuration.engine != name for configuration in found)]
    return [
        f"{name}: there is no file of it; write one beside the model with: fer-export --target {ENGINES[name].target}"
        if ENGINES[name].source == "target"
        else f"{name}: there is no checkpoint of the model"
        for name in missing
    ]


def _face_shape(path: Path | None) -> tuple[int, ...]:
    """Of the faces that a model file takes; FER2013's for one that is not measured, as `_refusal` says why."""
    try:
        return (FACE_SIZE, FACE_SIZE) if path is None else read_model(path).metadata.face_shape
    except ModelFileError:
        return FACE_SIZE, FACE_SIZE


def _refusal(configuration: Configuration) -> str | None:
    """Why a model file is not given to its engine, which opens it by itself: the file may come from anybody."""
    if ENGINES[configuration.engine].source == "checkpoint":
        return None
    if ENGINES[configuration.engine].source == "target":
        return _failed_replay(configuration)
    try:
        read_model(configuration.source)
    except ModelFileError as error:
        return str(error)
    return None


def _failed_replay(configuration: Configuration) -> str | None:
    """Why a target's file is not timed: it does not give its golden faces' logits here."""
    # In a process of its own, so that no runtime stays in this one.
    command = [sys.executable, "-m", "fer_runtime", "--self-test", "--model", str(configuration.source)]
    command += ["--threads", str(configuration.threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_REPLAY_SECONDS)
    except subprocess.TimeoutExpired:
        return f"its self-test did not end in {_REPLAY_SECONDS} seconds"
    if done.returncode == 0:
        return None
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return f"self-test: {lines[-1] if lines else f'ended with {done.returncode}'}"


def measure_latency(
    wanted: Sequence[Configuration],
    *,
    rounds: int = 8,
    seconds: float = 0.4,
    progress: Callable[[int, int], None] | None = None,
    when_ready: Callable[[], object] = lambda: None,
) -> tuple[list[LatencyResult], list[Unavailable]]:
    """Time the configurations in turns.

    Each has its own process, so engines do not share threads, caches or allocators. In every round the processes run
    one after another, so a slow minute of the machine affects all of them.

    Args:
        rounds: turns of each configuration.
        seconds: length of a turn.
        progress: called with (turns done, total).
        when_ready: called before the first turn, if there is one.
    """
    workers: list[_Worker] = []
    unavailable: list[Unavailable] = []
    try:
        for configuration in wanted:
            engine = ENGINES.get(configuration.engine)
            if engine is not None and not engine.is_installed:
                unavailable.append(Unavailable(configuration=configuration, reason=f"not installed; {engine.install}"))
                continue
            if engine is not None and (reason := _refusal(configuration)) is not None:
                unavailable.append(Unavailable(configuration=configuration, reason=reason))
                continue
            worker = _Worker(configuration, turn_seconds=seconds)
            if worker.error is None:
                workers.append(worker)
            else:
                unavailable.append(Unavailable(configuration=configuration, reason=worker.error))
        if workers:
            when_ready()
        for number in range(rounds):
            # Alternating order, so no configuration always follows the same one.
            for index, worker in enumerate(workers if number % 2 == 0 else reversed(workers)):
                worker.round(seconds)
                if progress is not None:
                    progress(number * len(workers) + index + 1, rounds * len(workers))
        measured = [worker for worker in workers if worker.error is None]
        unavailable += [
            Unavailable(configuration=worker.configuration, reason=worker.error)
            for worker in workers
            if worker.error is not None
        ]
        return [worker.result(_reference(worker, workers)) for worker in measured], unavailable
    finally:
        for worker in workers:
            worker.close()


def classify_in_worker(configuration: Configuration, faces: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Probabilities of the configuration's engine, one face per call, in its own process and environment.

    Args:
        faces: uint8, as the model takes them.

    Returns:
        Probabilities, shape (faces, classes).

    Raises:
        ModelFileError: the engine cannot run the model.
    """
    worker = _Worker(configuration)
    try:
        if worker.error is not None:
            raise ModelFileError(f"{configuration}: {worker.error}")
        return worker.classify(faces)
    finally:
        worker.close()


def _reference(worker: _Worker, workers: Sequence[_Worker]) -> npt.NDArray[np.float64] | None:
    """The expected probabilities: ONNX Runtime's for the same file, or for the fp32 model of a checkpoint."""
    mine = worker.configuration
    same = [
        other
        for other in workers
        if other.configuration.engine == "onnxruntime"
        and (other.configuration.model, other.configuration.precision) == (mine.model, mine.precision)
    ]
    # Of the same batch size if possible: an engine may be right about the first face only.
    other = max(same, key=lambda candidate: candidate.configuration.batch == mine.batch, default=None)
    if other is None or mine.engine == "onnxruntime" or mine.code:
        return None
    engine = ENGINES.get(mine.engine)
    if engine is None or engine.source != "checkpoint":
        return other.probabilities
    # A checkpoint has no temperature. softmax(logits / t) is p ** (1 / t), normalized, so this reverts it.
    metadata = inspect_model(other.configuration.source).metadata
    powers = other.probabilities ** (1.0 if metadata is None else metadata.temperature)
    untempered: npt.NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return untempered


def _model_bytes(configuration: Configuration) -> int:
    """Of a model file, and of the files that a target's file needs beside it."""
    source = configuration.source
    target = None if configuration.code else target_of(source)  # a peer's .tflite is its own, without a sidecar
    if target is None:
        return source.stat().st_size
    sidecar, _ = read_sidecar(source, target)
    return sum((source.parent / name).stat().st_size for name in sidecar.sha256 if name != sidecar.golden)


def _difference(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    # The faces come from one seed, so a small batch is the start of a large one.
    count = min(len(first), len(second))
    return float(np.abs(first[:count] - second[:count]).max())


class _Worker:
    """The parent's side of fer_bench.latency.worker."""

    def __init__(self, configuration: Configuration, *, turn_seconds: float = 0.0) -> None:
        """Start it, and warm it up where it will have turns."""
        self.configuration = configuration
        self.error: str | None = None
        self._rounds: list[dict[str, Any]] = []
        # Another environment has no fer_bench, so the worker is imported from here.
        folders = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(folder for folder in folders if folder))
        self._process = subprocess.Popen(
            [str(configuration.python), "-m", "fer_bench.latency.worker"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        self._ready = self._ask(
            {
                "code": configuration.code or ENGINES[configuration.engine].code,
                "model": configuration.model,
                "source": str(configuration.source),
                "batch": configuration.batch,
                "threads": configuration.threads,
                "face_shape": configuration.face_shape,
                "turn_seconds": turn_seconds,
            }
        )
        self.error = self._ready.get("error")
        if self.error is not None:
            self.close()

    def round(self, seconds: float) -> None:
        """Take a turn, unless the process died in an earlier one."""
        if self.error is not None:
            return
        answer = self._ask({"seconds": seconds})
        self.error = answer.get("error")
        if self.error is None:
            self._rounds.append(answer)

    def classify(self, faces: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        with tempfile.TemporaryDirectory() as folder:
            given, answers = Path(folder, "faces.npy"), Path(folder, "answers.npy")
            np.save(given, faces)
            answer = self._ask({"faces": str(given), "answers": str(answers)})
            if "error" in answer:
                raise ModelFileError(f"{self.configuration}: {answer['error']}")
            probabilities: npt.NDArray[np.float64] = np.load(answers)
            return probabilities

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """Probabilities of the timed faces, shape (batch, classes)."""
        return np.array(self._ready["probabilities"], np.float64)

    def result(self, reference: npt.NDArray[np.float64] | None) -> LatencyResult:
        """Summarize the timed rounds; `reference` are the expected probabilities."""
        configuration = self.configuration
        by_round = [np.asarray(timed["samples_ns"], np.float64) / 1e6 for timed in self._rounds]
        samples = np.concatenate(by_round)
        found = percentiles(samples)
        medians = [percentiles(times).p50 for times in by_round]
        spread = (max(medians) - min(medians)) / float(np.median(medians))
        cpu, wall = (sum(timed[key] for timed in self._rounds) for key in ("cpu_ns", "wall_ns"))
        return LatencyResult(
            engine=configuration.engine,
            model=configuration.model,
            precision=configuration.precision,
            batch=configuration.batch,
            threads=configuration.threads,
            p50_ms=found.p50,
            p95_ms=found.p95,
            p99_ms=found.p99,
            min_ms=found.minimum,
            images_per_second=configuration.batch / found.p50 * 1000,
            cpu_ms=cpu / 1e6 / len(samples),
            runs=len(samples),
            warmup_runs=self._ready["warmup_runs"],
            round_p50_ms=tuple(medians),
            round_control_ms=tuple(timed["control_ns"] / 1e6 for timed in self._rounds),
            spread=spread,
            cpu_share=cpu / wall,
            is_busy=spread > BUSY_SPREAD or cpu < _BUSY_CPU_SHARE * wall,
            peak_mb=max(timed["peak_bytes"] for timed in self._rounds) / 1e6,
            model_bytes=_model_bytes(configuration),
            max_probability_difference=None if reference is None else _difference(self.probabilities, reference),
            cold_start_cpu_ms=self._ready["cold_start_cpu"],
            histogram_ms=tuple(np.quantile(samples, np.linspace(0, 1, 200)).tolist()),
        )

    def close(self) -> None:
        if self._process.stdin is not None:
            # Closing writes what a process that died did not read.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            return {"error": f"its process {how}"}
        answer: dict[str, Any] = json.loads(line)
        return answer
