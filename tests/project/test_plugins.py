"""Entries of the registries, added from outside by a module that FER_EDGE_PLUGINS names, used from the command line.

tests/benchmarks/test_engines.py does the same with an engine of fer-bench.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.commands import RUNTIME, TRAINING, run_python_text
from tests.train.images import write_images

from fer_runtime.batch.sources import sample_images

# What CONTRIBUTING.md describes: one module and one entry for each.
_PLUGIN = """
from fer_runtime.detectors import DETECTORS, Detection, DetectorEntry
from fer_runtime.output.formats import OUTPUT_FORMATS, OutputFormat
from fer_train.data.augmentations import AUGMENTATIONS, AugmentationEntry
from fer_train.networks.architectures import ARCHITECTURES, Architecture


class Corner:
    name = "corner"

    def detect(self, image):
        return (Detection(box=(0, 0, 48, 48)),)


class Names:
    def header(self):
        return "names:\\n"

    def row(self, result):
        return f"{result.path} {result.faces[0].expression}\\n"


DETECTORS.register(DetectorEntry(name="corner", help="the upper left corner", create="plugin:make_corner"))
OUTPUT_FORMATS.register(OutputFormat(name="names", help="names alone", suffixes=(".names",), images="plugin:Names"))
AUGMENTATIONS.register(AugmentationEntry(name="negative", apply="plugin_network:negative"))
ARCHITECTURES.register(Architecture(name="tiny", help="two layers", build="plugin_network:tiny"))


def make_corner(options):
    return Corner()
"""

_NETWORK = """
from torch import nn


def tiny(*, dropout):
    features = nn.Conv2d(3, 4, kernel_size=4, stride=4)
    return nn.Sequential(features, nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * 12 * 12, 7))


def negative(faces, generator):
    return 1 - faces.float() / 255
"""


def _run(folder: Path, module: str, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = run_python_text(
        *("-m", module, *arguments),
        cwd=folder,
        env={**os.environ, "FER_EDGE_PLUGINS": "plugin", "PYTHONPATH": path},
        libraries=RUNTIME if module == "fer_runtime" else TRAINING,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plugin.py").write_text(_PLUGIN, encoding="utf-8")
    (tmp_path / "plugin_network.py").write_text(_NETWORK, encoding="utf-8")  # PyTorch is loaded where it is used
    return tmp_path


def test_a_detector_and_an_output_format_are_one_entry(folder: Path) -> None:
    help_text = " ".join(_run(folder, "fer_runtime", "--help").stdout.split())
    assert "corner: the upper left corner" in help_text
    assert "names: names alone" in help_text
    image = sample_images()[0]
    (row,) = _run(folder, "fer_runtime", image, "--detector", "corner", "--format", "jsonl").stdout.splitlines()
    assert json.loads(row)["faces"][0]["box"] == [0, 0, 48, 48]
    expression = json.loads(row)["faces"][0]["expression"]
    # The format goes by the suffix of the file as well.
    _run(folder, "fer_runtime", image, "--detector", "corner", "--output", "rows.names")
    assert (folder / "rows.names").read_text() == f"names:\n{image} {expression}\n"
    # The entry says what the detector uses, and what it does not use is refused.
    refused = _run(folder, "fer_runtime", image, "--detector", "corner", "--min-face", 30, code=2)
    assert "--min-face: only with --detector auto, haar or yunet" in refused.stderr


def test_an_architecture_and_an_augmentation_are_one_entry(folder: Path) -> None:
    data = write_images(folder / "data", train=6, validation=3)
    assert "tiny: two layers" in " ".join(_run(folder, "fer_train", "--help").stdout.split())
    settings = ("--set", "augmentation=negative", "--epochs", 1, "--device", "cpu", "--no-plots")
    _run(folder, "fer_train", "--model", "tiny", "--name", "mine", "--data", data, *settings)
    assert (folder / "models" / "mine.pth").is_file()
    _run(folder, "fer_export", "--model", "tiny", "--name", "mine")
    listed = _run(folder, "fer_runtime", "--list-models").stdout
    assert "mine  fp32  models/mine.onnx" in listed
    errors = _run(folder, "fer_runtime", sample_images()[0], "--model", "mine", "--output", "rows.jsonl").stderr
    assert errors.startswith("models/mine.onnx  fp32  CPU")
    row = json.loads((folder / "rows.jsonl").read_text())
    assert abs(sum(row["faces"][0]["probabilities"].values()) - 1) < 1e-5  # seven numbers of six decimals


def test_a_plugin_that_is_not_there_is_named(folder: Path) -> None:
    (folder / "plugin.py").unlink()
    refused = _run(folder, "fer_runtime", "--samples", code=2)
    assert "FER_EDGE_PLUGINS names a module that cannot be imported: No module named 'plugin'" in refused.stderr


def test_a_name_is_registered_once(folder: Path) -> None:
    with (folder / "plugin.py").open("a", encoding="utf-8") as file:
        file.write('DETECTORS.register(DetectorEntry(name="haar", help="", create="plugin:make_corner"))\n')
    refused = _run(folder, "fer_runtime", "--samples", code=1)
    assert "the detector 'haar' is registered already" in refused.stderr
