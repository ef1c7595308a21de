"""What the wheel carries, and that it works where there is no checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from fer_runtime import __version__
from fer_runtime.model.find import SHIPPED

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a wheel and a source archive built from the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


def test_the_wheel_carries_packages_models_and_samples(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("fer_runtime", "fer_train", "fer_export", "fer_bench"):
        assert {f"{package}/__init__.py", f"{package}/py.typed"} <= names
    samples = {path.name for path in (CHECKOUT / "runtime/fer_runtime/samples").iterdir()}
    assert {f"fer_runtime/samples/{name}" for name in samples} <= names
    models = {f"model_{name}.onnx" for name in ("0", "0.int8", "v1.int8", "v3.int8")}
    assert {f"fer_runtime/models/{name}" for name in models} <= names
    assert f"fer_edge-{__version__}.dist-info/licenses/LICENSE" in names


def test_the_models_in_the_wheel_are_shipped_ones_and_each_has_one(wheel: Path) -> None:
    """A training in the checkout leaves models of other names, which no wheel must carry."""
    carried = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("fer_runtime/models/")}
    stems = {name.split(".")[0] for name in carried}
    assert stems == {model.stem for model in SHIPPED}


def test_the_wheel_carries_nothing_else(wheel: Path) -> None:
    stray = [
        name
        for name in zipfile.ZipFile(wheel).namelist()
        if not re.match(rf"(fer_(runtime|train|export|bench)/|fer_edge-{re.escape(__version__)}\.dist-info/)", name)
        or name.endswith((".pyc", ".pth", ".resume", ".partial"))
    ]
    assert stray == []


def test_models_in_the_wheel_are_those_of_the_checkout(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    for name in archive.namelist():
        if name.startswith("fer_runtime/models/"):
            assert archive.read(name) == (CHECKOUT / "models" / Path(name).name).read_bytes()


def test_the_base_install_needs_four_packages_and_a_fifth_on_python_3_10(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    text = archive.read(f"fer_edge-{__version__}.dist-info/METADATA").decode()
    metadata = Parser().parsestr(text)
    assert metadata["Version"] == __version__
    base = {re.split(r"[^\w-]", line)[0] for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert base == {"click", "numpy", "onnxruntime", "opencv-python-headless", "tomli"}
    assert [line for line in metadata.get_all("Requires-Dist", []) if line.startswith("tomli")] == [
        "tomli>=2.0; python_version < '3.11'"
    ]


@pytest.mark.parametrize(("chosen", "needed"), [("", "onnxruntime"), ("onnxruntime-gpu", "onnxruntime-gpu")])
def test_the_install_needs_one_onnxruntime_which_may_be_chosen(chosen: str, needed: str) -> None:
    done = _metadata(chosen)
    dependencies = [re.split(r"[^\w-]", requirement)[0] for requirement in json.loads(done.stdout)["dependencies"]]
    assert [name for name in dependencies if name.startswith("onnxruntime")] == [needed]


def test_an_unknown_onnxruntime_is_refused() -> None:
    done = _metadata("onnxruntime-abacus")
    assert done.returncode != 0
    assert "FER_EDGE_ONNXRUNTIME=onnxruntime-abacus is none of onnxruntime, onnxruntime-gpu" in done.stderr


def _metadata(distribution: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FER_EDGE_ONNXRUNTIME": distribution}
    command = [sys.executable, "-m", "hatchling", "metadata"]
    return subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True)


def test_the_unpacked_wheel_recognizes_its_samples(wheel: Path, tmp_path: Path) -> None:
    """In an empty folder, without the checkout on the path."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    program = (
        "import fer_runtime, sys; print(fer_runtime.__file__, file=sys.stderr);"
        "from fer_runtime.cli import main; main(['--samples', '--format', 'jsonl'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(site / "fer_runtime" / "__init__.py") in done.stderr
    assert str(site / "fer_runtime" / "models") in done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {Path(row["path"]).name for row in rows} >= {"eileen_collins.jpg", "grace_hopper.jpg", "group.jpg"}
    assert all(row["faces"] and row["error"] is None for row in rows)
    assert list(empty.iterdir()) == []


def test_the_source_archive_builds_the_wheel(built: Path) -> None:
    """Models are in it, or `pip install` of the archive would fail."""
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "models/model_0.onnx"} <= names
    assert not [name for name in names if name.startswith(("data/", ".venv")) or name.endswith(".pth")]
