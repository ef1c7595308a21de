"""Planted faults through `export_model` itself: `python -m tests.export.planted --data DIR`.

Each fault of `faults.py` is planted into the file that the export is about to judge, of v0 by default, and the table
says which checks refused it. The command exits 1 if a file with a fault was published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import onnx
import pytest
from tests.export.conftest import Kept, digest, exporting_once
from tests.export.faults import FAULTS, LIES, Fault, Lie

from fer_export import candidates, graph, pipeline
from fer_export.gate import original, publish, roundings
from fer_export.gate.judge import judge
from fer_export.gate.report import ExportRefusedError
from fer_export.int8.quantize import quantize_model
from fer_export.int8.ranges import observe
from fer_export.options import ExportOptions
from fer_export.pipeline import export_model
from fer_runtime.errors import FerError
from fer_runtime.model.find import PRECISIONS, Precision, checkpoint_path, packaged_models_dir
from fer_runtime.model.metadata import ModelMetadata
from fer_train.data.dataset import load_splits, load_validation


@contextmanager
def planted(precision: Precision, fault: Fault | None = None, lie: Lie | None = None) -> Iterator[None]:
    """Every file of `precision` has the fault: the one that is judged, and the one that is published."""
    honest = graph.serialize

    def serialize(model: onnx.ModelProto, metadata: ModelMetadata) -> bytes:
        if metadata.precision != precision:
            return honest(model, metadata)
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        if fault is not None:
            fault(changed)
        return honest(changed, metadata if lie is None else lie(metadata))

    with pytest.MonkeyPatch.context() as patch:
        for module in (candidates, publish):
            patch.setattr(module, "serialize", serialize)
        yield


@contextmanager
def judging_once(kept: Kept) -> Iterator[None]:
    """Do once for all exports what is the same in each: the faces, PyTorch's logits, the right fp32 file's verdict."""

    def once(function: Callable[..., Any], key: Callable[..., str]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            place = function.__name__, key(*given, **named)
            if place not in kept:
                kept[place] = function(*given, **named)
            return kept[place]

        return call

    with exporting_once(kept), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pipeline, "judge", once(judge, lambda subject, candidate, *_: sha256(candidate.content).hexdigest())
        )
        patch.setattr(pipeline, "load_splits", once(load_splits, lambda data, **how: f"{data} {how}"))
        patch.setattr(pipeline, "load_validation", once(load_validation, lambda data, **how: f"{data} {how}"))
        patch.setattr(candidates, "observe", once(observe, lambda model, faces: digest(model) + digest(faces)))
        patch.setattr(candidates, "quantize_model", once(quantize_model, lambda model, observations: digest(model)))
        logits = once(original.network_logits, lambda checkpoint, faces: digest(checkpoint) + digest(faces))
        patch.setattr(original, "network_logits", logits)
        drawn = once(roundings._logits, lambda model, faces, batch: f"{digest(model)} {digest(faces)} {batch}")
        patch.setattr(roundings, "_logits", drawn)
        yield


def found_by(name: str, options: ExportOptions, checkpoint: Path | None = None) -> list[str]:
    """The checks that refused the file; empty where it was published."""
    try:
        export_model(name, options, checkpoint=checkpoint)
    except ExportRefusedError as refused:
        return [check.name for model in refused.report.models for check in model.parity.failures]
    except FerError as error:
        return [f"{type(error).__name__}: {error}"]
    return []


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Labelled faces, as for fer-export.")
@click.option("--votes", help="As for fer-export.")
@click.option("--precision", "precisions", multiple=True, type=click.Choice(PRECISIONS), default=PRECISIONS)
@click.option("--only", default="", help="Faults whose name has this in it.")
def main(data: Path, votes: str | None, precisions: tuple[Precision, ...], only: str) -> None:
    """Plant every fault into the exports of v0 and print which checks refuse the file."""
    kept: Kept = {}
    published = 0
    planted_by_name: dict[str, tuple[tuple[Precision, ...], dict[str, Any]]] = {}
    for fault, where, _ in FAULTS:
        before = planted_by_name.get(fault.__name__, ((), {}))[0]
        planted_by_name[fault.__name__] = (tuple(dict.fromkeys([*before, *where])), {"fault": fault})
    for name, (lie, _) in LIES.items():
        planted_by_name[f"says: {name}"] = (tuple(PRECISIONS), {"lie": lie})
    with TemporaryDirectory() as folder, judging_once(kept):
        checkpoint = checkpoint_path(packaged_models_dir(), "v0")
        for precision in precisions:
            options = ExportOptions(precisions=(precision,), data=data, votes=votes, models_dir=Path(folder))
            right = found_by("v0", options, checkpoint)
            click.echo(f"{precision:4}  {'(no fault)':40}  {', '.join(right) or 'published'}")
            for name, (where, changes) in planted_by_name.items():
                if precision not in where or only not in name:
                    continue
                with planted(precision, **changes):
                    checks = found_by("v0", options, checkpoint)
                published += not checks
                click.echo(f"{precision:4}  {name:40}  {', '.join(dict.fromkeys(checks)) or 'PUBLISHED'}")
    if published:
        raise click.ClickException(f"{published} files with a fault were published")


if __name__ == "__main__":
    main()
