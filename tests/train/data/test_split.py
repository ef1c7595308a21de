"""Splits: shares, persons and copies, on images that are made here."""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from fer_runtime.errors import DataError, OutputError
from fer_train.data.cli import main
from fer_train.data.source_folders import read_source
from fer_train.data.split import SplitOptions, SplitReport, split_images, stratified


def _write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (24, 24), np.uint8))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """40 calm and 20 glad images of ten persons, each with four and two."""
    for person in range(10):
        for number in range(6):
            label = "calm" if number < 4 else "glad"
            _write(tmp_path / "data" / label / f"s{person:02}_{number}.png", 10 * person + number)
    return tmp_path / "data"


def _split(source: Path, output: Path, **options: object) -> SplitReport:
    return split_images(read_source(source), output, SplitOptions(**options))  # type: ignore[arg-type]


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


def test_every_class_gets_its_share_and_the_same_seed_the_same_split(source: Path, tmp_path: Path) -> None:
    report = _split(source, tmp_path / "one", validation=0.25, test=0.1)
    # 0.65, 0.25 and 0.1 of 40 and of 20.
    assert report.counts == {
        "train": Counter(calm=26, glad=13),
        "validation": Counter(calm=10, glad=5),
        "test": Counter(calm=4, glad=2),
    }
    _split(source, tmp_path / "again", validation=0.25, test=0.1)
    _split(source, tmp_path / "other", validation=0.25, test=0.1, seed=1)
    assert _files(tmp_path / "one") == _files(tmp_path / "again") != _files(tmp_path / "other")
    names = {path.split("/", 1)[1]: path for path in _files(tmp_path / "one")}
    assert set(names) == _files(source)
    for name, path in names.items():
        assert (tmp_path / "one" / path).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("group", [r"s\d+", "who"])
def test_nobody_is_in_two_splits(source: Path, tmp_path: Path, group: str) -> None:
    # With a byte-order mark, as spreadsheets save a table to which somebody has added a column.
    with (source / "images.csv").open("w", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "who"])
        writer.writerows([f"train/{name}", name.split("/")[1][:3]] for name in sorted(_files(source)))
    report = _split(source, tmp_path / "out", validation=0.2, group=group)
    persons = {
        split: {path.split("/")[-1][:3] for path in _files(tmp_path / "out") if path.startswith(split)}
        for split in ("train", "validation")
    }
    assert not persons["train"] & persons["validation"]
    assert (len(persons["train"]), len(persons["validation"])) == (8, 2)
    assert report.counts["validation"] == Counter(calm=8, glad=4)
    rows = list(csv.DictReader((tmp_path / "out" / "split.csv").open()))
    assert {(row["group"], row["split"]) for row in rows} == {
        (person, split) for split, found in persons.items() for person in found
    }


def test_copies_stay_together(source: Path, tmp_path: Path) -> None:
    # Each calm image of persons 0 to 4 once more, and a darker version of each glad one: in all, 20 + 10 copies.
    for person in range(5):
        for number in range(6):
            label = "calm" if number < 4 else "glad"
            file = source / label / f"s{person:02}_{number}.png"
            copy = source / label / f"copy_{person}{number}.png"
            image = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
            assert image is not None
            if label == "calm":
                copy.write_bytes(file.read_bytes())
            else:
                cv2.imwrite(str(copy), (image * 0.9).astype(np.uint8))
    report = _split(source, tmp_path / "out", validation=0.3)
    assert report.copies == 30
    split_of = {path.split("/")[-1]: path.split("/")[0] for path in _files(tmp_path / "out")}
    apart = [
        (person, number)
        for person in range(5)
        for number in range(6)
        if split_of[f"copy_{person}{number}.png"] != split_of[f"s{person:02}_{number}.png"]
    ]
    assert apart == []


def test_a_label_in_two_spellings_of_its_accents_is_one_label(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "müde") for form in ("NFC", "NFD"))
    for number, name in enumerate((composed, apart, "wach", composed, apart, "wach")):
        _write(tmp_path / "data" / name / f"{number // 3}.png", number)
    if len(os.listdir(tmp_path / "data")) < 3:
        pytest.skip("this file system knows one spelling only")
    report = _split(tmp_path / "data", tmp_path / "sets", validation=0.4)
    assert sum(report.counts.values(), Counter()) == {composed: 4, "wach": 2}
    for split in ("train", "validation"):
        assert sorted(os.listdir(tmp_path / "sets" / split)) == [composed, "wach"]
    # Both have an image 0.png and 1.png: none replaces another.
    assert len(_files(tmp_path / "sets")) == 6
    given = ["audit", str(tmp_path / "data"), "--output", str(tmp_path / "audit"), "--no-label-errors"]
    assert CliRunner().invoke(main, given).exit_code == 0
    counts = json.loads((tmp_path / "audit" / "audit.json").read_text(encoding="utf-8"))["counts"]
    assert counts == {"train": {composed: 4, "wach": 2}}


