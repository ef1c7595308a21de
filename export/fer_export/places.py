"""Where an export writes its files, and what it may replace there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fer_runtime.errors import ModelFileError, OutputError
from fer_runtime.files import check_writable
from fer_runtime.model.find import PRECISIONS, Precision, model_path
from fer_runtime.model.metadata import ModelMetadata
from fer_runtime.model.onnx_file import read_onnx_file


def output_path(models_dir: Path, name: str, precision: Precision, batch: int | None = None) -> Path:
    """The file that an export writes; one of a fixed batch has the batch in its name, `model_0.batch1.onnx`."""
    path = model_path(models_dir, name, precision)
    return path if batch is None else path.with_name(path.name.removesuffix(".onnx") + f".batch{batch}.onnx")


def check_places(places: Sequence[Path], sha256: str, source: Path, *, replace: bool) -> None:
    """Check that the files can be written, minutes before the first one is.

    Args:
        places: the files, all in one folder.
        sha256: of what they are made from, `source`.
        replace: overwrite whatever is there.

    Raises:
        OutputError: a file cannot be written, or is a model of another origin.
    """
    for place in places:
        check_writable(place)
    for place in places if not replace else ():
        _check_replaceable(place, sha256, source)


def _check_replaceable(path: Path, sha256: str, source: Path) -> None:
    """Raises OutputError where `path` holds a model of another checkpoint, or something else."""
    if not path.exists():
        return
    metadata = metadata_of(path)
    if metadata is not None and metadata.checkpoint_sha256 == sha256:
        return
    fact = (
        "was not written by fer-export" if metadata is None else f"was exported from another checkpoint than {source}"
    )
    raise OutputError(f"{path} {fact}; add --replace to overwrite it, or give another --models-dir")


def files_of_another(models_dir: Path, name: str, sha256: str, *, batch: int | None = None) -> list[Path]:
    """Our model files of this name, in any precision, that were made from something else than `sha256` is of."""
    places = [output_path(models_dir, name, precision, batch) for precision in PRECISIONS]
    found = [(place, metadata_of(place)) for place in places]
    return [place for place, metadata in found if metadata is not None and metadata.checkpoint_sha256 != sha256]


def metadata_of(path: Path) -> ModelMetadata | None:
    """The metadata of a model file; None where there is no file, or none of ours."""
    try:
        file, _ = read_onnx_file(path)
        return file.own_metadata(source=str(path))
    except ModelFileError:
        return None
