"""What a run over pictures says on stderr: its rate and the time left, and a summary at the end."""

from __future__ import annotations

from time import perf_counter
from types import TracebackType

import click

from fer_runtime.jobs import JobSummary

_SECONDS_BETWEEN = 0.5


class Progress:
    """Rate and time left on one line of the terminal, gone at the end of the block.

    Args:
        summary: of the run, read while it grows.
        total: pictures of the run; None where nobody has counted them.
        is_shown: whether there is a terminal, and no rows go to it.
    """

    def __init__(self, summary: JobSummary, total: int | None, *, is_shown: bool) -> None:
        self._summary = summary
        self._total = total
        self._is_shown = is_shown
        self._started = self._said = perf_counter()

    def say(self) -> None:
        """Show how far the run is, unless that was a moment ago."""
        now = perf_counter()
        if not self._is_shown or now - self._said < _SECONDS_BETWEEN:
            return
        self._said = now
        done = self._summary.pictures
        rate = done / (now - self._started)
        left = "" if self._total is None else f" of {self._total}, {(self._total - done) / rate:.0f} s left"
        click.echo(f"\r\x1b[K{done} pictures{left}, {self._summary.failed} failed, {rate:.0f}/s", err=True, nl=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_shown:
            click.echo("\r\x1b[K", err=True, nl=False)


def say_summary(summary: JobSummary, *, skipped_files: int, seconds: float) -> None:
    """Say what the run did: pictures, faces, failures by reason, and seconds by stage of a longer one."""
    click.echo(
        f"{summary.pictures} pictures, {summary.faces} faces, {summary.without_face} without a face, "
        f"{summary.failed} failed, {seconds:.1f} s, {summary.pictures / max(seconds, 1e-9):.0f} pictures/s",
        err=True,
    )
    if summary.pictures > 100:
        stages = ", ".join(f"{name} {spent:.1f}" for name, spent in summary.seconds_by_stage.items())
        click.echo(f"  seconds by stage, over all threads: {stages}", err=True)
    for reason, count in summary.failures.most_common():
        click.echo(f"  {count} x {reason}", err=True)
    if skipped_files:
        click.echo(f"  {skipped_files} files with other suffixes were not read", err=True)