def test_it_continues_and_overwrites_nothing(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    _split(source, output)
    (gone, *_) = sorted(output.rglob("*.png"))
    content = gone.read_bytes()
    gone.unlink()
    report = _split(source, output)
    assert (report.written, report.written_before) == (1, 59)
    assert gone.read_bytes() == content
    # Another seed would mix two splits: images of the old validation would be in the new train.
    with pytest.raises(OutputError, match="not of this split"):
        _split(source, output, seed=1)
    gone.write_bytes(b"another image")
    with pytest.raises(OutputError, match="is another image"):
        _split(source, output)
    assert gone.read_bytes() == b"another image"


def test_images_are_left_out_and_bad_ones_are_named(source: Path, tmp_path: Path) -> None:
    (source / "calm" / "broken.png").write_bytes(b"no image")
    report = _split(source, tmp_path / "out", drop={"train/calm/s00_0.png", "train/calm/gone.png"})
    assert report.dropped == 1
    assert report.unreadable == [("train/calm/broken.png", "cannot be decoded: damaged, or not an image")]
    assert "1 path to leave out" in report.notes[0]
    assert len(_files(tmp_path / "out")) == 59
    with pytest.raises(DataError, match=r"no image of .*, but calm/s00_0\.png; .* such as train/calm/broken\.png"):
        _split(source, tmp_path / "all", drop={"calm/s00_0.png", "calm/s00_1.png"})


def test_a_test_split_stays_and_the_rest_is_split_anew(source: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    (whole / "val").mkdir(parents=True)
    source.rename(whole / "train")
    for number in range(5):
        _write(whole / "test" / "calm" / f"t{number}.png", 1000 + number)
        _write(whole / "val" / "calm" / f"s00_{number}.png", 2000 + number)
        _write(whole / "val" / "glad" / f"v{number}.png", 3000 + number)
    report = _split(whole, tmp_path / "out", validation=0.2)
    assert report.counts["test"] == Counter(calm=5)
    # A fifth of 45 and of 25; two images are called s00_0.png, and both are there.
    assert report.counts["validation"] == Counter(calm=9, glad=5)
    assert len(_files(tmp_path / "out")) == 75


def test_votes_move_with_their_images(source: Path, tmp_path: Path) -> None:
    (source / "votes.csv").write_text("image,calm,glad\ntrain/calm/s00_0.png,7,3\ntrain/calm/gone.png,1,9\n")
    _split(source, tmp_path / "out")
    header, row, *more = (tmp_path / "out" / "votes.csv").read_text().splitlines()
    path, _, votes = row.partition(",")
    assert (header, votes, more) == ("image,calm,glad", "7,3", [])
    assert (tmp_path / "out" / path).read_bytes() == (source / "calm" / "s00_0.png").read_bytes()


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (r"(", "neither a column .* nor a regular expression"),
        (r"person\d", "matches no image; .* such as s00_0.png"),
        (r"s", r"no image of calm would be in validation: it has 1 person; add some, or change --group,"),
    ],
)
def test_groups_that_tell_nothing_are_errors(source: Path, tmp_path: Path, group: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _split(source, tmp_path / "out", group=group)
    assert not (tmp_path / "out").exists()


def test_images_without_a_person_are_said(source: Path, tmp_path: Path) -> None:
    report = _split(source, tmp_path / "out", group=r"s0[0-4]")
    assert "matches nothing in 30 images" in report.notes[0]


def test_groups_of_very_different_sizes_come_near_the_shares() -> None:
    random = np.random.default_rng(0)
    counts = random.integers(0, 9, (60, 3))
    counts[0] *= 8
    chosen = stratified(counts, [0.7, 0.2, 0.1])
    shares = np.stack([counts[chosen == split].sum(0) for split in range(3)]) / counts.sum(0)
    assert shares == pytest.approx(np.array([[0.7] * 3, [0.2] * 3, [0.1] * 3]), abs=0.05)


def test_two_groups_of_a_class_go_to_two_splits() -> None:
    # A fifth of 20 is 4: without the rule both groups of ten would go to train.
    assert sorted(stratified(np.array([[10], [10]]), [0.8, 0.2]).tolist()) == [0, 1]
