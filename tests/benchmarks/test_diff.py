"""Two runs over one folder: the stage that is named is the one that was changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

import fer_runtime
from fer_bench.cli import main
from fer_bench.diff import Run, SeenFace, SeenImage, compare_runs, load_run, save_run

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


def test_one_run_without_save_is_a_usage_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["diff", "v0", str(tmp_path)])
    assert done.exit_code == 2
    assert "--save" in done.output
