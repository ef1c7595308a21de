"""Faces cut out of photographs: what inference sees, what is reported, and what a second run leaves alone."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.runtime.images.make_files import make_crashing_apng

from fer_runtime.detectors import Detection
from fer_runtime.detectors.haar import HaarDetector
from fer_runtime.faces import prepare_face
from fer_runtime.files import lock_file
from fer_runtime.images import Uint8Array, read_image
from fer_train.data.cli import main
from fer_train.data.crop import cut_face

SAMPLES = Path(__file__).parents[3] / "runtime" / "fer_runtime" / "samples"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photographs with faces, two of them the same, and everything that has none."""
    root = tmp_path_factory.mktemp("photos")
    for label in ("Joy", "calm"):
        (root / label / "more").mkdir(parents=True)
    shutil.copy(SAMPLES / "eileen_collins.jpg", root / "Joy" / "one.jpg")
    shutil.copy(SAMPLES / "group.jpg", root / "Joy" / "more" / "group.jpg")
    portrait = read_image(SAMPLES / "eileen_collins.jpg")
    cv2.imwrite(str(root / "calm" / "one.png"), cv2.cvtColor(portrait, cv2.COLOR_BGR2GRAY))
    cv2.imwrite(str(root / "calm" / "wall.png"), np.full((300, 300, 3), 128, np.uint8))
    # The face has 36 pixels then.
    small = cv2.resize(portrait, None, fx=0.35, fy=0.35, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(root / "calm" / "far.png"), small)
    (root / "calm" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    (root / "calm" / "empty.png").write_bytes(b"")
    (root / "calm" / "crash.png").write_bytes(make_crashing_apng())
    (root / "calm" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    return root


def _crop(photos: Path, output: Path, *more: str) -> Result:
    return CliRunner().invoke(
        main, ["crop", str(photos), "--output", str(output), "--detector", "haar", "--min-face", "40", *more]
    )


def _rows(output: Path) -> dict[str, dict[str, str]]:
    with (output / "crops.csv").open(newline="") as file:
        return {row["source"]: row for row in csv.DictReader(file)}


def _files(output: Path) -> dict[str, bytes]:
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def cropped(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    output = tmp_path_factory.mktemp("data") / "data"
    return output, _crop(photos, output)


def test_every_photo_has_its_crop_or_its_reason(cropped: tuple[Path, Result]) -> None:
    output, run = cropped
    assert run.exit_code == 0, run.output
    rows = _rows(output)
    assert {source: row["image"] for source, row in rows.items() if row["image"]} == {
        "train/Joy/one.jpg": "train/happy/one.png",
        "train/Joy/more/group.jpg": "train/happy/more/group.png",
        "train/calm/one.png": "train/calm/one.png",
    }
    reasons = {source.rpartition("/")[2]: row["reason"] for source, row in rows.items() if row["reason"]}
    assert reasons.keys() == {"wall.png", "far.png", "broken.jpg", "empty.png", "crash.png", "phone.heic"}
    assert reasons["wall.png"] == "no face"
    assert reasons["far.png"].startswith("too small: the largest face has 3")
    assert reasons["empty.png"] == "is empty (0 bytes)"
    assert "HEIC" in reasons["phone.heic"]
    assert "cannot be decoded" in reasons["broken.jpg"]
    assert "happy: was Joy" in run.stderr
    assert "train/calm/crash.png: " in run.stderr
    assert "9 photos, 3 faces, 6 without a crop" in run.stdout
    # The same portrait in colour and gray, under two labels.
    assert "2 near-duplicates in 1 group, 1 of them under two labels" in run.stdout
    copies = list(csv.DictReader((output / "near_duplicates.csv").open(newline="")))
    assert [row["image"] for row in copies] == ["train/happy/one.png", "train/calm/one.png"]


def test_training_sees_what_inference_sees(cropped: tuple[Path, Result], photos: Path) -> None:
    output, _ = cropped
    for source, row in _rows(output).items():
        if not row["image"]:
            continue
        photo = read_image(photos / source.removeprefix("train/"))
        box = max((detection.box for detection in HaarDetector().detect(photo)), key=lambda box: box[2])
        assert box == tuple(int(row[name]) for name in ("x", "y", "width", "height"))
        crop = read_image(output / row["image"])
        assert crop.ndim == (2 if source == "train/calm/one.png" else 3)
        # Up to 192 pixels these are the photograph's own, and larger ones are averaged twice: one rounding more.
        difference = prepare_face(photo, box).astype(int) - prepare_face(crop)
        assert np.abs(difference).max() <= (0 if box[2] <= 192 else 1)


def test_large_and_small_faces_keep_or_lose_pixels_and_gray_ones_stay_gray() -> None:
    random = np.random.default_rng(0)
    image = cv2.GaussianBlur(random.integers(0, 256, (600, 600, 3), np.uint8), (0, 0), 3)
    color: Uint8Array = image  # type: ignore[assignment]
    assert cut_face(color, Detection(box=(20, 30, 100, 100))).tolist() == color[30:130, 20:120].tolist()
    assert cut_face(color, Detection(box=(20, 30, 400, 400))).shape == (192, 192, 3)
    assert cut_face(color, Detection(box=(20, 30, 400, 400)), size=112).shape == (112, 112, 3)
    gray = np.repeat(color[:, :, :1], 3, axis=2)
    assert cut_face(gray, Detection(box=(20, 30, 100, 100))).tolist() == gray[30:130, 20:120, 0].tolist()


def test_turned_faces_are_upright() -> None:
    """A bar through both eyes, turned by 30 degrees, is level in the crop."""
    image = np.zeros((400, 400), np.uint8)
    angle = np.deg2rad(30)
    step = 60 * np.array([np.cos(angle), np.sin(angle)])
    right, left = 200 - step, 200 + step
    cv2.line(image, tuple(map(int, right)), tuple(map(int, left)), 255, 7)
    detection = Detection(box=(100, 100, 200, 200), landmarks=(tuple(right), tuple(left)))
    crop = cut_face(image, detection)
    rows = np.flatnonzero(crop.max(1) > 128)
    assert crop.shape == (192, 192)
    assert rows.max() - rows.min() < 12
    # In inference's own size it is what inference makes, but for the rounding of colours to gray.
    color = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8), (0, 0), 5)
    seen = prepare_face(color, detection.box, roll=detection.roll).astype(int)  # type: ignore[arg-type]
    assert np.abs(seen - prepare_face(cut_face(color, detection, size=48))).max() <= 2  # type: ignore[arg-type]


@pytest.mark.parametrize(("faces", "count"), [("all", 5), ("one", 0), ("largest", 1)])
def test_of_several_faces(photos: Path, tmp_path: Path, faces: str, count: int) -> None:
    (tmp_path / "photos" / "happy").mkdir(parents=True)
    shutil.copy(photos / "Joy" / "more" / "group.jpg", tmp_path / "photos" / "happy")
    run = _crop(tmp_path / "photos", tmp_path / "data", "--faces", faces)
    crops = sorted(path.name for path in (tmp_path / "data").rglob("*.png"))
    names = ["group.png", *(f"group-{number}.png" for number in range(2, count + 1))][:count]
    assert crops == sorted(names)
    # Without a single face there is nothing to go on with.
    assert run.exit_code == (0 if count else 1)
    if not count:
        assert "5 faces" in run.output


def test_a_stopped_run_continues_to_the_same_files(cropped: tuple[Path, Result], photos: Path, tmp_path: Path) -> None:
    whole, output = cropped[0], tmp_path / "data"
    shutil.copytree(whole, output)
    # Killed in the middle of a row, its last two crops missing.
    rows = (output / "crops.csv").read_bytes().splitlines(keepends=True)
    (output / "crops.csv").write_bytes(b"".join(rows[:3]) + rows[3][:20])
    (output / "train" / "calm" / "one.png").unlink()
    (output / "near_duplicates.csv").unlink()
    before = (output / "train" / "happy" / "more" / "group.png").stat()
    run = _crop(photos, output)
    assert run.exit_code == 0, run.output
    assert _files(output) == _files(whole)
    assert (output / "train" / "happy" / "more" / "group.png").stat().st_mtime_ns == before.st_mtime_ns
    again = _crop(photos, output)
    assert "9 of them in an earlier run" in again.output
    assert _files(output) == _files(whole)


def test_a_photo_that_could_not_be_opened_is_tried_again(photos: Path, tmp_path: Path) -> None:
    mine = tmp_path / "photos"
    shutil.copytree(photos / "calm", mine / "calm")
    assert _crop(mine, tmp_path / "data").exit_code == 0
    shutil.copy(SAMPLES / "grace_hopper.jpg", mine / "calm" / "empty.png")
    run = _crop(mine, tmp_path / "data")
    assert "7 photos, 6 of them in an earlier run, 2 faces, 5 without a crop" in run.output
    assert "is empty" not in run.output
    assert (tmp_path / "data" / "train" / "calm" / "empty.png").is_file()


def test_a_run_over_other_photos_keeps_every_row(photos: Path, tmp_path: Path) -> None:
    output, others = tmp_path / "data", tmp_path / "others"
    assert _crop(photos, output, "--faces", "all").exit_code == 0
    before = (output / "crops.csv").read_text().splitlines()
    (others / "sad").mkdir(parents=True)
    shutil.copy(photos / "Joy" / "more" / "group.jpg", others / "sad" / "other.jpg")
    assert _crop(others, output, "--faces", "all").exit_code == 0
    after = (output / "crops.csv").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) > len(before) + 1  # several faces
    assert _crop(photos, output, "--faces", "all").exit_code == 0  # the last photograph is none of this run
    assert (output / "crops.csv").read_text().splitlines() == after
    # A kill between two faces of the last photograph: it is done again, to the same file.
    (output / "crops.csv").write_text("\n".join(after[:-1]) + "\n")
    assert _crop(others, output, "--faces", "all").exit_code == 0
    assert (output / "crops.csv").read_text().splitlines() == after


