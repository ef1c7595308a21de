"""Two runs over one folder: the stage that is named is the one that was changed."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

import fer_runtime
from fer_bench.cli import main
from fer_bench.diff import Run, SeenFace, SeenImage, compare_runs, format_changes, load_run, save_run
from fer_bench.engines import ENGINES, Engine, onnxruntime_engine
from fer_runtime.errors import DataError
from fer_runtime.recognizer import Recognizer

SAMPLES = Path(fer_runtime.__file__).parent / "samples"


def _face(label: str = "sad", *, box: tuple[int, int, int, int] = (10, 10, 40, 40), crop: str = "c") -> SeenFace:
    other = "happy" if label == "sad" else "sad"
    return SeenFace(box=box, crop_sha256=crop, label=label, probabilities={label: 0.52, other: 0.48})


def _run(face: SeenFace | None, *, pixels: str = "p", error: str | None = None) -> Run:
    image = SeenImage(path="a.jpg", error=error, pixels_sha256=pixels, faces=() if face is None else (face,))
    return Run(name="v0 int8", machine="here", images={"a.jpg": image})


@pytest.mark.parametrize(
    ("second", "stage"),
    [
        (_run(_face("happy")), "graph"),
        (_run(_face("happy", crop="d")), "cropping"),
        (_run(_face("happy", box=(11, 10, 40, 40), crop="d")), "detecting"),
        (_run(_face("happy", box=(11, 10, 40, 40), crop="d"), pixels="q"), "reading"),
        (_run(None), "detecting"),
        (_run(None, error="damaged"), "reading"),
    ],
)
def test_the_first_stage_that_differs_is_named(second: Run, stage: str) -> None:
    (change,) = compare_runs(_run(_face()), second)
    assert change.stage == stage
    assert compare_runs(second, second) == []


def test_margins_are_those_of_both_runs_and_close_calls_come_first() -> None:
    near, far = _face(), dataclasses.replace(_face(box=(200, 10, 40, 40)), probabilities={"sad": 0.9, "happy": 0.1})
    first = Run(
        name="", machine="", images={"a": SeenImage(path="a", error=None, pixels_sha256="p", faces=(far, near))}
    )
    second = Run(
        name="",
        machine="",
        images={
            "a": SeenImage(
                path="a",
                error=None,
                pixels_sha256="p",
                faces=(_face("happy"), _face("happy", box=(200, 10, 40, 40))),
            )
        },
    )
    changes = compare_runs(first, second)
    assert [round(change.margin_before or 0, 2) for change in changes] == [0.04, 0.8]
    assert {round(change.margin_after or 0, 2) for change in changes} == {0.04}


def test_models_of_different_labels_are_not_compared() -> None:
    mine = _run(dataclasses.replace(_face(), probabilities={"sad": 0.6, "bored": 0.4}))
    with pytest.raises(DataError, match=r"A \(v0 int8\) has the labels sad, happy, and B \(v0 int8\) sad, bored"):
        compare_runs(_run(_face()), mine)
    assert (
        compare_runs(_run(_face()), _run(dataclasses.replace(_face(), probabilities={"happy": 0.4, "sad": 0.6}))) == []
    )
    assert len(compare_runs(mine, _run(None))) == 1  # without a face there is nothing to compare


def test_a_saved_run_comes_back(tmp_path: Path) -> None:
    run = _run(_face())
    save_run(run, tmp_path / "run.json")
    assert load_run(tmp_path / "run.json") == run


def test_the_command_finds_what_a_changed_image_changes(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    image = cv2.imread(str(SAMPLES / "grace_hopper.jpg"))
    assert image is not None
    cv2.imwrite(str(folder / "portrait.png"), image)
    runner = CliRunner()
    saved, sheet = tmp_path / "pi.json", tmp_path / "sheet.png"
    arguments = ["--detector", "haar"]
    done = runner.invoke(main, ["diff", "v0", str(folder), "--save", str(saved), *arguments])
    assert done.exit_code == 0, done.output
    same = runner.invoke(main, ["diff", str(saved), "v0:int8", str(folder), *arguments])
    assert same.exit_code == 0, same.output
    assert "0 of 1 faces in 1 images" in same.output
    cv2.imwrite(str(folder / "portrait.png"), np.full_like(image, 128))
    other = runner.invoke(main, ["diff", str(saved), "v0", str(folder), "--sheet", str(sheet), *arguments])
    assert other.exit_code == 1, other.output
    assert "1 by reading" in other.output
    assert sheet.is_file()


def test_folders_without_an_image_are_named(tmp_path: Path) -> None:
    saved, empty = tmp_path / "run.json", tmp_path / "empty"
    empty.mkdir()
    done = CliRunner().invoke(main, ["diff", "v0", str(empty), "--save", str(saved), "--detector", "whole"])
    assert (done.exit_code, saved.exists()) == (1, False)
    assert f"{empty} and its subfolders hold no image" in done.stderr
    missing = CliRunner().invoke(main, ["diff", "v0", "v1", str(tmp_path / "missing")])
    assert missing.exit_code == 2
    assert "missing is no folder" in missing.stderr


def test_images_that_no_run_could_read_are_counted() -> None:
    unread = _run(None, error="cannot be decoded")
    assert "1 image cannot be read in either run" in format_changes(unread, unread, [])
    assert "cannot be read" not in format_changes(unread, _run(_face()), [])


@pytest.fixture
def portrait(tmp_path: Path) -> Path:
    folder = tmp_path / "portrait"
    folder.mkdir()
    shutil.copy(SAMPLES / "grace_hopper.jpg", folder)
    return folder


@pytest.mark.parametrize("engine", ["torch", "openvino", "opencv-dnn"])
def test_an_engine_that_computes_the_same_changes_nothing(engine: str, portrait: Path, tmp_path: Path) -> None:
    saved = tmp_path / f"{engine}.json"
    sides = [f"v0:fp32@{engine}", "v0:fp32", str(portrait)]
    done = CliRunner().invoke(main, ["diff", *sides, "--detector", "haar", "--save", str(saved)])
    assert done.exit_code == 0, done.output
    assert f"A  v0 fp32 in {engine}  " in done.output
    with Recognizer("v0", precision="fp32", detector="haar") as recognizer:
        (expected,) = recognizer.predict(portrait / "grace_hopper.jpg").faces
    (face,) = load_run(saved).images["grace_hopper.jpg"].faces
    # Without the file's temperature, the checkpoint's probabilities differ by 0.1.
    assert face.probabilities == pytest.approx(expected.probabilities, abs=1e-5)


def test_an_engine_that_computes_something_else_is_found_in_the_graph(
    portrait: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_rolled(source: Path, **how: Any) -> Any:
        run = onnxruntime_engine.load(source, **how)
        return lambda faces: np.roll(run(faces), 1, axis=1)

    monkeypatch.setattr(onnxruntime_engine, "load_rolled", load_rolled, raising=False)
    entry = Engine(name="rolled", code="fer_bench.engines.onnxruntime_engine:load_rolled", needs="numpy", install="")
    monkeypatch.setitem(ENGINES._entries, "rolled", entry)
    done = CliRunner().invoke(main, ["diff", "v0:int8", "v0:int8@rolled", str(portrait), "--detector", "haar"])
    assert done.exit_code == 1, done.output
    assert "1 of 1 faces in 1 images are answered differently: 1 by graph" in done.output


@pytest.mark.parametrize(("side", "message"), [("v0@abacus", "no engine 'abacus'"), ("v0:int4", "no precision 'int4'")])
def test_an_unknown_side_is_a_usage_error(side: str, message: str, portrait: Path) -> None:
    done = CliRunner().invoke(main, ["diff", side, "v0", str(portrait)])
    assert done.exit_code == 2
    assert message in done.output


def test_one_run_without_save_is_a_usage_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["diff", "v0", str(tmp_path)])
    assert done.exit_code == 2
    assert "--save" in done.output
