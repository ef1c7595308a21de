"""The command as a whole: without PyTorch, from photographs to splits and suspicions, and what a stopped run says."""

from __future__ import annotations

import csv
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from tests.project.test_imports import run_without_extras

from fer_runtime.errors import DataError
from fer_train.data import cli
from fer_train.data.crop import cut_face
from fer_train.data.dropping import read_drop_file, without_named
from fer_train.data.folders import load_class_folders

SAMPLES = Path(__file__).parents[3] / "runtime" / "fer_runtime" / "samples"


def test_all_four_commands_run_where_pytorch_is_not_installed(tmp_path: Path) -> None:
    for label, names in (("bored", ("eileen_collins", "group")), ("engaged", ("grace_hopper", "group"))):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for name in names:
            shutil.copy(SAMPLES / f"{name}.jpg", folder / f"{label}_{name}.jpg")
    commands = (
        ("crop", "photos", "--output", "crops", "--faces", "all", "--detector", "haar"),
        ("import", "crops", "--output", "data", "--rename", "bored=tired"),
        ("split", "data", "--output", "sets", "--validation", "0.3"),
        ("audit", "data", "--output", "audit", "--model", "v0"),
    )
    program = f"import os, sys\nos.chdir({str(tmp_path)!r})\nfrom fer_train.data.cli import main\n"
    program += "".join(f"main({list(command)!r}, standalone_mode=False)\n" for command in commands)
    printed = run_without_extras(program + "print('torch' in sys.modules, 'onnx' in sys.modules)")
    assert printed.splitlines()[-1] == "False False"
    assert "4 photos, 12 faces, 0 without a crop" in printed
    # The same five faces under both labels.
    assert "5 groups under two labels" in printed or "5 under two labels" in printed
    found = {path.relative_to(tmp_path / "sets").parts[1] for path in (tmp_path / "sets").rglob("*.png")}
    assert found == {"tired", "engaged"}
    assert (tmp_path / "audit" / "label_errors.csv").is_file()


def test_labels_that_differ_in_capitals_alone_are_said(tmp_path: Path) -> None:
    for label in ("Bored", "bored", "tired"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(3):
            face = np.random.default_rng([number, len(label), ord(label[0])]).integers(0, 256, (48, 48), np.uint8)
            cv2.imwrite(str(tmp_path / "data" / label / f"{number}.png"), face)
    if len(os.listdir(tmp_path / "data")) < 3:
        pytest.skip("this file system does not tell capitals apart")
    for command in ("split", "import", "audit"):
        more = ("--no-label-errors",) if command == "audit" else ()
        output = ("--output", str(tmp_path / command))
        done = CliRunner().invoke(cli.main, [command, str(tmp_path / "data"), *output, *more])
        assert done.exit_code == 0, done.stderr
        assert "'Bored' and 'bored' are different labels; if you mean one" in done.stderr
        assert "tired" not in done.stderr


def test_the_help_loads_neither_pytorch_nor_opencv() -> None:
    loaded = run_without_extras("import sys, fer_train.data.cli; print(*sys.modules)").split()
    assert not {"torch", "cv2", "onnxruntime", "numpy"} & set(loaded)


@pytest.fixture(scope="module")
def bands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that any network tells apart, 40 images each; three images of each in the other's folder."""
    root = tmp_path_factory.mktemp("bands")
    random = np.random.default_rng(0)
    for label, top in (("high", 4), ("low", 30)):
        for number in range(40):
            image = random.integers(60, 120, (48, 48), np.uint8)
            image[top : top + 14, 8:40] += 120
            folder = {"high": "low", "low": "high"}[label] if number < 3 else label
            path = root / folder / f"{label}{number:02}.png"
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), image)
    (root / "low" / "broken.png").write_bytes(b"no image")
    return root


