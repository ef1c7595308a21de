"""A run in numbered shards: which images belong to each, which are finished, and what all of them were made with.

    OUTPUT/part-000000.jsonl, ...      rows, in the order of the paths
    OUTPUT/_SUCCESS                    present when all shards are
    OUTPUT/_job/settings.json          model, detector, paths, number of shards
    OUTPUT/_job/paths/000000.json      the paths of a shard, written before any work starts
    OUTPUT/_job/counts/000000.json     the counts of their results

The names are those of Spark and Hive, whose readers (and Ray's) skip names that begin with an underscore.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from fer_runtime.batch.jobs import JobSummary
from fer_runtime.checksums import check_checksum, with_checksum
from fer_runtime.cluster.storage import Store
from fer_runtime.errors import OutputError
from fer_runtime.text import printable
from fer_runtime.untrusted_json import parse_json

SETTINGS = "_job/settings.json"
SUCCESS = "_SUCCESS"
_COUNTS = ("images", "faces", "without_face", "crop_sized")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The shards of a run, decided before its first row."""

    shards: int
    images: int
    folder: str  # relative paths start here, on every machine


def shard_name(number: int, format_name: str) -> str:
    """The file of a shard's rows."""
    return f"part-{number:06d}.{format_name}"


def paths_name(number: int) -> str:
    """The file that lists a shard's paths, as JSON."""
    return f"_job/paths/{number:06d}.json"


def counts_name(number: int) -> str:
    """The file that counts a shard's images; written before its rows, so that it exists when they do."""
    return f"_job/counts/{number:06d}.json"


def path_lists(paths: Iterable[str], shard_size: int) -> Iterator[list[str]]:
    """The paths of one shard after another."""
    remaining = iter(paths)
    while shard := list(islice(remaining, shard_size)):
        yield shard


def find_plan(store: Store, output: str, settings: Mapping[str, Any], *, resume: bool) -> Plan | None:
    """The plan of the run to continue; None when there is none, and a new run can start.

    Args:
        output: the place of `store`, for messages.
        settings: everything that the rows depend on, as plain JSON.

    Raises:
        OutputError: another run is there.
    """
    content = store.read(SETTINGS)
    if content is None:
        if any(re.fullmatch(r"part-\d+\.\w+", name) for name in store.names()):
            raise OutputError(f"{output} holds shards of another run; give another folder")
        return None
    if not resume:
        raise OutputError(f"{output} holds a run already; continue it with --resume, or give another folder")
    try:
        job = parse_json(content)
        check_checksum(job)
        stored, before = job["plan"], job["settings"]
        plan = Plan(shards=stored["parts"], images=stored["images"], folder=stored["folder"])
        is_plan = type(plan.shards) is type(plan.images) is int and isinstance(plan.folder, str)
        if not is_plan or not 0 <= plan.shards <= plan.images:
            raise TypeError(f"its plan is {plan}")
        changed = [
            f"{key} was {before.get(key)}, is {settings[key]}" for key in settings if before[key] != settings[key]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{output}/{SETTINGS} is damaged ({_said(error)}); give another folder") from error
    if changed:
        differences = printable("; ".join(changed), limit=500)
        raise OutputError(
            f"the shards in {output} were made with other settings ({differences}); give the same settings, or another "
            "folder"
        )
    return plan


def write_plan(store: Store, settings: Mapping[str, Any], paths: Iterable[str], *, shard_size: int) -> Plan:
    """Decide the shards of a new run; a run that is killed before the end of this has no plan, and starts again."""
    shards = images = 0
    for shard in path_lists(paths, shard_size):
        store.write(paths_name(shards), json.dumps(with_checksum({"paths": shard})).encode("ascii"))
        shards += 1
        images += len(shard)
    plan = Plan(shards=shards, images=images, folder=os.getcwd())
    stored = {"parts": plan.shards, "images": plan.images, "folder": plan.folder}
    content = with_checksum({"settings": dict(settings), "plan": stored})
    store.write(SETTINGS, json.dumps(content, indent=1).encode("ascii"))
    return plan


def finished_shards(store: Store, plan: Plan, format_name: str) -> set[int]:
    """Numbers of the shards whose rows exist."""
    numbers = (re.fullmatch(rf"part-(\d+)\.{format_name}", name, re.ASCII) for name in store.names())
    return {number for match in numbers if match and (number := int(match[1])) < plan.shards}


def summary_to_json(summary: JobSummary) -> str:
    """A shard's summary as plain JSON."""
    # Field by field: dataclasses.asdict makes a Counter of pairs from a Counter.
    counts = {name: getattr(summary, name) for name in _COUNTS}
    content = counts | {"failures": dict(summary.failures), "seconds_by_stage": summary.seconds_by_stage}
    return json.dumps(with_checksum(content))


def _said(error: Exception) -> str:
    """An error about a damaged file, which may hold anything."""
    return printable(repr(error), limit=200)


def add_summary(total: JobSummary, text: str | bytes, *, name: str = "the counts of a shard") -> None:
    """Add a shard's summary, as `summary_to_json` wrote it, to `total`.

    Raises:
        OutputError: `text`, which is called `name`, is damaged.
    """
    try:
        shard = parse_json(text)
        check_checksum(shard)
        shard.setdefault("crop_sized", 0)  # an older version wrote the shard
        counts = [shard[name] for name in _COUNTS]
        failures, stages = shard["failures"], shard["seconds_by_stage"]
        if not all(type(count) is int and count >= 0 for count in (*counts, *failures.values())):
            raise ValueError("an invalid count")
        if not all(type(seconds) in (int, float) and seconds >= 0 for seconds in stages.values()):
            raise ValueError("an invalid time")
        if not stages.keys() <= total.seconds_by_stage.keys():
            raise ValueError("an invalid stage")
        # Checked before anything is added: damaged counts add nothing.
        for name, count in zip(_COUNTS, counts, strict=True):
            setattr(total, name, getattr(total, name) + count)
        total.failures.update(failures)
        for stage, seconds in stages.items():
            total.seconds_by_stage[stage] += seconds
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(f"{name} is damaged ({_said(error)}); give another folder") from error


def parse_paths(text: str | bytes, *, name: str = "the list of a shard") -> list[str]:
    """The images of a shard, as `write_plan` wrote them.

    Raises:
        OutputError: `text`, which is called `name`, is damaged.
    """
    try:
        paths = parse_json(text)
        if isinstance(paths, dict):  # an earlier version wrote the list alone
            check_checksum(paths)
            paths = paths.get("paths")
        if not (isinstance(paths, list) and all(isinstance(path, str) for path in paths)):
            raise ValueError("no list of paths")
    except ValueError as error:
        raise OutputError(f"{name} is damaged ({_said(error)}); give another folder") from error
    return paths
