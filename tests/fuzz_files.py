"""Fuzzed files of models, training, results and stopped runs: `python -m tests.fuzz_files --count 10000`.

Whatever a file holds, reading it ends in an answer or in one of our errors, within SECONDS of CPU time and MEGABYTES of
memory. Files are damaged in two ways: as bytes, and by their structure (a field of the graph, a value of the JSON, a
tensor of the checkpoint), because random bytes seldom get past the first check.
"""

from __future__ import annotations

import io
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import onnx
import torch
from onnx import AttributeProto, helper
from tests.runtime.tiny_models import write_band_model

from fer_bench.diff import compare_runs, draw_changes, format_changes, load_run
from fer_bench.latency.compare import compare_results, read_latency
from fer_bench.ledger.entries import Board, LatencyLine, SelfTestLine, read_ledger
from fer_bench.ledger.entries import compare as compare_boards
from fer_bench.ledger.entries import show as show_boards
from fer_bench.report.data import read_report
from fer_runtime import Recognizer
from fer_runtime.batch.jobs import BlockEnds, JobSummary
from fer_runtime.batch.resume import finished_rows, paths_left, read_rows
from fer_runtime.checksums import CHECKSUM
from fer_runtime.cluster.shards import (
    SETTINGS,
    add_summary,
    find_plan,
    finished_shards,
    parse_paths,
    summary_to_json,
)
from fer_runtime.cluster.storage import open_store
from fer_runtime.errors import DataError, FerError
from fer_runtime.model.find import packaged_models_dir
from fer_runtime.model.inspect import inspect_model
from fer_runtime.model.self_test import run_self_test
from fer_runtime.model.session import silence
from fer_runtime.output.contact_sheet import ContactSheet
from fer_runtime.results import Face
from fer_train.checkpoints import load_checkpoint, pack_state, save_checkpoint, unpack_state
from fer_train.data.crop import CropReport
from fer_train.data.crop import _read_rows as read_crop_rows
from fer_train.networks.registry import create_network
from fer_train.results import read_results

SECONDS = 10.0  # of CPU time for one file; the slowest seen took 2
_LARGE = 10**7  # values of an expanded tensor, which the fuzzer itself must not write out: 10^9 take 8 GB
MEGABYTES = 600  # that all files together may add to the process; v0 takes 1.3 MB, ONNX Runtime's arenas 100
_HOSTILE_TEXT = ("", "\x1b[2J", "a\n  verdict passed", "\udcff", "x" * 5000, "=1+1", "../../etc/passwd", "NaN", "\0")
_HOSTILE_NUMBERS = (0, 1, -1, 7, 2**31, 2**63 - 1, -(2**63), 0.0, 1e308, -0.5)
_RAW_JSON = ("NaN", "1e999", "9" * 400, "-" + "9" * 30, "[" * 2000 + "]" * 2000, '{"a": 1, "a": 2}', "nul")


@dataclass(frozen=True, slots=True)
class Target:
    """A way to read files: what it is called, the files to damage, how, and the reading."""

    name: str
    make: Callable[[random.Random], bytes]
    read: Callable[[bytes, Path], object]


def damaged_bytes(content: bytes, chooser: random.Random) -> bytes:
    """Bytes changed, cut, repeated or removed."""
    damaged = bytearray(content)
    for _ in range(chooser.choice((1, 1, 2, 4, 16))):
        end = len(damaged) if chooser.random() < 0.5 else min(len(damaged), 200)
        place = chooser.randrange(max(1, end))
        kind = chooser.randrange(5)
        if kind == 0 and damaged:
            damaged[place] ^= 1 << chooser.randrange(8)
        elif kind == 1 and damaged:
            damaged[place] = chooser.choice((0, 1, 127, 128, 255))
        elif kind == 2:
            del damaged[place:]
        elif kind == 3:
            del damaged[place : place + chooser.randrange(1, 40)]
        else:
            damaged[place:place] = damaged[place : place + chooser.randrange(1, 40)] * chooser.randrange(1, 5)
    return bytes(damaged)


