"""The epoch study: both loops train v0 over all faces, and the table has their seconds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tests.train.images import write_images

from fer_train.data.folders import load_faces
from studies.epoch import main, notebook_epoch, our_epoch


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def test_both_loops_learn_within_their_epoch(tmp_path: Path) -> None:
    faces = load_faces(write_images(tmp_path / "data", train=60), "train")
    # A network that has learned nothing loses ln 7 a face.
    assert notebook_epoch(faces, "none") < math.log(7)
    assert our_epoch(faces, "none") < math.log(7)


def test_the_table_has_both_loops_with_and_without_augmentation(tmp_path: Path) -> None:
    write_images(tmp_path / "data")
    done = CliRunner().invoke(main, ["--data", str(tmp_path / "data"), "--rounds", "1", "--faces", "64"])
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines()[-4:]]
    assert [row[:2] for row in rows] == [
        [loop, kind] for loop in ("notebook", "fer-train") for kind in ("none", "autoaugment")
    ]
    assert all(float(row[2]) > 0 for row in rows)
