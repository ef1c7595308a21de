"""Fixtures for real data, which is not part of the repository."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.commands import end_servers
from tests.processes import waits_have_limits

from fer_runtime.detectors.yunet_file import yunet_path

CHECKOUT = Path(__file__).parents[1]

# A script in the background ignores SIGINT, and so would the processes that tests start to interrupt them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Modules of some five seconds of CPU time and more, in tests/. `make test` gives each module to one of three processes:
# long ones come first, so that none is left over at the end, when the others have nothing more to do.
_LONGEST = (
    "runtime/cluster/test_engine.py",
    "export/test_pipeline.py",
    "train/loop/test_distributed.py",
    "export/site/test_write.py",
    "export/test_planted_faults.py",
    "project/test_telemetry.py",
    "export/site/test_package.py",
    "project/test_hostile_model_files.py",
    "train/loop/test_trainer.py",
    "export/gate/test_moved_weights.py",
    "runtime/video/test_recognize.py",
    "benchmarks/report/test_measure.py",
    "benchmarks/browser/test_measure.py",
    "project/test_hostile_texts.py",
    "export/test_foreign_networks.py",
    "runtime/cli/test_stopped_runs.py",
    "train/data/test_audit.py",
    "train/test_notebook.py",
    "project/test_plugins.py",
    "runtime/server/test_live.py",
    "runtime/cli/test_infer.py",
    "benchmarks/test_engines.py",
    "export/targets/test_targets.py",
    "benchmarks/latency/test_measure.py",
)

# Modules that one worker runs, by the beginning of their names: they share PyTorch's exporter with its operators and
# the three files of a small network, or PyTorch's optimizers. Each worker would load or make those anew.
_TOGETHER = {
    "tests/export": ("tests/export/test_", "tests/export/adopt/", "tests/export/gate/", "tests/export/int8/"),
    "tests/train": ("tests/train/",),
}


_IN_MEMORY = Path("/dev/shm")
_ROOM = 4 << 30  # bytes; the largest test writes 90 MB


# Until all tests are collected nothing but imports is done, which makes no garbage.
gc.disable()


def pytest_configure() -> None:
    """Put temporary files into memory where there is much: on a disk, each one that is made to last costs 3 ms."""
    if {"PYTEST_DEBUG_TEMPROOT", "TMPDIR"} & set(os.environ) or not os.access(_IN_MEMORY, os.W_OK):
        return
    volume = os.statvfs(_IN_MEMORY)
    if volume.f_bavail * volume.f_frsize >= _ROOM and not volume.f_flag & os.ST_NOEXEC:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(_IN_MEMORY)


def pytest_collection_finish() -> None:
    """Keep what the tests import from the garbage collector, which took a fifth of an export's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {CHECKOUT / "tests" / name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One worker for all tests of a module, and for all modules of a group.

    xdist's own groups, marks in names of tests, do nothing with pytest 9.2 and xdist 3.8.
    """
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            module: str = super()._split_scope(nodeid)
            return next((group for group, starts in _TOGETHER.items() if nodeid.startswith(starts)), module)

    return ByGroup(config, log)


@pytest.fixture(scope="session", autouse=True)
def _no_endless_waits() -> Iterator[None]:
    with waits_have_limits():
        yield
        end_servers()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Root of the FER2013 images: $FER_EDGE_DATA."""
    given = os.environ.get("FER_EDGE_DATA")
    if not given:
        pytest.skip("needs the FER2013 images: set FER_EDGE_DATA to the dataset's root")
    root = Path(given)
    if not all((root / "images" / split).is_dir() for split in ("train", "validation")):
        # Skipping would hide a wrong path.
        pytest.fail(f"FER_EDGE_DATA={given} has no images/train and images/validation")
    return root


@pytest.fixture(scope="session")
def yunet() -> Path:
    """YuNet's file: $FER_EDGE_YUNET, or the one that fer-infer --fetch-yunet has stored."""
    given = os.environ.get("FER_EDGE_YUNET")
    path = Path(given) if given else yunet_path()
    if not path.is_file():
        if given:
            pytest.fail(f"FER_EDGE_YUNET={given} is not a file")
        pytest.skip("needs YuNet's file: set FER_EDGE_YUNET, or fetch it with fer-infer --fetch-yunet")
    return path
