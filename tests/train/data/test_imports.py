"""Other people's data sets: each is made here as its authors hand it out."""

from __future__ import annotations

import csv
import gzip
import os
import re
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from fer_runtime.errors import DataError
from fer_runtime.files import lock_file
from fer_runtime.images import Uint8Array, read_image
from fer_train.data.cli import main
from fer_train.data.label_names import LabelNames, parse_renames
from fer_train.data.votes import read_votes

SEVEN = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")


def _import(source: Path, output: Path, *more: str) -> Result:
    return CliRunner().invoke(main, ["import", str(source), "--output", str(output), *more])


def _files(output: Path) -> dict[str, bytes]:
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def _images(output: Path) -> set[str]:
    return {name for name in _files(output) if not name.endswith(".csv")}


def _face(seed: int, side: int = 48) -> Uint8Array:
    return np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)


def _write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), _face(seed, 24))


@pytest.fixture
def fer2013(tmp_path: Path) -> Path:
    """fer2013.csv with a row for each label and two that are broken, and FER+'s votes beside it."""
    file = tmp_path / "kaggle" / "fer2013.csv"
    file.parent.mkdir()
    usages = ("Training", "PublicTest", "PrivateTest")
    rows = [[str(number % 7), " ".join(map(str, _face(number).ravel())), usages[number % 3]] for number in range(14)]
    rows += [["3", "1 2 3", "Training"], ["", rows[0][1], "Training"]]
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([["emotion", "pixels", "Usage"], *rows])
    with (file.parent / "fer2013new.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        names = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
        writer.writerow(["Usage", "Image name", *names])
        for number in range(16):
            # The rows of FER+ are those of fer2013.csv, and its names are not given to all.
            votes = [number % 5, 0, 1, 0, 0, 0, 0, 0, 2, 0]
            writer.writerow([usages[number % 3], "" if number == 4 else f"fer{number:07}.png", *votes])
    return file


def test_fer2013_with_its_own_label_order(fer2013: Path, tmp_path: Path) -> None:
    output = tmp_path / "data"
    run = _import(fer2013, output)
    assert run.exit_code == 0, run.output
    # The order of the csv, which is not that of the folders.
    order = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    splits = ("train", "validation", "test")
    expected = {f"{splits[number % 3]}/{order[number % 7]}/fer2013_{number:05}.png": number for number in range(14)}
    assert _images(output) == set(expected)
    for path, number in expected.items():
        assert np.array_equal(read_image(output / path), _face(number))
    assert "fer2013.csv, row 15: has 3 pixels, which do not form a square" in run.output
    assert "fer2013.csv, row 16: has no label" in run.output
    assert "14 images, 2 cannot be used" in run.output
    rows = list(csv.DictReader((output / "images.csv").open(newline="")))
    assert [row["reason"] for row in rows[:13]] == [""] * 13
    assert len(rows) == 16


def test_votes_beside_it_are_for_the_same_rows(fer2013: Path, tmp_path: Path) -> None:
    _import(fer2013, tmp_path / "data")
    votes = read_votes(tmp_path / "data" / "votes.csv", SEVEN)
    assert len(votes.by_path) == 14
    # Row 9 (index 9: neutral 4, surprise 1, unknown 2) is of fear.
    assert votes.by_path["train/fear/fer2013_00009.png"].tolist() == [0, 0, 0, 0, 4, 0, 1, 2]


def test_votes_follow_labels_to_their_new_names(fer2013: Path, tmp_path: Path) -> None:
    names = ("6=calm", "4=low", "2=low")
    run = _import(fer2013, tmp_path / "data", *(part for name in names for part in ("--rename", name)))
    assert run.exit_code == 0, run.output
    votes = read_votes(tmp_path / "data" / "votes.csv", ("angry", "calm", "disgust", "happy", "low", "surprise"))
    # Neutral's four votes are calm's; fear and sad have none.
    assert votes.by_path["train/low/fer2013_00009.png"].tolist() == [0, 4, 0, 0, 0, 1, 2]


def test_large_faces_in_a_table(tmp_path: Path) -> None:
    face = _face(0, 224)
    (tmp_path / "faces.csv").write_text("emotion,pixels\n3," + " ".join(map(str, face.ravel())) + "\n")
    run = _import(tmp_path / "faces.csv", tmp_path / "data")
    assert run.exit_code == 0, run.output
    assert np.array_equal(read_image(tmp_path / "data" / "train/happy/fer2013_00000.png"), face)


def test_fer_plus_own_file_is_read_by_name_and_by_row(fer2013: Path) -> None:
    votes = read_votes(fer2013.parent / "fer2013new.csv", SEVEN)
    none = np.zeros((0, 48, 48), np.uint8)
    found = votes.of(["sad/fer0000009.png", "fear/fer2013_00009.png", "x/fer2013_00004.png"], none, split="train")
    assert found.tolist() == [[0, 0, 0, 0, 4, 0, 1, 2]] * 2 + [[0, 0, 0, 0, 4, 0, 1, 2]]
    with pytest.raises(DataError, match="no row for any train image"):
        votes.of(["sad/9.png"], none, split="train")
    with pytest.raises(DataError, match="no column for bored"):
        read_votes(fer2013.parent / "fer2013new.csv", ("bored", "happy"))


def test_votes_of_other_rows_are_refused(fer2013: Path, tmp_path: Path) -> None:
    file = fer2013.parent / "fer2013new.csv"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))
    assert "has 15 rows, fewer than the images" in _import(fer2013, tmp_path / "data").output
    file.write_text("".join([*lines, lines[-1]]))
    assert "has more rows than the 16 images" in _import(fer2013, tmp_path / "data").output


