"""Two real gloo processes against one: the same faces, the same statistics, the same weights."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tests.commands import TRAINING, run_python_text
from tests.conftest import CHECKOUT
from tests.processes import limited
from tests.train.images import write_images

# Without dropout, whose masks differ between processes, both runs do the same arithmetic up to the order of its sums.
# In float64: in float32 that order decides near-ties of MaxPool and ReLU, and then a gradient differs in its third
# digit, on one processor here and on another there.
_SCRIPT = """
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import torch
torch.set_default_dtype(torch.float64)
of_numpy = torch.from_numpy
torch.from_numpy = lambda array: of_numpy(array.astype("float64") if array.dtype == "float32" else array)
torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double
from fer_train.loop import distill as teachers
from fer_train.loop import trainer
from fer_train.data.folders import load_faces
from fer_train.loop.distributed import joined_world
from fer_train.networks.registry import create_network
from fer_train.recipes import Recipe
from fer_train.loop.distill import FaceAnswers, ImageAnswers
from fer_train.loop.trainer import Trainer
import tests.export.narrow

teachers.supports_bf16 = lambda device: False
trainer.trains_in_bf16 = lambda network, device: False
data, out, cases = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
torch.set_num_threads(1)
faces = load_faces(data, "train"), load_faces(data, "validation")


def train(case, name, views, settings, world, device):
    torch.manual_seed(0)
    network = create_network(name)
    for part in network.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    recipe = Recipe(epochs=1, batch_size=16, optimizer="sgd", lr=0.02, augmentation="light", label_smoothing=0.05)
    recipe = recipe.with_settings(*settings)
    answers = torch.zeros(len(faces[0]), 7)
    answers[:, 2] = 1.0
    teacher = FaceAnswers(answers) if views == "faces" else ImageAnswers([create_network("narrow").eval()])
    run = Trainer(network, *faces, recipe, device=device, seed=0, teachers=teacher, world=world)
    run.run()
    file = out / f"{case}.{world.rank}of{world.size}.pt"
    torch.save({"weights": run.best_state, "loss": run.history.train_loss}, file)


# Three processes in all. The third one trains every case alone, the others those of two; then all train those of three.
rank = int(os.environ["RANK"])
for processes, port in zip((1, 2, 3), sys.argv[4:]):
    if (processes == 1) != (rank == 2) and processes < 3:
        continue
    os.environ |= {"WORLD_SIZE": str(processes), "MASTER_PORT": port}
    with joined_world(torch.device("cpu")) as (world, device):
        for case, (wanted, *rest) in cases.items():
            if processes in (1, wanted):
                train(case, *rest, world, device)
os._exit(0)  # as fer-train ends: gloo's threads may abort a Python that tidies up
"""

# By name: processes, architecture, the teacher's views, settings.
_CASES: dict[str, tuple[int, str, str, tuple[str, ...]]] = {
    # One step of 35 faces, which two processes share unevenly.
    "one step": (2, "narrow", "faces", ("batch_size=35",)),
    "mixup": (2, "narrow", "faces", ("batch_size=35", "mixup=1", "cutmix=1")),
    "two epochs": (2, "narrow", "faces", ("batch_size=16", "epochs=2")),
    # Batches of 17 and 18 faces: the last one takes the remaining face.
    "a face more": (2, "narrow", "faces", ("batch_size=17",)),
    "teachers": (2, "v2", "images", ("batch_size=18", "ema_decay=0.9", "teacher_views=images")),
    # Batches of 33 and 2 faces: the third process has no face of the second.
    "no face": (3, "narrow", "faces", ("batch_size=33",)),
}

# What the processes do together beside the steps; each says what it met.
_TOGETHER = """
import json
import os
import sys
import time
from pathlib import Path
import torch
from fer_runtime.errors import FerError
from fer_train.data.folders import load_faces
from fer_train.loop.distributed import joined_world, one_per_machine_first
from fer_train.networks.registry import create_network
from fer_train.recipes import Recipe
from fer_train.loop.trainer import Trainer
import tests.export.narrow

data, out = Path(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
recipe = Recipe(epochs=1, batch_size=16, optimizer="sgd", lr=0.02, augmentation="light")
with joined_world(torch.device("cpu")) as (world, device):
    faces = load_faces(data, "train"), load_faces(data, "validation")
    # As on machines without a shared folder: only the writer has what was written.
    folder = out / f"machine_{world.rank}"
    said = {}

    def trainer(recipe, **more):
        torch.manual_seed(0)
        return Trainer(create_network("narrow"), *faces, recipe, device=device, seed=0, world=world, **more)

    trainer(recipe).run(resume_path=folder / "state.pth")
    restored = trainer(recipe)
    restored.run(resume_path=folder / "state.pth", finish=True)
    said["masks"] = torch.rand(8).tolist()
    longer = trainer(recipe.overridden(epochs=3))
    longer.run(resume_path=folder / "state.pth", resume=True)
    said["epochs"] = longer.history.epochs
    said["loss"] = longer.history.train_loss
    said["weights"] = float(sum(value.double().sum() for value in longer.network.state_dict().values()))

    def refusal(work):
        try:
            work()
        except FerError as error:
            return f"{type(error).__name__}: {error}"

    said["nothing to finish"] = refusal(lambda: trainer(recipe).run(resume_path=folder / "none.pth", finish=True))
    said["other data"] = refusal(trainer(recipe, identity={"data": world.rank}).run)

    def fetch():
        started = time.monotonic()
        time.sleep(0.2)
        return started, time.monotonic()

    said["fetched"] = one_per_machine_first(fetch, world)

    def fail():
        raise FerError("no network")

    said["not fetched"] = refusal(lambda: one_per_machine_first(fail, world))
    (out / f"{world.rank}.json").write_text(json.dumps(said))
os._exit(0)  # as fer-train ends: gloo's threads may abort a Python that tidies up
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 7 * 5 faces: the last of the batches of 16 has three, which two processes share unevenly.
    return write_images(tmp_path_factory.mktemp("data"), train=5, validation=2)


def _environment(folder: Path) -> dict[str, str]:
    """Of processes that find the small network of the export's tests."""
    path = os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "FER_EDGE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return _environment(tmp_path)


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _together(processes: int, *arguments: object, env: dict[str, str]) -> str:
    """What the processes say, started as torchrun does, without its own process."""
    world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    ranks = [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)} for rank in range(processes)
    ]
    with ThreadPoolExecutor(processes) as threads:
        runs = threads.map(
            lambda rank: run_python_text(*arguments, env=env | world | rank, timeout=900, libraries=TRAINING), ranks
        )
        ends = [(run.returncode, run.stdout + run.stderr) for run in runs]
    assert [code for code, _ in ends] == [0] * processes, ends
    return "".join(said for _, said in ends)


