"""Two real gloo processes against one: the same faces, the same statistics, the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.train.pictures import write_pictures

# Without dropout, whose masks differ between processes, the two runs do the same arithmetic.
_SCRIPT = """
import sys
from pathlib import Path
import torch
from fer_train.data import load_faces
from fer_train.distributed import joined_world
from fer_train.networks import create_network
from fer_train.recipes import Recipe
from fer_train.teachers import FaceAnswers
from fer_train.trainer import Trainer

data, out = Path(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
torch.manual_seed(0)
network = create_network(sys.argv[3])
for part in network.modules():
    if isinstance(part, torch.nn.Dropout):
        part.p = 0.0
epochs, batch_size, mixup = map(int, sys.argv[4:])
recipe = Recipe(
    epochs=epochs, batch_size=batch_size, optimizer="sgd", lr=0.02, augmentation="light", label_smoothing=0.05,
    mixup=mixup, cutmix=mixup,
)
with joined_world(torch.device("cpu")) as (world, device):
    faces = load_faces(data, "train"), load_faces(data, "validation")
    teacher = torch.zeros(len(faces[0]), 7)
    teacher[:, 2] = 1.0
    run = Trainer(network, *faces, recipe, device=device, seed=0, teachers=FaceAnswers(teacher), world=world)
    run._autocast_bf16 = False
    run.run()
    torch.save({"weights": run.network.state_dict(), "loss": run.history.train_loss}, out / f"{world.rank}.pt")
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 7 * 5 faces: the last of the batches of 16 has three, which two processes share unevenly.
    return write_pictures(tmp_path_factory.mktemp("data"), train=5, validation=2)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "FER_EDGE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


def _torchrun(processes: int, *arguments: object, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize(
    ("epochs", "batch_size", "mixup", "tolerance"),
    # One step of 35 faces, which two processes share unevenly: the same gradient but for the order of
    # its sums. Several steps let such differences grow (ReLU and MaxPool switch), so more is allowed.
    [(1, 35, 0, 1e-5), (1, 35, 1, 1e-5), (2, 16, 0, 5e-3)],
)
def test_two_processes_end_with_the_weights_of_one(
    epochs: int,
    batch_size: int,
    mixup: int,
    tolerance: float,
    pictures: Path,
    tmp_path: Path,
    environment: dict[str, str],
) -> None:
    script = tmp_path / "train.py"
    script.write_text(_SCRIPT)
    ends = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        out.mkdir()
        run = _torchrun(processes, script, pictures, out, "v0", epochs, batch_size, mixup, env=environment)
        assert run.returncode == 0, run.stderr
        ends[processes] = [torch.load(path, weights_only=True) for path in sorted(out.glob("*.pt"))]
    ((alone,), (first, second)) = ends[1], ends[2]
    assert alone["loss"] == pytest.approx(first["loss"], rel=1e-4)
    for name, value in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        assert torch.allclose(value.float(), first["weights"][name].float(), atol=tolerance, rtol=tolerance), name


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes to kill in /proc")
def test_the_command_has_one_writer_and_resumes(pictures: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    options = ["-m", "fer_train", "--model", "v0", "--data", pictures, "--epochs", 3, "--device", "cpu", "--no-plots"]
    run = _torchrun(2, *options, "--models-dir", tmp_path / "models", env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("validation accuracy") == 1
    assert [path.name for path in sorted((tmp_path / "models").iterdir())] == ["model_0.pth", "model_0_results.json"]
    results = json.loads((tmp_path / "models" / "model_0_results.json").read_text())
    assert results["settings"]["processes"] == 2
    assert len(results["test_acc"]) == 3

    # Killed after the first epoch, the launcher and both of its processes at once, and gone on with.
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [*map(str, options), "--models-dir", str(killed)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 1/"):
            break
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for number in (process.pid, *map(int, workers)):
        os.kill(number, signal.SIGKILL)
    process.wait()
    assert (killed / "model_0.resume.pth").exists()
    assert not (killed / "model_0.pth").exists()
    run = _torchrun(2, *options, "--models-dir", killed, "--resume", env=environment)
    assert run.returncode == 0, run.stderr
    assert "epoch 1/3" not in run.stderr
    resumed = json.loads((killed / "model_0_results.json").read_text())
    assert len(resumed["test_acc"]) == 3
