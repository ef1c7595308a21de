"""`make arm64`: the shipped models and the installed package on emulated arm64 processors.

Prints a table of differences and exits 1 if a file or a command does not do there what it does here, 3 if something
cannot be downloaded. There are no timings: emulation has none.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from tests.arm64.machine import CHECKOUT, Machine, UnavailableError, check_mirror, prepare

from fer_runtime.targets import TARGETS

CPUS = ("cortex-a53", "cortex-a72", "cortex-a76")  # Raspberry Pi 3, 4 and 5
_SERVING_SECONDS = 600


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), default=CHECKOUT / ".arm64", help="Keeps the downloads.")
@click.option("--short", is_flag=True, help="The shipped int8 files on one processor.")
def main(cache: Path, short: bool) -> None:
    """Run the shipped models and the installed package on emulated arm64 processors."""
    try:
        if short:
            check_mirror()
            machine = prepare(cache)
        else:
            machine = prepare(cache, extras="[serve]", packages=["ncnn"])
    except UnavailableError as error:
        click.echo(f"arm64 is not tested here: {error}", err=True)
        sys.exit(3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [] if short else list(_converted(folder))
        cpus = CPUS[1:2] if short else CPUS
        shipped = "*.int8.onnx" if short else "*.onnx"
        replays = {cpu: _replays(machine, cpu, shipped, files) for cpu in cpus}
        failures = [
            f"{cpu}: {report['path']}" for cpu, reports in replays.items() for report in reports if not report["passed"]
        ]
        click.echo("\n".join(_table(replays)))
        if not short:
            for command, failure in _commands(machine, CPUS[1], folder):
                click.echo(
                    f"{'FAIL' if failure else 'ok  '}  {CPUS[1]}: {command}" + (f": {failure}" if failure else "")
                )
                failures += [command] if failure else []
    if failures:
        click.echo(f"failed: {', '.join(failures)}", err=True)
        sys.exit(1)


def _replays(machine: Machine, cpu: str, shipped: str, files: list[Path]) -> list[dict[str, Any]]:
    click.echo(f"replaying on {cpu}", err=True)
    done = machine.run(cpu, str(Path(__file__).with_name("replay.py")), shipped, *map(str, files))
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode:
        reports.append({"path": f"a file after {len(reports)}: {done.stderr[-500:]}", "passed": False})
    return reports


def _table(replays: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    yield f"| file | {' | '.join(replays)} |"
    yield "|---|" + "---:|" * len(replays)
    # A processor on which the replay ended early has fewer.
    for reports in zip(
        *([report for report in found if "model" in report] for found in replays.values()), strict=False
    ):
        cells = [
            f"{report['against_export']['max_logit_difference']:.1e}" + ("" if report["passed"] else ", FAILED")
            for report in reports
        ]
        yield f"| {Path(reports[0]['path']).name} | {' | '.join(cells)} |"


def _converted(folder: Path) -> Iterator[Path]:
    """v0 for other runtimes that have aarch64 wheels, converted on this machine."""
    from fer_export.targets.publish import convert_model

    for name in ("ncnn", "ort"):
        for report in convert_model("v0", targets=[name], models_dir=_models(folder / name)):
            yield report.path
    assert {"ncnn", "ort"} <= set(TARGETS)


def _models(folder: Path) -> Path:
    folder.mkdir()
    shutil.copy(CHECKOUT / "models" / "model_0.onnx", folder)
    return folder


def _commands(machine: Machine, cpu: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Commands of the installed package, each with what is wrong about its result, "" if nothing is."""
    infer = ("-m", "fer_runtime")
    done = machine.run(cpu, *infer, "--self-test")
    yield "fer-infer --self-test", _wrong(done, 0, "This machine computes what was trained.")
    done = machine.run(cpu, *infer, "--samples", "--format", "csv")
    here = subprocess.run(
        [sys.executable, *infer, "--samples", "--format", "csv"], capture_output=True, text=True, cwd=CHECKOUT
    )
    same = _columns(done.stdout) == _columns(here.stdout) != []
    yield "fer-infer --samples: boxes and expressions as on this machine", "" if same else done.stdout + done.stderr
    images = folder / "images"
    images.mkdir()
    for number in range(3):
        cv2.imwrite(str(images / f"{number}.png"), np.full((48, 48), 60 * number, np.uint8))
    content = (images / "1.png").read_bytes()
    (images / "cut.png").write_bytes(content[: len(content) // 2])
    (images / "text.jpg").write_text("no image")
    done = machine.run(cpu, *infer, str(images), "--format", "jsonl")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    broken = {Path(row["path"]).name for row in rows if row["error"]}
    right = (done.returncode, len(rows), broken) == (1, 5, {"cut.png", "text.jpg"})
    yield "a folder with two broken files: five rows, exit code 1", "" if right else done.stdout + done.stderr
    film = folder / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"MJPG"), 10, (320, 320))
    photo = cv2.imread(str(CHECKOUT / "runtime" / "fer_runtime" / "samples" / "eileen_collins.jpg"))
    assert photo is not None
    for _ in range(5):
        writer.write(cv2.resize(photo, (320, 320)))
    writer.release()
    done = machine.run(cpu, *infer, str(film), "--format", "jsonl")
    faces = [len(json.loads(line).get("faces", [])) for line in done.stdout.splitlines()]
    yield "a video of five frames", "" if done.returncode == 0 and faces == [1] * 5 else done.stdout + done.stderr
    yield "fer-serve: /health/ready", _served(machine, cpu)


def _wrong(done: subprocess.CompletedProcess[str], code: int, text: str) -> str:
    return "" if done.returncode == code and text in done.stdout else done.stdout + done.stderr


def _columns(rows: str) -> list[str]:
    """Path and box of each face, and its expression; confidences may differ in their last digit."""
    table = [line.split(",") for line in rows.splitlines()]
    if not table:
        return []
    kept = [place for place, name in enumerate(table[0]) if name in ("x", "y", "box_width", "box_height", "expression")]
    return [",".join([Path(row[0]).name, *(row[place] for place in kept)]) for row in table]


def _served(machine: Machine, cpu: str) -> str:
    """Start the service, ask for its health, and stop it."""
    port = _free_port()
    command = machine.command(cpu, "-c", "from fer_runtime.cli.serve import main; main()", "--port", str(port))
    with subprocess.Popen(
        command, env=machine.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            until = time.monotonic() + _SERVING_SECONDS
            while time.monotonic() < until and server.poll() is None:
                time.sleep(5)
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=60) as answer:
                        return "" if answer.status == 200 else f"status {answer.status}"
                except OSError:
                    continue
        finally:
            server.terminate()
        _, errors = server.communicate()
        return errors[-500:] or "no answer"


def _free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()
