"""Options that several commands take, so that they mean and say the same in each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click
from click.core import ParameterSource

from fer_runtime.command import NumberRange, PathlibPath, RegistryChoice, Rule, option_group
from fer_runtime.detectors import DETECTORS, MOST_MIN_FACE
from fer_runtime.model.find import DEFAULT_MODELS_DIR, MODEL_NAMES, PREFERENCE, is_model_file

_Option = Callable[[Any], Any]


class ModelsFolder(PathlibPath):
    """A folder of models. What merely has the default's name in the current folder is checked where it is needed."""

    def __init__(self) -> None:
        super().__init__(file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if ctx and param and ctx.get_parameter_source(str(param.name)) is ParameterSource.DEFAULT:
            return self.coerce_path_result(value)
        return super().convert(value, param, ctx)


def named_models_rule(parameter: str, *options: str, when: Callable[[Mapping[str, Any]], bool] | None = None) -> Rule:
    """A rule for options that choose among the files of a model's name.

    Args:
        parameter: of `--model`, whose value is one model or several.
        options: parameter names, such as "precision" and "models_dir".
        when: whether the run uses them at all, from the values of all parameters.
    """

    def are_files(given: Mapping[str, Any]) -> bool:
        models = given[parameter] if isinstance(given[parameter], tuple) else (given[parameter],)
        return bool(models) and all(map(is_model_file, models)) and (when is None or when(given))

    return Rule(*options, when=are_files, because="only with the name of a model, not with --model FILE")


def detector_rule(option: str, *detectors: str) -> Rule:
    """A rule for an option of the detectors whose entry says that they use it.

    Args:
        option: a parameter name, "yunet" or "min_face".
        detectors: names beside theirs, with which `--detector` leaves the choice to the run.
    """
    using = [*detectors, *(entry.name for entry in DETECTORS.values() if option in entry.uses)]

    def is_useless(given: Mapping[str, Any]) -> bool:
        name = given["detector"]  # of an entry that may have been added since
        return name not in (None, *detectors) and option not in DETECTORS[name].uses

    names = f"{', '.join(using[:-1])} or {using[-1]}" if len(using) > 1 else using[0]
    return Rule(option, when=is_useless, because=f"only with --detector {names}")


def _confidence(context: click.Context, parameter: click.Parameter, value: str | None) -> float | str | None:
    """A probability, or "auto"."""
    if value is None or value == "auto":
        return value
    probability: float = NumberRange(0, 1)(value, parameter, context)
    return probability


def model_option(*names: str, more: str = "", **attributes: Any) -> _Option:
    """`--model` of a command that runs models, with `more` after the first sentence of its help."""
    return click.option(
        "--model",
        *names,
        metavar="NAME|FILE",
        help=f"Model: a name such as {', '.join(MODEL_NAMES)} or your own, or an .onnx file. {more}"
        f"[default: the first available of {', '.join(PREFERENCE)}]",
        **attributes,
    )


def provider_option(more: str = "") -> _Option:
    """`--provider`, with `more` at the end of its help."""
    return click.option(
        "--provider",
        default="CPU",
        show_default=True,
        help=f"ONNX Runtime execution provider: CPU, CUDA, CoreML, ...{more}",
    )


def seed_option(text: str) -> _Option:
    """`--seed`, in the range that PyTorch and numpy accept; `text` is its help."""
    return click.option("--seed", type=click.IntRange(0, (1 << 32) - 1), default=0, show_default=True, help=text)


def threads_option(subject: str, *, most: int | None = None) -> _Option:
    """`--threads` of ONNX Runtime, for `subject`; `most` if the command does not cap them itself."""
    return click.option(
        "--threads",
        type=click.IntRange(min=1, max=most),
        default=1,
        show_default=True,
        help=f"ONNX Runtime threads for {subject}.",
    )


def capped_threads(threads: int) -> int:
    """Cap `--threads` at the CPUs that this process may use, with a warning if that is fewer."""
    from fer_runtime.system import available_cpus

    cpus = available_cpus()
    if threads > cpus:
        click.echo(f"warning: {threads} threads are more than the {cpus} CPUs that this process may use", err=True)
    return min(threads, cpus)


def max_pixels_option(default: int) -> _Option:
    """`--max-pixels`. The default of a service is lower, because its images come from strangers."""
    return click.option(
        "--max-pixels",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        help="Largest image, width times height. Decoding takes at most 8 bytes of memory per pixel of this limit.",
    )


models_dir_option = click.option(
    "--models-dir",
    type=ModelsFolder(),
    default=DEFAULT_MODELS_DIR,
    show_default=True,
    help="Folder searched for named models before the installed package.",
)
detector_option = click.option(
    "--detector",
    type=RegistryChoice(DETECTORS, "auto"),
    default="auto",
    show_default=True,
    help="How to find faces. {entries} auto: an image whose short side is at most 64 pixels, and whose long side at "
    "most twice that, is taken as a face; others are searched, with YuNet if its file is available, else with Haar.",
)
yunet_option = click.option(
    "--yunet", type=PathlibPath(dir_okay=False), help="YuNet's model file. [default: the one in the cache folder]"
)
min_face_option = click.option(
    "--min-face",
    type=click.IntRange(1, MOST_MIN_FACE),
    default=24,
    show_default=True,
    help="Smallest face in pixels. Haar finds none below 1/16 of an image's long side; if it finds none at "
    "all, it searches down to 1/64.",
)
_min_confidence_option = click.option(
    "--min-confidence",
    callback=_confidence,
    metavar="P|auto",
    help="Mark faces below this confidence as uncertain. auto: faces with any reason to doubt the answer.",
)
face_detection_options = option_group(
    "Face detection", detector_option, yunet_option, min_face_option, _min_confidence_option
)
