"""What all commands share: options in groups, refused options, one `Error:` line per FerError.

A command that does several kinds of work declares one class per kind of run. Its annotations are the options that the
run uses, so `take_options` can refuse every other option by name:

    class SelfTestRun(RunOptions):
        title: ClassVar[str] = "--self-test"
        self_test: bool
        model: str | None

    @click.command(cls=FerCommand, runs=(SelfTestRun, ImagesRun), rules=(Rule("yunet", when=..., because=...),))
    @option_group("Model", click.option("--model"))
    def main(**given: Any) -> None:
        run = take_options(SelfTestRun if given["self_test"] else ImagesRun)
"""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

import click
from click import formatting
from click.core import ParameterSource

from fer_runtime import __version__
from fer_runtime.errors import FerError, OutputError
from fer_runtime.model.find import FILE_STEMS
from fer_runtime.registry import PLUGINS_VARIABLE, Registry, load_plugins
from fer_runtime.standard_streams import Messages, Results
from fer_runtime.stopping import EXIT_CODE, Terminated, stopped_by_sigterm
from fer_runtime.text import printable, printable_lines
from fer_runtime.video.addresses import hide_addresses, is_stream, stream_name

_OBJECTS_BEFORE_COLLECTION = 10_000  # Python's own 700 are reached all the time
_OPENCV_ENVIRONMENT = {
    "OPENCV_FOR_THREADS_NUM": "1",  # parallel work is ours: a thread for each image
    "OPENCV_LOG_LEVEL": "OFF",  # it would print beside our own errors
    "OPENCV_FFMPEG_LOGLEVEL": "-8",  # AV_LOG_QUIET
    "OPENCV_IO_MAX_IMAGE_PIXELS": str(1 << 40),  # --max-pixels is checked before an image is decoded
}
# Where libraries would leave files in the user's home or in the folder for temporary files.
_CACHES = {"MPLCONFIGDIR": "matplotlib", "TORCHINDUCTOR_CACHE_DIR": "torchinductor"}

_HINTED_RUNS = 2
_CONFIG_NAME = "fer.toml"
_ARGUMENTS = "fer_runtime.arguments"  # of the command line, in click's context


class RunOptions:
    """The options of one kind of run, each an annotation of the class or of its bases; `take_options` fills them.

    No dataclass: making the methods of nine of them took a tenth of the time of `fer-infer --help`.
    """

    title: ClassVar[str] = ""  # the subject of messages, such as "--self-test" or "a run over videos"

    def __init__(self, **values: Any) -> None:
        for name in self.names():
            setattr(self, name, values.pop(name))
        if values:
            raise TypeError(f"{type(self).__name__} has no option {', '.join(values)}")

    @classmethod
    def names(cls) -> list[str]:
        """The parameter names of the options."""
        return [
            name
            for base in reversed(cls.__mro__[:-1])
            for name, kind in base.__annotations__.items()
            if not str(kind).startswith("ClassVar")
        ]


_Run = TypeVar("_Run", bound=RunOptions)
_Function = TypeVar("_Function", bound=Callable[..., Any])


class NumberRange(click.FloatRange):
    """A `FloatRange` that refuses NaN. click's own accepts it, because every comparison with NaN is false."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if number != number:
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


class GivenPath(click.Path):
    """A `click.Path` without the empty name, which the shell gives for a variable without a value."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("the name is empty; the current folder is .", param, ctx)
        if "\0" in os.fsdecode(value):  # of a settings file
            self.fail("the name holds a null byte", param, ctx)
        path = super().convert(value, param, ctx)
        # click takes a FIFO or a device for a folder.
        if not self.file_okay and os.path.exists(path) and not os.path.isdir(path):
            self.fail(f"{os.fsdecode(path)!r} is not a folder", param, ctx)
        return path


class PathlibPath(GivenPath):
    """A `GivenPath` that gives a pathlib.Path; the module, 3 ms of `--help`, is loaded when there is a value."""

    def coerce_path_result(self, value: str | os.PathLike[str]) -> Any:
        from pathlib import Path

        return Path(value)


ENTRIES = "{entries}"  # in the help of an option with a RegistryChoice: where its entries are explained


class RegistryChoice(click.Choice[str]):
    """A choice among the entries of a registry, and names beside them; entries may be added until it is used."""

    def __init__(self, registry: Registry[Any], *others: str) -> None:
        self._registry = registry
        self._others = others
        super().__init__(())

    @property
    def choices(self) -> tuple[str, ...]:
        return (*self._others, *self._registry)

    @choices.setter
    def choices(self, _: Sequence[str]) -> None:
        """Ignored: the registry has them."""

    def describe(self) -> str:
        """One text for `--help` from the entries' field `help`; "" where none has one."""
        helps = [f"{name}: {entry.help}" for name, entry in self._registry.items() if getattr(entry, "help", "")]
        return "; ".join(helps) + ("." if helps else "")


