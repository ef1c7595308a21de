"""Shards of a run: counts survive their file, plans are kept, and two runs never share a folder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from fer_runtime.batch.jobs import JobSummary
from fer_runtime.cluster.shards import (
    SETTINGS,
    Plan,
    add_summary,
    find_plan,
    finished_shards,
    parse_paths,
    summary_to_json,
    write_plan,
)
from fer_runtime.cluster.storage import is_uri, open_store
from fer_runtime.errors import OutputError


def test_counts_of_shards_add_up() -> None:
    shard = JobSummary(images=64, faces=60, without_face=1, failures=Counter({"is empty (0 bytes)": 3}))
    shard.seconds_by_stage["read"] = 0.5
    total = JobSummary()
    for _ in range(2):
        add_summary(total, summary_to_json(shard))
    assert (total.images, total.faces, total.without_face, total.failed) == (128, 120, 2, 6)
    assert total.failures == {"is empty (0 bytes)": 6}
    assert total.seconds_by_stage["read"] == 1.0


def test_a_plan_is_found_again_and_knows_what_is_finished(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "rows"))
    assert find_plan(store, "rows", {"model": "a"}, resume=True) is None
    paths = [f"{number}.png" for number in range(130)] + ["\udcff.png"]
    plan = write_plan(store, {"model": "a"}, paths, shard_size=64)
    assert plan == Plan(shards=3, images=131, folder=str(Path.cwd()))
    assert find_plan(store, "rows", {"model": "a"}, resume=True) == plan
    # As earlier versions wrote it, so that --resume continues their runs.
    stored = json.loads(store.read(SETTINGS) or b"")["plan"]
    assert stored == {"parts": 3, "images": 131, "folder": str(Path.cwd())}
    store.write("part-000001.jsonl", b"")
    assert finished_shards(store, plan, "jsonl") == {1}


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    write_plan(store, {"model": "a"}, ["1.png"], shard_size=64)
    with pytest.raises(OutputError, match="--resume"):
        find_plan(store, "rows", {"model": "a"}, resume=False)
    with pytest.raises(OutputError, match="model was a, is b"):
        find_plan(store, "rows", {"model": "b"}, resume=True)
    for damaged in (
        b"{}",
        b"[" * 100_000,
        b'{"settings": {"model": "a"}, "plan": {"parts": "1", "images": 1, "folder": ""}}',
    ):
        store.write(SETTINGS, damaged)
        with pytest.raises(OutputError, match="damaged"):
            find_plan(store, "rows", {"model": "a"}, resume=True)


@pytest.mark.parametrize("text", [b"", b"[" * 100_000, b'{"images": ' * 100_000, b"[1]", b"{}", b"\xff"])
def test_damaged_lists_and_counts_are_one_error(text: bytes) -> None:
    with pytest.raises(OutputError, match="damaged"):
        parse_paths(text)
    with pytest.raises(OutputError, match=r"rows/part-000001\.counts is damaged"):
        add_summary(JobSummary(), text, name="rows/part-000001.counts")


def test_shards_without_settings_belong_to_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "part-000000.jsonl").touch()
    with pytest.raises(OutputError, match="another folder"):
        find_plan(open_store(str(tmp_path)), "rows", {}, resume=True)


def test_a_scheme_makes_a_uri() -> None:
    assert is_uri("s3://bucket/key")
    assert is_uri("file:///a.png")
    assert not is_uri("C:/a.png")
    assert not is_uri("folder/a.png")
