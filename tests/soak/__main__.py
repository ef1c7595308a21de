"""The long tests: `make soak`, or `python -m tests.soak --kills 10 --images 5000` for a short run.

Runs are killed at random moments and continued, and damaged images are read in a process of limited memory. One table
at the end says what became of them. The exit code is 1 where a file differs or an image ends the process.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from tests.soak.kills import RUNS, KilledRuns, Outcome

from fer_runtime.files import write_atomically

_CHECKOUT = Path(__file__).parents[2]


def _damaged_images(count: int, seed: int, memory: int) -> dict[str, Any] | None:
    """The counts by format; None where the process ended before its last image."""
    command = [sys.executable, "-m", "tests.soak.images", "--images", str(count), "--seed", str(seed)]
    done = subprocess.run([*command, "--memory", str(memory)], cwd=_CHECKOUT, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else None


def _killed_runs(names: list[str], kills: int, seed: int, end: float, save: Path | None) -> dict[str, Outcome]:
    """The outcomes by kind. The kinds take turns, so that each has its share where the time ends before the kills."""
    saved = json.loads(save.read_text()) if save is not None and save.exists() else {}
    outcomes = {name: Outcome(**saved.get(name, {})) for name in names}
    with tempfile.TemporaryDirectory(prefix="fer-soak-") as work:
        kinds = {
            name: KilledRuns(RUNS[name], random.Random(f"{seed} {name} {outcome}"), Path(work) / str(number), outcome)
            for number, (name, outcome) in enumerate(outcomes.items())
            if outcome.kills < kills
        }
        while kinds and time.monotonic() < end:
            for name, kind in list(kinds.items()):
                if time.monotonic() < end:
                    kind.kill_one()
                    click.echo(f"{name}: {kind.outcome}", err=True)
                    if kind.outcome.kills >= kills:
                        del kinds[name]
                    if save is not None:
                        write_atomically(
                            save, json.dumps({name: asdict(outcome) for name, outcome in outcomes.items()})
                        )
    return outcomes


def _kill_table(outcomes: dict[str, Outcome]) -> list[str]:
    lines = [
        "| run | killed | before its first file | done before the signal | same bytes | temporary files left |",
        "|---|---|---|---|---|---|",
    ]
    for name, outcome in outcomes.items():
        lines.append(
            f"| {name} | {outcome.kills} | {outcome.killed_early} | {outcome.ended_before} | "
            f"{outcome.equal} of {outcome.kills} | {outcome.leftovers} |"
        )
    return lines


def _image_table(result: dict[str, Any]) -> list[str]:
    lines = ["| damaged images | files | read | refused | decoder crashed | too slow |", "|---|---|---|---|---|---|"]
    for name, counts in result["counts"].items():
        crashed = sum(count for reason, count in counts.items() if reason.startswith("its decoder"))
        values = (sum(counts.values()), counts.get("read", 0), counts.get("refused", 0), crashed)
        lines.append(f"| {name} | {' | '.join(map(str, values))} | {counts.get('took too long', 0)} |")
    peak = result["peak_kib"]["this process"] / 1024
    return [*lines, "", f"{result['seconds']} s; at most {peak:.0f} MiB of memory in the reading process."]


@click.command()
@click.option("--kills", default=100, show_default=True, help="Of each kind of run.")
@click.option("--images", default=100_000, show_default=True)
@click.option("--minutes", default=float("inf"), help="Kill no more runs after so long.")
@click.option("--only", multiple=True, type=click.Choice([*RUNS, "images"]))
@click.option(
    "--save", type=click.Path(path_type=Path), help="File for the outcomes so far; run again to continue from it."
)
@click.option("--seed", default=1, show_default=True)
@click.option("--memory", default=1 << 30, show_default=True, help="Bytes of address space for the damaged images.")
def main(
    kills: int, images: int, minutes: float, only: tuple[str, ...], save: Path | None, seed: int, memory: int
) -> None:
    """Kill runs and read damaged images, then print one table."""
    failed = False
    end = time.monotonic() + 60 * minutes
    lines: list[str] = []
    if not only or "images" in only:
        result = _damaged_images(images, seed, memory)
        failed = result is None
        lines += ["the process ended before its last image"] if result is None else _image_table(result)
    chosen = [name for name in RUNS if not only or name in only]
    outcomes = _killed_runs(chosen, kills, seed, end, save)
    failed = failed or any(outcome.failures for outcome in outcomes.values())
    if outcomes:
        lines += ["", *_kill_table(outcomes)]
    click.echo("\n".join(lines).strip())
    sys.exit(failed)


if __name__ == "__main__":
    main()
