"""Runs that are killed at a random moment and then continued or started again: their files must be those of one run.

Needs Linux. The process that forks the runs computes nothing itself, as threads of a library do not survive a fork.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from tests.runtime.tiny_models import band_face, write_band_model

from fer_runtime.expressions import EXPRESSIONS

# Each run has a cache of its own, and libraries that count on one thread give the same sums.
os.environ |= {"FER_EDGE_CACHE": "cache", "OMP_NUM_THREADS": "1"}
_IMAGES = 600  # in a folder run: about ten blocks
_PAUSE_SECONDS = 0.001  # between two looks at a run


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A kind of run: its command, and what the advice after a killed one says to do."""

    command: tuple[str, ...]  # of `python -m`
    again: tuple[str, ...]  # the command that continues it or starts it again
    modules: tuple[str, ...] = ("fer_runtime.cli.images", "fer_runtime.cli.videos", "fer_runtime.recognizer")
    prepare: Callable[[Path], None] = lambda folder: None  # the files that it reads, in the folder where it runs
    warm: Callable[[Path], None] = lambda folder: None  # what the process that forks the runs does first, with them


@dataclass(slots=True)
class Outcome:
    """What became of the killed runs of one kind."""

    kills: int = 0
    killed_early: int = 0  # before anything was written
    ended_before: int = 0  # the run was done before the signal
    started_anew: int = 0  # where there was nothing to continue
    equal: int = 0
    leftovers: int = 0  # temporary files after the second run
    failures: list[str] = field(default_factory=list)