def damaged_json(text: str, chooser: random.Random) -> str:
    """One to three values of a JSON text replaced, removed or given twice."""
    values = json.loads(text)
    raw: dict[str, str] = {}
    for number in range(chooser.choice((1, 1, 2, 3))):
        holder, key = _place(values, chooser)
        if holder is None:
            return chooser.choice(_RAW_JSON)
        kind = chooser.randrange(5)
        if kind == 0:
            holder[key] = chooser.choice(_HOSTILE_NUMBERS)
        elif kind == 1:
            holder[key] = chooser.choice(_HOSTILE_TEXT)
        elif kind == 2:
            holder[key] = chooser.choice((None, True, [], {}, [[]], [holder[key]], {"a": holder[key]}))
        elif kind == 3 and isinstance(holder, dict):
            del holder[key]
        else:
            holder[key] = f"raw {number}"
            raw[json.dumps(f"raw {number}")] = chooser.choice(_RAW_JSON)
    damaged = json.dumps(values)
    for mark, replacement in raw.items():
        damaged = damaged.replace(mark, replacement, 1)
    return damaged


def _place(values: Any, chooser: random.Random) -> tuple[Any, Any]:
    """A random place in nested values: the dict or list, and the key or index."""
    holder, key = None, None
    while isinstance(values, (dict, list)) and values:
        holder, key = values, chooser.choice(list(values) if isinstance(values, dict) else range(len(values)))
        if chooser.random() < 0.4:
            break
        values = values[key]
    return holder, key


def damaged_graph(content: bytes, chooser: random.Random) -> bytes:
    """One to three changes of an ONNX graph: operators, names, attributes, shapes, types and metadata."""
    model = onnx.load_from_string(content)
    graph = model.graph
    for _ in range(chooser.choice((1, 1, 2, 3))):
        node = chooser.choice(graph.node)
        tensor = chooser.choice(graph.initializer)
        kind = chooser.randrange(10)
        if kind == 0:
            node.op_type = chooser.choice(
                ("Loop", "If", "RandomNormal", "Resize", "Tile", "Conv", "Gemm", "Add", "", "\x1b[2J")
            )
        elif kind == 1:
            node.input[chooser.randrange(len(node.input))] = chooser.choice(("", "faces", "gone", tensor.name))
        elif kind == 2 and node.attribute:
            _change_attribute(chooser.choice(node.attribute), chooser)
        elif kind == 3:
            name = chooser.choice(("axis", "pads", "strides", "kernel_shape", "group", "perm", "to", "body"))
            value = chooser.choice(([0, 0], [-1] * 4, [2**31] * 4, 0, -7, 1 << 40, "text", 0.5))
            node.attribute.append(helper.make_attribute(name, value))
        elif kind == 4:
            tensor.dims[:] = [
                chooser.choice((0, 1, 3, -1, 2**31, 2**40)) for _ in range(chooser.choice((0, 1, 2, 4, 9)))
            ]
        elif kind == 5:
            tensor.data_type = chooser.randrange(25)
        elif kind == 6:
            del graph.node[chooser.randrange(len(graph.node))]
        elif kind == 7:
            value = chooser.choice((*graph.input, *graph.output))
            dimensions = value.type.tensor_type.shape.dim
            if dimensions:
                chooser.choice(dimensions).dim_value = chooser.choice((0, 1, 47, -1, 2**40))
            value.type.tensor_type.elem_type = chooser.choice((1, 2, 8, 99))
        elif kind == 8:
            graph.node.append(helper.make_node(chooser.choice(("Relu", "Loop", "Constant")), [node.output[0]], ["new"]))
        elif model.metadata_props:
            entry = chooser.choice(model.metadata_props)
            try:
                entry.value = damaged_json(entry.value, chooser)
            except (ValueError, RecursionError):  # damaged before
                entry.value = "{"
        if not graph.node or not graph.initializer:
            break
    return bytes(model.SerializeToString())


