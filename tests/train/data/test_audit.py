"""The audit on images whose faults were planted, and on the real ones, whose faults are known."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from tests.train.images import write_images

from fer_runtime.expressions import EXPRESSIONS
from fer_train.data.audit import Audit, _sheet_rows, audit_faces, near_pairs, strangest, write_audit
from fer_train.data.cli import main
from fer_train.data.folders import LabelledFaces, load_faces


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "cache"))


def _splits(root: Path) -> dict[str, LabelledFaces]:
    return {split: load_faces(root, split) for split in ("train", "validation")}


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Copies of happy/000 within train, across the splits and under another label; a blank image."""
    root = write_images(tmp_path / "data", train=4, validation=2)
    images = root / "images"
    content = (images / "train" / "happy" / "000.png").read_bytes()
    for copy in ("train/happy/copy.png", "validation/happy/copy.png", "train/sad/copy.png"):
        (images / copy).write_bytes(content)
    image = cv2.imread(str(images / "train" / "fear" / "001.png"), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    # The same image, a little darker: another file, nearly the same.
    cv2.imwrite(str(images / "train" / "surprise" / "near.png"), (image * 0.9).astype(np.uint8))
    cv2.imwrite(str(images / "train" / "angry" / "blank.png"), np.full((48, 48), 7, np.uint8))
    return root


def test_planted_faults_are_found(planted: Path) -> None:
    found = audit_faces(_splits(planted))
    (group,) = found.exact
    assert set(group.paths) == {
        "train/happy/000.png",
        "train/happy/copy.png",
        "train/sad/copy.png",
        "validation/happy/copy.png",
    }
    assert group.has_conflict
    assert group.crosses_splits
    assert found.spare == 3
    assert {frozenset(pair.paths) for pair in found.near} == {
        frozenset(("train/fear/001.png", "train/surprise/near.png"))
    }
    assert found.blank == ("train/angry/blank.png",)


def test_a_near_pair_stands_where_all_copies_of_it_stand(tmp_path: Path) -> None:
    # happy/000 again in validation, and nearly the same in train: the near copy is in both splits, too.
    root = write_images(tmp_path / "data", train=4, validation=2)
    images = root / "images"
    content = (images / "train" / "happy" / "000.png").read_bytes()
    (images / "validation" / "happy" / "copy.png").write_bytes(content)
    image = cv2.imread(str(images / "train" / "happy" / "000.png"), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    cv2.imwrite(str(images / "train" / "happy" / "near.png"), (image * 0.9).astype(np.uint8))

    def audited() -> Audit:
        return audit_faces(_splits(root))

    found = audited()
    assert [found.to_dict()[f"near_{kind}"] for kind in ("pairs", "across_splits", "conflicts")] == [1, 1, 0]
    # The contact sheet shows the two of which one stands in each split, and the copies across the splits.
    rows = dict(_sheet_rows(found))
    assert rows["nearly the same: 1 pair, side by side"] == [
        ("validation/happy/copy.png", "happy"),
        ("train/happy/near.png", "happy"),
    ]
    assert rows["in both splits: 1 group"] == [("train/happy/000.png", "happy")]
    # The same image under another label: the near copy contradicts it.
    (images / "train" / "sad" / "copy.png").write_bytes(content)
    assert [audited().to_dict()[f"near_{kind}"] for kind in ("pairs", "across_splits", "conflicts")] == [1, 1, 1]


@pytest.mark.filterwarnings("error")  # numpy only warns of a mean of nothing
def test_blank_images_alone_are_said_to_be_blank(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        for number, name in enumerate(EXPRESSIONS):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            cv2.imwrite(str(folder / "0.png"), np.full((48, 48), number, np.uint8))
    splits = _splits(tmp_path / "data")
    found = audit_faces(splits)
    assert len(found.blank) == 14
    assert (found.near, found.strange) == ((), ())
    report, _ = write_audit(found, tmp_path / "found", splits)
    assert json.loads(report.read_text())["exact_across_splits"] == 7


def test_near_pairs_do_not_mind_brightness_and_do_mind_another_image() -> None:
    random = np.random.default_rng(0)
    one, other = random.integers(40, 200, (2, 48, 48), np.uint8)
    faces = np.stack([one, other, (one * 0.8 + 30).astype(np.uint8)])
    assert near_pairs(faces) == [(0, 2)]


def test_the_odd_one_out_is_the_strangest() -> None:
    random = np.random.default_rng(0)
    # Eight hundred blurred patterns have their coarse structure in common; unblurred noise has another.
    smooth = [cv2.GaussianBlur(random.random((48, 48)).astype(np.float32), (0, 0), 4) for _ in range(800)]
    faces = [cv2.normalize(pattern, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8) for pattern in smooth]  # type: ignore[call-overload]
    faces.append(random.integers(0, 256, (48, 48), np.uint8))
    assert strangest(np.stack(faces))[0] == 800


def test_the_command_says_it_writes_it_and_changes_nothing(planted: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in planted.rglob("*.png")}
    run = CliRunner().invoke(main, ["audit", str(planted), "--no-label-errors", "--output", str(tmp_path / "found")])
    assert run.exit_code == 0, run.output
    assert "1 group, 3 redundant images; 1 group under two labels, 1 in both splits" in run.stdout
    content = json.loads((tmp_path / "found" / "audit.json").read_text())
    assert content["exact_spare"] == 3
    sheet = cv2.imread(str(tmp_path / "found" / "audit.png"), cv2.IMREAD_GRAYSCALE)
    assert sheet is not None
    assert sheet.shape[1] > 1000
    assert {path: path.read_bytes() for path in planted.rglob("*.png")} == before


def test_without_a_folder_the_command_writes_to_audit(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(main, ["audit", str(planted), "--no-label-errors"])
    assert run.exit_code == 0, run.output
    assert json.loads((tmp_path / "audit" / "audit.json").read_text())["exact_spare"] == 3
    assert run.stdout.splitlines()[-2:] == [str(Path("audit/audit.json")), str(Path("audit/audit.png"))]


def test_the_real_images_have_the_copies_that_were_counted_independently(real_data: Path) -> None:
    # Counted with sha256sum and sort over the same folders.
    found = audit_faces(_splits(real_data)).to_dict()
    assert (found["exact_groups"], found["exact_spare"]) == (1273, 1532)
    assert (found["exact_conflicts"], found["exact_across_splits"]) == (47, 270)