def test_planted_label_errors_are_listed_for_drop(bands: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(cli.main, ["audit", str(bands), "--output", str(tmp_path / "audit"), "--model", "v3"])
    assert run.exit_code == 0, run.output
    assert "train/low/broken.png: cannot be decoded" in run.stderr
    planted = {f"train/low/high0{n}.png" for n in range(3)} | {f"train/high/low0{n}.png" for n in range(3)}
    dropped = read_drop_file(tmp_path / "audit" / "label_errors.csv")
    # Noise with a bar is no face: one of the six may be less certain than its class is on average.
    assert len(planted & dropped) >= 5
    assert len(dropped) <= 12
    rows = {row["image"]: row for row in csv.DictReader((tmp_path / "audit" / "label_errors.csv").open())}
    assert {rows[name]["suggested"] for name in planted & dropped if name.startswith("train/low")} == {"high"}
    sheet = cv2.imread(str(tmp_path / "audit" / "label_errors.png"))
    assert sheet is not None
    assert sheet.std() > 20


def test_own_probabilities_take_the_models_place(bands: Path, tmp_path: Path) -> None:
    names = sorted(f"train/{path.parent.name}/{path.name}" for path in bands.rglob("*[0-9].png"))
    with (tmp_path / "chances.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "high", "low"])
        writer.writerows([name, *((0.9, 0.1) if "/high" in name[6:] else (0.1, 0.9))] for name in names)
    command = ["audit", str(bands), "--output", str(tmp_path / "audit")]
    run = CliRunner().invoke(cli.main, [*command, "--probabilities", str(tmp_path / "chances.csv")])
    assert run.exit_code == 0, run.output
    # The file's probability follows the name in the folder: high for high/low00.png, too.
    assert "label errors     " in run.stdout
    run = CliRunner().invoke(cli.main, [*command, "--probabilities", str(tmp_path / "chances.csv"), "--model", "v0"])
    assert run.exit_code == 2
    assert "--probabilities takes the model's place" in run.output


def test_an_audit_keeps_an_edited_list_and_stays_out_of_the_images(bands: Path, tmp_path: Path) -> None:
    command = ["audit", str(bands), "--output", str(tmp_path / "audit"), "--probabilities", str(tmp_path / "p.csv")]
    names = [f"train/{path.parent.name}/{path.name}" for path in bands.rglob("*[0-9].png")]
    (tmp_path / "p.csv").write_text(
        "image,high,low\n" + "".join(f"{name},{int('/high0' in name)},{int('/low0' in name)}.1\n" for name in names)
    )
    assert CliRunner().invoke(cli.main, command).exit_code == 0
    listed = tmp_path / "audit" / "label_errors.csv"
    whole = listed.read_bytes()
    CliRunner().invoke(cli.main, command)
    assert sorted(path.name for path in listed.parent.glob("*.csv")) == ["label_errors.csv"]
    edited = b"".join(whole.splitlines(keepends=True)[:2])
    listed.write_bytes(edited)
    run = CliRunner().invoke(cli.main, command)
    assert listed.read_bytes() == whole
    assert listed.with_stem("label_errors-2").read_bytes() == edited
    assert f"an earlier list, which is not the same, is now {listed.with_stem('label_errors-2')}" in run.stderr
    run = CliRunner().invoke(cli.main, [*command[:2], "--output", str(bands / "audit")])
    assert run.exit_code == 2
    assert f"is inside {bands}" in run.stderr
    assert not (bands / "audit").exists()


def test_a_stopped_run_says_how_to_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos" / "calm"
    folder.mkdir(parents=True)
    for number in range(60):
        face = np.random.default_rng(number).integers(0, 256, (60, 60), np.uint8)
        cv2.imwrite(str(folder / f"{number:02}.png"), face)
    command = ["crop", str(tmp_path / "photos"), "--output", str(tmp_path / "data")]
    calls = 0

    def cut_and_stop(*given: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 30:
            os.kill(os.getpid(), signal.SIGTERM)
        return cut_face(*given, **options)

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray leaves a handler in the process of its tests
    try:
        with monkeypatch.context() as patch:
            patch.setattr("fer_train.data.crop.cut_face", cut_and_stop)
            run = CliRunner().invoke(cli.main, command)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert run.exit_code == 143, run.output
    assert run.stderr == "Error: stopped; repeat the command to continue: what is written stays and is not made again\n"
    done = (tmp_path / "data" / "crops.csv").read_bytes().count(b"\n") - 1
    assert 0 < done < 60
    again = CliRunner().invoke(cli.main, command)
    assert again.exit_code == 0
    assert f"60 photos, {done} of them in an earlier run, 60 faces" in again.stdout
    assert len(list((tmp_path / "data" / "train").rglob("*.png"))) == 60


def test_named_images_do_not_train(bands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "cache"))
    train = load_class_folders(bands, skip_unreadable=True)
    kept = np.array([0, 2, 3])
    (tmp_path / "drop.csv").write_text(f"image,why\nimages/train/{train.paths[2]},x\nvalidation/high/a.png,x\n")
    assert without_named(train, kept, [tmp_path / "drop.csv"]).tolist() == [0, 3]
    (tmp_path / "drop.csv").write_text("image\nhigh/a.png\n")
    with pytest.raises(DataError, match=r"names no training image .* but high/a.png; .* such as train/high/"):
        without_named(train, kept, [tmp_path / "drop.csv"])
    (tmp_path / "drop.csv").write_text("path\ntrain/high/a.png\n")
    with pytest.raises(DataError, match="has no column image"):
        without_named(train, kept, [tmp_path / "drop.csv"])


def test_an_audit_whose_report_cannot_be_written_reads_no_image(
    bands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fer_train.data.source_folders.read_source", lambda *_: pytest.fail("the work has begun"))
    (tmp_path / "file").touch()
    run = CliRunner().invoke(cli.main, ["audit", str(bands), "--output", str(tmp_path / "file" / "audit")])
    assert run.exit_code == 1
    assert run.stderr.startswith(f"Error: cannot write {tmp_path / 'file' / 'audit' / 'audit.json'}: ")
