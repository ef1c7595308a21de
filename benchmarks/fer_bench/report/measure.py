"""Measure the report's content: latency, accuracy, calibration and robustness of all models."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_bench.accuracy import AccuracyResult, LabelledImages, compare_pairwise, measure_files
from fer_bench.engines import ENGINES
from fer_bench.environment import environment
from fer_bench.latency.measure import Configuration, LatencyResult, Unavailable, configurations
from fer_bench.latency.roofline import (
    measure_peak_rates,
    measure_with_peak_rates,
    rows_with_roofline,
    warn_below_roofline,
)
from fer_bench.matching import images_for
from fer_bench.report.data import ENGINE, label_of
from fer_bench.robustness import (
    CONDITIONS,
    DEFAULT_FACES,
    DEFAULT_SEED,
    Classify,
    Condition,
    RobustnessPoint,
    measure_robustness,
    sample_indices,
)
from fer_runtime.model.find import PRECISIONS, Precision
from fer_runtime.recognizer import Recognizer
from fer_runtime.system import available_cpus

Progress = Callable[[int, int], None]

THROUGHPUT_BATCH = 32  # larger batches gain little


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRobustness:
    """Robustness curves and the faces they were measured on."""

    folder: Path
    images: int  # in the folder
    faces: int  # sampled from them
    points: tuple[RobustnessPoint, ...]


def measure_robustness_of(
    data: Path,
    *,
    models: Sequence[str] = (),
    precisions: Sequence[Precision] = PRECISIONS,
    models_dir: Path = Path("models"),
    conditions: Sequence[Condition] = CONDITIONS,
    count: int = DEFAULT_FACES,
    seed: int = DEFAULT_SEED,
    votes: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> MeasuredRobustness:
    """Measure the robustness of the available models.

    Args:
        data: labelled images.
        votes: a votes file, or "ferplus": the strict majorities of the raters are the labels.

    Raises:
        DataError: `data` is not a folder of labelled images, or the votes do not fit it.
        ModelFileError: no model was found.
    """
    files = _model_files(models, precisions, models_dir)
    images, files = images_for(data, files, are_named=bool(models), say=say)
    if votes is not None:
        from fer_bench.raters import labelled_by_raters

        images = labelled_by_raters(images, votes)
    return _robustness(images, files, conditions=conditions, count=count, seed=seed, progress=progress)


def measure_report(
    data: Path,
    *,
    command: str,
    models: Sequence[str] = (),
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
    """Measure everything; the result is JSON that `parse_report` reads.

    Args:
        data: labelled images.
        command: shown on the page as the command that made it.
        engines: measured next to ONNX Runtime, which is always measured.
        rounds: turns of each latency configuration.
        seconds: length of a turn.
        count: faces to degrade for robustness.
        say: called with a line about the current step.
        progress: takes a unit and returns a function of (done, total).

    Raises:
        DataError: `data` is not a folder of labelled images.
        ModelFileError: no model was found.
    """
    images, files = images_for(data, _model_files(models, precisions, models_dir), are_named=bool(models), say=say)
    machine = environment()

    say(f"latency of {len(files)} model files")
    wanted = _latency_configurations(
        models, precisions, models_dir, engines, measured_models={file.model for file in files}
    )
    results, unavailable, peak_rates = measure_with_peak_rates(
        wanted, rounds=rounds, seconds=seconds, progress=progress("turn")
    )
    peak_rates = peak_rates or measure_peak_rates()
    latency = rows_with_roofline(results, wanted, peak_rates)

    say(f"accuracy on {len(images.labels)} images of {images.folder}")
    measured = measure_files([file.source for file in files], images, progress=progress("model"))
    accuracy = [_accuracy_row(file, result, images) for file, result in zip(files, measured, strict=True)]

    curves = _robustness(
        images, files, conditions=CONDITIONS, count=count, seed=seed, progress=progress("level"), say=say
    )
    return {
        "created": machine["date"],
        "command": command,
        "environment": machine | {"peak_rates": peak_rates.to_dict()},
        "data": f"{images.folder.parent.name}/{images.folder.name}",
        "accuracy": accuracy,
        "comparisons": compare_files(files, measured, images),
        "latency": latency,
        "robustness": [point.to_dict() for point in curves.points],
        "warnings": _warnings(results, latency, images),
        "not_measured": _say_unavailable(unavailable),
    }


def compare_files(
    files: Sequence[Configuration], results: Sequence[AccuracyResult], images: LabelledImages
) -> list[dict[str, Any]]:
    """`compare_pairwise`, with the names that the other parts of the report have for the files."""
    names = combinations([label_of(file.model, file.precision) for file in files], 2)
    pairs = compare_pairwise(results, images.labels)
    return [
        replace(pair, first=first, second=second).to_dict() for pair, (first, second) in zip(pairs, names, strict=True)
    ]


def _latency_configurations(
    models: Sequence[str],
    precisions: Sequence[Precision],
    models_dir: Path,
    engines: Sequence[str],
    *,
    measured_models: Collection[str],
) -> list[Configuration]:
    """One face per call on every engine; batches, as for a folder of images, on ONNX Runtime only.

    Args:
        measured_models: models whose accuracy is measured; the others are left out here, too. By name, because the
            engine of a checkpoint has no precision of its own.
    """
    single = configurations(
        models=models,
        precisions=precisions,
        engines=tuple(dict.fromkeys((ENGINE, *engines))),
        models_dir=models_dir,
    )
    batches = configurations(
        models=models, precisions=precisions, engines=(ENGINE,), batches=(THROUGHPUT_BATCH,), models_dir=models_dir
    )
    return [configuration for configuration in single + batches if configuration.model in measured_models]


def _warnings(results: Sequence[LatencyResult], latency: list[dict[str, Any]], images: LabelledImages) -> list[str]:
    """Why a figure of the report may not be a property of the model, a sentence each."""
    warnings = []
    if busy := [result for result in results if result.is_busy]:
        named = [
            f"{label_of(result.model, result.precision)} on {result.engine}, batch {result.batch}" for result in busy
        ]
        listed = "; ".join(named) if len(named) <= 4 else f"{len(named)} of {len(results)} configurations"
        warnings.append(f"the machine was busy during some measurements ({listed}), so their times are less reliable.")
    if warning := warn_below_roofline(latency):
        warnings.append(f"{warning}.")
    if images.unreadable:
        warnings.append(f"{len(images.unreadable)} images could not be read and are not counted.")
    return warnings


def _accuracy_row(file: Configuration, result: AccuracyResult, images: LabelledImages) -> dict[str, Any]:
    # A file given by its path is named by its path, as in the latency rows.
    return result.to_dict() | {
        "model": file.model,
        "precision": file.precision,
        "reliability": reliability_bins(result.probabilities.max(1), result.predictions == images.labels),
    }


def reliability_bins(
    confidences: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_], *, bins: int = 15
) -> list[dict[str, float]]:
    """Mean confidence, accuracy and number of faces per equal-width bin of confidence, without empty bins.

    The bins are those of the expected calibration error (Guo et al., arXiv 1706.04599).

    Args:
        confidences: probability of the predicted class, shape (faces,).
        correct: whether the prediction is correct, shape (faces,).
    """
    which = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for index in range(bins):
        inside = which == index
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
    """One line per engine and reason, with its models."""
    models: dict[tuple[str, str], list[str]] = {}
    for missing in unavailable:
        label = label_of(missing.configuration.model, missing.configuration.precision)
        found = models.setdefault((missing.configuration.engine, missing.reason), [])
        if label not in found:
            found.append(label)
    return [f"{engine} ({', '.join(found)}): {reason}" for (engine, reason), found in models.items()]


def _classify_by_name(recognizer: Recognizer, classes: Sequence[str]) -> Classify:
    columns = [recognizer.labels.index(name) for name in classes]
    return lambda faces: recognizer.classify(faces)[:, columns]


def _model_files(models: Sequence[str], precisions: Sequence[Precision], models_dir: Path) -> list[Configuration]:
    return configurations(models=models, precisions=precisions, engines=(ENGINE,), models_dir=models_dir)


def _robustness(
    images: LabelledImages,
    files: Sequence[Configuration],
    *,
    conditions: Sequence[Condition],
    count: int,
    seed: int,
    progress: Progress | None,
    say: Callable[[str], None] = lambda text: None,
) -> MeasuredRobustness:
    chosen = sample_indices(images.labels, count, seed=seed)
    say(f"robustness on {len(chosen)} of them")
    # Nothing is timed here, so all CPUs are used.
    threads = available_cpus()
    recognizers = {(file.model, file.precision): Recognizer(file.source, threads=threads) for file in files}
    points = measure_robustness(
        {key: _classify_by_name(recognizer, images.classes) for key, recognizer in recognizers.items()},
        images.faces[chosen],
        images.labels[chosen],
        faces_of={
            key: images.faces_for(recognizer)[chosen]
            for key, recognizer in recognizers.items()
            if recognizer.metadata.face_shape != images.faces.shape[1:]
        },
        conditions=conditions,
        seed=seed,
        progress=progress,
    )
    for recognizer in recognizers.values():
        recognizer.close()
    return MeasuredRobustness(folder=images.folder, images=len(images.labels), faces=len(chosen), points=tuple(points))
