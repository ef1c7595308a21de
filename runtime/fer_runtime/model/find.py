"""Names of models and of the files that belong to them, and where a model is found."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from fer_runtime.errors import ModelFileError

Precision = Literal["fp32", "int8", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# The file names are those of the project's first version, so that its users find their files again.
FILE_STEMS = {"v0": "model_0", "v1": "model_v1", "v2": "model_v2", "v3": "model_v3"}
MODEL_NAMES = tuple(FILE_STEMS)

# What is taken where a run names no model or no precision, best first. v3 is as accurate as v1 in a third of its
# bytes, and finding the face hides what the smaller ones save. All but v0 are as right in int8 as in fp32, and faster.
PREFERENCE: dict[str, tuple[Precision, ...]] = {
    "v3": ("int8", "fp32", "fp16"),
    "v2": ("int8", "fp32", "fp16"),
    "v1": ("int8", "fp32", "fp16"),
    "v0": ("fp32", "int8", "fp16"),
}

DEFAULT_MODELS_DIR = Path("models")


def checkpoint_path(models_dir: Path, name: str) -> Path:
    """Trained weights, `model_0.pth`."""
    return models_dir / f"{FILE_STEMS[name]}.pth"


def results_path(models_dir: Path, name: str) -> Path:
    """What training measured, `model_0_results.json`."""
    return models_dir / f"{FILE_STEMS[name]}_results.json"


def parity_path(models_dir: Path, name: str) -> Path:
    """What the export compared, `model_0.parity.json`."""
    return models_dir / f"{FILE_STEMS[name]}.parity.json"


def model_path(models_dir: Path, name: str, precision: Precision = "fp32") -> Path:
    """The exported model, `model_0.onnx`, `model_0.int8.onnx` or `model_0.fp16.onnx`."""
    suffix = ".onnx" if precision == "fp32" else f".{precision}.onnx"
    return models_dir / f"{FILE_STEMS[name]}{suffix}"


def packaged_models_dir() -> Path:
    """The models inside the installed package; in a checkout, its `models` folder."""
    installed = Path(__file__).parents[1] / "models"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "models"


def find_model(
    model: str | Path | None = None, *, precision: Precision | None = None, models_dir: Path = DEFAULT_MODELS_DIR
) -> Path:
    """The file that `--model`, `--precision` and `--models-dir` stand for.

    Args:
        model: a name, such as `v0`, or the path of an `.onnx` file; None takes the first of PREFERENCE that is there.
        precision: of a named model; None takes the first of its PREFERENCE that is there.
        models_dir: where a named model is looked for first; the installed package comes second, and only for
            a model that `models_dir` has in no precision.

    Raises:
        ModelFileError: there is no such file.
    """
    if model is not None and str(model) not in FILE_STEMS:
        path = Path(model)
        if not path.is_file():
            raise ModelFileError(
                f"no model at {path}; give the path of an .onnx file or one of: {', '.join(MODEL_NAMES)}"
            )
        return path
    names = tuple(PREFERENCE) if model is None else (str(model),)
    option = f" --precision {precision}" if precision else ""
    for folder in (models_dir, packaged_models_dir()):
        for name in names:
            for one in (precision,) if precision else PREFERENCE[name]:
                path = model_path(folder, name, one)
                if path.is_file():
                    return path
        # One folder's files are of one training: the package's int8 must not answer for somebody's own fp32.
        for name in names:
            if any(model_path(folder, name, one).is_file() for one in PRECISIONS):
                missing = model_path(folder, name, precision or PREFERENCE[name][0])
                raise ModelFileError(
                    f"no model at {missing}, though {folder} has {name} in another precision; "
                    f"write it with: fer-export --model {name}{option}"
                )
    name = names[-1]
    missing = model_path(models_dir, name, precision or PREFERENCE[name][0])
    raise ModelFileError(
        f"no model at {missing}, nor in the installed package; write one with: fer-export --model {name}{option}"
    )
