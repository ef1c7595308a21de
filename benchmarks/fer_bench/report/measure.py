"""Everything that the report says, measured: latency, accuracy, calibration and robustness of all models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_bench.accuracy import LabelledImages, compare_pairwise, measure_accuracy, read_labelled_images
from fer_bench.engines import ENGINES
from fer_bench.environment import environment
from fer_bench.latency.measure import Configuration, Unavailable, configurations, measure_latency
from fer_bench.latency.roofline import measure_ceilings, rows_with_limits, warn_about_limits
from fer_bench.report.data import ENGINE, label_of
from fer_bench.robustness import (
    CONDITIONS,
    DEFAULT_FACES,
    DEFAULT_SEED,
    Condition,
    RobustnessPoint,
    measure_robustness,
    sample_indices,
)
from fer_runtime.model.find import MODEL_NAMES, PRECISIONS, Precision
from fer_runtime.recognizer import Recognizer
from fer_runtime.system import available_cpus

Progress = Callable[[int, int], None]

THROUGHPUT_BATCH = 32  # beyond it faces per second hardly rise, and a worker's answer is late


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRobustness:
    """Curves, and the faces behind them."""

    folder: Path
    pictures: int  # in the folder
    faces: int  # of them, degraded
    points: tuple[RobustnessPoint, ...]


def measure_robustness_of(
    data: Path,
    *,
    models: Sequence[str] = MODEL_NAMES,
    precisions: Sequence[Precision] = PRECISIONS,
    models_dir: Path = Path("models"),
    conditions: Sequence[Condition] = CONDITIONS,
    count: int = DEFAULT_FACES,
    seed: int = DEFAULT_SEED,
    progress: Progress | None = None,
) -> MeasuredRobustness:
    """Robustness of the models that are there.

    Raises:
        DataError: `data` is no folder of labelled pictures.
        ModelFileError: there is no model.
    """
    files = _model_files(models, precisions, models_dir)
    return _robustness(
        read_labelled_images(data), files, conditions=conditions, count=count, seed=seed, progress=progress
    )


def measure_report(
    data: Path,
    *,
    command: str,
    models: Sequence[str] = MODEL_NAMES,
    precisions: Sequence[Precision] = PRECISIONS,
    models_dir: Path = Path("models"),
    engines: Sequence[str] = tuple(ENGINES),
    rounds: int = 8,
    seconds: float = 0.4,
    count: int = DEFAULT_FACES,
    seed: int = DEFAULT_SEED,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[str], Progress] = lambda unit: lambda done, of: None,
) -> dict[str, Any]:
    """Measure everything, as JSON that `parse_report` reads.

    Args:
        data: labelled pictures.
        command: what the page names as the command that made it.
        engines: beside the shipped one, which is always measured.
        rounds: turns of each latency configuration.
        seconds: length of a turn.
        count: faces that are degraded for robustness.
        say: takes one line about what is being done.
        progress: takes a unit, gives a function that takes how many of how many are done.

    Raises:
        DataError: `data` is no folder of labelled pictures.
        ModelFileError: there is no model.
    """
    files = _model_files(models, precisions, models_dir)
    pictures = read_labelled_images(data)
    machine = environment()

    say(f"latency of {len(files)} model files")
    # Faces one by one on every engine; a batch shows what a folder of pictures costs, on the engine that ships.
    wanted = configurations(
        models=models,
        precisions=precisions,
        engines=tuple(dict.fromkeys((ENGINE, *engines))),
        models_dir=models_dir,
    ) + configurations(
        models=models, precisions=precisions, engines=(ENGINE,), batches=(THROUGHPUT_BATCH,), models_dir=models_dir
    )
    ceilings = measure_ceilings()
    results, unavailable = measure_latency(wanted, rounds=rounds, seconds=seconds, progress=progress("turn"))
    latency = rows_with_limits(results, wanted, ceilings.or_higher(measure_ceilings()))
    warnings = []
    if busy := [one for one in results if one.is_busy]:
        named = [f"{label_of(one.model, one.precision)} on {one.engine}, batch {one.batch}" for one in busy]
        listed = "; ".join(named) if len(named) <= 4 else f"{len(named)} of {len(results)} configurations"
        warnings.append(f"the machine was busy while some times were taken ({listed}). Read them with care.")
    if warning := warn_about_limits(latency):
        warnings.append(f"{warning}.")
    if pictures.unreadable:
        warnings.append(f"{len(pictures.unreadable)} pictures could not be read and are not counted.")

    say(f"accuracy on {len(pictures.labels)} pictures of {pictures.folder}")
    accuracy, measured = [], []
    show = progress("model")
    for number, one in enumerate(files, 1):
        with Recognizer(one.source) as recognizer:
            result = measure_accuracy(recognizer, pictures)
        measured.append(result)
        # A file given by its path is called by that, as in the latency rows.
        accuracy.append(
            result.to_dict()
            | {
                "model": one.model,
                "precision": one.precision,
                "reliability": reliability_bins(result.probabilities.max(1), result.predictions == pictures.labels),
            }
        )
        show(number, len(files))

    curves = _robustness(
        pictures, files, conditions=CONDITIONS, count=count, seed=seed, progress=progress("level"), say=say
    )
    return {
        "created": machine["date"],
        "command": command,
        "environment": machine | {"ceilings": ceilings.to_dict()},
        "data": f"{pictures.folder.parent.name}/{pictures.folder.name}",
        "accuracy": accuracy,
        "comparisons": [pair.to_dict() for pair in compare_pairwise(measured, pictures.labels)],
        "latency": latency,
        "robustness": [point.to_dict() for point in curves.points],
        "warnings": warnings,
        "not_measured": _say_unavailable(unavailable),
    }


def reliability_bins(
    confidences: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_], *, bins: int = 15
) -> list[dict[str, float]]:
    """Mean confidence, accuracy and number of faces in equal-width bins of confidence; empty bins are left out.

    The bins are those of the expected calibration error (Guo et al., arXiv 1706.04599).

    Args:
        confidences: probability of the predicted class, shape (faces,).
        correct: whether the prediction is right, shape (faces,).
    """
    which = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for one in range(bins):
        inside = which == one
        if inside.any():
            found.append(
                {
                    "confidence": float(confidences[inside].mean()),
                    "accuracy": float(correct[inside].mean()),
                    "faces": int(inside.sum()),
                }
            )
    return found


def _say_unavailable(unavailable: Sequence[Unavailable]) -> list[str]:
    """One line per engine and reason, however many models it concerns."""
    models: dict[tuple[str, str], list[str]] = {}
    for one in unavailable:
        label = label_of(one.configuration.model, one.configuration.precision)
        found = models.setdefault((one.configuration.engine, one.reason), [])
        if label not in found:
            found.append(label)
    return [f"{engine} ({', '.join(found)}): {reason}" for (engine, reason), found in models.items()]


def _model_files(models: Sequence[str], precisions: Sequence[Precision], models_dir: Path) -> list[Configuration]:
    return configurations(models=models, precisions=precisions, engines=(ENGINE,), models_dir=models_dir)


def _robustness(
    pictures: LabelledImages,
    files: Sequence[Configuration],
    *,
    conditions: Sequence[Condition],
    count: int,
    seed: int,
    progress: Progress | None,
    say: Callable[[str], None] = lambda text: None,
) -> MeasuredRobustness:
    chosen = sample_indices(pictures.labels, count, seed=seed)
    say(f"robustness on {len(chosen)} of them")
    # Nothing is timed here, so every CPU may help.
    threads = available_cpus()
    recognizers = {(one.model, one.precision): Recognizer(one.source, threads=threads) for one in files}
    points = measure_robustness(
        {key: recognizer.classify for key, recognizer in recognizers.items()},
        pictures.faces[chosen],
        pictures.labels[chosen],
        conditions=conditions,
        seed=seed,
        progress=progress,
    )
    for recognizer in recognizers.values():
        recognizer.close()
    return MeasuredRobustness(
        folder=pictures.folder, pictures=len(pictures.labels), faces=len(chosen), points=tuple(points)
    )
