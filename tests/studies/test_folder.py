"""The folder study: both sides classify the same images alike, and the table has their rates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from tests.train.images import write_images

from fer_runtime import Recognizer
from fer_runtime.batch.jobs import recognize_files
from studies.folder import FolderRates, main

MODELS = Path(__file__).parents[2] / "models"


def test_the_bare_loop_classifies_as_the_command_does(tmp_path: Path) -> None:
    paths = [str(path) for path in sorted(write_images(tmp_path).rglob("*.png"))]
    assert len(paths) > 64  # more than a batch
    command = [sys.executable, "-m", "studies.bare_loop", str(MODELS / "model_0.onnx")]
    done = subprocess.run(command, input="\n".join(paths), capture_output=True, text=True, check=True)
    with Recognizer(MODELS / "model_0.onnx") as recognizer:
        names = recognizer.metadata.labels
        found = [names.index(row.faces[0].expression) for row in recognize_files(recognizer, paths)]
    assert list(map(int, done.stdout.split())) == np.bincount(found, minlength=7).tolist()


def test_the_table_has_a_row_per_model(tmp_path: Path) -> None:
    write_images(tmp_path)
    options = ["--rounds", "1", "--model", "v0", "--precision", "int8", "--models-dir", str(MODELS)]
    done = CliRunner().invoke(main, [str(tmp_path), *options])
    assert done.exit_code == 0, done.output
    name, precision, *figures = done.stdout.splitlines()[-1].split()
    assert (name, precision) == ("v0", "int8")
    assert all(float(figure.replace(",", "")) > 0 for figure in figures)


def test_the_ratio_is_the_median_of_the_rounds() -> None:
    rates = FolderRates(model="v0", precision="fp32", bare_cpu_s=(1.0, 2.0, 4.0), command_cpu_s=(1.5, 2.2, 8.0))
    assert rates.ratio == 1.5
