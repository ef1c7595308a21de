"""Reading labelled images: what is read, what is cached, and what is refused."""

from __future__ import annotations

import os
import shutil
import struct
import unicodedata
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tests.train.images import write_images

from fer_runtime.errors import DataError
from fer_runtime.expressions import EXPRESSIONS
from fer_train.data.dataset import load_splits
from fer_train.data.folders import class_weights, load_class_folders, load_faces


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "cache"))


def test_images_are_those_that_another_program_decodes(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", train=2, validation=1)
    faces = load_faces(root, "train")
    assert faces.counts == dict.fromkeys(EXPRESSIONS, 2)
    for path, face, label in zip(faces.paths, faces.faces, faces.labels, strict=True):
        assert np.array_equal(face, np.asarray(Image.open(root / "images" / "train" / path)))
        assert path.startswith(EXPRESSIONS[label] + "/")


def test_a_folder_with_train_and_validation_is_enough(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", train=1, validation=1)
    assert np.array_equal(load_faces(root / "images", "train").faces, load_faces(root, "train").faces)


def test_the_second_time_nothing_is_decoded_and_nothing_lies_among_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_images(tmp_path / "data", train=2, validation=1)
    before = sorted(path for path in root.rglob("*"))
    first = load_faces(root, "train")
    # The same images elsewhere have the same content, so the cache holds them already.
    moved = Path(shutil.copytree(root, tmp_path / "moved"))
    monkeypatch.setattr(cv2, "imdecode", None)
    again = load_faces(moved, "train")
    assert np.array_equal(first.faces, again.faces)
    assert first.fingerprint == again.fingerprint
    assert sorted(path for path in root.rglob("*")) == before


def test_a_changed_image_is_decoded_again(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", train=2, validation=1)
    first = load_faces(root, "train")
    cv2.imwrite(str(root / "images" / "train" / "happy" / "000.png"), np.zeros((48, 48), np.uint8))
    again = load_faces(root, "train")
    assert first.fingerprint != again.fingerprint
    assert again.faces[again.paths.index("happy/000.png")].max() == 0


def test_a_damaged_cache_costs_time_and_nothing_else(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", train=2, validation=1)
    first = load_faces(root, "train")
    (cached,) = (tmp_path / "cache").rglob("*.npz")
    cached.write_bytes(cached.read_bytes()[:1000])
    assert np.array_equal(load_faces(root, "train").faces, first.faces)


def test_a_image_of_another_size_is_resized_and_counted(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", train=2, validation=1)
    quarters = np.repeat(np.repeat(np.array([[0, 255], [64, 128]], np.uint8), 48, 0), 48, 1)
    cv2.imwrite(str(root / "images" / "train" / "sad" / "large.png"), quarters)
    faces = load_faces(root, "train")
    assert faces.resized == 1
    assert np.array_equal(faces.faces[faces.paths.index("sad/large.png")], quarters[::2, ::2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root / "images"), "no folder .*images/train"),
        (lambda root: shutil.rmtree(root / "images/validation/disgust"), "validation lacks the class folder disgust"),
        (
            lambda root: shutil.rmtree(root / "images/train/disgust"),
            "validation has an unexpected class folder disgust",
        ),
        (lambda root: (root / "images/validation/bored").mkdir(), "validation has an unexpected class folder bored"),
        (lambda root: [path.unlink() for path in (root / "images/train/fear").iterdir()], "fear holds no image"),
        (lambda root: (root / "images/train/happy/000.png").write_bytes(b"none"), "happy/000.png cannot be decoded"),
        (lambda root: (root / "images/train/happy/001.png").write_bytes(b""), "happy/001.png is empty"),
    ],
)
def test_bad_data_is_named(tmp_path: Path, damage: object, message: str) -> None:
    root = write_images(tmp_path / "data", train=2, validation=1)
    assert callable(damage)
    damage(root)
    with pytest.raises(DataError, match=message):
        load_splits(root)


def test_class_weights_are_the_square_root_worked_by_hand() -> None:
    # total 16 in two classes: sqrt(16 / (2 * 4)) and sqrt(16 / (2 * 12)).
    assert class_weights([4, 12]) == pytest.approx([2**0.5, (2 / 3) ** 0.5])
    assert class_weights([4, 12], power=1) == pytest.approx([2, 2 / 3])
    assert class_weights([4, 12], power=0) == [1, 1]


def test_the_real_images_have_their_published_counts(real_data: Path) -> None:
    assert list(load_faces(real_data, "train").counts.values()) == [3995, 436, 4097, 7215, 4965, 4830, 3171]
    assert list(load_faces(real_data, "validation").counts.values()) == [467, 56, 496, 895, 607, 653, 415]


def test_all_unreadable_images_are_named_at_once_and_can_be_skipped(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", train=3, validation=1)
    happy = root / "images/train/happy"
    (happy / "000.png").write_bytes(b"")
    (happy / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    # A PNG whose header says 60,000 x 60,000 pixels: refused before it is decoded.
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (happy / "bomb.png").write_bytes(bomb + b"\0\0\0\0IEND\xaeB\x60\x82")
    with pytest.raises(DataError) as error:
        load_faces(root, "train")
    for said in ("3 images", "000.png is empty", "phone.heic is a HEIC", "bomb.png", "--skip-unreadable"):
        assert said in str(error.value)
    (root / "images/validation/sad/000.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^4 images that.*happy.*sad"):
        load_splits(root)
    faces = load_faces(root, "train", skip_unreadable=True)
    assert (len(faces), faces.skipped, faces.counts["happy"]) == (3 * 7 - 1, 3, 2)
    assert faces.faces.any((1, 2)).all()


def test_a_label_in_two_spellings_of_its_accents_is_one_class(tmp_path: Path) -> None:
    composed, apart = unicodedata.normalize("NFC", "müde"), unicodedata.normalize("NFD", "müde")
    for number, name in enumerate((composed, apart, apart, "wach")):
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "data" / name / f"{number}.png"), np.full((48, 48), number, np.uint8))
    if len(os.listdir(tmp_path / "data")) < 3:
        pytest.skip("this file system knows one spelling only")
    faces = load_class_folders(tmp_path / "data")
    assert faces.counts == {composed: 3, "wach": 1}
    assert faces.paths == (f"{apart}/1.png", f"{apart}/2.png", f"{composed}/0.png", "wach/3.png")


def test_nested_images_count_and_other_files_do_not(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", train=2, validation=1)
    happy = root / "images/train/happy"
    (happy / "album").mkdir()
    (happy / "000.png").rename(happy / "album/first.PNG")
    (happy / "album/loop").symlink_to(happy)
    for junk in ("Thumbs.db", "desktop.ini", ".DS_Store", "album/notes.txt"):
        (happy / junk).write_bytes(b"junk")
    faces = load_faces(root, "train")
    assert [path for path in faces.paths if path.startswith("happy/")] == ["happy/001.png", "happy/album/first.PNG"]