def _change_attribute(attribute: AttributeProto, chooser: random.Random) -> None:
    kind = chooser.randrange(4)
    if kind == 0:
        attribute.i = chooser.choice((0, -1, 99, 1 << 40))
    elif kind == 1 and attribute.ints:
        attribute.ints[chooser.randrange(len(attribute.ints))] = chooser.choice((0, -1, 10**6, 1 << 40))
    elif kind == 2:
        attribute.type = chooser.choice(AttributeProto.AttributeType.values())
    else:
        attribute.name = chooser.choice(("", "pads", "alpha", "x" * 300))


def damaged_state(state: dict[str, Any], chooser: random.Random) -> Any:
    """A state dict with one to three entries of another kind, or wrapped as no program would."""
    damaged: dict[Any, Any] = dict(state)
    for _ in range(chooser.choice((1, 1, 2, 3))):
        key = chooser.choice(list(damaged))
        value = damaged[key]
        is_dense = isinstance(value, torch.Tensor) and value.layout == torch.strided
        kind = chooser.randrange(8)
        if kind == 0:
            del damaged[key]
        elif kind == 1:
            damaged[chooser.choice((f"{key}x", f"model.{key}", "", 3, f"module.{key}"))] = damaged.pop(key)
        elif kind == 2 and is_dense and value.numel() < _LARGE:
            damaged[key] = chooser.choice((value.half, value.double, value.bool, value.to_sparse, value.int))()
        elif kind == 3 and is_dense:
            damaged[key] = value[None] if chooser.random() < 0.5 else value.reshape(-1)
        elif kind == 4:
            damaged[key] = chooser.choice((None, "text", 3, [value], {"a": value}, torch.zeros(1).expand(10**9)))
        elif kind == 5 and is_dense and value.is_floating_point() and value.numel() < _LARGE:
            damaged[key] = value * chooser.choice((float("nan"), float("inf"), -1.0, 1e30))
        elif kind == 6:
            damaged[key] = damaged
        elif is_dense and value.numel() < _LARGE:
            damaged[key] = value.t().contiguous().t() if value.ndim == 2 else value.clone()
        if not damaged:
            break
    return chooser.choice((damaged, {"state_dict": damaged}, {"net": damaged, "epoch": 3}, [damaged]))