def test_crops_of_photos_that_were_moved_or_changed_are_named(photos: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    for name in ("Joy/one.jpg", "Joy/two.jpg", "calm/far.png"):
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / name.replace("two", "one"), mine / name)
    with (mine / "Joy" / "two.jpg").open("ab") as file:
        file.write(b"another file")
    command = (mine, tmp_path / "data", "--min-face", "30")
    assert "earlier photo" not in _crop(*command).output
    assert "earlier photo" not in _crop(*command).output
    (mine / "Joy" / "one.jpg").rename(mine / "calm" / "one.jpg")
    with (mine / "Joy" / "two.jpg").open("ab") as file:
        file.write(b"!")
    lines = _crop(*command).stderr.splitlines()
    start = next(number for number, line in enumerate(lines) if "2 images that are of an earlier photo" in line)
    assert lines[start + 1 : start + 3] == [
        "  train/happy/one.png: its photo is now train/calm/one.jpg",
        "  train/happy/two.png: its photo was changed",
    ]
    (tmp_path / "data/train/happy/one.png").unlink()
    assert "an image that is of an earlier photo" in _crop(*command).stderr


def test_a_crop_that_was_removed_does_not_come_back(photos: Path, tmp_path: Path) -> None:
    command = (photos, tmp_path / "data")
    assert _crop(*command).exit_code == 0
    removed = tmp_path / "data" / "train" / "happy" / "one.png"
    removed.unlink()
    run = _crop(*command)
    assert run.exit_code == 0, run.output
    assert "  1 crop of earlier runs is removed; to make one again, take its row out of" in run.stdout
    assert "9 photos, 9 of them in an earlier run, 2 faces" in run.stdout
    assert not removed.exists()


