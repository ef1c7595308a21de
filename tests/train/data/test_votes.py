"""Raters' votes: read, turned into targets, and measured against, with values worked out by hand."""

from __future__ import annotations

import gzip
import math
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from fer_runtime.errors import DataError
from fer_train.data.folders import LabelledFaces
from fer_train.data.votes import distributions, measure_votes, read_votes, strict_majority, usable
from fer_train.loop.trainer import learning_targets
from fer_train.recipes import FIRST

CLASSES = ("calm", "glad", "sad")
NO_FACES = np.zeros((0, 48, 48), np.uint8)  # a file names its images by path
CSV = "image,sad,calm,glad,unknown,no_face\ntrain/a.png,1,6,3,0,0\ntrain/b.png,0,1,4,3,2\n"


def test_columns_are_taken_by_name_plain_and_gzipped(tmp_path: Path) -> None:
    (tmp_path / "votes.csv").write_text(CSV)
    (tmp_path / "votes.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    for name in ("votes.csv", "votes.csv.gz"):
        votes = read_votes(tmp_path / name, CLASSES)
        found = votes.of(["b.png", "missing.png", "a.png"], NO_FACES, split="train")
        assert found.tolist() == [[1, 4, 0, 5], [0, 0, 0, 0], [6, 3, 1, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,calm,glad\n", "lacks a column for sad"),
        ("name,calm,glad,sad\n", "lacks a column image"),
        (CSV + "train/c.png,1,x,0,0,0\n", "line 4 .* something other than numbers"),
        (CSV + "train/c.png,1,2\n", "line 4 .* something other than numbers"),
        (CSV + "train/c.png,1,-2,0,0,0\n", "line 4 .* negative"),
        (CSV + "train/c.png,1,inf,0,0,0\n", "line 4 .* not finite"),
        ("", "its columns are: none"),
        (CSV + "train/a.png,1,2,3,0,0\n", "line 4 .* train/a.png a second time; .* votes of all raters added up"),
        ("image,calm,glad,sad,glad\n", "two columns 'glad'"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "votes.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_votes(tmp_path / "votes.csv", CLASSES)


def test_damaged_and_missing_files_are_errors_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(CSV.encode())[:-12])
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "long.csv").write_text(CSV + "train/d.png,1,0,0,0,0\n" + "x" * 200_000)
    (tmp_path / "long_header.csv").write_text("x" * 200_000)
    for name in ("cut.csv.gz", "binary.csv", "missing.csv", "long.csv", "long_header.csv"):
        with pytest.raises(DataError, match=name):
            read_votes(tmp_path / name, CLASSES)


def test_a_file_for_other_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "votes.csv").write_text(CSV)
    with pytest.raises(DataError, match="no row for any validation image"):
        read_votes(tmp_path / "votes.csv", CLASSES).of(["a.png"], NO_FACES, split="validation")


@pytest.mark.parametrize("folder", ["photos", ""])  # --data photos, and --data . inside it
def test_rows_of_class_folders_without_splits_begin_with_the_class(folder: str, tmp_path: Path) -> None:
    (tmp_path / "votes.csv").write_text("image,sad,calm,glad\nsad/a.png,9,0,1\n")
    votes = read_votes(tmp_path / "votes.csv", CLASSES)
    assert votes.of(["sad/a.png"], NO_FACES, split=folder).tolist() == [[0, 1, 9, 0]]
    with pytest.raises(DataError, match=r"no row for any train image, such as train/sad/a.png"):
        votes.of(["sad/a.png"], NO_FACES, split="train")


def test_both_spellings_of_an_accent_are_one_name(tmp_path: Path) -> None:
    apart, together = (unicodedata.normalize(form, "müde") for form in ("NFD", "NFC"))
    (tmp_path / "votes.csv").write_text(f"image,{apart},wach\ntrain/{together}/a.png,1,2\n", encoding="utf-8")
    votes = read_votes(tmp_path / "votes.csv", (together, "wach"))
    assert votes.of([f"{apart}/a.png"], NO_FACES, split="train").tolist() == [[1, 2, 0]]


def test_single_votes_are_left_out_unless_there_are_no_others() -> None:
    votes = np.array([[6, 3, 1, 0], [1, 1, 1, 0]], np.float32)
    assert distributions(votes, least_votes=2) == pytest.approx(np.array([[2 / 3, 1 / 3, 0], [1 / 3] * 3]))
    assert distributions(votes)[0] == pytest.approx([0.6, 0.3, 0.1])


def test_half_of_all_raters_are_no_majority() -> None:
    votes = np.array([[5, 5, 0, 0], [5, 1, 0, 4], [6, 0, 0, 4], [0, 0, 0, 10], [0, 0, 0, 0]], np.float32)
    assert strict_majority(votes).tolist() == [-1, -1, 0, -1, -1]
    assert usable(votes).tolist() == [True, True, True, False, False]


def test_the_report_is_that_worked_out_by_hand() -> None:
    votes = np.array([[8, 2, 0, 0], [1, 7, 0, 2], [0, 3, 6, 1], [4, 4, 2, 0], [0, 0, 1, 9]], np.float32)
    chances = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.2, 0.5, 0.3], [1, 0, 0]], np.float64)
    report = measure_votes(chances, votes)
    assert (report.images, report.majority_images) == (4, 3)
    assert report.majority_accuracy == pytest.approx(2 / 3)
    assert report.mean_recall == pytest.approx((1 + 0 + 1) / 3)
    assert report.plurality_accuracy == pytest.approx(3 / 4)  # of the fourth, glad is as right as calm
    assert report.rater_agreement == pytest.approx((0.8 + 0.1 + 0.6 + 0.4) / 4)
    assert report.rater_ceiling == pytest.approx((0.8 + 0.7 + 0.6 + 0.4) / 4)
    losses = [
        -(0.8 * math.log(0.7) + 0.2 * math.log(0.2)),
        -(math.log(0.6) + 7 * math.log(0.3)) / 8,
        -(3 * math.log(0.1) + 6 * math.log(0.8)) / 9,
        -(0.4 * math.log(0.2) + 0.4 * math.log(0.5) + 0.2 * math.log(0.3)),
    ]
    assert report.cross_entropy == pytest.approx(sum(losses) / 4)


def test_targets_are_labels_or_votes_or_their_mix() -> None:
    faces = LabelledFaces(
        faces=np.zeros((1, 48, 48), np.uint8),
        labels=np.array([2]),
        classes=CLASSES,
        paths=("a.png",),
        file_sha256=("0" * 64,),
        fingerprint="0",
        votes=np.array([[6, 3, 1, 0]], np.float32),
    )
    half = FIRST.with_settings("least_votes=0", "label_share=0.5")
    assert learning_targets(faces, half)[0] == pytest.approx([0.3, 0.15, 0.55])
    assert learning_targets(faces, FIRST.with_settings("vote_target=majority"))[0].tolist() == [1, 0, 0]
