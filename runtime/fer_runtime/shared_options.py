"""Options that several commands take, so that they mean and say the same in each."""

from __future__ import annotations

import click

from fer_runtime.command import PathlibPath, RegistryChoice
from fer_runtime.detectors import DETECTORS
from fer_runtime.model.find import DEFAULT_MODELS_DIR


def _confidence(context: click.Context, parameter: click.Parameter, value: str | None) -> float | str | None:
    """A probability, or "auto"."""
    if value is None or value == "auto":
        return value
    probability: float = click.FloatRange(0, 1)(value, parameter, context)
    return probability


models_dir_option = click.option(
    "--models-dir",
    type=PathlibPath(file_okay=False),
    default=DEFAULT_MODELS_DIR,
    show_default=True,
    help="Folder searched for named models before the installed package.",
)
detector_option = click.option(
    "--detector",
    type=RegistryChoice(DETECTORS, "auto"),
    default="auto",
    show_default=True,
    help="How to find faces. {entries} auto: an image whose short side is up to 64 pixels is taken as a face; larger "
    "images are searched, "
    "with YuNet if its file is available, else with Haar.",
)
yunet_option = click.option(
    "--yunet", type=PathlibPath(dir_okay=False), help="YuNet's model file. [default: the one in the cache folder]"
)
min_face_option = click.option(
    "--min-face",
    type=click.IntRange(min=1),
    default=24,
    show_default=True,
    help="Smallest face in pixels. Haar finds none below 1/16 of an image's long side, or 1/64 if it found no other.",
)
min_confidence_option = click.option(
    "--min-confidence",
    callback=_confidence,
    metavar="P|auto",
    help="Mark faces below this confidence as uncertain. auto: faces with any reason against their answer.",
)
