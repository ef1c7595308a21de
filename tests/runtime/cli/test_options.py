"""Which options a run of `fer-infer` uses, and that it refuses the others by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click import Context
from click.testing import CliRunner

from fer_runtime.cli import main
from fer_runtime.model.auto import Choice


def _refused(*arguments: str) -> str:
    run = CliRunner().invoke(main, arguments)
    assert run.exit_code == 2, run.output
    return " ".join(run.stderr.partition("Error: ")[2].split())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--self-test", "pics/", "--annotate", "x"), "--self-test does not use pics/, --annotate;"),
        # An option that is given its default is given all the same.
        (("--self-test", "--detector", "auto"), "--self-test does not use --detector;"),
        (("--list-models", "--precision", "int8"), "--list-models does not use --precision;"),
        (("--fetch-yunet", "--output", "x"), "--fetch-yunet without images does not use --output;"),
        (("a.jpg", "--every", "1"), "a run over images does not use --every;"),
        (("a.jpg", "--segments", "--workers", "2"), "a run over images does not use --segments, --workers;"),
        (("a.mp4", "--recursive"), "a run over videos or cameras does not use --recursive;"),
        (("a.mp4", "--resume", "--output", "a.jsonl"), "a run over videos or cameras does not use --resume;"),
        (("--camera", "0", "--contact-sheet", "a.jpg"), "a run over videos or cameras does not use --contact-sheet;"),
        (("a.jpg", "--engine", "ray", "--annotate", "x"), "--engine ray does not use --annotate;"),
    ],
)
def test_an_option_that_the_run_does_not_use_is_named(arguments: tuple[str, ...], named: str) -> None:
    assert _refused(*arguments).startswith(named)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("a.jpg", "--detector", "haar", "--yunet", "y.onnx"), "--yunet: only with --detector auto or yunet"),
        (("a.jpg", "--detector", "whole", "--min-face", "24"), "--min-face: only with --detector auto, haar or yunet"),
        (("a.jpg", "--model", "b.onnx", "--precision", "int8"), "--precision: only with the name of a model"),
        (("a.jpg", "--model", "b/c", "--models-dir", "d"), "--models-dir: only with the name of a model"),
        (("--samples", "--recursive"), "--recursive: --samples has no folders"),
        (("a.jpg", "--resume"), "--resume: only with --output"),
        (("a", "--resume", "--output", "b.jsonl", "--random", "3"), "--random: not with --resume"),
        (("a", "--resume", "--output", "b.csv"), "--resume continues a run of --format jsonl"),
        (("a", "--engine", "ray", "--part-size", "65"), "Invalid value for '--part-size': must be a multiple of 64"),
        (("a", "--engine", "ray", "--threads", "1025"), "--threads: at most 1024 for each worker"),
        (("a", "--engine", "ray", "--format", "parquet"), "--format parquet: only with --output DIR"),
        (("a", "--engine", "ray", "--format", "table"), "--engine ray does not write --format table"),
        (("a.mp4", "b.mp4", "--format", "srt"), "--format srt takes one video at a time"),
        (("a.mp4", "--samples"), "a.mp4: give videos and cameras in a run of their own"),
        (("--watch", ".", "--engine", "ray"), "--engine: --watch reads its folder on this machine alone"),
        (("--camera", "99999999999"), "Invalid value for '--camera': 99999999999 is not in the range 0<=x<=99."),
    ],
)
def test_an_option_that_another_one_makes_useless_is_named(arguments: tuple[str, ...], named: str) -> None:
    assert _refused(*arguments).startswith(named)


def test_a_camera_given_as_a_path_is_answered_with_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "give --camera 0" in _refused("0")
    assert "give --camera 2" in _refused("/dev/video2")
    (tmp_path / "7").mkdir()  # a folder may be named like this
    assert CliRunner().invoke(main, ["7"]).exit_code == 1


def test_help_shows_the_options_in_groups() -> None:
    shown = {option: CliRunner().invoke(main, [option]).output for option in ("-h", "--help")}
    assert shown["-h"] == shown["--help"]
    titles = [line.removesuffix(":") for line in shown["-h"].splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == [
        *("Input", "Model", "Face detection", "Output", "Videos and cameras", "Streams"),
        *("Ray cluster", "Other runs", "Other options"),
    ]


def test_quiet_says_nothing_of_a_run_that_went_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice(provider="CPU", faces_per_second={"CPU": 1.0})
    monkeypatch.setattr("fer_runtime.model.auto.choose_provider", lambda *_, **__: choice)
    outputs = ("--output", str(tmp_path / "rows.jsonl"), "--contact-sheet", str(tmp_path / "page.png"))
    run = CliRunner().invoke(main, ["--samples", "--quiet", *outputs, "--provider", "auto"])
    assert (run.exit_code, run.output) == (0, "")
    failed = CliRunner().invoke(main, [str(tmp_path / "none.jpg"), "--quiet", "--output", str(tmp_path / "b.jsonl")])
    assert failed.exit_code == 1
    assert "No such file" in failed.stderr


@pytest.mark.parametrize("columns", ["62", "100", "1000", "0", "-5", "wide", None])
def test_help_is_as_wide_as_click_makes_it(columns: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    width = max(min(shutil.get_terminal_size().columns, 100) - 2, 50)
    assert Context(main, max_content_width=100).make_formatter().width == width
    assert main.context_class(main, max_content_width=100).make_formatter().width == width


def test_help_loads_none_of_what_is_slow() -> None:
    code = (
        "import sys; from fer_runtime.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print([name for name in ('pathlib', 'shutil', 'numpy', 'cv2', 'signal') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, env=environment, text=True)
    assert run.stdout.splitlines()[-1] == "[]", run.stderr


def test_a_confidence_is_a_number() -> None:
    assert "--min-confidence" in _refused("a.jpg", "--min-confidence", "nan")