def _write_images(folder: Path, names: Sequence[str] = ("images",), count: int = _IMAGES) -> None:
    write_band_model(folder / "bands.onnx")
    random_numbers = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir()
        for number in range(count // len(names)):
            face = band_face(number % 7)
            noise = random_numbers.integers(0, 6, face.shape, np.uint8)
            suffix = ("png", "jpg", "jpg", "bmp")[number % 4]
            cv2.imwrite(str(folder / name / f"{number:04}.{suffix}"), face + noise)
        (folder / name / "broken.jpg").write_bytes(b"no image")


def _write_video(folder: Path) -> None:
    write_band_model(folder / "bands.onnx")
    writer = cv2.VideoWriter(str(folder / "film.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25, (64, 64))
    for number in range(300):
        writer.write(cv2.cvtColor(band_face(number // 20 % 7, side=64), cv2.COLOR_GRAY2BGR))
    writer.release()


def _write_data(folder: Path) -> None:
    random_numbers = np.random.default_rng(0)
    for split, count in (("train", 40), ("validation", 4)):
        for label, name in enumerate(EXPRESSIONS):
            place = folder / "data" / "images" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                face = band_face(label) + random_numbers.integers(0, 6, (48, 48), np.uint8)
                cv2.imwrite(str(place / f"{number}.png"), face)


def _infer(*arguments: str) -> tuple[str, ...]:
    return ("fer_runtime", *arguments, "--model", "bands.onnx")


# A small network: a run is long enough for its files, and no longer.
_TRAIN = (
    *("fer_train", "--model", "narrow", "--data", "data", "--models-dir", "models"),
    *("--epochs", "12", "--batch-size", "16", "--device", "cpu", "--no-plots"),
)
_TRAINING = ("tests.export.narrow", "fer_train.cli", "fer_train.pipeline", "fer_train.loop.trainer", "torch._dynamo")
# The half-precision file is judged after the other one is published: between them is a second for a kill.
_EXPORT = (
    *("fer_export", "--model", "narrow", "--checkpoint", "narrow.pth", "--models-dir", "models"),
    *("--precision", "fp32", "--precision", "fp16"),
)


def _write_checkpoint(folder: Path) -> None:
    import torch
    from tests.export.narrow import narrow

    from fer_train.checkpoints import Checkpoint, save_checkpoint

    torch.manual_seed(0)
    network = narrow(classes=len(EXPRESSIONS), dropout=0.0)
    save_checkpoint(folder / "narrow.pth", Checkpoint(name="narrow", state_dict=network.state_dict()))


def _load_operators(folder: Path) -> None:
    """Export a small network: the exporter's first use loads much that the others find loaded."""
    import torch

    torch.onnx.export(torch.nn.Linear(2, 2).eval(), (torch.ones(1, 2),), dynamo=True, verbose=False)


PREPARED: list[Any] = []  # what `fer_export.pipeline.prepare` gives


def _prepare_export(folder: Path) -> None:
    """Compute what an export computes before its first file, for tests.soak.publishing."""
    from fer_export.options import ExportOptions
    from fer_export.pipeline import prepare

    options = ExportOptions(precisions=("fp32", "fp16"), models_dir=folder / "models")
    prepared = prepare("narrow", options, checkpoint=folder / "narrow.pth")
    PREPARED[:] = [prepared]


RUNS = {
    "folder": Run(
        prepare=_write_images,
        command=_infer("images", "--output", "out/rows.jsonl"),
        again=_infer("images", "--output", "out/rows.jsonl", "--resume"),
    ),
    "folders, --annotate": Run(
        prepare=lambda folder: _write_images(folder, ("one", "two", "three"), 300),
        command=_infer("one", "two", "three", "--output", "out/rows.jsonl", "--annotate", "out/copies"),
        again=_infer("one", "two", "three", "--output", "out/rows.jsonl", "--annotate", "out/copies", "--resume"),
    ),
    "csv": Run(
        prepare=_write_images,
        command=_infer("images", "--output", "out/rows.csv"),
        again=_infer("images", "--output", "out/rows.csv"),
    ),
    "contact sheet": Run(
        prepare=_write_images,
        command=_infer("images", "--output", "out/rows.csv", "--contact-sheet", "out/sheet.png"),
        again=_infer("images", "--output", "out/rows.csv", "--contact-sheet", "out/sheet.png"),
    ),
    "video": Run(
        prepare=_write_video,
        command=_infer("film.mp4", "--output", "out/rows.jsonl", "--annotate", "out/copies"),
        again=_infer("film.mp4", "--output", "out/rows.jsonl", "--annotate", "out/copies"),
    ),
    "training": Run(
        modules=_TRAINING,
        prepare=_write_data,
        command=_TRAIN,
        again=(*_TRAIN, "--resume"),
    ),
    "export": Run(
        modules=(*_TRAINING, "fer_export.cli", "fer_export.pipeline", "onnxscript.optimizer", "onnxscript.rewriter"),
        warm=_load_operators,
        prepare=_write_checkpoint,
        command=_EXPORT,
        again=_EXPORT,
    ),
    # An export computes for seconds before it writes anything: here that is done once, and each run judges and writes.
    "export, judging and writing": Run(
        modules=(*_TRAINING, "fer_export.cli", "fer_export.pipeline"),
        prepare=_write_checkpoint,
        warm=_prepare_export,
        command=("tests.soak.publishing", *_EXPORT[1:]),
        again=("tests.soak.publishing", *_EXPORT[1:]),
    ),
}


def _names(folder: Path) -> set[str]:
    """The files of a run, with its checkpoint where it was given one."""
    places = (folder / "out", folder / "models")
    return {str(path.relative_to(folder)) for root in places for path in root.rglob("*") if path.is_file()}


def _files(folder: Path) -> dict[str, str]:
    """The files of a run and the hashes of what must be equal in them."""
    return {name: hashlib.sha256(_without_times(folder / name)).hexdigest() for name in _names(folder)}


def _without_times(path: Path) -> bytes:
    """A file's content; of results in JSON, without how long they took."""
    content = path.read_bytes()
    if path.suffix != ".json":
        return content

    def cleaned(value: object) -> object:
        if isinstance(value, dict):
            return {key: cleaned(part) for key, part in value.items() if not _is_time(key)}
        return [cleaned(part) for part in value] if isinstance(value, list) else value

    return json.dumps(cleaned(json.loads(content))).encode()


def _is_time(key: str) -> bool:
    return any(word in key for word in ("second", "date", "latency", "throughput", "speedup"))


class _Started:
    """A command in a process of its own, forked from this one, which has its modules loaded already.

    Loading PyTorch takes longer than the runs here, and a kill before the command's first line finds nothing to break.
    """

    def __init__(self, run: Run, command: Sequence[str], folder: Path) -> None:
        self._errors = folder.with_name(folder.name + ".stderr")
        self._pid = _forked(lambda: _become(command, folder, self._errors))

    def processor_seconds(self) -> float:
        """Of all threads so far. A busy machine shifts no moment that is counted in them."""
        try:
            return time.clock_gettime((~self._pid << 3) | 2)  # Linux: CLOCK_PROCESS_CPUTIME_ID of another process
        except OSError:  # it has ended
            return float("inf")

    def poll(self) -> bool:
        """Whether it has ended."""
        return os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> None:
        """With the processes that it has started."""
        os.killpg(self._pid, signal.SIGKILL)

    def wait(self) -> tuple[int, str]:
        """The exit code, negative for a signal, and standard error."""
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return code, self._errors.read_text(errors="replace")


def _forked(work: Callable[[], None]) -> int:
    """The id of a process, and of its process group, that does `work`."""
    if pid := os.fork():
        with suppress(OSError):  # it has done it itself
            os.setpgid(pid, pid)
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _become(command: Sequence[str], folder: Path, errors: Path) -> None:
    """Run `python -m MODULE ARGUMENTS` in this process."""
    os.chdir(folder)
    for stream, path in ((0, os.devnull), (1, os.devnull), (2, errors)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666), stream)
    module, *sys.argv[1:] = command
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class KilledRuns:
    """One kind of run: killed at random moments, its files held against those of a run in peace."""

    def __init__(self, run: Run, chooser: random.Random, work: Path, outcome: Outcome) -> None:
        self.outcome = outcome
        self._run, self._chooser, self._work = run, chooser, work
        given = work / "given"
        given.mkdir(parents=True)
        for module in run.modules:
            importlib.import_module(module)
        if os.waitpid(_forked(lambda: run.prepare(given)), 0)[1]:
            raise click.ClickException(f"the files of {' '.join(run.command)} cannot be made")
        run.warm(given)
        self._before = _files(given)
        # The first run fills caches of the system, so that the second takes as long as the killed ones.
        first, self._expected = (self._run_in_peace(given, work / name) for name in ("once", "again"))
        if first != self._expected:
            raise click.ClickException(f"{' '.join(run.command)} writes other files the second time")

    def _run_in_peace(self, given: Path, folder: Path) -> dict[str, str]:
        """The files of a whole run; learns how long it takes and when its first file appears, in processor seconds."""
        shutil.copytree(given, folder, copy_function=os.link)
        started = _Started(self._run, self._run.command, folder)
        self._first = self._seconds = 0.0
        while not started.poll():
            now = started.processor_seconds()
            if now < float("inf"):
                self._seconds = now
            if not self._first and self._has_written(folder):
                self._first = self._seconds
            time.sleep(_PAUSE_SECONDS)
        self._code, errors = started.wait()
        if self._code not in (0, 1):
            raise click.ClickException(f"{' '.join(self._run.command)} exits {self._code}: {errors[-500:]}")
        if not self._has_written(folder):
            raise click.ClickException(f"{' '.join(self._run.command)} writes nothing: {errors[-500:]}")
        return _files(folder)

    def _has_written(self, folder: Path) -> bool:
        return _names(folder) != self._before.keys()

    def _await_moment(self, started: _Started, folder: Path) -> None:
        """Wait for a random moment of the run, or its end."""
        since = 0.0
        seconds = self._seconds
        # One in ten falls anywhere, the others behind the first file: earlier ones leave nothing.
        if self._chooser.random() >= 0.1:
            while not started.poll() and not self._has_written(folder):
                time.sleep(_PAUSE_SECONDS)
            since = started.processor_seconds()
            seconds -= self._first
        moment = since + self._chooser.uniform(0, seconds)
        while not started.poll() and started.processor_seconds() < moment:
            time.sleep(_PAUSE_SECONDS)

    def kill_one(self) -> None:
        """Kill one run, do what the advice says, and compare."""
        folder, outcome = self._work / "run", self.outcome
        shutil.copytree(self._work / "given", folder, copy_function=os.link)
        started = _Started(self._run, self._run.command, folder)
        self._await_moment(started, folder)
        started.kill()
        exit_code, errors = started.wait()
        if exit_code >= 0:
            outcome.ended_before += 1
        else:
            outcome.kills += 1
            has_nothing = not self._has_written(folder)
            outcome.killed_early += has_nothing
            exit_code, errors = _Started(self._run, self._run.again, folder).wait()
            if has_nothing and exit_code != self._code and self._run.again != self._run.command:
                outcome.started_anew += 1  # --resume had nothing to continue
                exit_code, errors = _Started(self._run, self._run.command, folder).wait()
            outcome.equal += _files(folder) == self._expected
        found = _files(folder)
        if found != self._expected or exit_code != self._code:
            names = sorted(found.keys() | self._expected.keys())
            different = [name for name in names if found.get(name) != self._expected.get(name)]
            outcome.failures.append(f"exit {exit_code}, not {self._code}; different: {different[:5]}; {errors[-300:]}")
        outcome.leftovers += sum(1 for path in folder.rglob("*") if ".partial" in path.name)
        shutil.rmtree(folder)
