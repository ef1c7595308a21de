"""A short run of the file fuzzer; `make fuzz` runs it for longer."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fuzz_files import MEGABYTES, fuzz, megabytes, targets


def test_what_is_not_damaged_is_read(tmp_path: Path) -> None:
    """A fuzzer whose files are all refused at the first check finds nothing."""
    results = fuzz(tmp_path, iter(range(80)), seed=2)
    assert results["--inspect"].read > 0
    assert results["results"].read > 0
    assert results["compare"].read + results["report"].read > 0


def test_damaged_files_end_in_an_answer_or_one_error(tmp_path: Path) -> None:
    before = megabytes()
    results = fuzz(tmp_path, iter(range(240)), seed=20261128)
    assert sum(result.read + result.refused for result in results.values()) == 240
    assert all(result.refused for result in results.values())
    assert megabytes() - before < MEGABYTES


def test_every_kind_of_file_is_fuzzed(tmp_path: Path) -> None:
    names = [target.name for target in targets(tmp_path)]
    assert json.dumps(names) == json.dumps(list(dict.fromkeys(names)))
    assert {"model", "--inspect", "--self-test", "checkpoint", "training state", "compare"} <= set(names)