def test_the_same_import_again_changes_nothing(fer2013: Path, tmp_path: Path) -> None:
    _import(fer2013, tmp_path / "data")
    before = _files(tmp_path / "data")
    (tmp_path / "data" / "train" / "angry" / "fer2013_00000.png").unlink()
    assert "13 of them from an earlier run" in _import(fer2013, tmp_path / "data").output
    assert _files(tmp_path / "data") == before


def test_two_data_sets_in_one_folder(fer2013: Path, tmp_path: Path) -> None:
    _import(fer2013, tmp_path / "data")
    _write(tmp_path / "more" / "Happiness" / "fer2013_00003.png", 99)
    run = _import(tmp_path / "more", tmp_path / "data")
    assert run.exit_code == 0, run.output
    assert "happy: was Happiness" in run.output
    rows = list(csv.DictReader((tmp_path / "data" / "images.csv").open(newline="")))
    assert len(rows) == 17
    # The first set's image of that name stays.
    assert np.array_equal(read_image(tmp_path / "data" / "train/happy/fer2013_00003.png"), _face(3))
    assert rows[-1]["image"] == "train/happy/fer2013_00003-2.png"


def test_rafdb_by_its_list(tmp_path: Path) -> None:
    root = tmp_path / "RAF-DB" / "basic"
    lines = []
    for number in range(1, 8):
        # The test images have a digit less.
        name = f"train_{number:05}" if number % 2 else f"test_{number:04}"
        _write(root / "Image" / "aligned" / f"{name}_aligned.jpg", number)
        lines.append(f"{name}.jpg {number}\n")
    (root / "EmoLabel").mkdir()
    (root / "EmoLabel" / "list_patition_label.txt").write_text("".join(lines))
    for number, source in enumerate((root, root.parent, root / "EmoLabel" / "list_patition_label.txt")):
        run = _import(source, tmp_path / f"data{number}")
        assert run.exit_code == 0, run.output
        assert "labels are numbered as in rafdb" in run.output
        # RAF-DB's paper: 1 surprise, 2 fear, 3 disgust, 4 happiness, 5 sadness, 6 anger, 7 neutral.
        assert _images(tmp_path / f"data{number}") == {
            "train/surprise/train_00001.jpg",
            "test/fear/test_0002.jpg",
            "train/disgust/train_00003.jpg",
            "test/happy/test_0004.jpg",
            "train/sad/train_00005.jpg",
            "test/angry/test_0006.jpg",
            "train/neutral/train_00007.jpg",
        }


def test_rafdb_by_its_folders_of_numbers(tmp_path: Path) -> None:
    for number in range(1, 8):
        _write(tmp_path / "DATASET" / "train" / str(number) / f"train_{number:05}_aligned.jpg", number)
        _write(tmp_path / "DATASET" / "test" / str(number) / f"test_{number:04}_aligned.jpg", number)
    run = _import(tmp_path / "DATASET", tmp_path / "data")
    assert run.exit_code == 0, run.output
    assert "surprise: was 1" in run.output
    assert "test/neutral/test_0007_aligned.jpg" in _images(tmp_path / "data")


