"""Names of models and of the files that belong to them, and where a model is found."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from fer_runtime.errors import ModelFileError

if TYPE_CHECKING:
    from pathlib import Path

Precision = Literal["fp32", "int8", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# Which file is taken where a run names no precision: int8 is as accurate as fp32, and faster.
PRECISION_ORDER: tuple[Precision, ...] = ("int8", "fp32", "fp16")


class ShippedModel(NamedTuple):
    """A model that comes with the package. Any other is called by the name of its file."""

    name: str
    stem: str  # what its file names begin with: those of the first version, so that its users find their files again


# Best first, where a run names no model. v3 agrees most with people, and face detection takes longer than the smaller
# models save.
SHIPPED = (
    ShippedModel(name="v3", stem="model_v3"),
    ShippedModel(name="v1", stem="model_v1"),
    ShippedModel(name="v0", stem="model_0"),
)
PREFERENCE = tuple(model.name for model in SHIPPED)
FILE_STEMS = {model.name: model.stem for model in sorted(SHIPPED, key=lambda model: model.name)}
MODEL_NAMES = tuple(FILE_STEMS)

DEFAULT_MODELS_DIR = "models"  # text: `--help` does without pathlib


def file_stem(name: str) -> str:
    """The common start of a model's file names: `model_0` for v0, the name itself for a model of your own."""
    return FILE_STEMS.get(name, name)


def checkpoint_path(models_dir: Path, name: str) -> Path:
    """The path of trained weights, `model_0.pth`."""
    return models_dir / f"{file_stem(name)}.pth"


def checkpoint_names(models_dir: Path) -> list[str]:
    """The names of the checkpoints in a folder, sorted; none where it cannot be read."""
    files = (path.name for path in models_dir.glob("*.pth"))
    return sorted(_name_of(file.removesuffix(".pth")) for file in files if not file.endswith(".resume.pth"))


def results_path(models_dir: Path, name: str) -> Path:
    """The path of training's results, `model_0_results.json`."""
    return models_dir / f"{file_stem(name)}_results.json"


def parity_path(models_dir: Path, name: str) -> Path:
    """The path of the export's report, `model_0.parity.json`."""
    return models_dir / f"{file_stem(name)}.parity.json"


def model_path(models_dir: Path, name: str, precision: Precision = "fp32") -> Path:
    """The exported model, `model_0.onnx`, `model_0.int8.onnx` or `model_0.fp16.onnx`."""
    suffix = ".onnx" if precision == "fp32" else f".{precision}.onnx"
    return models_dir / f"{file_stem(name)}{suffix}"


def packaged_models_dir() -> Path:
    """The models inside the installed package; in a checkout, its `models` folder."""
    from pathlib import Path  # takes 3 ms to load, which --help does without

    installed = Path(__file__).parents[1] / "models"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "models"


def is_model_file(model: str | Path | None) -> bool:
    """Whether `--model` has the path of a file, not the name of a model."""
    if model is None or str(model) in FILE_STEMS:
        return False
    from pathlib import Path

    path = Path(model)
    return path.suffix == ".onnx" or path.name != str(model) or os.path.isfile(path)


def check_models_dir(models_dir: Path | str) -> None:
    """Raise an error if the folder cannot be searched: the package's models must not replace those in it.

    Raises:
        ModelFileError: it is there, but may not be read.
    """
    if os.path.isdir(models_dir) and not os.access(models_dir, os.R_OK | os.X_OK):
        raise ModelFileError(
            f"the folder {models_dir} cannot be read: permission denied; change its permissions, or give another "
            "--models-dir"
        )


class AvailableModel(NamedTuple):
    """A model that `find_model` finds by its name."""

    name: str
    precision: Precision
    path: Path


def available_models(models_dir: Path | str = DEFAULT_MODELS_DIR) -> list[AvailableModel]:
    """List the models that can be given by name: those in `models_dir`, then those of the installed package.

    The package's files of a name are left out where `models_dir` has that name in any precision, as in `find_model`.
    """
    from pathlib import Path

    found: list[AvailableModel] = []
    for folder in dict.fromkeys((Path(models_dir), packaged_models_dir())):
        earlier = {model.name for model in found}
        models = [model for path in sorted(folder.glob("*.onnx")) if (model := named_file(path)).name not in earlier]
        found += sorted(models, key=lambda model: (model.name, PRECISIONS.index(model.precision)))
    return found


def named_file(path: Path) -> AvailableModel:
    """The name and precision that a file's name says: `mine` and int8 for mine.int8.onnx, `v0` for model_0.onnx."""
    stem = path.name.removesuffix(".onnx")
    for precision in PRECISIONS:
        if stem.endswith(f".{precision}"):
            return AvailableModel(name=_name_of(stem.removesuffix(f".{precision}")), precision=precision, path=path)
    return AvailableModel(name=_name_of(stem), precision="fp32", path=path)


def _name_of(stem: str) -> str:
    return next((name for name, shipped in FILE_STEMS.items() if shipped == stem), stem)


def find_model(
    model: str | Path | None = None, *, precision: Precision | None = None, models_dir: Path | str = DEFAULT_MODELS_DIR
) -> Path:
    """Return the path of the file that `--model`, `--precision` and `--models-dir` stand for.

    Args:
        model: a name, such as `v0`, or the path of an `.onnx` file; None takes the first of PREFERENCE that is there.
        precision: of a named model; None takes the first of PRECISION_ORDER that is there.
        models_dir: where a named model is looked for first; the installed package comes second, and only for
            a model that `models_dir` has in no precision.

    Raises:
        ModelFileError: there is no such file, or `models_dir` cannot be read.
        ValueError: there is no such precision, or `model` is a file, which has its own.
    """
    from pathlib import Path

    if precision not in (None, *PRECISIONS):
        raise ValueError(f"no precision {precision!r}; one of: {', '.join(PRECISIONS)}")
    models_dir = Path(models_dir)
    if model is not None and is_model_file(model):
        if precision is not None:
            raise ValueError(f"precision={precision!r} is for named models; {model} is a file, which has its own")
        path = Path(model)
        if not os.path.isfile(path):
            raise ModelFileError(f"no model at {path}; give the path of an .onnx file or one of: {_known(models_dir)}")
        return path
    check_models_dir(models_dir)
    names = PREFERENCE if model is None else (str(model),)
    option = f" --precision {precision}" if precision else ""
    for folder in (models_dir, packaged_models_dir()):
        for name in names:
            for wanted in (precision,) if precision else PRECISION_ORDER:
                path = model_path(folder, name, wanted)
                if os.path.isfile(path):
                    return path
        # One folder's files are of one training: the package's int8 must not answer for somebody's own fp32.
        for name in names:
            if any(os.path.isfile(model_path(folder, name, other)) for other in PRECISIONS):
                missing = model_path(folder, name, precision or PRECISION_ORDER[0])
                named = "--model" if name in FILE_STEMS else "--name"
                raise ModelFileError(
                    f"no model at {missing}, though {folder} has {name} in another precision; "
                    f"write it with: fer-export {named} {name}{option}"
                )
    name = names[-1]
    missing = model_path(models_dir, name, precision or PRECISION_ORDER[0])
    if name not in FILE_STEMS:
        raise ModelFileError(f"no model named {name}: {missing} is not there; known are: {_known(models_dir)}")
    raise ModelFileError(
        f"no model at {missing}, nor in the installed package; write one with: fer-export --model {name}{option}"
    )


def _known(models_dir: Path) -> str:
    return ", ".join(dict.fromkeys((*MODEL_NAMES, *(model.name for model in available_models(models_dir)))))