@pytest.fixture(scope="module")
def ends(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the ends of all cases: each process starts once, not once a case."""
    folder = tmp_path_factory.mktemp("ends")
    (folder / "train.py").write_text(_SCRIPT)
    environment = _environment(folder)
    ports = (_free_port() for _ in range(3))
    _together(3, folder / "train.py", images, folder, json.dumps(_CASES), *ports, env=environment)
    return folder


@pytest.mark.parametrize("case", _CASES)
def test_several_processes_end_with_the_weights_of_one(case: str, ends: Path) -> None:
    processes = _CASES[case][0]
    alone = torch.load(ends / f"{case}.0of1.pt", weights_only=True)
    files = [ends / f"{case}.{rank}of{processes}.pt" for rank in range(processes)]
    first, *others = (torch.load(file, weights_only=True) for file in files)
    assert alone["loss"] == pytest.approx(first["loss"], rel=1e-9)
    for key, value in alone["weights"].items():
        assert all(torch.equal(first["weights"][key], other["weights"][key]) for other in others), key
        # float64 has an epsilon of 2e-16. A gradient sums at most 35 x 48 x 48 products, and at most five steps let
        # the differences grow; 5e-15 were seen, and a wrong share of a face moves weights by 1e-4.
        assert torch.allclose(value, first["weights"][key], rtol=1e-10, atol=1e-10), key


def test_what_processes_do_together_beside_the_steps(images: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    script = tmp_path / "together.py"
    script.write_text(_TOGETHER)
    _together(2, script, images, tmp_path, env=environment)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert not (tmp_path / "machine_1").exists()
    # The second one, without a file, goes on where the writer stopped, and with other masks.
    assert first["epochs"] == second["epochs"] == 3
    assert first["loss"] == second["loss"]
    assert first["weights"] == second["weights"]
    assert not set(first["masks"]) & set(second["masks"])
    for said in (first, second):
        assert "CheckpointError: no stopped run at" in said["nothing to finish"]
        assert "DataError: process 1 has another data than process 0" in said["other data"]
        assert said["not fetched"] == "FerError: no network"
    assert first["fetched"][1] <= second["fetched"][0]


def test_several_processes_pretrain_one_network(tmp_path: Path, environment: dict[str, str]) -> None:
    images = write_images(tmp_path / "data", train=4, validation=1) / "images" / "train"
    models = tmp_path / "models"
    options = ["--model", "v1", "--pretrain", images, "--epochs", 1, "--device", "cpu", "--models-dir", models]
    output = _together(2, "-m", "fer_train", *options, env=environment)
    assert output.count("on held-out ones") == 1
    assert output.count("epoch 1/1") == 1
    assert [path.name for path in models.iterdir()] == ["model_v1_pretrained.pth"]


# A stand-in for kagglehub that takes its time, and says when it was at it.
_KAGGLEHUB = """
import os
import time

def dataset_download(name):
    for word, seconds in (("begun", 0.5), ("done", 0)):
        with open(os.environ["DOWNLOADS"], "a") as log:
            log.write(word + " ")
        time.sleep(seconds)
    return os.environ["PICTURES"]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes to kill in /proc")
def test_the_command_has_one_writer_and_resumes(images: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "kagglehub.py").write_text(_KAGGLEHUB)
    downloads = tmp_path / "downloads"
    python_path = os.pathsep.join([str(tmp_path / "stub"), environment["PYTHONPATH"]])
    environment |= {"PYTHONPATH": python_path, "DOWNLOADS": str(downloads), "PICTURES": str(images)}
    models = tmp_path / "models"
    options = [
        "-m",
        "fer_train",
        "--model",
        "v0",
        "--epochs",
        3,
        "--device",
        "cpu",
        "--no-plots",
        "--models-dir",
        models,
    ]

    # Killed after the first epoch, the launcher and both of its processes at once, and continued.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen([*command, *map(str, options)], env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with limited(process):
        assert any(line.startswith("epoch 1/") for line in process.stderr)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for number in (process.pid, *map(int, workers)):
        os.kill(number, signal.SIGKILL)
    process.wait()
    # The second process asked when the download of the first one was there.
    assert downloads.read_text().split() == ["begun", "done"] * 2
    assert (models / "model_0.resume.pth").exists()
    assert not (models / "model_0.pth").exists()
    output = _together(2, *options, "--data", images, "--resume", env=environment)
    assert "epoch 1/3" not in output
    assert output.count("validation: accuracy") == 1
    assert [path.name for path in sorted(models.iterdir())] == ["model_0.pth", "model_0_results.json"]
    results = json.loads((models / "model_0_results.json").read_text())
    assert results["settings"]["processes"] == 2
    assert len(results["test_acc"]) == 3