def _saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def targets(folder: Path) -> list[Target]:
    """Every way to read a file that this module fuzzes."""
    shipped = [(packaged_models_dir() / name).read_bytes() for name in ("model_0.onnx", "model_0.int8.onnx")]
    models = [*shipped, write_band_model(folder / "bands.onnx").read_bytes()]
    torch.manual_seed(0)
    network = create_network("v0").state_dict()
    ours = folder / "ours.pth"
    from fer_train.checkpoints import Checkpoint

    save_checkpoint(ours, Checkpoint(name="v0", state_dict=network, training={"recipe": "first", "accuracy": 0.5}))
    settings = torch.load(ours, weights_only=True)
    save_checkpoint(folder / "ours.safetensors", Checkpoint(name="v0", state_dict=network))
    files = [
        ours.read_bytes(),
        (folder / "ours.safetensors").read_bytes(),
        _saved(network),
        _saved({"net": network}, _use_new_zipfile_serialization=False),
    ]
    state = {"identity": {"seed": 1}, "network": {"weight": torch.ones(20)}, "history": {"train_loss": [1.0]}}
    results = packaged_models_dir() / "model_0_results.json"
    measured = Path(__file__).parents[1] / "benchmarks" / "results"
    latency, accuracy = ((measured / f"{name}.json").read_text() for name in ("latency", "accuracy"))
    report = _report(json.loads(latency), json.loads(accuracy))

    def model(chooser: random.Random) -> bytes:
        content = chooser.choice(models)
        return damaged_graph(content, chooser) if chooser.random() < 0.7 else damaged_bytes(content, chooser)

    def checkpoint(chooser: random.Random) -> bytes:
        kind = chooser.random()
        if kind < 0.4:
            return damaged_bytes(chooser.choice(files), chooser)
        if kind < 0.8:
            return _saved(damaged_state(network, chooser))
        changed = dict(settings)
        holder, key = _place(changed, chooser)
        if holder is not None:
            holder[key] = chooser.choice((*_HOSTILE_NUMBERS, *_HOSTILE_TEXT, None, [], {}, 10**30, float("nan")))
        return _saved(changed)

    def text(source: str) -> Callable[[random.Random], bytes]:
        def make(chooser: random.Random) -> bytes:
            damaged = damaged_json(source, chooser) if chooser.random() < 0.8 else source
            content = damaged.encode("utf-8", "surrogatepass")
            return content if damaged is not source else damaged_bytes(content, chooser)

        return make

    def lines(row: str) -> Callable[[random.Random], bytes]:
        make = text(row)
        return lambda chooser: b"\n".join([row.encode()] * chooser.randrange(3) + [make(chooser), row.encode(), b""])

    def in_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
        def written(content: bytes, folder: Path) -> object:
            path = folder / name
            path.write_bytes(content)
            return read(path)

        return written

    return [
        Target("model", model, in_file("fuzzed.onnx", _classify)),
        Target("--inspect", model, in_file("fuzzed.onnx", _inspect)),
        Target("--self-test", model, in_file("fuzzed.onnx", lambda path: run_self_test(path).to_text())),
        Target(
            "checkpoint", checkpoint, in_file("fuzzed.pth", lambda path: load_checkpoint(path, name="v0").network())
        ),
        Target(
            "training state",
            lambda chooser: damaged_bytes(pack_state(state), chooser),
            lambda content, folder: unpack_state(content, source=Path("a.resume.pth")),
        ),
        Target("results", text(results.read_text()), in_file("fuzzed.json", read_results)),
        Target("compare", text(latency), in_file("fuzzed.json", lambda path: _compare(path, json.loads(latency)))),
        Target("report", text(report), in_file("fuzzed.json", read_report)),
        Target("diff", text(_seen()), in_file("fuzzed.json", lambda path: _diff(path, folder))),
        Target("ledger", text(_board_line()), in_file("fuzzed.jsonl", lambda path: _ledger(read_ledger(path)))),
        Target("rows", lines(_row()), in_file("fuzzed.jsonl", _continue_rows)),
        Target(
            "shard counts",
            text(_without_checksum(summary_to_json(_summary()))),
            lambda content, folder: _count(content),
        ),
        Target("shard paths", text('["a.png", "b.png"]'), lambda content, folder: "".join(parse_paths(content))),
        Target("shard plan", text(_plan()), lambda content, folder: _find_plan(content, folder)),
        Target("rows of crops", lambda chooser: damaged_bytes(_CROPS, chooser), _continue_crops),
    ]


def _seen() -> str:
    """A run of `fer-bench diff`, without a checksum, as earlier versions wrote it."""
    face = {"box": [1, 2, 30, 40], "crop_sha256": "c", "label": "a", "probabilities": {"a": 0.9, "b": 0.1}}
    image = {"path": "a.jpg", "error": None, "pixels_sha256": "p", "faces": [face, face | {"box": [90, 2, 30, 40]}]}
    unread: dict[str, Any] = {"path": "b.jpg", "error": "damaged", "pixels_sha256": None, "faces": []}
    return json.dumps({"format": "fer-bench run", "name": "v0", "machine": "here", "images": [image, unread]})


def _diff(path: Path, folder: Path) -> object:
    whole = folder / "whole.json"
    whole.write_text(_seen())
    first, second = load_run(whole), load_run(path)
    changes = [*compare_runs(first, second), *compare_runs(second, first)]
    draw_changes(changes, folder)
    return format_changes(first, second, changes)


def _board() -> Board:
    test = SelfTestLine(file="a.onnx", model="v0", precision="int8", passed=True, difference=0.0, failed=())
    latency = LatencyLine(
        engine="onnxruntime",
        model="v0",
        precision="int8",
        batch=1,
        threads=1,
        p50_ms=1.0,
        min_ms=0.9,
        images_per_second=1000.0,
        times_roofline=2.0,
        is_busy=False,
    )
    machine = {"cpu": "a", "cpu_flags": ["avx2"], "cpus": 2, "memory_gb": 1.0, "date": "2026-01-01"}
    return Board(
        name="board",
        machine=machine,
        peak_rates={"fp32": 1.0},
        not_measured=("torch: none",),
        self_tests=(test,),
        latencies=(latency,),
    )


def _board_line() -> str:
    """A line of a ledger as earlier versions wrote it, without a checksum."""
    return _without_checksum(_board().to_json())


def _without_checksum(text: str) -> str:
    values = json.loads(text)
    del values[CHECKSUM]
    return json.dumps(values)


def _ledger(boards: Sequence[Board]) -> str:
    return show_boards(boards) + compare_boards(boards)


_CROPS = (
    b"image,label,split,source,sha256,reason,faces,x,y,width,height,roll,score\n"
    b"train/happy/a.png,happy,train,a.jpg,5e,,1,1,2,30,40,0.5,0.9\n"
    b",happy,train,b.jpg,5f,no face,0,,,,,,\n"
    b"train/sad/c/d.png,sad,train,c/d.jpg,60,,2,1,2,30,40,0.5,0.9\n"
)


def _row() -> str:
    face = {"box": [1, 2, 30, 40], "detector_score": 0.9, "landmarks": [[1.0, 2.0]] * 5, "expression": "a"}
    face |= {"confidence": 0.9, "probabilities": {"a": 0.9, "b": 0.1}, "reasons": ["small"], "not_checked": []}
    return json.dumps({"path": "a.jpg", "width": 100, "height": 90, "error": None, "faces": [face]})


class _EveryRow(BlockEnds):
    def after(self, pixels: int) -> bool:
        return True


def _continue_rows(path: Path) -> object:
    """What `--resume` does with rows: count them, and take their paths and faces."""
    finished = finished_rows(path, _EveryRow())
    sheet = ContactSheet(("a", "b"))
    for row in read_rows(path, finished):
        for face in row["faces"]:
            sheet.add(None, Face.from_dict(face), true=None)
    sheet.draw()
    left = list(paths_left(["a.jpg", "b.jpg"], path, finished))
    if not finished.rows:
        raise DataError("no row is taken")
    return left


def _summary() -> JobSummary:
    return JobSummary(images=64, faces=60, without_face=1, failures=Counter({"is empty (0 bytes)": 3}))


def _count(content: bytes) -> object:
    total = JobSummary()
    for _ in range(2):
        add_summary(total, content)
    return summary_to_json(total), total.failed


def _plan() -> str:
    return json.dumps({"settings": {"model": "a"}, "plan": {"parts": 2, "images": 100, "folder": "/"}})


def _find_plan(content: bytes, folder: Path) -> object:
    store = open_store(str(folder / "shards"))
    store.write(SETTINGS, content)
    plan = find_plan(store, "shards", {"model": "a"}, resume=True)
    assert plan is not None
    return finished_shards(store, plan, "jsonl")


def _continue_crops(content: bytes, folder: Path) -> object:
    report = CropReport()
    rows, _ = read_crop_rows(folder / "crops.csv", content, has_all=True)
    for row in rows:
        report.add(row)
    return report


def _classify(path: Path) -> object:
    with Recognizer(path) as recognizer:
        return recognizer.classify(np.zeros((2, 48, 48), np.uint8))


def _inspect(path: Path) -> object:
    facts = inspect_model(path)
    json.dumps(facts.to_dict())
    return facts.to_text()


def _compare(path: Path, other: dict[str, Any]) -> object:
    content = read_latency(path)
    return [str(change) for change in compare_results(content["results"][:3], other["results"][:3])[0]]


def _report(latency: dict[str, Any], accuracy: dict[str, Any]) -> str:
    """The JSON of a report with a few rows of every kind."""
    return json.dumps(
        {
            "created": "2026-01-01T00:00:00",
            "command": "fer-bench report",
            "data": "data",
            "environment": latency["environment"],
            "accuracy": accuracy["results"][:2],
            "latency": latency["results"][:2],
            "robustness": [],
            "comparisons": [],
        }
    )


@dataclass(slots=True)
class Result:
    """What became of the files of one target."""

    read: int = 0
    refused: int = 0
    slowest_seconds: float = 0.0


def fuzz(folder: Path, counts: Iterator[int], *, seed: int) -> dict[str, Result]:
    """Read damaged files with every target in turn, as long as `counts` gives numbers.

    Raises:
        AssertionError: a file led to anything but an answer or one of our errors, or took too long. It is left in
            `folder` under the name that the message has.
    """
    silence()
    chooser = random.Random(seed)
    found = targets(folder)
    results = {target.name: Result() for target in found}
    for number in counts:
        target = found[number % len(found)]
        content = target.make(chooser)
        (folder / "last").write_bytes(content)  # a crash of the process leaves it
        result, started = results[target.name], time.process_time()
        try:
            with redirect_stderr(io.StringIO()):
                target.read(content, folder)
            result.read += 1
        except FerError as error:
            result.refused += 1
            if len(str(error)) > 2000:
                raise AssertionError(f"{target.name}: a message of {len(str(error))} characters") from error
        except Exception as error:
            failed = folder / f"failed-{target.name.strip('-').replace(' ', '-')}-{number}"
            failed.write_bytes(content)
            raise AssertionError(f"{target.name}: {failed} led to {type(error).__name__}") from error
        taken = time.process_time() - started
        result.slowest_seconds = max(result.slowest_seconds, taken)
        if taken > SECONDS:
            raise AssertionError(f"{target.name}: file {number} took {taken:.1f} s")
    return results


def megabytes() -> float:
    """The most memory that this process has taken so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most / 1e3


def _for_minutes(minutes: float) -> Iterator[int]:
    end = time.monotonic() + 60 * minutes
    number = 0
    while time.monotonic() < end:
        yield number
        number += 1


@click.command()
@click.option("--minutes", type=float, help="How long, instead of --count.")
@click.option("--count", default=10_000, show_default=True, help="Files of all kinds together.")
@click.option("--seed", default=1, show_default=True)
def main(minutes: float | None, count: int, seed: int) -> None:
    """Fuzz model files, checkpoints, training states and results; a crash or another error ends the run."""
    counts = iter(range(count)) if minutes is None else _for_minutes(minutes)
    with TemporaryDirectory() as name:
        folder = Path(name)
        fuzz(folder, iter(range(16)), seed=seed)  # what every library loads once
        before = megabytes()
        try:
            results = fuzz(folder, counts, seed=seed)
        except AssertionError as error:
            kept = Path("fuzzed-file")
            kept.write_bytes((folder / "last").read_bytes())
            raise click.ClickException(f"{error}; seed {seed}, the file is {kept}") from error
    click.echo(f"{'files':15} {'read':>7} {'refused':>8} {'slowest s':>10}")
    for kind, result in results.items():
        click.echo(f"{kind:15} {result.read:7} {result.refused:8} {result.slowest_seconds:10.2f}")
    click.echo(f"memory added by all of them: {megabytes() - before:.0f} MB")


if __name__ == "__main__":
    main()
