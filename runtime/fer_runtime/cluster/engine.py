"""A run over images on a Ray cluster: shards go to a pool of actors, each with a recognizer.

A shard is a fixed sequence of full blocks in the order of the paths, so that its rows have the bytes of a local run.
It is written completely or not at all. An actor that dies leaves nothing of its shard, and another one makes it again.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_runtime import __version__
from fer_runtime.batch.jobs import BLOCK, JobSummary, recognize_files
from fer_runtime.cluster.pool import Shard, ShardResult, results_of
from fer_runtime.cluster.shards import (
    SUCCESS,
    add_summary,
    counts_name,
    find_plan,
    finished_shards,
    parse_paths,
    path_lists,
    paths_name,
    shard_name,
    summary_to_json,
    write_plan,
)
from fer_runtime.cluster.storage import is_uri, local_folder, open_store, read_uri
from fer_runtime.detectors.yunet_file import cached_yunet
from fer_runtime.errors import ClusterError, FerError, OutputError, first_line
from fer_runtime.extras import needs_extra
from fer_runtime.files import CACHE_VARIABLE
from fer_runtime.images import read_bytes
from fer_runtime.model.session import runtime_version
from fer_runtime.output.parquet import to_parquet
from fer_runtime.output.rows import JsonLines
from fer_runtime.recognizer import Recognizer
from fer_runtime.registry import PLUGINS_VARIABLE, load_plugins
from fer_runtime.system import available_cpus

SHARD_SIZE = 1024  # images: a fifth of a second to a minute of work
# Ray's default is a third of the memory; paths and counts of the shards in work need little.
_OBJECT_STORE_BYTES = 256 * 1024 * 1024
# Ray adds up to 64 bytes for its sockets, whose paths have at most 103 bytes on macOS and 107 on Linux.
_SESSION_PATH_BYTES = 39
# An object store answers after some 30 ms: one thread would read 33 images a second, the model takes 9,000.
_REMOTE_READERS = 32
_CONNECT_SECONDS = 10
_COUNT_READERS = 16  # an object store answers each after some 20 ms


@dataclass(frozen=True, slots=True, kw_only=True)
class RecognizerRecipe:
    """Everything that an actor needs to rebuild the driver's recognizer on a machine without its files."""

    model_name: str  # the file's name, for messages
    model: bytes
    yunet: bytes | None  # None where the driver does not use it
    options: dict[str, Any]  # keyword arguments of Recognizer
    settings: dict[str, Any]  # of the driver's recognizer
    plugins: str  # modules that the driver's FER_EDGE_PLUGINS names


def pack_recognizer(recognizer: Recognizer, *, yunet: Path | None = None, **options: Any) -> RecognizerRecipe:
    """The recipe of `recognizer`.

    Args:
        yunet: the file that it was made with.
        options: the other keyword arguments that it was made with, but for the model and its folder.
    """
    return RecognizerRecipe(
        model_name=recognizer.path.name,
        model=recognizer.path.read_bytes(),
        yunet=(yunet or cached_yunet()).read_bytes() if recognizer.detector_used == "yunet" else None,
        options=options,
        settings=settings_of(recognizer),
        plugins=os.environ.get(PLUGINS_VARIABLE, ""),
    )


def settings_of(recognizer: Recognizer) -> dict[str, Any]:
    """The recognizer's settings, with the versions that must agree on all machines."""
    import cv2

    versions = {"fer-edge": __version__, "onnxruntime": runtime_version(), "opencv": cv2.__version__}
    return recognizer.settings() | versions