def test_nothing_is_overwritten_and_more_photos_may_come(photos: Path, tmp_path: Path) -> None:
    output, others = tmp_path / "data", tmp_path / "others"
    mine = output / "train" / "happy" / "one.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    (others / "happy").mkdir(parents=True)
    shutil.copy(photos / "Joy" / "one.jpg", others / "happy" / "one.jpg")
    assert _crop(others, output).exit_code == 0
    shutil.copy(SAMPLES / "grace_hopper.jpg", others / "happy" / "one.jpg")
    assert _crop(others, output).exit_code == 0
    assert mine.read_bytes() == b"mine"
    assert sorted(path.name for path in mine.parent.iterdir()) == ["one-2.png", "one-3.png", "one.png"]


def test_other_settings_and_other_runs_are_refused(cropped: tuple[Path, Result], photos: Path, tmp_path: Path) -> None:
    output = cropped[0]
    before = _files(output)
    run = _crop(photos, output, "--size", "96")
    assert run.exit_code == 1
    assert "made with --size 192, not 96" in run.output
    run = _crop(photos, output, "--rename", "calm=bored")
    assert "holds crops made with no --rename, not calm=bored; give no --rename, or choose another" in run.output
    with (output / "crops.csv").open("r+b") as held:
        lock_file(held.fileno())
        run = _crop(photos, output)
    assert "another fer-data crop writes" in run.output
    assert _files(output) == before
    other = tmp_path / "mine"
    other.mkdir()
    (other / "crops.csv").write_text("my,own,table\n1,2,3\n")
    assert "is not of fer-data crop" in _crop(photos, other).output
    assert (other / "crops.csv").read_text() == "my,own,table\n1,2,3\n"


def test_contact_sheets_show_every_class(cropped: tuple[Path, Result]) -> None:
    output, run = cropped
    for label in ("happy", "calm"):
        sheet = read_image(output / "sheets" / f"{label}.jpg")
        assert sheet.std() > 20
        assert f"sheets/{label}.jpg" in run.stdout.replace("\\", "/")
    assert json.loads((output / "crops.json").read_text())["detector"] == "haar"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root.mkdir(), "holds 0 files and no class folders"),
        (lambda root: (root.mkdir(), (root / "1.jpg").touch()), "holds 1 file and no class folders; put the images"),
        (lambda root: (root / "1").mkdir(parents=True), "no image in them"),
        (lambda root: ((root / "4").mkdir(parents=True), (root / "4/a.jpg").touch()), "4 is sad in fer2013, happy in"),
        (lambda root: ((root / "a:b").mkdir(parents=True), (root / "a:b/a.jpg").touch()), "cannot be the name of a"),
    ],
)
def test_folders_that_are_not_understood_are_errors(tmp_path: Path, make: object, message: str) -> None:
    assert callable(make)
    make(tmp_path / "photos")
    run = _crop(tmp_path / "photos", tmp_path / "data")
    assert run.exit_code == 1
    assert message in run.output
    assert not (tmp_path / "data").exists()


def test_the_output_may_not_be_among_the_photos(photos: Path) -> None:
    run = _crop(photos, photos / "data")
    assert run.exit_code == 2
    assert "is inside" in run.output