def test_numbers_alone_are_refused_until_they_are_explained(tmp_path: Path) -> None:
    for number in range(8):
        _write(tmp_path / "set" / str(number) / "a.jpg", number)
    run = _import(tmp_path / "set", tmp_path / "data")
    assert run.exit_code == 1
    assert "0 is angry in fer2013, neutral in affectnet" in run.output
    assert not (tmp_path / "data").exists()
    run = _import(tmp_path / "set", tmp_path / "data", "--numbers", "affectnet", "--rename", "7=")
    assert run.exit_code == 0, run.output
    # AffectNet's paper: 0 neutral, 1 happy, 2 sad, 3 surprise, 4 fear, 5 disgust, 6 anger, 7 contempt.
    labels = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry")
    seen = {path.split("/")[1]: read_image(tmp_path / "data" / path) for path in _images(tmp_path / "data")}
    assert seen.keys() == set(labels)
    for number, label in enumerate(labels):
        assert np.array_equal(seen[label], read_image(tmp_path / "set" / str(number) / "a.jpg"))
    assert "1 left out by their label" in run.output


def test_affectnet_by_its_header(tmp_path: Path) -> None:
    _write(tmp_path / "images" / "689" / "a.jpg", 0)
    _write(tmp_path / "images" / "689" / "b.jpg", 1)
    header = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal\n"
    rows = "689/a.jpg,1,2,3,4,1;2,7,0.1,0.2\n689/b.jpg,1,2,3,4,1;2,9,-2,-2\n689/gone.jpg,1,2,3,4,1;2,1,-2,-2\n"
    (tmp_path / "training.csv").write_text(header + rows)
    run = _import(tmp_path / "training.csv", tmp_path / "data", "--images", str(tmp_path / "images"))
    assert run.exit_code == 0, run.output
    assert _images(tmp_path / "data") == {"train/contempt/689/a.jpg"}
    assert "689/gone.jpg: no such file" in run.output
    first, *_ = csv.DictReader((tmp_path / "data" / "images.csv").open(newline=""))
    assert (first["valence"], first["face_width"]) == ("0.1", "3")


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("path,label,subject\n{a},Bored,p1\nb.png,engaged,p2\n", ()),
        ("path;label;subject\n{a};Bored;p1\r\nb.png;engaged;p2\r\n", ()),
        ("\ufeffImage Path,Emotion\n{a},Bored\n,engaged\nb.png,engaged\n", ()),
        ("{a}\tBored\nb.png\tengaged\n", ()),
        ("foto,was\n{a},Bored\nb.png,engaged\n", ("--path-column", "foto", "--label-column", "was")),
        ("path,label,set\n{a},Bored,val\nb.png,engaged,train\n", ()),
        ("pfad,label,teil\n{a},Bored,dev\nb.png,engaged,x\n", ("--path-column", "pfad", "--split-column", "teil")),
        ("sub\\a.jpg Bored\nb.png engaged\n", ()),
        (",pth,label,relFCs\n0,{a},Bored,0.9\n1,b.png,engaged,0.8\n", ()),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gz"])
def test_any_table_of_paths_and_labels(tmp_path: Path, text: str, options: tuple[str, ...], encoding: str) -> None:
    _write(tmp_path / "set" / "sub" / "a.jpg", 0)
    _write(tmp_path / "set" / "b.png", 1)
    file = tmp_path / "set" / ("table.csv.gz" if encoding == "gz" else "table.csv")
    # Both absolute paths and those below the table's folder.
    text = text.format(a="sub/a.jpg")
    file.write_bytes(gzip.compress(text.encode()) if encoding == "gz" else text.encode(encoding))
    run = _import(file, tmp_path / "data", *options)
    assert run.exit_code == 0, run.output
    split = "validation" if "val" in text or "dev" in text else "train"
    assert _images(tmp_path / "data") == {f"{split}/Bored/sub/a.jpg", "train/engaged/b.png"}


