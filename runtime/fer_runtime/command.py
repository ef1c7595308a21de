"""Habits that the four commands share: one `Error:` line per FerError, and missing extras by name."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

import click

from fer_runtime import __version__
from fer_runtime.errors import ExtraMissingError, FerError
from fer_runtime.text import printable

# Modules of each extra; an ImportError of any other module is a bug and keeps its traceback.
EXTRA_MODULES = {
    "train": ("torch", "torchvision", "kagglehub", "matplotlib", "tqdm"),
    "export": ("torch", "torchvision", "kagglehub", "matplotlib", "tqdm", "onnx", "onnxscript"),
    "bench": ("openvino", "matplotlib", "torch"),
    "ray": ("ray", "pyarrow", "fsspec"),
}


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn an ImportError inside the block into the pip command that installs `extra`.

    Raises:
        ExtraMissingError: a module of the extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRA_MODULES[extra]:
            raise
        raise ExtraMissingError(
            # The same interpreter's pip: fer-edge is there already, so only the extra's packages are fetched.
            f"this needs {module}, which is not installed; install it with: {sys.executable} -m pip install "
            f"'fer-edge[{extra}]'"
        ) from error


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a person reads `stream`; None is one that the shell closed, as in `2>&-`."""
    return stream is not None and stream.isatty()


class _ErrorLine(click.ClickException):
    """A FerError on stderr as one line."""


def _invoke(invoke: Any, context: click.Context) -> Any:
    try:
        result = invoke(context)
        # Flushed here so that a closed pipe shows itself inside this try, not at interpreter exit.
        if sys.stdout is not None:  # None where the shell closed it, `>&-`
            sys.stdout.flush()
        return result
    except FerError as error:
        # The message may quote a file's name or contents.
        raise _ErrorLine(printable(error)) from error
    except BrokenPipeError:
        # `fer-infer ... | head` has what it wanted. Without a stdout to flush, the exit is silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        context.exit(0)


def _with_version(params: list[click.Parameter], context: click.Context) -> list[click.Parameter]:
    if context.parent is not None:  # one --version a command, not one a subcommand
        return params
    version = click.version_option(__version__, message="fer-edge %(version)s", help="Show the version and exit.")
    holder = version(click.Command("version"))
    return [*params[:-1], *holder.params, *params[-1:]]


@contextmanager
def _printable_usage_errors() -> Iterator[None]:
    """Escape what click quotes: an argument may be a file's name that the shell filled in."""
    try:
        yield
    except click.UsageError as error:
        error.message = printable(error.message)
        raise


class FerCommand(click.Command):
    """A command that prints a FerError as one `Error:` line and exits 1."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return _with_version(super().get_params(ctx), ctx)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _printable_usage_errors():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _printable_usage_errors():
            return _invoke(super().invoke, ctx)


class ShortCommand(FerCommand):
    """A `FerCommand` whose process ends as soon as its work is done.

    Python's tidying up of numpy, OpenCV and ONNX Runtime takes a seventh of a run over one picture, and a process that
    ends needs none of it: files are closed by then.
    """

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        try:
            return super().main(args, *rest, **extra)
        except SystemExit as ended:
            # Only of the real command line; and Ray stops its processes while Python tidies up.
            if args is not None or "ray" in sys.modules or not isinstance(ended.code, int):
                raise
            for stream in (sys.stdout, sys.stderr):
                # A reader that has gone, or a stream that the shell closed, has nothing to lose.
                with suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            os._exit(ended.code)


class FerGroup(click.Group):
    """A group of `FerCommand`s, with the same treatment of errors."""

    command_class = FerCommand

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return _with_version(super().get_params(ctx), ctx)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _printable_usage_errors():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _printable_usage_errors():
            return _invoke(super().invoke, ctx)