class ShardRecognizer:
    """An actor of the pool: takes a shard's number and paths, and writes its rows or gives them back."""

    def __init__(self, recipe: RecognizerRecipe, *, output: str | None, format_name: str, folder: str) -> None:
        import cv2

        cv2.setNumThreads(1)  # the process is the actor's alone, and Ray counts its CPUs
        self._refusal = ""  # why this machine cannot do what the driver's does
        os.environ[PLUGINS_VARIABLE] = recipe.plugins
        try:
            load_plugins()
        except ImportError as error:
            self._refusal = f"cannot import a module of {PLUGINS_VARIABLE}: {error}; install it on all machines"
            return
        options = dict(recipe.options)
        # Private (mode 0700), and gone as soon as all is loaded: Ray ends actors without letting them tidy up.
        with tempfile.TemporaryDirectory(prefix="fer-") as folder_of_files:
            # This machine's cache folder must not decide how faces are found.
            os.environ[CACHE_VARIABLE] = folder_of_files
            if recipe.yunet is not None:
                options["yunet"] = Path(folder_of_files, "yunet.onnx")
                options["yunet"].write_bytes(recipe.yunet)
            model = Path(folder_of_files, recipe.model_name)
            model.write_bytes(recipe.model)
            self._recognizer = Recognizer(model, **options)
            settings = settings_of(self._recognizer)
        different = [
            f"{key} {settings[key]}, not {value}" for key, value in recipe.settings.items() if settings[key] != value
        ]
        if different:
            self._refusal = f"has {'; '.join(different)}; install the same versions on all"
        self._store = None if output is None else open_store(output)
        self._format_name = format_name
        self._folder = folder

    def recognize(self, shard: Shard) -> ShardResult:
        """The rows of a shard's images, given back or written.

        Raises:
            ClusterError: this machine has other versions than the driver's, or lacks its plugins.
            OutputError: the output folder does not hold the shard's paths.
        """
        if self._refusal:
            raise ClusterError(f"the machine {os.uname().nodename} {self._refusal}")
        number, summary = shard.number, JobSummary()
        listed = shard.paths or self._read_paths(number)
        rows = self._rows(parse_paths(listed, name=paths_name(number)), summary)
        if self._store is not None:
            content = (
                to_parquet(rows, self._recognizer.labels) if self._format_name == "parquet" else rows.encode("utf-8")
            )
            # Counts first: where a shard's rows are, its counts are too.
            self._store.write(counts_name(number), summary_to_json(summary).encode("ascii"))
            self._store.write(shard_name(number, self._format_name), content)
            rows = ""
        return ShardResult(number=number, summary=summary_to_json(summary), rows=rows)

    def _read_paths(self, number: int) -> bytes:
        content = None if self._store is None else self._store.read(paths_name(number))
        if content is None:
            raise OutputError(
                f"{paths_name(number)} is not in the output folder as this machine sees it; give a folder that all "
                "machines share, or an object store"
            )
        return content

    def _rows(self, paths: list[str], summary: JobSummary) -> str:
        write = JsonLines().row
        readers = _REMOTE_READERS if any(map(is_uri, paths)) else 1
        results = recognize_files(
            self._recognizer, paths, summary=summary, workers=readers, model_threads=1, read=self._read
        )
        return "".join([write(result) for result in results])

    def _read(self, path: str) -> bytes:
        # Ray starts actors in a folder of its own choice.
        return read_uri(path) if is_uri(path) else read_bytes(os.path.join(self._folder, path))


def load_ray(address: str | None) -> Any:
    """The module `ray`, told to be quiet, and to stay on this machine where no address is given.

    Raises:
        ExtraMissingError: it is not installed.
    """
    # Read when Ray is imported: it reports how it is used to its makers unless told not to.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        # All of it on the loopback address, which Ray has for systems with a noisy firewall.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
            # Ray would write a token of its own to the home folder.
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with needs_extra("ray"):
        import ray
    return ray


