"""Runs that are killed at a random moment and then continued or started again: their files must be those of one run."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import cv2
import numpy as np
from tests.runtime.tiny_models import band_face, write_band_model

from fer_runtime.expressions import EXPRESSIONS

# Each run has a cache of its own, and libraries that count on one thread give the same sums.
_ENVIRONMENT = os.environ | {"FER_EDGE_CACHE": "cache", "OMP_NUM_THREADS": "1"}
_IMAGES = 600  # in a folder run: about ten blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A kind of run: its command, and what the advice after a killed one says to do."""

    command: tuple[str, ...]
    again: tuple[str, ...]  # the command that continues it or starts it again
    prepare: Callable[[Path], None] = lambda folder: None  # the files that it reads, in the folder where it runs


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
    return (sys.executable, "-m", "fer_runtime", *arguments, "--model", "bands.onnx")


_TRAIN = (
    *(sys.executable, "-m", "fer_train", "--model", "v0", "--data", "data", "--models-dir", "models"),
    # Long enough that a third of the moments are behind the first epoch: loading PyTorch takes seconds.
    *("--epochs", "12", "--batch-size", "16", "--device", "cpu", "--no-plots"),
)
_EXPORT = (sys.executable, "-m", "fer_export", "--model", "v0", "--models-dir", "models")


def _write_checkpoint(folder: Path) -> None:
    _write_data(folder)
    subprocess.run(_TRAIN, cwd=folder, env=_ENVIRONMENT, check=True, capture_output=True)


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
        prepare=_write_data,
        command=_TRAIN,
        again=(*_TRAIN, "--resume"),
    ),
    "export": Run(
        prepare=_write_checkpoint,
        command=_EXPORT,
        again=_EXPORT,
    ),
}


def _files(folder: Path) -> dict[str, str]:
    """The files of a run and their hashes, without those that it was given."""
    found = {}
    for root in (folder / "out", folder / "models"):
        for path in sorted(root.rglob("*")):
            if path.is_file():
                found[str(path.relative_to(folder))] = hashlib.sha256(_without_times(path)).hexdigest()
    return found


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
    return any(word in key for word in ("second", "date", "latency", "throughput"))


def _run(command: Sequence[str], folder: Path) -> tuple[int, float, str]:
    started = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=_ENVIRONMENT, capture_output=True, text=True, timeout=1800)
    return done.returncode, time.monotonic() - started, done.stderr


class KilledRuns:
    """One kind of run: killed at random moments, its files held against those of a run in peace."""

    def __init__(self, run: Run, chooser: random.Random, work: Path) -> None:
        self.outcome = Outcome()
        self._run, self._chooser, self._work = run, chooser, work
        given = work / "given"
        given.mkdir(parents=True)
        run.prepare(given)
        whole = work / "whole"
        shutil.copytree(given, whole)
        self._code, self._seconds, errors = _run(run.command, whole)
        if self._code not in (0, 1):
            raise click.ClickException(f"{' '.join(run.command)} exits {self._code}: {errors[-500:]}")
        self._before, self._expected = _files(given), _files(whole)
        if not self._expected or self._expected == self._before:
            raise click.ClickException(f"{' '.join(run.command)} writes nothing: {errors[-500:]}")

    def kill_one(self) -> None:
        """Kill one run, do what the advice says, and compare."""
        folder, outcome = self._work / "run", self.outcome
        shutil.copytree(self._work / "given", folder)
        started = time.monotonic()
        exit_code = self._started_and_killed(folder)
        outcome.kills += 1
        outcome.ended_before += exit_code >= 0
        outcome.killed_early += exit_code < 0 and _files(folder) == self._before
        spent, errors = 0.0, ""
        if exit_code < 0:
            exit_code, spent, errors = _run(self._run.again, folder)
        if _files(folder) != self._expected and self._run.again != self._run.command:
            outcome.started_anew += 1
            exit_code, spent, errors = _run(self._run.command, folder)
        found = _files(folder)
        if found == self._expected:
            outcome.equal += 1
        else:
            names = sorted(found.keys() | self._expected.keys())
            different = [name for name in names if found.get(name) != self._expected.get(name)]
            outcome.failures.append(f"exit {exit_code}, not {self._code}; different: {different[:5]}; {errors[-300:]}")
        outcome.leftovers += sum(1 for path in folder.rglob("*") if ".partial" in path.name)
        # Where the machine's speed has changed, the moments shall still fall anywhere in a run.
        self._seconds = 0.9 * self._seconds + 0.1 * max(time.monotonic() - started - spent, spent)
        shutil.rmtree(folder)

    def _started_and_killed(self, folder: Path) -> int:
        """The exit code of a run that may be killed: negative where it was."""
        with subprocess.Popen(
            self._run.command,
            cwd=folder,
            env=_ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                process.wait(self._chooser.uniform(0, self._seconds))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode
