"""One changed bit in a file that is compared or continued later is an error, or changes nothing that is read."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fer_bench.console import write_json
from fer_bench.diff import Run, SeenFace, SeenImage, load_run, save_run
from fer_bench.latency.compare import read_latency
from fer_bench.ledger.entries import Board, LatencyLine, append_board, read_ledger
from fer_runtime.batch.jobs import JobSummary
from fer_runtime.checksums import CHECKSUM
from fer_runtime.cluster.shards import (
    SETTINGS,
    add_summary,
    find_plan,
    parse_paths,
    paths_name,
    summary_to_json,
    write_plan,
)
from fer_runtime.cluster.storage import open_store
from fer_runtime.errors import FerError, OutputError
from fer_train.data.crop import _read_rows as read_crop_rows

_LATENCY: dict[str, Any] = {
    "engine": "onnxruntime",
    "model": "v0",
    "precision": "int8",
    "batch": 1,
    "threads": 1,
    "p50_ms": 1.25,
}
_FLIPS = 400


def _saved_run(path: Path) -> None:
    face = SeenFace(box=(10, 10, 40, 40), crop_sha256="c", label="sad", probabilities={"sad": 0.52, "happy": 0.48})
    image = SeenImage(path="a.jpg", error=None, pixels_sha256="p", faces=(face,))
    save_run(Run(name="v0 int8", machine="here", images={"a.jpg": image}), path)


def _latency(path: Path) -> None:
    write_json(path, {"cpu": "a", "cpu_flags": ["avx2"]}, [_LATENCY | {"round_p50_ms": [1.25, float("1.5")]}])


def _ledger(path: Path) -> None:
    line = LatencyLine(**_LATENCY, min_ms=1.0, images_per_second=800.0, times_roofline=None, is_busy=False)
    board = Board(name="a", machine={"cpu": "a"}, peak_rates={}, self_tests=(), latencies=(line,), not_measured=())
    append_board(path, board)


def _plan(path: Path) -> None:
    write_plan(open_store(str(path.parent / "job")), {"model": "a"}, ["a.png", "\udcff.png"], shard_size=64)
    path.write_bytes((path.parent / "job" / SETTINGS).read_bytes())


def _read_plan(path: Path) -> object:
    store = open_store(str(path.parent / "read"))
    store.write(SETTINGS, path.read_bytes())
    plan = find_plan(store, "read", {"model": "a"}, resume=True)
    assert plan is not None
    return plan


def _paths(path: Path) -> None:
    _plan(path)
    path.write_bytes((path.parent / "job" / paths_name(0)).read_bytes())


def _counts(path: Path) -> None:
    path.write_text(summary_to_json(JobSummary(images=64, faces=60, failures=Counter({"is empty (0 bytes)": 3}))))


def _read_counts(path: Path) -> object:
    total = JobSummary()
    add_summary(total, path.read_bytes())
    return summary_to_json(total)


def _measured(path: Path) -> object:
    return {key: value for key, value in read_latency(path).items() if key in ("environment", "results")}


_FILES: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "saved run": (_saved_run, load_run),
    "latency": (_latency, _measured),
    "ledger": (_ledger, read_ledger),
    "plan": (_plan, _read_plan),
    "paths": (_paths, lambda path: parse_paths(path.read_bytes())),
    "counts": (_counts, _read_counts),
}


@pytest.mark.parametrize("name", _FILES)
def test_a_changed_bit_is_an_error_or_changes_nothing(name: str, tmp_path: Path) -> None:
    write, read = _FILES[name]
    path = tmp_path / "file.json"
    write(path)
    content, expected = path.read_bytes(), read(path)
    chooser = random.Random(name)
    refused = []
    for _ in range(_FLIPS):
        damaged = bytearray(content)
        damaged[chooser.randrange(len(content))] ^= 1 << chooser.randrange(8)
        path.write_bytes(damaged)
        try:
            assert read(path) == expected, bytes(damaged)
        except FerError as error:
            refused.append(str(error))
    # White space and the name of the checksum may change.
    assert len(refused) > 0.75 * _FLIPS
    assert not any("\n" in said for said in refused)
    for length in range(0, len(content) - 2, 7):
        path.write_bytes(content[:length])
        if name != "ledger" or length:
            with pytest.raises(FerError):
                read(path)


@pytest.mark.parametrize("name", _FILES)
def test_files_of_earlier_versions_have_no_checksum_and_are_read(name: str, tmp_path: Path) -> None:
    write, read = _FILES[name]
    path = tmp_path / "file.json"
    write(path)
    expected = read(path)
    values = json.loads(path.read_text())
    del values[CHECKSUM]
    path.write_text(json.dumps(values["paths"] if name == "paths" else values))
    assert read(path) == expected


@pytest.mark.parametrize(
    "row",
    [
        "train/sad/a.png,happy,train,a.jpg,5e,,1,1,2,30,40,0.5,0.9",
        "validation/happy/a.png,happy,train,a.jpg,5e,,1,1,2,30,40,0.5,0.9",
        "train/happy/../../../a.png,happy,train,a.jpg,5e,,1,1,2,30,40,0.5,0.9",
        "train/../../a.png,../..,train,a.jpg,5e,,1,1,2,30,40,0.5,0.9",
        ",../../happy,train,a.jpg,5e,no face,0,,,,,,",
    ],
)
def test_a_crop_outside_the_folder_of_its_label_is_a_damaged_row(row: str) -> None:
    header = "image,label,split,source,sha256,reason,faces,x,y,width,height,roll,score"
    whole = "train/happy/a.png,happy,train,a.jpg,5e,,1,1,2,30,40,0.5,0.9"
    last = ",happy,train,z.jpg,5f,no face,0,,,,,,"
    rows, _ = read_crop_rows(Path("crops.csv"), f"{header}\n{whole}\n{last}\n".encode(), has_all=True)
    assert [found["image"] for found in rows] == ["train/happy/a.png", ""]
    with pytest.raises(OutputError, match=r"crops\.csv is damaged at line 3"):
        read_crop_rows(Path("crops.csv"), f"{header}\n{whole}\n{row}\n{last}\n".encode(), has_all=True)