class Rule:
    """Options that the values of others make useless; giving one nevertheless is a usage error.

    Args:
        options: parameter names, such as "min_face".
        when: whether they are useless, from the values of all parameters by name.
        because: the rest of the message, such as "only with --detector auto or yunet".
    """

    def __init__(self, *options: str, when: Callable[[Mapping[str, Any]], bool], because: str) -> None:
        self.options = options
        self.when = when
        self.because = because


def own_name(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A callback of `--name`: the name of the user's own model.

    Raises:
        click.BadParameter: it is no file name, or belongs to a model that ships.
    """
    if value is None:
        return None
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value) or value.endswith((".onnx", ".pth")):
        raise click.BadParameter(
            f"{value!r} is not a name; use letters, digits, -, _ and ., without a suffix", context, parameter
        )
    if found := re.search(r"\.(?:resume|int8|fp16)$", value, flags=re.IGNORECASE):
        raise click.BadParameter(
            f"{value!r} ends with {found[0]}, as files of another model, {value[: found.start()]}, do; choose another",
            context,
            parameter,
        )
    if value in FILE_STEMS.values() or (value in FILE_STEMS and value != context.params.get("model", value)):
        raise click.BadParameter(f"{value} is the name of a model that ships; choose another", context, parameter)
    return value


def option_group(title: str, *options: Callable[[Any], Any]) -> Callable[[_Function], _Function]:
    """A decorator that puts `options`, each made by `click.option`, under one heading of `--help`."""

    def add(function: _Function) -> _Function:
        for option in reversed(options):
            option(function)
            vars(function)["__click_params__"][-1].group = title
        return function

    return add


def take_options(kind: type[_Run]) -> _Run:
    """The current command's options as `kind`, whose annotations are the options that the run uses.

    Raises:
        click.UsageError: an option was given that `kind` does not use.
    """
    context = click.get_current_context()
    command = context.command
    used = kind.names()
    unused = [parameter for parameter in command.params if parameter.name not in used and _is_given(context, parameter)]
    if unused:
        runs = getattr(command, "runs", ())
        hints = [_hint(parameter, [run for run in runs if run is not kind]) for parameter in unused]
        hint = "; ".join(filter(None, hints))
        raise click.UsageError(
            f"{kind.title} does not use {_labels(context, unused)}; "
            f"leave {'it' if len(unused) == 1 else 'them'} out" + (f" ({hint})" if hint else "")
        )
    return kind(**{name: context.params[name] for name in used})


def _hint(parameter: click.Parameter, runs: Sequence[type[RunOptions]]) -> str:
    """Which other runs use `parameter`, where these are few enough to be of help."""
    titles = [run.title for run in runs if parameter.name in run.names()]
    return f"{_label(parameter)} is for {' and '.join(titles)}" if 0 < len(titles) <= _HINTED_RUNS else ""


def _is_given(context: click.Context, parameter: click.Parameter) -> bool:
    """Whether the command line has it, also where it says the default."""
    source = context.get_parameter_source(str(parameter.name))
    return source is ParameterSource.COMMANDLINE and context.params.get(str(parameter.name)) not in ((), None)


def _is_from_config(context: click.Context, parameter: click.Parameter) -> bool:
    return context.get_parameter_source(str(parameter.name)) is ParameterSource.DEFAULT_MAP


def _label(parameter: click.Parameter) -> str:
    return max(parameter.opts, key=len)


def _labels(context: click.Context, parameters: Sequence[click.Parameter]) -> str:
    """Options by their names, arguments by their values."""
    labels = []
    for parameter in parameters:
        if isinstance(parameter, click.Option):
            labels.append(_label(parameter))
        else:
            value = context.params[str(parameter.name)]
            values = value if isinstance(value, tuple) else [value]
            labels.extend(stream_name(value) if is_stream(value) else str(value) for value in values)
    return ", ".join(labels)


def _check_rules(context: click.Context, rules: Sequence[Rule]) -> None:
    for rule in rules:
        if not rule.when(context.params):
            continue
        options = {str(parameter.name): parameter for parameter in context.command.params}
        if given := [options[name] for name in rule.options if _is_given(context, options[name])]:
            raise click.UsageError(f"{_labels(context, given)}: {rule.because}", context)


def say(text: object = "", *, err: bool = False) -> None:
    """Print a line or a table. Escape sequences, which text of files and libraries may hold, are printed as text."""
    click.echo(printable_lines(text), err=err)


def prepare_process() -> None:
    """Set up what belongs to a command's whole process, which no import of the library does.

    Descriptors 0 to 2 that the shell closed are opened on the null device: a file of rows would take the number 2, and
    what libpng and libjpeg print there would be among the rows. OpenCV reads its environment when it is loaded. The
    collector runs after more new objects: rows are no garbage before they are written, nor are graphs.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, value in _OPENCV_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if 0 < gc.get_threshold()[0] < _OBJECTS_BEFORE_COLLECTION:
        gc.set_threshold(_OBJECTS_BEFORE_COLLECTION)
    keep_caches()


def keep_caches() -> None:
    """Let libraries keep what they leave on disk in our cache folder; before matplotlib is imported.

    Where it cannot be written, as by a container's user without a home folder, the libraries look for a place.
    """
    from fer_runtime.files import cache_folder, can_be_written

    for name, folder in _CACHES.items():
        if can_be_written(place := cache_folder() / folder):
            os.environ.setdefault(name, str(place))


class _ErrorLine(click.ClickException):
    """A FerError on stderr as one line."""


class _TerminatedLine(_ErrorLine):
    """The same where SIGTERM was what ended the work."""

    exit_code = EXIT_CODE


def _has_current_folder() -> bool:
    """Whether the folder that the command was started in is still there; without it no relative name has a meaning."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _invoke(invoke: Any, context: click.Context) -> Any:
    prepare_process()
    with stopped_by_sigterm() as stopping:
        try:
            result = invoke(context)
            # Flushed here so that a closed pipe shows itself inside this try, not at interpreter exit.
            if sys.stdout is not None:
                sys.stdout.flush()
        except FerError as error:
            # The message may quote a file's name or contents.
            line = _TerminatedLine if stopping.was_terminated else _ErrorLine
            raise line(printable(error)) from error
        except Terminated:
            context.exit(EXIT_CODE)
        except BrokenPipeError:
            # `fer-infer ... | head` has what it wanted. Without a stdout to flush, the exit is silent.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            context.exit(0)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            # Libraries hide a signal that arrives while they are imported: ONNX Runtime's import fails, and PyTorch
            # works on with half of a module.
            if stopping.was_interrupted:
                raise KeyboardInterrupt from None
            if not stopping.was_terminated:
                if isinstance(error, FileNotFoundError) and not _has_current_folder():
                    raise _ErrorLine("the current folder has been removed; change to another one") from error
                raise
        except SystemExit:
            if not stopping.was_terminated:
                raise
        if stopping.was_terminated:
            context.exit(EXIT_CODE)
        return result


def _with_shared_options(params: list[click.Parameter], context: click.Context) -> list[click.Parameter]:
    """Add what every command has; subcommands share that of their group."""
    return params if context.parent is not None else [*params[:-1], *_shared_options(), *params[-1:]]


@cache
def _shared_options() -> tuple[click.Parameter, ...]:
    version = click.version_option(__version__, message="fer-edge %(version)s", help="Show the version and exit.")
    holder = version(click.Command("version"))
    return (
        click.Option(
            ["--config"],
            type=GivenPath(path_type=str, dir_okay=False),
            metavar="FILE",
            is_eager=True,
            expose_value=False,
            callback=_load_config,
            help="Options from a TOML file; the command line wins. [default: fer.toml in the current folder]",
        ),
        click.Option(
            ["--log-format"],
            type=click.Choice(["text", "json"]),
            default="text",
            is_eager=True,
            expose_value=False,
            callback=_set_log_format,
            help="json: one JSON object per line on stderr.",
        ),
        *holder.params,
    )


def _load_config(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    path = value if value is not None else _CONFIG_NAME
    if value is None and not os.path.isfile(path):
        return
    from fer_runtime.config import read_settings

    # Arguments are what a run reads, and may be addresses: a file that merely lies there gives none.
    settings = read_settings(context.command, path, with_arguments=value is not None)
    if settings and value is None and "--quiet" not in context.meta.get(_ARGUMENTS, ()):
        names = {str(option.name): _label(option).removeprefix("--") for option in context.command.params}
        click.echo(f"options from {_CONFIG_NAME}: {', '.join(names.get(key, key) for key in settings)}", err=True)
    context.default_map = settings
    context.meta[_CONFIG_NAME] = path


def _set_log_format(context: click.Context, parameter: click.Parameter, value: str) -> None:
    if value == "json":
        _write_json_lines()


def _write_json_lines() -> None:
    from fer_runtime.log_lines import JsonLines

    if not isinstance(sys.stderr, JsonLines):
        sys.stderr = JsonLines(sys.stderr)  # `_FerBase.main` puts the old one back


@contextmanager
def _printable_usage_errors() -> Iterator[None]:
    """Escape what click quotes, a file's name that the shell filled in, and hide passwords in addresses of streams."""
    try:
        yield
    except click.UsageError as error:
        parameter = getattr(error, "param", None)
        if parameter is not None and error.ctx is not None and _is_from_config(error.ctx, parameter):
            source = f" (from {error.ctx.meta[_CONFIG_NAME]})"
            error.message = error.message.removesuffix(source) + source  # type: ignore[misc]  # once for a group
        error.message = printable(hide_addresses(error.message))  # type: ignore[misc]
        raise


def _load_plugins() -> None:
    try:
        load_plugins()
    except ImportError as error:
        raise click.UsageError(f"{PLUGINS_VARIABLE} names a module that cannot be imported: {error}") from error


class _HelpFormatter(click.HelpFormatter):
    """click's, which loads shutil for the terminal's width, and with it all that archives need: 3 ms of `--help`."""

    def __init__(self, indent_increment: int = 2, width: int | None = None, max_width: int | None = None) -> None:
        if width is None and formatting.FORCED_WIDTH is None:  # of click's tests
            width = max(min(_terminal_columns(), max_width or 80) - 2, 50)
        super().__init__(indent_increment, width, max_width)


def _terminal_columns() -> int:
    """As shutil.get_terminal_size has them."""
    with suppress(KeyError, ValueError):
        if (columns := int(os.environ["COLUMNS"])) > 0:
            return columns
    with suppress(AttributeError, ValueError, OSError):
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    return 80


class _Context(click.Context):
    formatter_class = _HelpFormatter


def _is_completing() -> bool:
    """Whether a shell asks for completions, as with `_FER_INFER_COMPLETE=bash_source`."""
    return any(name.startswith("_FER_") and name.endswith("_COMPLETE") for name in os.environ)


class _FerBase(click.Command):
    """Base of commands and groups: -h, the width of --help, one `Error:` line."""

    context_class = _Context

    def __init__(self, *args: Any, **attributes: Any) -> None:
        settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
        attributes["context_settings"] = settings | (attributes.get("context_settings") or {})
        super().__init__(*args, **attributes)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return _with_shared_options(super().get_params(ctx), ctx)

    def main(self, *args: Any, **extra: Any) -> Any:
        stdout, stderr = sys.stdout, sys.stderr
        sys.stderr = Messages(stderr)
        # None where the shell closed it, `>&-`. Completions are written as bytes, which `Results` does not take.
        if stdout is not None and not _is_completing():
            sys.stdout = Results(stdout)
        try:
            return super().main(*args, **extra)
        finally:
            sys.stdout = stdout
            with suppress(OSError, ValueError):
                sys.stderr.close()
            sys.stderr = stderr

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _printable_usage_errors():
            _load_plugins()
            try:
                return super().make_context(*args, **extra)
            except OutputError as error:  # --help and --version print here
                raise _ErrorLine(printable(error)) from error

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta.setdefault(_ARGUMENTS, tuple(args))
        # Errors of the parser, such as an unknown option, come before any option is looked at.
        if "--log-format=json" in args or ("--log-format", "json") in pairwise(args):
            _write_json_lines()
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _printable_usage_errors():
            return _invoke(super().invoke, ctx)


class FerCommand(_FerBase):
    """A command with grouped options that prints a FerError as one `Error:` line and exits 1.

    Args:
        runs: the kinds of run that the command knows, for `take_options`.
        rules: checked before the command's function is called.
    """

    def __init__(
        self, *args: Any, runs: Sequence[type[RunOptions]] = (), rules: Sequence[Rule] = (), **attributes: Any
    ) -> None:
        super().__init__(*args, **attributes)
        self.runs = tuple(runs)
        self.rules = tuple(rules)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by their groups, those without a group last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)) is not None:
                if isinstance(parameter.type, RegistryChoice):
                    help_text = record[1] if ENTRIES in record[1] else f"{ENTRIES} {record[1]}"
                    record = (record[0], help_text.replace(ENTRIES, parameter.type.describe()).strip())
                groups.setdefault(getattr(parameter, "group", ""), []).append(record)
        ungrouped = groups.pop("", [])
        for title, records in (*groups.items(), ("Other options" if groups else "Options", ungrouped)):
            with formatter.section(title):
                formatter.write_dl(records)

    def invoke(self, ctx: click.Context) -> Any:
        with _printable_usage_errors():
            _check_rules(ctx, self.rules)
        return super().invoke(ctx)


class ShortCommand(FerCommand):
    """A `FerCommand` whose process ends as soon as its work is done.

    Python's tidying up of numpy, OpenCV and ONNX Runtime takes an eighth of a run over one image, and a process that
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


class FerGroup(_FerBase, click.Group):
    """A group of `FerCommand`s, with the same treatment of errors."""

    command_class = FerCommand
