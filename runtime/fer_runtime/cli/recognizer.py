"""Make the recognizer for a run's options, and print its model, provider and detector on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from fer_runtime.cli.options import ModelOptions, RecognizerOptions, VideosRun
from fer_runtime.images import MAX_PIXELS
from fer_runtime.model.find import find_model
from fer_runtime.model.providers import AUTO
from fer_runtime.model.session import find_provider, silence
from fer_runtime.recognizer import Recognizer
from fer_runtime.shared_options import capped_threads
from fer_runtime.standard_streams import is_terminal
from fer_runtime.text import printable


@contextmanager
def opened_recognizer(options: RecognizerOptions, *, max_pixels: int = MAX_PIXELS) -> Iterator[Recognizer]:
    """The recognizer for a run; prints its model, provider and detector on stderr."""
    silence()
    threads = capped_threads(options.threads)
    provider = chosen_provider(options, threads=threads)
    with Recognizer(
        options.model,
        precision=options.precision,
        models_dir=options.models_dir,
        detector=options.detector,
        yunet=options.yunet,
        min_face=options.min_face,
        min_confidence=options.min_confidence,
        max_pixels=max_pixels,
        threads=threads,
        provider=provider,
        strict=options.strict,
        any_operator=options.any_operator,
    ) as recognizer:
        if not options.quiet:
            click.echo(
                f"{printable(recognizer.path)}  {printable(recognizer.metadata.precision)}  {recognizer.provider}  "
                f"faces by {recognizer.detector_used}",
                err=True,
            )
        if recognizer.provider != find_provider(provider):
            click.echo(f"warning: onnxruntime fell back from {provider} to {recognizer.provider}", err=True)
        yield recognizer


def chosen_provider(options: ModelOptions, *, threads: int) -> str:
    """`--provider`; where it is auto, the provider that is taken, and a warning for each that is not.

    Args:
        threads: as `capped_threads` gives them.
    """
    if options.provider.lower() != AUTO:
        return options.provider
    from fer_runtime.model.auto import BATCH, choose_provider

    choice = choose_provider(
        find_model(options.model, precision=options.precision, models_dir=options.models_dir),
        threads=threads,
        any_operator=options.any_operator,
        allow=() if options.allow is None else (options.allow,),
        # The frames of a video have few faces, and each frame is classified by itself.
        batch=1 if isinstance(options, VideosRun) else BATCH,
    )
    if not choice.is_cached:
        for name, reason in choice.refused.items():
            click.echo(f"warning: --provider auto does not take {name}: {printable(reason)}", err=True)
    if not choice.is_cached and not (isinstance(options, RecognizerOptions) and options.quiet):
        speeds = ", ".join(f"{name} {speed:,.0f}" for name, speed in choice.faces_per_second.items())
        click.echo(f"--provider auto takes {choice.provider}; faces per second: {speeds}", err=True)
    return choice.provider


def progress_is_shown(options: RecognizerOptions) -> bool:
    """Whether there is a terminal for the progress, and no rows go to it."""
    rows_are_seen = options.output is None and is_terminal(sys.stdout)
    return is_terminal(sys.stderr) and not (options.quiet or rows_are_seen)
