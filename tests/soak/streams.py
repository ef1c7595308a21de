"""A camera for minutes: `python -m tests.soak.streams --minutes 10`.

`fer-infer` reads a stream while its server is killed and paused again and again. Memory stays flat, no frame has two
rows, and each interruption has its gap.
"""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click
from tests.runtime.video.served import Served, free_port, mpegts_arguments

from fer_runtime.batch.sources import sample_images

_SECONDS_BETWEEN = 20.0  # from one interruption to the next
_PAUSE_SECONDS = 4.0
_ALLOWED_GROWTH = 16.0  # MiB after the first minute: what the allocator keeps of a frame or two


def _resident(process: subprocess.Popen[str]) -> float:
    """Memory of the process in MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def _watch(minutes: float, rows: Path) -> dict[str, Any]:
    port = free_port()
    camera = Served(*mpegts_arguments(port), image=str(sample_images()[0]))
    camera.start()
    address = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", "fer_runtime", address, "--name", "door", "--reconnect", "inf", "--model", "v0"]
    memory: list[float] = []
    counts = {"kills": 0, "pauses": 0}
    with (
        rows.open("w") as output,
        subprocess.Popen([*command, "--format", "jsonl"], stdout=output, stderr=subprocess.PIPE, text=True) as process,
    ):
        assert process.stderr is not None
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
        reader.start()
        end = time.monotonic() + 60 * minutes
        for number in itertools.count():
            time.sleep(min(_SECONDS_BETWEEN, max(0.0, end - time.monotonic())))
            if time.monotonic() >= end or process.poll() is not None:
                break
            memory.append(_resident(process))
            if number % 2:
                counts["pauses"] += 1
                camera.pause()
                time.sleep(_PAUSE_SECONDS)
                camera.go_on()
            else:
                counts["kills"] += 1
                camera.kill()
                camera.start()
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
        reader.join(timeout=10)
    camera.kill()
    results = [json.loads(line) for line in rows.read_text().splitlines()]
    frames = [row["frame"] for row in results if "gap" not in row]
    faces = sum(len(row["faces"]) for row in results if "gap" not in row)
    gaps = [row for row in results if "gap" in row]
    return {
        "exit code": code,
        "frames": len(frames),
        "faces": faces,
        "frames with two rows": len(frames) - len(set(frames)),
        "gaps": len(gaps),
        **counts,
        "MiB": [round(size, 1) for size in memory],
        "summary": said[-1].strip() if said else "",
    }


@click.command()
@click.option("--minutes", default=10.0, show_default=True)
def main(minutes: float) -> None:
    """Watch a camera that is killed and paused; print what came of it as JSON."""
    with tempfile.TemporaryDirectory(prefix="fer-soak-") as work:
        result = _watch(minutes, Path(work) / "rows.jsonl")
    click.echo(json.dumps(result))
    memory = result["MiB"]
    settled = memory[3:] or memory  # the first minute fills caches
    failed = (
        result["exit code"] != 143
        or result["frames with two rows"]
        or result["gaps"] != result["kills"] + result["pauses"]
        or max(settled) - settled[0] > _ALLOWED_GROWTH
    )
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
