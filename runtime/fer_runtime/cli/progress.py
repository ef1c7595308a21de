"""Progress of a run on stderr, and the summary of a run over images."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from types import TracebackType

import click

from fer_runtime.batch.jobs import JobSummary
from fer_runtime.batch.sources import LeftOut
from fer_runtime.text import counted, printable

_SECONDS_BETWEEN = 0.5
_NAMED_SUFFIXES = 5
_HEIC_SUFFIXES = (".heic", ".heif")


class Progress:
    """A progress line on the terminal, cleared at the end of the block.

    Args:
        describe: the line, from the seconds that the run has taken so far.
        is_shown: whether there is a terminal for it.
    """

    def __init__(self, describe: Callable[[float], str], *, is_shown: bool) -> None:
        self._describe = describe
        self._is_shown = is_shown
        self._started = self._said = perf_counter()

    def say(self) -> None:
        """Show how far the run is, unless that was a moment ago."""
        if not self._is_shown or (now := perf_counter()) - self._said < _SECONDS_BETWEEN:
            return
        self._said = now
        click.echo(f"\r\x1b[K{self._describe(now - self._started)}", err=True, nl=False)

    def clear(self) -> None:
        """Clear the line, so that a row can be printed on the same terminal."""
        if self._is_shown:
            click.echo("\r\x1b[K", err=True, nl=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.clear()


def images_done(summary: JobSummary, total: int | None) -> Callable[[float], str]:
    """For `Progress`: images, their rate and the time left.

    Args:
        summary: of the run, read while it grows.
        total: images of the run; None where they were not counted.
    """

    def describe(seconds: float) -> str:
        done = summary.images
        rate = done / seconds
        # Nothing is known of the time left before the first image.
        left = "" if total is None or not done else f" of {total}, {(total - done) / rate:.0f} s left"
        return f"{counted(done, 'image')}{left}, {summary.failed} failed, {rate:.0f}/s"

    return describe


def say_summary(summary: JobSummary, *, left_out: LeftOut, seconds: float, detector: str, quiet: bool = False) -> None:
    """Say what the run did: images, faces, failures by reason, and seconds by stage of a longer one.

    Args:
        left_out: of the run's folders.
        detector: that searched the images, as `Recognizer.detector_used`.
        quiet: say only what went wrong.
    """
    if not quiet:
        _say_counts(summary, seconds)
    for reason, count in summary.failures.most_common():
        click.echo(f"  {count} x {printable(reason)}", err=True)
    if summary.crop_sized and not quiet:
        click.echo(
            f"  {summary.crop_sized} of those without a face are as small as face crops; if they are crops, use: "
            "--detector whole",
            err=True,
        )
    if summary.without_face and detector == "haar" and not quiet:
        click.echo(
            "  Haar's cascade finds frontal faces, and small ones only if it finds no larger; YuNet finds more: "
            "fer-infer --fetch-yunet",
            err=True,
        )
    if left_out.folders and not quiet:
        click.echo(f"  skipped {counted(left_out.folders, 'subfolder')} (use --recursive)", err=True)
    if left_out.suffixes and not quiet:
        click.echo(f"  not read: {_counted(left_out)}", err=True)
    for folder in left_out.only_folders:
        click.echo(
            f"{printable(folder)} holds folders but no images; use --recursive to read the images in them", err=True
        )


def _say_counts(summary: JobSummary, seconds: float) -> None:
    click.echo(
        f"{counted(summary.images, 'image')}, {counted(summary.faces, 'face')}, {summary.without_face} without a face, "
        f"{summary.failed} failed, {seconds:.1f} s, {summary.images / max(seconds, 1e-9):.0f} images/s",
        err=True,
    )
    if summary.images > 100:
        stages = ", ".join(f"{name} {spent:.1f}" for name, spent in summary.seconds_by_stage.items())
        click.echo(f"  seconds by stage, over all threads: {stages}", err=True)


def _counted(left_out: LeftOut) -> str:
    """Files by suffix, most first, and what to do with those that are taken for images."""
    suffixes = left_out.suffixes
    most = suffixes.most_common(_NAMED_SUFFIXES)
    if rest := suffixes.total() - sum(count for _, count in most):
        most.append(("others", rest))
    text = ", ".join(f"{count} {printable(suffix)}" for suffix, count in most)
    if not suffixes.keys().isdisjoint(_HEIC_SUFFIXES):
        text += "; OpenCV reads no HEIC, convert it to JPEG first"
    if left_out.videos:
        text += "; give videos by name, in a run of their own"
    return text
