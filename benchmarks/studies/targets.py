"""docs/devices.md's table: every target that is installed here, its bytes, its difference, and its speed in one run.

python -m benchmarks.studies.targets --data data [--model v0] [--target litert]

Files are converted into a folder that is removed, from the models in `--models-dir`; a float32 file that does not ship
is exported first. Needs the converters of the targets, as `pip install '.[bench,ncnn,executorch,litert,coreml]'`
brings them; targets that are not installed are named. Timings come last, one thread, one face, all engines in turns.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from fer_bench.engines import ENGINES
from fer_bench.latency.measure import LatencyResult, configurations, measure_latency
from fer_export.options import ExportOptions
from fer_export.pipeline import export_model
from fer_export.targets.publish import TargetRefusedError, TargetReport, convert_model
from fer_runtime.errors import ModelFileError
from fer_runtime.model.find import Precision, checkpoint_path, find_model
from fer_runtime.targets import TARGETS

MODELS = ("v0", "v3", "v1")


def converted(model: str, targets: Sequence[str], *, data: Path, models_dir: Path) -> list[TargetReport]:
    """Each target's file in each of its precisions, written into `models_dir`."""
    reports: list[TargetReport] = []
    for name in targets:
        for precision in TARGETS[name].precisions:
            print(f"{model} to {name} {precision}", flush=True)
            try:
                wanted = [cast(Precision, precision)]
                reports += convert_model(model, targets=[name], precisions=wanted, models_dir=models_dir, data=data)
            except TargetRefusedError as error:
                reports += error.reports
            except ModelFileError as error:
                print(f"  {error}", flush=True)
    return reports


def timed(models: Sequence[str], targets: Sequence[str], models_dir: Path) -> list[LatencyResult]:
    """ONNX Runtime and the targets' files that were published, in turns."""
    engines = ["onnxruntime", *(engine.name for engine in ENGINES.values() if engine.target in targets)]
    wanted = configurations(models=models, engines=engines, models_dir=models_dir)
    results, missing = measure_latency(wanted)
    for unavailable in missing:
        print(f"not measured: {unavailable.configuration}: {unavailable.reason}", flush=True)
    return results


def table(reports: dict[str, list[TargetReport]], results: Sequence[LatencyResult]) -> list[str]:
    """Markdown: a row for each file; ONNX Runtime's own rows have no difference."""
    times = {
        (result.model, ENGINES[result.engine].target or result.engine, result.precision): result for result in results
    }
    lines = [
        "| model | target | MB | max \\|Δlogit\\| | other labels | verdict | p50 ms | min ms | faces/s at the p50 |",
        "|---|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    for model, found in reports.items():
        for precision in dict.fromkeys(report.precision for report in found):
            if result := times.get((model, "onnxruntime", precision)):
                lines.append(
                    f"| {model} {precision} | onnxruntime | {result.model_bytes / 1e6:.2f} | | | | {_speed(result)} |"
                )
        for report in found:
            difference = "" if report.replay is None else f"{report.replay.comparison.max_logit_difference:.1e}"
            flips = str(report.flips) if report.labelled_faces else ""
            time = times.get((model, report.target, report.precision))
            lines.append(
                f"| {model} {report.precision} | {report.target} | {report.target_bytes / 1e6:.2f} | {difference} | "
                f"{flips} | {report.outcome} | {' | | ' if time is None else _speed(time)} |"
            )
    return lines


def _speed(result: LatencyResult) -> str:
    return f"{result.p50_ms:.3f} | {result.min_ms:.3f} | {result.images_per_second:,.0f}"


def _model_files(model: str, given: Path, models_dir: Path) -> None:
    """The ONNX files of a model in `models_dir`; float32 is exported where only its checkpoint ships."""
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    for precision in precisions:
        try:
            shutil.copy(find_model(model, precision=precision, models_dir=given), models_dir)
        except ModelFileError:
            if precision == "fp32":
                print(f"exporting {model} in float32", flush=True)
                export_model(model, ExportOptions(models_dir=models_dir), checkpoint=checkpoint_path(given, model))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--target", action="append", choices=tuple(TARGETS))
    parser.add_argument("--models-dir", type=Path, default=Path("models"))
    options = parser.parse_args()
    models, targets = options.model or MODELS, options.target or list(TARGETS)
    for name in list(targets):
        missing = [module for module in (TARGETS[name].needs, *TARGETS[name].converters) if find_spec(module) is None]
        if missing:
            print(f"{name} is left out: {', '.join(missing)} not installed", flush=True)
            targets.remove(name)
    with tempfile.TemporaryDirectory() as folder:
        models_dir = Path(folder)
        reports = {}
        for model in models:
            _model_files(model, options.models_dir, models_dir)
            reports[model] = converted(model, targets, data=options.data, models_dir=models_dir)
        results = timed(models, targets, models_dir)
    print("\n".join(table(reports, results)))


if __name__ == "__main__":
    main()
