"""The engine `ray` on a real cluster of two nodes: rows of a local run, and nothing lost when parts of it die."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tests.processes import started
from tests.runtime.images.make_files import make_crashing_apng
from tests.runtime.tiny_models import band_face, write_band_model

from fer_runtime.model.metadata import ModelMetadata

ray: Any = pytest.importorskip("ray", reason="needs the extra `ray`")
pq: Any = pytest.importorskip("pyarrow.parquet", reason="needs the extra `ray`")

LABELS = ("bored", "müde, sehr", "engaged")
SHARD_SIZE = 64
SHARDS = 18
# Ray takes a node for dead after so many checks without an answer; its own patience is half a minute.
QUICK_TO_MISS_A_NODE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 4,
}
# Ray gives its workers the least priority but four: beside other tests on two cores, a run of 8 s took 90 s.
NOT_NICE = {"worker_niceness": 0}
# Processes of a node that these runs do not need.
UNUSED = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}


class Cluster:
    """Two nodes with a CPU each, on loopback addresses; drivers connect to the first."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        # 127.0.0.1 itself would be replaced by the machine's outer address.
        node = {"num_cpus": 1, "node_ip_address": "127.0.0.2"}
        settings = (
            QUICK_TO_MISS_A_NODE | NOT_NICE | {"enable_worker_prestart": False, "prestart_worker_first_driver": False}
        )
        self._cluster = RayCluster(initialize_head=True, head_node_args=node | UNUSED | {"_system_config": settings})
        self.second = self._cluster.add_node(**node)
        self.address: str = self._cluster.address

    def kill_node(self, node: Any) -> None:
        """End every process of a node at once, as a power cut does."""
        self._cluster.remove_node(node, allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    handler = signal.getsignal(signal.SIGTERM)  # Ray's nodes set one of their own, which would outlive them
    running = Cluster()
    yield running
    running.shutdown()
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of labels of one's own."""
    said = ModelMetadata(name="mine", labels=LABELS, precision="fp32", opset=18)
    return write_band_model(tmp_path_factory.mktemp("model") / "mine.onnx", metadata=said)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of each label, and others for full shards and a short one, some of them broken."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(7)
    # Large enough that a shard takes most of a second, and a kill falls into the middle of one.
    kinds = []
    for kind in range(10):
        kinds.append(root.parent / f"kind{kind}.jpg")
        cv2.imwrite(str(kinds[-1]), cv2.resize(random.integers(0, 256, (9, 9), np.uint8), (1000, 1000)))
    for number in range(SHARD_SIZE * SHARDS - 20):
        name = root / f"{number:04d}.jpg"
        if number % 100 == 50:
            name.write_bytes(b"\xff\xd8\xff and no more")
        elif number == 30:
            name.write_bytes(make_crashing_apng())
        elif number < len(LABELS):
            cv2.imwrite(str(name), band_face(number, side=90, classes=len(LABELS)))
        else:
            os.link(kinds[number % 10 if number % 7 else 3], name)
    return root


@pytest.fixture(scope="module")
def local_rows(model: Path, folder: Path) -> bytes:
    return infer(folder, "--model", model, "--detector", "whole").stdout


def run_python(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, timeout=300)


def infer(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    return run_python("-m", "fer_runtime", *arguments)


def shards_of(output: Path) -> list[Path]:
    return sorted(output.glob("part-*.jsonl"))


def rows_of(output: Path) -> bytes:
    return b"".join(shard.read_bytes() for shard in shards_of(output))


def sorted_lines(rows: bytes) -> list[bytes]:
    return sorted(rows.splitlines())


def wait_for(condition: Callable[[], bool], event: str, run: subprocess.Popen[bytes], *, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert run.poll() is None, f"ended before {event}: {run.communicate()[1].decode()}"
        assert time.monotonic() < end, f"waited in vain for {event}"
        time.sleep(0.02)


def actors_of(node: Any) -> list[int]:
    """Process ids of the recognizers on a node; Ray writes an actor's class into its process's title."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for process in Path("/proc").iterdir():
        try:
            parent = int(process.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet and b"ShardRecognizer" in process.joinpath("cmdline").read_bytes():
                found.append(int(process.name))
        except (OSError, ValueError, IndexError):  # no process, or one that has ended meanwhile
            continue
    return found


_POOL = """
import os, sys, time
import ray
from fer_runtime.cluster.engine import connected
from fer_runtime.cluster.pool import Shard, ShardResult, results_of
from fer_runtime.errors import ClusterError

class Actor:
    def __init__(self, first):
        # The first one ends before it is ready.
        if first and not os.path.exists(first):
            open(first, "w").close()
            os._exit(1)

    def recognize(self, shard):
        if shard.number == deadly:
            os._exit(1)
        if shard.number == 0:
            time.sleep(1)
        if shard.number == wrong:
            raise ClusterError("told to")
        return ShardResult(number=shard.number, summary="", rows="x" * 300_000)

address, folder = sys.argv[1:]
shards = [Shard(number=number, paths=None) for number in range(8)]
deadly = wrong = None
with connected(address):
    def results(in_order, first=None):
        actor = ray.remote(num_cpus=1, max_restarts=0)(Actor)  # of today's globals
        return results_of(iter(shards), lambda: actor.remote(first), workers=2, in_order=in_order)

    in_order = list(results(True, folder + "/first"))
    print("in order", [result.number for result in in_order], {len(result.rows) for result in in_order})
    finished = [result.number for result in results(False)]
    print("finished", sorted(finished), finished[0])
    deadly = 3
    given = []
    try:
        for result in results(False):
            given.append(result.number)
    except ClusterError as error:
        print("deadly", 3 in given, error)
    deadly, wrong = None, 5
    try:
        list(results(False))
    except ray.exceptions.RayError as error:
        print("wrong", "told to" in str(error))
    end = time.monotonic() + 60
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < end:
        time.sleep(0.1)
    print("free", ray.available_resources()["CPU"])
"""


def test_a_pool_replaces_actors_and_gives_up_on_a_shard_that_ends_them(cluster: Cluster, tmp_path: Path) -> None:
    run = run_python("-c", _POOL, cluster.address, tmp_path)
    assert run.returncode == 0, run.stderr.decode()
    # Ray's own messages about lost actors would stand among the rows.
    in_order, finished, deadly, wrong, free = run.stdout.decode().splitlines()
    assert in_order == "in order [0, 1, 2, 3, 4, 5, 6, 7] {300000}"
    # The first shard takes a second, so another is there before it.
    assert finished.startswith("finished [0, 1, 2, 3, 4, 5, 6, 7] ")
    assert not finished.endswith(" 0")
    assert deadly.startswith("deadly False shard 3 was lost with 5 actors, the last time because: The actor died")
    assert wrong == "wrong True"
    assert free == "free 2.0"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the actors' processes in /proc")
def test_a_killed_worker_and_a_lost_node_cost_no_row_and_repeat_none(
    cluster: Cluster, model: Path, folder: Path, local_rows: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "rows"
    arguments = (folder, "--model", model, "--detector", "whole", "--output", output, "--part-size", SHARD_SIZE)
    on_cluster = ("--engine", "ray", "--ray-address", cluster.address)
    command = [sys.executable, "-m", "fer_runtime", *map(str, (*arguments, *on_cluster))]
    with started(command, stderr=subprocess.PIPE) as run:
        wait_for(lambda: len(shards_of(output)) >= 2 and bool(actors_of(cluster.second)), "two shards", run)
        killed = actors_of(cluster.second)
        os.kill(killed[0], signal.SIGKILL)
        before_node = len(shards_of(output))
        wait_for(lambda: bool(actors_of(cluster.second)), "the actor that takes its place", run)
        wait_for(lambda: len(shards_of(output)) >= before_node + 2, "two more shards", run)
        left = SHARDS - len(shards_of(output))
        cluster.kill_node(cluster.second)
        assert left >= 3, "the node died too late to be missed"
        _, errors = run.communicate(timeout=300)
    assert run.returncode == 1, errors.decode()  # some pictures are broken
    assert sorted_lines(rows_of(output)) == sorted_lines(local_rows)
    assert rows_of(output) == local_rows
    faces = [json.loads(line)["faces"][0] for line in rows_of(output).splitlines()[: len(LABELS)]]
    assert tuple(face["expression"] for face in faces) == LABELS
    assert tuple(faces[0]["probabilities"]) == LABELS
    assert list(output.rglob("*.partial")) == []
    assert json.loads((output / "_SUCCESS").read_bytes())["images"] == SHARD_SIZE * SHARDS - 20

    # Shards that are there stay as they are; what is missing is made again, by one node.
    written = {shard.name: shard.stat().st_mtime_ns for shard in shards_of(output)}
    (output / "part-000003.jsonl").unlink()
    again = infer(*arguments, *on_cluster, "--resume")
    assert again.returncode == 1, again.stderr.decode()
    assert f"{SHARDS - 1} of them complete".encode() in again.stderr
    assert f"{SHARD_SIZE * SHARDS - 20} images".encode() in again.stderr
    assert rows_of(output) == local_rows
    changed = {shard.name for shard in shards_of(output) if shard.stat().st_mtime_ns != written[shard.name]}
    assert changed == {"part-000003.jsonl"}

    # Two models, or two runs, never share a folder.
    assert b"continue it with --resume" in infer(*arguments, *on_cluster).stderr
    other = infer(*arguments, *on_cluster, "--resume", "--min-confidence", "0.5")
    assert other.returncode == 1
    assert b"min_confidence was None, is 0.5" in other.stderr


def test_parquet_shards_hold_the_rows_of_the_json_lines(
    cluster: Cluster, model: Path, folder: Path, local_rows: bytes, tmp_path: Path
) -> None:
    listed = "\n".join(str(path) for path in sorted(folder.iterdir())[: 2 * SHARD_SIZE])
    arguments = ("--model", model, "--detector", "whole", "--format", "parquet", "--output", tmp_path / "rows")
    command = [sys.executable, "-m", "fer_runtime", "-", *map(str, arguments), "--part-size", str(SHARD_SIZE)]
    command += ["--engine", "ray", "--ray-address", cluster.address]
    run = subprocess.run(command, input=listed.encode(), capture_output=True, timeout=300)
    assert run.returncode == 1, run.stderr.decode()
    shards = sorted((tmp_path / "rows").glob("*.parquet"))
    rows = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    for row in rows:
        for face in row["faces"]:
            assert face.pop("uncertain") is None
    assert rows == [json.loads(line) for line in local_rows.splitlines()[: 2 * SHARD_SIZE]]


def test_without_an_address_a_run_stays_here_and_gives_ordered_rows_of_uris(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for picture in sorted(folder.iterdir())[: SHARD_SIZE + 6]:
        os.link(picture, tmp_path / picture.name)
    # Ray's sockets would have names that are too long in such a folder.
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    arguments = ("--model", model, "--detector", "whole")
    run = infer(f"file://{tmp_path}", *arguments, "--engine", "ray", "--part-size", SHARD_SIZE)
    assert run.returncode == 1, run.stderr.decode()
    assert run.stdout.replace(b'"file://', b'"') == infer(tmp_path, *arguments).stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("--annotate", "seen"),
        ("--contact-sheet", "page.png"),
        ("--camera", "0"),
        ("--format", "csv"),
        ("--format", "parquet"),
        ("--part-size", "100"),
        ("film.mp4",),
    ],
)
def test_what_the_cluster_cannot_do_is_wrong_usage(arguments: tuple[str, ...]) -> None:
    from click.testing import CliRunner

    from fer_runtime.cli import main

    given = arguments if arguments == ("film.mp4",) else ("a.png", *arguments)
    assert CliRunner().invoke(main, [*given, "--engine", "ray"]).exit_code == 2


def test_an_address_where_nobody_listens_is_an_error_at_once(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "1.png"), band_face(4))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    run = infer(tmp_path, "--engine", "ray", "--ray-address", f"127.0.0.1:{port}")
    assert run.returncode == 1
    assert f"cannot reach a Ray cluster at 127.0.0.1:{port}: ".encode() in run.stderr


def test_options_of_the_cluster_need_it() -> None:
    from click.testing import CliRunner

    from fer_runtime.cli import main

    for arguments in (("--workers", "2"), ("--ray-address", "auto"), ("--part-size", "64"), ("--format", "parquet")):
        assert CliRunner().invoke(main, ["a.png", *arguments]).exit_code == 2