def test_words_of_the_split_column_that_mean_none_are_said(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        _write(tmp_path / f"{name}.png", seed)
    (tmp_path / "t.csv").write_text("path,label,set\na.png,happy,test\nb.png,happy,holdout\nc.png,happy,holdout\n")
    run = _import(tmp_path / "t.csv", tmp_path / "data")
    assert _images(tmp_path / "data") == {"test/happy/a.png", "train/happy/b.png", "train/happy/c.png"}
    said = "2 images in train, because the column set says 'holdout', which is no split (train, validation, test)\n"
    assert run.stderr == said


def test_a_table_that_was_edited_is_continued_and_a_source_is_not_replaced(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        _write(tmp_path / "photos" / f"{name}.png", seed)
    table = tmp_path / "photos" / "images.csv"
    table.write_text("image,label\na.png,happy\nb.png,sad\n")
    run = _import(table, table.parent)
    assert run.exit_code == 1
    assert run.output == f"Error: {table} would be replaced by the table of this import; choose another --output\n"
    assert table.read_text() == "image,label\na.png,happy\nb.png,sad\n"
    assert _import(table, tmp_path / "data").exit_code == 0
    written = tmp_path / "data" / "images.csv"
    rows = written.read_text()
    written.write_text(rows, encoding="utf-8-sig")  # as a spreadsheet saves it
    assert _import(table, tmp_path / "data").exit_code == 0
    assert written.read_text() == rows


def test_images_under_a_label_that_was_corrected_are_named(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        _write(tmp_path / f"{name}.png", seed)
    table, data = tmp_path / "t.csv", tmp_path / "data"
    table.write_text("path,label\na.png,happy\nb.png,sad\n")
    assert _import(table, data).stderr == ""
    table.write_text("path,label\na.png,sad\nb.png,sad\n")
    said = f"an image that is of an earlier import and still in the data; remove the files, and their rows of {data}"
    assert _import(table, data).stderr.startswith(
        f"{said}/images.csv:\n  train/happy/a.png: it is now train/sad/a.png\n"
    )
    # A file of the same name in another data set is another image.
    _write(tmp_path / "a.png", 9)
    table.write_text("path,label\na.png,angry\n")
    assert _import(table, data).stderr == ""


@pytest.mark.skipif(os.name == "nt", reason="Windows opens no folder")
def test_two_imports_do_not_write_into_one_folder_at_a_time(tmp_path: Path) -> None:
    _write(tmp_path / "faces" / "happy" / "a.png", 0)
    (tmp_path / "data").mkdir()
    other = os.open(tmp_path / "data", os.O_RDONLY)
    assert lock_file(other)
    run = _import(tmp_path / "faces", tmp_path / "data")
    assert run.exit_code == 1
    assert f"another fer-data import writes into {tmp_path / 'data'}; wait for it" in run.output
    assert _files(tmp_path / "data") == {}
    os.close(other)
    assert _import(tmp_path / "faces", tmp_path / "data").exit_code == 0


def test_labels_and_paths_of_a_hostile_table_stay_inside(tmp_path: Path) -> None:
    _write(tmp_path / "secret.png", 0)
    _write(tmp_path / "set" / "a.png", 1)
    file = tmp_path / "set" / "table.csv"
    file.write_text("path,label\n../secret.png,happy\na.png,happy\n" + f"{tmp_path}/secret.png,happy\na\0.png,happy\n")
    run = _import(file, tmp_path / "out" / "data")
    assert run.exit_code == 0, run.output
    assert {path.parent for path in tmp_path.rglob("*.png")} == {
        *(tmp_path, tmp_path / "set", tmp_path / "out" / "data" / "train" / "happy")
    }
    file.write_text("path,label\na.png,../../happy\n")
    run = _import(file, tmp_path / "out" / "other")
    assert run.exit_code == 1
    assert "cannot be the name of a folder on every system; " in run.output
    assert "give it another name: --rename '../../happy=NAME'" in run.output
    assert not (tmp_path / "out" / "other").exists()
    run = _import(file, tmp_path / "out" / "other", "--rename", "../../happy=a/b")
    assert "Error: the name 'a/b' of the label '../../happy' cannot be the name of a folder" in run.output


@pytest.mark.parametrize(("broken", "said"), [(1, "an image that {} no crop:"), (2, "2 images that {} no crop:")])
def test_one_image_has_no_crop_and_two_have_none(broken: int, said: str, tmp_path: Path) -> None:
    for seed in range(8):
        _write(tmp_path / "photos" / "ab"[seed % 2] / f"{seed}.png", seed)
    for number in range(broken):
        (tmp_path / "photos" / "a" / f"broken{number}.png").write_bytes(b"no image")
    crop = ["crop", str(tmp_path / "photos"), "--output", str(tmp_path / "crops"), "--detector", "whole"]
    assert said.format("has" if broken == 1 else "have") in CliRunner().invoke(main, crop).stderr
    split = ["split", str(tmp_path / "photos"), "--output", str(tmp_path / "sets"), "--validation", "0.5"]
    verb = "is" if broken == 1 else "are"
    assert f"that cannot be read and {verb} left out:" in CliRunner().invoke(main, split).stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"a,b\n1,2\n", "neither a header that is known nor a path and a label"),
        (b"a.jpg 0 10 20 30 40 0.9 6\n", "neither a header that is known nor a path and a label"),  # as ExpW's list
        (b"path,size\na.jpg,2\n", "name the column of labels with --label-column"),
        (b"label,size\nhappy,2\n", "name the column of paths with --path-column"),
        (b"path,label\n", "has no rows"),
        (b"path,label\ngone.jpg,happy\n", "none of the first 1 images .* --images DIR"),
        (b"path,label\n\xff\xfe\xfa,happy\n", "is damaged or no text"),
        (b"\x1f\x8b\x08\0half", "is damaged or no text|cannot read"),
    ],
)
def test_tables_that_are_not_understood_are_errors(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    run = _import(tmp_path / "table.csv", tmp_path / "data")
    assert run.exit_code == 1
    assert run.output.startswith("Error: ")
    assert re.search(message, run.output), run.output
    assert not (tmp_path / "data").exists()


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="the shell's <(...) is a file of /dev/fd")
def test_a_pipe_in_the_place_of_a_table_is_named_so(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"path,label\na.png,happy\n")
        run = _import(Path(f"/dev/fd/{reader}"), tmp_path / "data")
    finally:
        os.close(reader)
        os.close(writer)
    assert run.exit_code == 1
    assert "is not a regular file, and a table is read more than once; save it first" in run.output