@contextmanager
def connected(address: str | None, *, threads: int = 1) -> Iterator[int]:
    """Ray while the block runs, and how many actors of so many threads the cluster has CPUs for.

    Args:
        address: of a running cluster, `host:port` or `auto`; None starts one on this machine, for this run only.

    Raises:
        ClusterError: the cluster cannot be reached, or has too few CPUs.
    """
    ray = load_ray(address)
    if address is not None:
        _check_port(address)
    folder = None
    options: dict[str, Any] = {"address": address}
    if address is None:
        folder = _session_folder()
        options = {
            "address": "local",  # whatever $RAY_ADDRESS says
            "num_cpus": max(threads, available_cpus()),
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "_temp_dir": folder,
        }
    try:
        try:
            # Ray prints what happens to workers among the rows on standard output.
            ray._private.worker._worker_logs_enabled = False
            with _no_api_server(ray) if address is None else nullcontext():
                ray.init(logging_level=logging.CRITICAL, log_to_driver=False, **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise _not_reached(address, error) from error
        capacity = _capacity(ray, threads)
        if capacity < 1:
            raise ClusterError(f"the Ray cluster has no machine with {threads} CPUs; give fewer --threads")
        yield capacity
    finally:
        ray.shutdown()
        ray._private.worker._worker_logs_enabled = True
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _check_port(address: str) -> None:
    """Refuse `host:port` where nobody listens: Ray would try for many minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _not_reached(address, error) from error


def _not_reached(address: str | None, error: BaseException) -> ClusterError:
    return ClusterError(
        f"cannot reach a Ray cluster at {address or 'this machine'}: {first_line(error)}; see if `ray status` finds it"
    )


def _session_folder() -> str:
    """A new private folder for Ray's sockets and logs; in /tmp where the usual place has too long a name for them."""
    usual = tempfile.gettempdir()
    is_too_long = len(os.fsencode(usual)) + len("/fer-ray-12345678") > _SESSION_PATH_BYTES
    return tempfile.mkdtemp(prefix="fer-ray-", dir="/tmp" if is_too_long and os.access("/tmp", os.W_OK) else usual)


@contextmanager
def _no_api_server(ray: Any) -> Iterator[None]:
    """Ray's nodes start no API server in the block.

    Without the dashboard it still asks the metadata services of three clouds over the network which of them it runs in,
    for the report of usage that it has been told not to send.
    """
    services = ray._private.services
    start = services.start_api_server
    services.start_api_server = lambda *arguments, **options: ("", None)
    try:
        yield
    finally:
        services.start_api_server = start


def recognized_shards(
    shards: Iterable[Shard],
    recipe: RecognizerRecipe,
    options: RayOptions,
    *,
    capacity: int,
    folder: str,
    output: str | None = None,
    format_name: str = "jsonl",
) -> Iterator[ShardResult]:
    """The result of each shard; in their order where rows are given back.

    Args:
        capacity: actors that the cluster has CPUs for.
        folder: where relative paths start.
        output: a folder of shards, as path or URI; None gives rows back.

    Raises:
        ClusterError: the cluster gave up. Shards that are written stay for --resume.
    """
    import ray

    actor_class = ray.remote(num_cpus=options.threads, max_restarts=0)(ShardRecognizer)
    shared_recipe = ray.put(recipe)
    try:
        yield from results_of(
            shards,
            lambda: actor_class.remote(shared_recipe, output=output, format_name=format_name, folder=folder),
            workers=options.workers or capacity,
            in_order=output is None,
            has_cpus=lambda: _capacity(ray, options.threads) > 0,
        )
    except (ray.exceptions.RayError, RuntimeError) as error:
        raise _cause(error) from error


def _capacity(ray: Any, threads: int) -> int:
    """Actors of so many threads that the cluster has CPUs for."""
    return int(ray.cluster_resources().get("CPU", 0)) // threads


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """How a run uses the cluster."""

    address: str | None = None  # None: this machine
    workers: int | None = None  # actors; None: as many as there are CPUs for
    threads: int = 1  # of ONNX Runtime in each actor
    shard_size: int = SHARD_SIZE  # images per shard, a multiple of BLOCK

    def __post_init__(self) -> None:
        if self.shard_size < 1 or self.shard_size % BLOCK:
            raise ValueError(f"shard_size must be a multiple of {BLOCK}, not {self.shard_size}")


def write_shards(
    recipe: RecognizerRecipe,
    images: Iterable[str],
    output: str,
    options: RayOptions,
    *,
    given: dict[str, Any],
    format_name: str,
    resume: bool,
    summary: JobSummary,
    on_start: Callable[[int, int, int], object] = lambda finished, shards, images: None,
    on_shard: Callable[[], object] = lambda: None,
) -> None:
    """Write the rows of all images to a folder of shards.

    Args:
        images: paths or URIs; not used where the run that is continued has left its plan.
        output: the folder, as path or URI, reachable from all machines of the cluster.
        given: what `images` were listed from, as plain JSON; --resume needs the same.
        summary: filled while shards are finished, including those of the run before.
        on_start: called with the numbers of finished shards, of all shards and of all images.
        on_shard: called after each shard.

    Raises:
        OutputError: another run is in the folder, or it cannot be written.
        ClusterError: the cluster cannot be reached, or gave up.
    """
    store = open_store(output)
    settings = recipe.settings | {"format": format_name, "part_size": options.shard_size} | given
    plan = find_plan(store, output, settings, resume=resume)
    if plan is None:
        plan = write_plan(store, settings, images, shard_size=options.shard_size)
    finished = finished_shards(store, plan, format_name)
    with ThreadPoolExecutor(_COUNT_READERS) as pool:
        names = [counts_name(number) for number in sorted(finished)]
        for name, counts in zip(names, pool.map(store.read, names), strict=True):
            add_summary(summary, counts or summary_to_json(JobSummary()), name=f"{output}/{name}")
    on_start(len(finished), plan.shards, plan.images)
    left = [Shard(number=number, paths=None) for number in range(plan.shards) if number not in finished]
    if left:
        with connected(options.address, threads=options.threads) as capacity:
            for done in recognized_shards(
                left,
                recipe,
                options,
                capacity=capacity,
                folder=plan.folder,
                output=output if is_uri(output) else os.path.abspath(output),
                format_name=format_name,
            ):
                add_summary(summary, done.summary)
                on_shard()
    store.write(SUCCESS, summary_to_json(summary).encode("ascii"))
    _remove_leftovers(output)


def rows_in_order(
    recipe: RecognizerRecipe, images: Iterable[str], options: RayOptions, *, summary: JobSummary
) -> Iterator[str]:
    """The rows of all images as JSON Lines, in their order, a shard at a time.

    Args:
        images: paths or URIs, taken some shards ahead.
        summary: filled while shards are finished.

    Raises:
        ClusterError: the cluster cannot be reached, or gave up.
    """
    lists = enumerate(path_lists(images, options.shard_size))
    shards = (Shard(number=number, paths=json.dumps(paths)) for number, paths in lists)
    with connected(options.address, threads=options.threads) as capacity:
        for done in recognized_shards(shards, recipe, options, capacity=capacity, folder=os.getcwd()):
            add_summary(summary, done.summary)
            yield done.rows


def _remove_leftovers(output: str) -> None:
    """Remove the temporary files of actors that were killed; called when no actor writes any more."""
    if (root := local_folder(output)) is None:
        return
    for folder in (root, root / "_job" / "counts"):
        for partial in folder.glob(".*.partial"):
            with suppress(OSError):
                partial.unlink()


def _cause(error: BaseException) -> FerError:
    """The error of ours inside Ray's, or Ray's in a line."""
    text = str(error)
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, FerError) and not hasattr(inner, "cause"):  # Ray's copies have the traceback as text
            return inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    # An exception that was raised in an actor arrives as its traceback; Ray's own advice comes after it.
    raised = re.findall(r"^(\w[\w.]*(?:Error|Exception): .+)$", text, flags=re.MULTILINE)
    if ours := [line for line in raised if line.startswith(FerError.__module__ + ".")]:
        # The last one: what it was raised from stands above it.
        return ClusterError(f"{ours[-1].partition(': ')[2]}; shards that are written stay for --resume")
    reason = next((line for line in raised if "UserCodeException" not in line), first_line(error))
    return ClusterError(f"the Ray cluster gave up: {reason}; shards that are written stay for --resume")
