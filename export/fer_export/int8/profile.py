"""Where a model's time goes, node by node of the optimized graph: `python -m fer_export.int8.profile`."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import click

from fer_export.gate.golden import textures
from fer_runtime.command import FerCommand
from fer_runtime.errors import ModelFileError
from fer_runtime.model.onnx_file import read_onnx_file
from fer_runtime.model.session import create_session, session_options

_WARMUP_RUNS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTime:
    """One node of the optimised graph."""

    name: str
    op_type: str
    # Mean of the fastest tenth of the runs, for interruptions only ever add. The profiler's own cost, 1 to 2
    # microseconds a node, is included.
    microseconds: float
    share: float  # of the sum over all nodes


def profile_model(path: Path, *, batch: int = 1, runs: int = 200) -> tuple[NodeTime, ...]:
    """Times of the nodes in the order in which they run, on one thread.

    Args:
        path: an exported model.
        batch: faces per run.
        runs: timed runs, after the warm-up.

    Raises:
        ModelFileError: the file is missing, damaged, or does not take faces.
    """
    _, content = read_onnx_file(path)
    faces = textures(batch)
    options = session_options()
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = create_session(content, options)
            for _ in range(_WARMUP_RUNS + runs):
                session.run(None, {"faces": faces})
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise ModelFileError(f"{path} does not run: {str(error).strip().splitlines()[0]}") from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: dict[tuple[str, str], list[int]] = defaultdict(list)  # microseconds
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]].append(event["dur"])
    # The first runs allocate memory arenas and fill caches; users never wait for them.
    times = {key: values[_WARMUP_RUNS:] for key, values in times.items()}
    fastest = {key: fmean(sorted(values)[: max(1, len(values) // 10)]) for key, values in times.items()}
    total = sum(fastest.values()) or 1
    return tuple(
        NodeTime(name=name, op_type=op_type, microseconds=value, share=value / total)
        for (name, op_type), value in fastest.items()
    )


@click.command(cls=FerCommand)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Faces per run.")
@click.option("--runs", type=click.IntRange(min=1), default=200, show_default=True, help="Timed runs.")
def main(file: Path, batch: int, runs: int) -> None:
    """Print how long each node of FILE takes after onnxruntime's own optimisation, on one thread."""
    nodes = profile_model(file, batch=batch, runs=runs)
    for node in nodes:
        click.echo(f"{node.microseconds:9.1f} us {node.share:6.1%}  {node.op_type:<22} {node.name}")
    click.echo(f"{sum(node.microseconds for node in nodes):9.1f} us for a batch of {batch}")


if __name__ == "__main__":
    main()