def test_a_name_for_a_label_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    _write(tmp_path / "set" / "happiness" / "a.png", 0)
    run = _import(tmp_path / "set", tmp_path / "data", "--rename", "hapiness=joy")
    assert run.exit_code == 1
    assert "there is no label 'hapiness' to rename; the labels are: happiness" in run.output


def test_images_beside_the_class_folders_are_named(tmp_path: Path) -> None:
    _write(tmp_path / "set" / "happy" / "a.png", 0)
    _write(tmp_path / "set" / "loose.png", 1)
    run = _import(tmp_path / "set", tmp_path / "data")
    assert "not read, because they are in no class folder: loose.png" in run.output


def test_who_is_in_an_image_is_known_after_crop_too(tmp_path: Path) -> None:
    """A table with a column of persons, cropped, then split by that column."""
    rows = []
    for number in range(12):
        _write(tmp_path / "set" / f"{number}.png", number)
        rows.append(f"{number}.png,{('calm', 'glad')[number % 2]},p{number // 4}\n")
    (tmp_path / "set" / "table.csv").write_text("path,label,person\n" + "".join(rows))
    assert _import(tmp_path / "set" / "table.csv", tmp_path / "photos").exit_code == 0
    for command in (
        ["crop", str(tmp_path / "photos"), "--output", str(tmp_path / "data")],
        ["split", str(tmp_path / "data"), "--output", str(tmp_path / "sets"), "--group", "person"],
    ):
        run = CliRunner().invoke(main, command)
        assert run.exit_code == 0, run.output
    assert "persons          2 in train, 1 in validation; no person is in more than one split" in run.output
    found = {int(path.stem) // 4 for path in (tmp_path / "sets" / "validation").rglob("*.png")}
    assert len(found) == 1


def test_renames_come_before_everything_else() -> None:
    names = LabelNames(parse_renames(["Joy=laughing", "1=calm", "other="]), "rafdb")
    assert [names.name(label) for label in ("Joy", "1", "2", "other", "SAD", "Suprise", "own")] == [
        *("laughing", "calm", "fear", "", "sad", "surprise", "own")
    ]
    assert names.changes()[0] == "left out: label other"
    for wrong in (["happy"], ["=x"], ["a=b", "a=c"]):
        with pytest.raises(ValueError, match=r"OLD=NEW|renamed twice"):
            parse_renames(wrong)


def test_a_label_in_two_spellings_of_its_accents_has_one_name() -> None:
    composed, apart = unicodedata.normalize("NFC", "müde"), unicodedata.normalize("NFD", "müde")
    names = LabelNames()
    names.prepare((composed, apart))
    assert (names.name(composed), names.name(apart)) == (composed, composed)
    assert names.changes() == []
    renamed = LabelNames(parse_renames([f"{composed}=tired"]))
    renamed.prepare((apart, "wach"))
    assert renamed.name(apart) == "tired"
